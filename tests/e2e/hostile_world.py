"""A stack before a service that writes down what it gets, and the hostile list sent through it."""

import asyncio
import base64
import json
import re
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import jwt
import yaml
from live import Account, Tuned, account
from readings import lenient, typical
from wire import Heard, filled, send_http1, send_http2

from authz.demo.people import AUDIENCE, ISSUER, Keys, Person
from authz.demo.stack import HOST, free_port, running
from authz.record import clean
from authz.record.privacy import load_key
from authz.record.resource import Resources
from authz.store.client import connect

VECTORS = Path(__file__).parents[1] / "vectors" / "hostile" / "requests.yaml"
RECORDER = Path(__file__).with_name("recording_service.py")

READER = Person("reader", "u.reader", ("reader",), "lakeside", "TREAT")
LISTER = Person("lister", "u.lister", ("lister",), "lakeside", "TREAT")
ROOT = Person("root", "root", ("root",), "lakeside", "TREAT")
SENDERS = (READER, LISTER)

# The reader's rule names what is allowed, the lister's what is not. What the policy saw travels on,
# so that it can be held against what the service reads.
POLICY = """package envoy.authz
import rego.v1

http := input.attributes.request.http

verified := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"]

claims := verified.verified_jwt

default allow := {"allowed": false}

allow := {
	"allowed": true,
	"headers": {
		"x-authz-subject": claims.sub,
		"x-authz-path": urlquery.encode(concat("/", input.parsed_path)),
	},
	"audit": {"subject": claims.sub},
} if permitted

permitted if claims.sub == "root"

permitted if {
	claims.sub == "u.reader"
	http.method == "GET"
	http.host == "127.0.0.1"
	input.parsed_path == ["fhir", "Patient", "p-allowed"]
	every key, _ in input.parsed_query { key == "_format" }
}

permitted if {
	claims.sub == "u.lister"
	http.method == "GET"
	not closed
}

closed if input.parsed_path[0] == "admin"

closed if array.slice(input.parsed_path, 0, 3) == ["fhir", "Patient", "p-secret"]

closed if contains(http.headers["x-level"], "secret")
"""
SECRET, ADMIN, ALLOWED = b"/fhir/Patient/p-secret", b"/admin", b"/fhir/Patient/p-allowed"

# What services take for the path, the method or the person instead of the real ones; `-` for `_`.
PATH_HEADERS = {"x-original-url", "x-rewrite-url", "x-envoy-original-path"}
METHOD_HEADERS = {"x-http-method", "x-http-method-override", "x-method-override"}
PERSON_HEADERS = {
    "remote-user", "x-audit-subject", "x-auth-request-user", "x-authenticated-user",
    "x-jwt-payload", "x-authz-subject", "x-forwarded-email", "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-user", "x-principal", "x-remote-user", "x-role", "x-roles", "x-subject",
    "x-tenant", "x-user", "x-user-id", "x-userinfo", "x-username", "x-forwarded-client-cert",
}  # fmt: skip


class Watched(Tuned):
    """A stack whose service is recording_service.py."""

    @property
    def record(self) -> Path:
        return self.data_dir / "requests.ndjson"

    def _add_service(self) -> None:
        address = f"{HOST}:{free_port()}"
        command = [sys.executable, str(RECORDER), "--listen", address, "--record", str(self.record)]
        self._part("service", command, address)


@dataclass(frozen=True, slots=True)
class Served:
    """One request as the service got it, and how it can be read."""

    number: int
    head: bytes
    body: bytes

    @property
    def request_line(self) -> list[bytes]:
        return self.head.partition(b"\r\n")[0].split(b" ")

    @property
    def target(self) -> bytes:
        return self.request_line[1]

    @property
    def method(self) -> str:
        return self.request_line[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        pairs = (line.partition(":") for line in lines)
        return [(name.lower().replace("_", "-"), value.strip()) for name, _, value in pairs]

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True)
class Decision:
    decision_id: str
    allowed: bool
    subject: str
    method: str
    host: str
    path: str
    resource_id: str


@dataclass
class World:
    """One stack, and what came of the list there: `heard` by the request's name and sender."""

    stack: Watched
    heard: dict[tuple[str, str], Heard] = field(default_factory=dict)
    found: Account | None = None
    traces: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    @cached_property
    def served(self) -> list[Served]:
        return [
            Served(line["served"], line["head"].encode("latin-1"), line["body"].encode("latin-1"))
            for line in self.lines
            if "served" in line
        ]

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stack.record.read_text().splitlines()]

    @cached_property
    def decisions(self) -> dict[str, list[Decision]]:
        """By request id, which Envoy makes itself for each request."""
        found = defaultdict(list)
        with connect(self.stack.store) as client:
            for request_id, *values in client.execute(
                "SELECT request_id, decision_id, allowed, subject, method, host, path, resource_id"
                " FROM decisions"
            ):
                found[request_id].append(Decision(*values))
        return found

    @cached_property
    def reached(self) -> dict[str, list[str]]:
        """The upstream of each access, by its decision's id."""
        found = defaultdict(list)
        with connect(self.stack.store) as client:
            for decision_id, upstream in client.execute(
                "SELECT decision_id, upstream FROM accesses WHERE upstream != ''"
            ):
                found[decision_id].append(upstream)
        return found

    def name(self, served: Served) -> str:
        """Which request of the list this is, if its traceparent says so."""
        return self.traces.get(next(iter(served.values("traceparent")), ""), "a request unknown")

    def decision(self, served: Served) -> Decision | None:
        """The one decision that let it through, if there is exactly one."""
        ids = served.values("x-request-id")
        found = self.decisions.get(ids[0], []) if len(ids) == 1 else []
        return found[0] if len(found) == 1 and found[0].allowed else None

    def same_resource(self, served: Served, decision: Decision) -> bool:
        """Whether the record of the decision is about what the service was asked for."""
        key = load_key(self.stack.data_dir / "ext-authz" / "privacy.key")
        resource = Resources().read(served.method, served.target.decode())
        identifier = key.token(resource.id) if resource.type == "Patient" and resource.id else ""
        host, *others = served.values("host")
        expected = clean({"method": served.method, "host": host, "path": resource.path})
        told = clean({"method": decision.method, "host": decision.host, "path": decision.path})
        return not others and told == expected and decision.resource_id == identifier


def seen(served: Served) -> bytes:
    """The path that the policy saw, unescaped."""
    return ("/" + unquote_plus(*served.values("x-authz-path"))).encode()


def persons(served: Served) -> set[str]:
    """Who asks, for services that believe a header, or credentials that they do not check."""
    found = {value for name, value in served.headers if name in PERSON_HEADERS}
    for value in served.values("authorization"):
        for token in _TOKENS.findall(value):
            found.add(jwt.decode(token, options={"verify_signature": False})["sub"])
        for user in _BASIC.findall(value):
            found.add(base64.b64decode(user + "==").decode().partition(":")[0])
    return found


_TOKENS = re.compile(r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*")
_BASIC = re.compile(r"basic +([\w+/]+)", re.IGNORECASE)


def denied(served: Served, subject: str) -> str:
    """Why the policy says no to `subject` asking for what a service reads in `served`, or ""."""
    targets = [served.target, *(value.encode("latin-1") for name, value in served.headers
                                if name in PATH_HEADERS)]  # fmt: skip
    methods = {served.method, *(value for name, value in served.headers if name in METHOD_HEADERS)}
    if served.values("x-authz-subject") != [subject] or persons(served) != {subject}:
        return f"it may be from {sorted(persons(served))}"
    if methods != {"GET"}:
        return f"its method may be {sorted(methods)}"
    if subject == READER.sub:
        read = set().union(*map(lenient, targets))
        wrong = read - {ALLOWED, ALLOWED.lower()}
        return f"it may be {sorted(wrong)}" if wrong else ""
    if subject == LISTER.sub:
        read = set().union(*map(typical, targets))
        wrong = {path for path in read if _below(path, ADMIN) or _below(path, SECRET)}
        if wrong:
            return f"it may be {sorted(wrong)}"
        return "a level is secret" if any("secret" in v for v in served.values("x-level")) else ""
    return f"{subject} sent nothing"


def _below(path: bytes, resource: bytes) -> bool:
    return path == resource or path.startswith(resource + b"/")


def load() -> list[dict[str, Any]]:
    return yaml.safe_load(VECTORS.read_text(encoding="utf-8"))


def opened(
    directory: Path,
    bootstrap: Callable[[str], str] = lambda text: text,
    **ext_authz: str,
) -> Iterator[World]:
    """A running stack, after the whole list went through it as both senders."""
    policy = directory / "policy.rego"
    policy.write_text(POLICY)
    settings = {f"AUTHZ_EXT_AUTHZ__{name.upper()}": value for name, value in ext_authz.items()}
    stack = Watched(
        directory / "data", policy=policy, bootstrap=bootstrap, ext_authz=settings, timeout_ms=2000
    )
    with running(stack, lambda _: None):
        world = World(stack)
        begun = time.monotonic()
        asyncio.run(_send_all(world))
        world.seconds = time.monotonic() - begun
        world.found = account(stack)
        yield world


async def _send_all(world: World) -> None:
    keys, strangers = world.stack.keys, Keys()
    address = world.stack.parts["envoy"].address
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": ROOT.sub, "exp": int(time.time()) + 3600}
    common = {
        "host": address.split(":")[0],
        "forged": jwt.encode(claims, "", algorithm="none"),
        "expired": keys.token(ROOT, -3600),
        "stranger": strangers.token(ROOT),
    }
    todo = iter([(entry, who) for entry in load() for who in SENDERS])

    async def work() -> None:
        for entry, who in todo:
            trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
            values = {**common, "token": keys.token(who), "trace": trace}
            world.traces[trace] = entry["name"]
            world.heard[entry["name"], who.sub] = await _send(entry, address, values)

    await asyncio.gather(*(work() for _ in range(64)))


async def _send(entry: Mapping[str, Any], address: str, values: Mapping[str, str]) -> Heard:
    patience = 0.3
    values = {"usual": _USUAL, **values}
    if "h2" in entry:
        return await send_http2(address, entry["h2"], values, patience)
    parts = [entry["send"]] if isinstance(entry["send"], str) else entry["send"]
    return await send_http1(address, [filled(part, values) for part in parts], patience)


_USUAL = (
    "host: {host}\r\nauthorization: Bearer {token}\r\ntraceparent: {trace}\r\nconnection: close"
)
