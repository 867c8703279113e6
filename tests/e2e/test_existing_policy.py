"""Policies that were written for opa-envoy-plugin, dropped in as they are: they say yes or no, and
the records say who, in which roles, on whose data all the same."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Caller, account
from programs import AUTHZ, run, world

from authz.demo.people import PEOPLE, Request
from authz.demo.stack import Stack, free_port, running
from authz.record.privacy import load_key
from authz.store.client import connect

pytestmark = [pytest.mark.opa, pytest.mark.thorough]

# As OPA reads Rego today; the policy takes the token apart by itself.
DECODES = """package envoy.authz

import input.attributes.request.http

default allow := false

allow if {
	http.method == "GET"
	some role in token.roles
	role in readers[input.parsed_path[1]]
}

readers := {"Patient": ["physician"], "Observation": ["physician", "analyst"]}

token := payload if {
	[scheme, encoded] := split(http.headers.authorization, " ")
	scheme == "Bearer"
	[_, payload, _] := io.jwt.decode(encoded)
}
"""
# As policies were written before OPA 1.0; without a default a denial is undefined.
UNDEFINED = """package envoy.authz

import input.attributes.request.http as http_request

allow {
	http_request.method == "GET"
	permitted[_] == input.parsed_path[1]
}

permitted[kind] {
	claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"]
	kind := kinds[claims.verified_jwt.roles[_]][_]
}

kinds = {"physician": ["Patient", "Observation"], "analyst": ["Observation"]}
"""
# A decision built of parts, with what the client is to see; `result` is what is asked for.
PARTS = """package clinic.ingress

import rego.v1

default allow := false

allow if {
	input.attributes.request.http.method == "GET"
	bearer := input.attributes.request.http.headers.authorization
	[_, claims, _] := io.jwt.decode(trim_prefix(bearer, "Bearer "))
	claims.roles[_] == {"Patient": "physician", "Observation": "analyst"}[input.parsed_path[1]]
}

result["allowed"] := allow

result["http_status"] := 404 if not allow

result["headers"] := {"x-decided-by": "opa"}

result["body"] := "nothing here" if not allow
"""

READS = Request("alder", "GET", "/fhir/Patient/p-0007")
SEARCHES = Request("elm", "GET", "/fhir/Observation?subject=Patient/p-0008")
CHANGES = Request("alder", "PUT", "/fhir/Patient/p-0007", body=b"{}")
PRIES = Request("dogwood", "GET", "/fhir/Patient/p-0009/$everything")

_ROW = (
    "SELECT subject, roles, allowed, reason_code, resource_type, resource_id, patients, path,"
    " action, policy_revision FROM {} WHERE trace_id = %(trace)s"
)


@contextlib.contextmanager
def served(opa: str, *options: str | Path) -> Iterator[str]:
    """The address of an OPA server that was started with these."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        opa,
        "run",
        "--server",
        "--addr",
        address,
        "--log-level",
        "error",
        *map(str, options),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait()


class Deciding(Stack):
    """A stack that asks for another decision than envoy/authz/allow."""

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        self.parts["ext-authz"].command += ["--decision", "clinic/ingress/result"]


@pytest.fixture
def policy(tmp_path):
    """Writes the policy into a directory of its own."""

    def write(text: str) -> Path:
        directory = tmp_path / "policy"
        directory.mkdir()
        (directory / "policy.rego").write_text(text)
        return directory

    return write


def records(stack: Stack, denied: tuple[int, str]) -> str:
    """Send what is allowed and what is denied; hold each record to what it has to say. Returns the
    id of a decision."""

    async def send():
        async with Caller(stack) as caller:
            return [await caller.send(one) for one in (READS, SEARCHES, CHANGES, PRIES)]

    status, reason_code = denied
    answers = asyncio.run(send())
    assert [answer.status for answer in answers] == [200, 200, status, status]
    counted = account(stack)
    assert (counted.report.verified, counted.report.gaps) == (True, {})
    key = load_key(stack.data_dir / "ext-authz" / "privacy.key")
    expected = [
        ("Patient", "p-0007", "/fhir/Patient/{id}", "R"),
        ("Observation", "p-0008", "/fhir/Observation", "E"),
        ("Patient", "p-0007", "/fhir/Patient/{id}", "U"),
        ("Patient", "p-0009", "/fhir/Patient/{id}/$everything", "E"),
    ]
    with connect(stack.store) as client:
        for answer, (kind, patient, path, action) in zip(answers, expected, strict=True):
            allowed = answer.status == 200
            token = key.token(patient)
            person = PEOPLE[answer.request.person]
            found = [
                client.execute(_ROW.format(view), {"trace": answer.trace})
                for view in ("decisions", "accesses")
            ]
            assert found[0] == found[1], "the access says what the decision said"
            [row] = found[0]
            assert row[:-1] == (
                person.sub, list(person.roles), allowed, "allowed" if allowed else reason_code,
                kind, token if kind == "Patient" else "", [token], path, action,
            )  # fmt: skip
        rows = client.execute("SELECT * FROM audit_log")
        assert not [row for row in rows if "p-000" in str(row)], "only tokens"
    return counted.decisions[answers[0].trace][0].decision_id


def rego_of(stack: Stack, decision_id: str) -> str:
    """What one command prints of the policy behind a record."""
    with world() as ours:
        environment = {**ours.environment, "AUTHZ_STORE": stack.store}
        done = run([*AUTHZ, "policy", "show", decision_id], ours, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_a_file_and_the_embedded_engine(policy, tmp_path):
    """A policy that only says yes or no, read from its file, leaves full records."""
    stack = Stack(tmp_path / "data", policy=policy(DECODES), timeout_ms=2000)
    with running(stack, lambda _: None):
        decision_id = records(stack, (403, "denied"))
        assert DECODES in rego_of(stack, decision_id)


def test_a_bundle_on_an_opa_server(opa, policy, tmp_path):
    """So does one from before OPA 1.0, in an OPA server's bundle, where a denial is undefined."""
    bundle = tmp_path / "bundle.tar.gz"
    subprocess.run(
        [opa, "build", "--v0-compatible", "--bundle", policy(UNDEFINED), "--output", bundle],
        check=True,
    )
    with served(opa, "--bundle", bundle) as address:
        stack = Stack(tmp_path / "data", policy=address, timeout_ms=2000)
        with running(stack, lambda _: None):
            decision_id = records(stack, (403, "policy_error"))
            assert UNDEFINED in rego_of(stack, decision_id)


@pytest.mark.thorough
def test_a_decision_in_parts(opa, policy, tmp_path):
    """So does one under another name, that builds its answer of parts; the client gets these."""
    with served(opa, policy(PARTS)) as address:
        stack = Deciding(tmp_path / "data", policy=address, timeout_ms=2000)
        with running(stack, lambda _: None):

            async def fetch():
                async with Caller(stack) as caller:
                    return await caller.fetch(PRIES)

            _, (body, headers) = asyncio.run(fetch())
            assert (body, headers["x-decided-by"]) == (b"nothing here", "opa")
            decision_id = records(stack, (404, "denied"))
            assert PARTS in rego_of(stack, decision_id)
