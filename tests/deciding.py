"""What tests of the shipped policy share: a request as a policy sees it, and both engines."""

import asyncio
import json
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from authz.demo.people import PEOPLE, Request
from authz.policy.embedded import EmbeddedEngine

POLICY = Path(__file__).parents[1] / "deploy" / "opa"
DECISION = "envoy/authz/allow"


def input_document(request: Request, *, with_body: bool = True) -> dict:
    """What the policy sees of `request` once Envoy has verified its person's token."""
    parts = urlsplit(request.path)
    http = {
        "method": request.method,
        "path": request.path,
        "host": "fhir.example",
        "headers": {":method": request.method, ":path": request.path, **request.headers},
    }
    if with_body and request.body:
        http["body"] = request.body.decode()
    attributes = {"request": {"http": http}}
    if request.person is not None:
        person = PEOPLE[request.person]
        claims = {
            "sub": person.sub,
            "roles": list(person.roles),
            "tenant": person.tenant,
            "purpose": person.purpose,
        }
        verified = {"envoy.filters.http.jwt_authn": {"verified_jwt": claims}}
        attributes["metadataContext"] = {"filterMetadata": verified}
    return {
        "version": {"ext_authz": "v3", "encoding": "protojson"},
        "attributes": attributes,
        "parsed_path": unquote(parts.path).lstrip("/").split("/"),
        "parsed_query": parse_qs(parts.query, keep_blank_values=True),
        "parsed_body": None,
        "truncated_body": False,
    }


class Embedded:
    """The policy directory in the embedded engine, as ext-authz has it."""

    def __init__(self, policy: Path, decision: str = DECISION) -> None:
        self._engine = EmbeddedEngine(policy, decision)
        asyncio.run(self._engine.start())

    def decide(self, document: dict) -> object:
        [outcome] = self._engine.decide([document], time.monotonic() + 60).outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def decide_with_opa(
    opa: str, policy: Path, documents: list[dict], decision: str = DECISION
) -> list[dict]:
    """OPA's decision on each document, all in one run of the program."""
    asked = "data." + decision.replace("/", ".")
    query = f"[d | some i; doc := input.documents[i]; d := {asked} with input as doc]"
    command = (opa, "eval", "--bundle", str(policy), "--stdin-input", "--strict-builtin-errors")
    output = run(*command, query, stdin=json.dumps({"documents": documents}))
    return json.loads(output)["result"][0]["expressions"][0]["value"]
