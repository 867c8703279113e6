"""deploy/istio in a real Envoy whose filters are in Istio's order: ext_authz before jwt_authn.

ext-authz, OPA, receiver and ClickHouse are real too, and the policy is the sample one.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from istio import DIRECTORY, Mesh
from live import ACCOUNTS, Account, Answer, Caller, Told, Tuned, account, told
from programs import until

from authz.demo.people import AUDIENCE, ISSUER, KEY_ID, PEOPLE, Keys, Request
from authz.demo.stack import HOST, Part, deploy_dir, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.opa

CHART = "/fhir/Patient/p-0001"
_TIMEOUT_MS = 5000  # this machine may be busy


@dataclass
class Found:
    answers: dict[str, Answer]
    account: Account
    told: Told
    decisions: dict[str, list[Any]]
    """By trace id: subject, roles, allowed, reason code."""
    logs: str
    tokens: list[str]


def requests(keys: Keys) -> dict[str, Request]:
    alder = PEOPLE["alder"]
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": alder.sub, "roles": ["physician"],
              "tenant": "lakeside", "purpose": "TREAT", "exp": 4_000_000_000}  # fmt: skip
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": KEY_ID})

    def bearer(token: str, path: str = CHART, **more: str) -> Request:
        return Request(None, "GET", path, {"authorization": f"Bearer {token}", **more})

    return {
        "valid": bearer(keys.token(alder)),
        "denied": bearer(keys.token(PEOPLE["birch"])),
        "forged": bearer(Keys().token(alder)),
        "expired": bearer(keys.token(alder, -3600)),
        "unsigned": bearer(unsigned),
        "none": Request(None, "GET", CHART),
        "in the query": Request(None, "GET", f"{CHART}?access_token={keys.token(alder)}"),
        "escaped": bearer(keys.token(alder), "/fhir/Patient%2Fp-0001"),
        "doubled": bearer(keys.token(alder), "/fhir//Patient/p-0001"),
        "spoofed": bearer(keys.token(alder), x_user="root"),
    }


class Istio(Tuned):
    """The demo's parts around an Envoy that is configured as Istio does it."""

    def __init__(self, directory: Path, policy: str) -> None:
        config = yaml.safe_load((DIRECTORY / "authz.yaml").read_text())
        [issuer] = config["identity"]["issuers"]
        issuer["jwks"] = str(directory / "data" / "jwks.json")  # in place of the provider's address
        settings = {
            "AUTHZ_IDENTITY__SOURCES": json.dumps(config["identity"]["sources"]),
            "AUTHZ_IDENTITY__REQUIRED": json.dumps(config["identity"]["required"]),
            "AUTHZ_IDENTITY__ISSUERS": json.dumps([issuer]),
            "AUTHZ_EXT_AUTHZ__CLIENT_ADDRESS": "peer",
            "AUTHZ_DISCLOSURE__ROUTES": "[]",
        }
        super().__init__(
            directory / "data", policy=policy, bootstrap=self._as_istio, ext_authz=settings,
            receiver=ACCOUNTS, timeout_ms=_TIMEOUT_MS,
        )  # fmt: skip

    def _as_istio(self, text: str) -> str:
        document = yaml.safe_load(text)
        [listener] = document["static_resources"]["listeners"]
        mesh = Mesh()
        asked = mesh.provider("authz", "envoyExtAuthzGrpc")
        asked["timeout"] = f"{_TIMEOUT_MS / 1000}s"
        named = {
            asked["service"]: "authz",
            mesh.provider("authz-access-log", "envoyHttpAls")["service"]: "receiver",
        }
        jwks = json.dumps(self.keys.jwks())
        manager = mesh.connection_manager(jwks, named, "service")
        listener["filter_chains"][0]["filters"][0]["typed_config"] = manager
        return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def found(tmp_path_factory, opa) -> Found:
    directory = tmp_path_factory.mktemp("istio")
    address = f"{HOST}:{free_port()}"
    command = [opa, "run", "--server", "--addr", address, "--log-level", "error",
               "--skip-version-check", str(deploy_dir() / "opa")]  # fmt: skip
    server = Part("opa", command, directory / "opa.log", address=address)
    server.start()
    try:
        server.wait_until_up()
        stack = Istio(directory, f"http://{address}")
        stack.data_dir.mkdir()
        (stack.data_dir / "jwks.json").write_text(json.dumps(stack.keys.jwks()))
        with running(stack, lambda _: None):
            sent = requests(stack.keys)
            assert until(lambda: asyncio.run(send(stack, sent))["valid"].status == 200, 60)
            answers = asyncio.run(send(stack, sent))
            counted, said = account(stack), told(stack.store)
            query = "SELECT trace_id, subject, roles, allowed, reason_code FROM decisions"
            with connect(stack.store) as client:
                decisions = {trace: row for trace, *row in client.execute(query)}
            stack.parts["ext-authz"].stop()
            answers["authz down"] = asyncio.run(send(stack, {"": sent["valid"]}))[""]
            logs = "".join(part.log.read_text(errors="replace") for part in stack.parts.values())
            tokens = [one.headers.get("authorization", "") for one in sent.values()]
            return Found(answers, counted, said, decisions, logs, tokens)
    finally:
        server.stop()


async def send(stack: Istio, sent: dict[str, Request]) -> dict[str, Answer]:
    async with Caller(stack) as caller:
        return {name: await caller.send(request) for name, request in sent.items()}


def decision(found: Found, name: str) -> list[Any]:
    return found.decisions[found.answers[name].trace]


def test_a_valid_token(found):
    """It is served, and its subject and roles are on record."""
    assert found.answers["valid"].status == 200
    assert decision(found, "valid") == ["dr.alder", ["physician"], True, "allowed"]
    assert found.answers["doubled"].status == 200  # one path: it is merged before it is decided on
    assert found.answers["denied"].status == 403
    assert decision(found, "denied") == ["dr.birch", ["physician"], False, "denied"]


@pytest.mark.parametrize(
    ("name", "reason_codes"),
    [
        ("forged", {"bad_signature"}),
        ("expired", {"token_expired"}),
        ("unsigned", {"bad_signature", "malformed_token", "unknown_key"}),
        ("none", {"no_identity"}),
        ("in the query", {"no_identity"}),
    ],
)
def test_a_bad_token(found, name, reason_codes):
    """It is a denial by authz, before Istio's own filter, on record without a subject."""
    assert found.answers[name].status == 401
    subject, roles, allowed, reason_code = decision(found, name)
    assert (subject, roles, allowed) == ("", [], False)
    assert reason_code in reason_codes


def test_paths_and_headers(found):
    """An escaped slash is refused by authz, and a header with an underscore by Envoy."""
    assert found.answers["escaped"].status == 400
    assert decision(found, "escaped")[3] == "unsafe_path"
    assert found.answers["spoofed"].status == 400
    assert found.answers["spoofed"].trace not in found.decisions


def test_without_authz(found):
    """Nothing is let through: failOpen is false, and the status says that it is no denial."""
    assert found.answers["authz down"].status == 503


def test_the_join(found):
    """Each access names its decision, by the metadata of Istio's ext_authz; no gap, no bypass."""
    for name, answer in found.answers.items():
        if answer.trace in found.decisions:
            [decided] = found.account.decisions[answer.trace]
            [access] = found.account.accesses[answer.trace]
            assert access.decision_id == decided.decision_id, name
            assert bool(access.upstream) is (answer.status == 200)
    assert found.account.report.verified
    assert found.told.gaps == {}


def test_no_token_is_in_a_log(found):
    parts = [part for token in found.tokens for part in token.split(".")[1:] if len(part) > 20]
    assert parts
    assert not [part for part in parts if part in found.logs]
