"""Tokens that ext-authz verifies itself, through an Envoy without a JWT filter.

What Istio and Envoy Gateway need, whose JWT filters come after ext_authz.
"""

import asyncio
import json
from dataclasses import dataclass

import jwt
import pytest
from live import Answer, Caller, Tuned, account

from authz.demo.people import AUDIENCE, ISSUER, KEY_ID, PEOPLE, Keys, Request
from authz.demo.stack import running
from authz.store.client import connect

POLICY = """package envoy.authz
import rego.v1
default allow := {"allowed": false, "audit": {"reason": "no role"}}
allow := {"allowed": true, "audit": {"reason": "a physician"}} if {
	"physician" in input.authz.roles
	input.authz.claims.tenant == "lakeside"
}
"""
PATH = "/fhir/metadata"


def without_jwt_filter(text: str) -> str:
    begin = text.index("- name: envoy.filters.http.jwt_authn")
    end = text.index("- name: envoy.filters.http.ext_authz")
    return text[:begin] + text[end:]


@dataclass
class Found:
    """What became of one request."""

    answer: Answer
    subject: str
    roles: list[str]
    reason_code: str
    source_ip: str
    principal: str


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("identity")
    policy = directory / "policy.rego"
    policy.write_text(POLICY)
    issuer = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": str(directory / "data/jwks.json")}
    settings = {
        "AUTHZ_IDENTITY__SOURCES": '["jwt"]',
        "AUTHZ_IDENTITY__ISSUERS": json.dumps([issuer]),
    }
    stack = Tuned(directory / "data", policy=policy, bootstrap=without_jwt_filter,
                  ext_authz=settings, timeout_ms=2000)  # fmt: skip
    stack.data_dir.mkdir(parents=True)
    (stack.data_dir / "jwks.json").write_text(json.dumps(stack.keys.jwks()))
    alder = PEOPLE["alder"]
    strangers = Keys()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "roles": ["physician"],
              "tenant": "lakeside", "exp": 4_000_000_000}  # fmt: skip
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": KEY_ID})

    def bearer(token: str) -> Request:
        forged = {"x-forwarded-for": "192.0.2.66", "x-envoy-external-address": "192.0.2.66"}
        return Request(None, "GET", PATH, {"authorization": f"Bearer {token}", **forged})

    requests = {
        "valid": bearer(stack.keys.token(alder)),
        "no role": bearer(stack.keys.token(PEOPLE["ginkgo"])),
        "none": Request(None, "GET", PATH),
        "bad_signature": bearer(strangers.token(alder)),
        "token_expired": bearer(stack.keys.token(alder, -3600)),
        "malformed_token": bearer("a.b.c"),
        "unsigned": bearer(unsigned),
    }

    async def send():
        async with Caller(stack) as caller:
            return {name: await caller.send(request) for name, request in requests.items()}

    with running(stack, lambda _: None):
        answers = asyncio.run(send())
        counted = account(stack)
        with connect(stack.store) as client:
            query = (
                "SELECT trace_id, subject, roles, reason_code, source_ip, principal"
                " FROM decisions WHERE trace_id IN %(traces)s"
            )
            traces = [answer.trace for answer in answers.values()]
            rows = {row[0]: row[1:] for row in client.execute(query, {"traces": traces})}
        assert (counted.report.verified, counted.report.gaps) == (True, {})
        logs = stack.parts["ext-authz"].log.read_text()
    tokens = [one.headers.get("authorization", "").rpartition(" ")[2] for one in requests.values()]
    parts = [part for token in tokens for part in token.split(".")[1:] if len(part) > 20]
    assert parts
    assert not [part for part in parts if part in logs]
    return {name: Found(answer, *rows[answer.trace]) for name, answer in answers.items()}


def test_a_valid_token(found):
    """A valid token is served, with its subject and roles on record, and in the policy's input."""
    valid = found["valid"]
    assert (valid.answer.status, valid.subject, valid.roles) == (200, "dr.alder", ["physician"])
    denied = found["no role"]
    assert (denied.answer.status, denied.subject) == (403, PEOPLE["ginkgo"].sub)
    assert found["none"].answer.status == 403


@pytest.mark.parametrize("name", ["bad_signature", "token_expired", "malformed_token", "unsigned"])
def test_a_bad_token(found, name):
    """A bad one is a denial with its reason and the true address on record, and no subject."""
    one = found[name]
    assert one.answer.status == 401
    reasons = {"unsigned": {"bad_signature", "malformed_token", "unknown_key"}}
    assert one.reason_code in reasons.get(name, {name})
    assert (one.subject, one.roles) == ("", [])
    assert one.source_ip == "127.0.0.1"
