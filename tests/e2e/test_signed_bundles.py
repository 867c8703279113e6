"""A signed bundle in a real OPA: what is built is what decides, what is tampered with does not, and
the log says which policy decided what."""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live import Caller, Tuned, settle
from pages import block
from programs import AUTHZ, CHECKOUT, run, until, world

from authz.demo.people import Request
from authz.demo.stack import HOST, Part, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.opa

LIBRARY = CHECKOUT / "deploy" / "opa"
PAGE = (CHECKOUT / "docs" / "policies.md").read_text()
NURSE = Request("cedar", "GET", "/fhir/Patient/p-0001")
ANALYST = Request("elm", "GET", "/fhir/Patient/p-0001")
BILLING = Request("dogwood", "GET", "/fhir/Patient/p-0001")


class Shelf(http.server.BaseHTTPRequestHandler):
    """What a web server does with a bundle, entity tag included."""

    def __init__(self, holds: dict[str, bytes], *arguments: object) -> None:
        self._holds = holds
        super().__init__(*arguments)

    def do_GET(self) -> None:
        content = self._holds.get(self.path, b"")
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        same = self.headers.get("if-none-match") == tag
        self.send_response(304 if same else 200 if content else 404)
        self.send_header("etag", tag)
        self.send_header("content-length", "0" if same else str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if same else content)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Site:
    stack: Tuned
    directory: Path
    holds: dict[str, bytes]
    metrics: str
    api: str
    start: Callable[..., Part]

    def build(self, name: str, change=lambda data: None, key: str = "signing.pem") -> dict:
        """Build a policy that is the library with its data changed; not signed without a key."""
        policy = self.directory / name
        policy.mkdir()
        for path in LIBRARY.glob("*.rego"):
            (policy / path.name).write_text(path.read_text())
        data = json.loads((LIBRARY / "data.json").read_text())
        data["roles"]["billing"]["fields"] = {"Patient": ["name"]}
        change(data)
        (policy / "data.json").write_text(json.dumps(data))
        command = [*AUTHZ, "policy", "build", "--policy", policy, "--revision", name, "--json",
                   "-o", policy / "bundle.tar.gz"]  # fmt: skip
        if key:
            command += ["--signing-key", self.directory / key]
        with world() as where:
            done = run(command, where)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"content": (policy / "bundle.tar.gz").read_bytes()}

    def serve(self, content: bytes) -> None:
        self.holds["/authz/bundle.tar.gz"] = content

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def revision(self) -> str:
        """Of the bundle that decides."""
        with urllib.request.urlopen(f"{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(
            r'^last_success_bundle_activation\{.*active_revision="(.*?)"', text, re.MULTILINE
        )
        return found[-1] if found else ""

    def health(self) -> int:
        with urllib.request.urlopen(f"{self.metrics}/health?bundles", timeout=10) as answer:
            return answer.status

    def ask(self, *requests: Request) -> list[tuple[int, bytes]]:
        async def send():
            async with Caller(self.stack) as caller:
                return [await caller.fetch(request) for request in requests]

        told = asyncio.run(send())
        return [(answer.status, body) for answer, (body, _) in told]

    def becomes(self, status: int, request: Request) -> None:
        """Until `request` is answered so."""
        assert until(lambda: self.ask(request)[0][0] == status, 30)


def keys(directory: Path, name: str) -> bytes:
    """A new key pair: writes the private key, returns the public one."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (directory / name).write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(pem, info)


@contextlib.contextmanager
def shelf(holds: dict[str, bytes]) -> Iterator[str]:
    handler = functools.partial(Shelf, holds)
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


def started(
    opa: str, directory: Path, bundles: str, socket: str, address: str, metrics: str, more: str = ""
) -> Part:
    """OPA by the page's command, with more options, looking for bundles each second; it is at
    `address`, too."""
    [line, asks] = block("docs/policies.md", "BUNDLE_SERVICE=").replace("\\\n", "").splitlines()
    assert asks == "authz serve ext-authz --policy unix:///run/opa/opa.sock ..."
    name = socket.rpartition("/")[2]
    for old, new in (
        ("https://bundles.example.org", bundles), ("unix:///run/opa/opa.sock", socket),
        ("127.0.0.1:8282", metrics), ("deploy/opa", str(LIBRARY)),
    ):  # fmt: skip
        assert line.count(old) == 1
        line = line.replace(old, new)
    line += f" {more} --addr {address} --skip-version-check"
    line += f" --set persistence_directory={directory / name}.kept"
    line += " --set bundles.authz.polling.min_delay_seconds=1"
    line += " --set bundles.authz.polling.max_delay_seconds=1"
    where = {"PATH": f"{Path(opa).parent}{os.pathsep}{os.environ['PATH']}"}
    place = f"cd {shlex.quote(str(directory))} && exec env {line}"
    server = Part("opa", ["sh", "-c", place], directory / f"{name}.log", where, address)
    server.start()
    server.wait_until_up()
    return server


@pytest.fixture(scope="module")
def site(opa: str, tmp_path_factory) -> Iterator[Site]:
    """A stack that asks an OPA with the shipped configuration, looking for bundles each second."""
    directory = tmp_path_factory.mktemp("bundles")
    (directory / "bundle.pem").write_bytes(keys(directory, "signing.pem"))
    (directory / "bundle-2.pem").write_bytes(keys(directory, "signing-2.pem"))
    keys(directory, "stranger.pem")
    address, metrics = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
    holds: dict[str, bytes] = {}
    socket = f"unix://{directory / 'opa.sock'}"
    stack = Tuned(directory / "data", policy=socket, timeout_ms=2000)
    with shelf(holds) as url:
        start = functools.partial(started, opa, directory, url)
        found = Site(stack, directory, holds, f"http://{metrics}", f"http://{address}", start)
        found.serve(found.build("first")["content"])
        server = start(socket, address, metrics)
        try:
            assert until(lambda: found.metric("bundle_loaded_counter"), 30)
            with running(stack, lambda _: None):
                yield found
        finally:
            server.stop()


def tampered(bundle: bytes) -> bytes:
    """The bundle with a right in its data that nobody signed."""
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(bundle)) as old,
        tarfile.open(fileobj=made, mode="w:gz") as new,
    ):
        for member in old:
            content = old.extractfile(member).read()
            if member.name == "/data.json":
                data = json.loads(content)
                data["roles"]["analyst"]["may"]["Patient"] = ["read"]
                content = json.dumps(data).encode()
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return made.getvalue()


def no_nurse(data: dict) -> None:
    del data["roles"]["nurse"]


def test_tampered_and_rolled_back(site: Site) -> None:
    """A change of the data alone is in force and has a revision of its own. What is tampered with,
    not signed, or signed by a stranger is not taken: the last good policy decides, the counter
    moves, and OPA's health stays 200. The bundle before is taken back, and its revision is again
    the one on record."""
    first = site.build("first again")
    assert first["revision"] == "first again"
    site.becomes(200, NURSE)
    second = site.build("second", no_nurse)
    failed = site.metric("bundle_failed_load_counter")
    site.serve(second["content"])
    site.becomes(403, NURSE)
    assert site.metric("bundle_failed_load_counter") == failed
    bad = {
        "changed": tampered(second["content"]),
        "unsigned": site.build("unsigned", key="")["content"],
        "a stranger's": site.build("strange", key="stranger.pem")["content"],
    }
    for name, content in bad.items():
        before = site.metric("bundle_failed_load_counter")
        site.serve(content)
        assert until(
            lambda before=before: site.metric("bundle_failed_load_counter") > before, 30
        ), name
        assert [status for status, _ in site.ask(NURSE, ANALYST)] == [403, 403], name
        assert site.health() == 200
    site.serve(first["content"])
    site.becomes(200, NURSE)
    asyncio.run(settle(site.stack))
    with connect(site.stack.store) as client:
        decided_by = client.execute(
            "SELECT DISTINCT policy_revision FROM decisions WHERE subject = 'n.cedar'"
        )

        def loaded() -> list[str]:
            rows = client.execute(
                "SELECT JSONExtractString(details, 'revision') FROM notices"
                " WHERE event = 'policy_loaded' ORDER BY origin, index"
            )
            return [revision for (revision,) in rows]

        assert until(lambda: len(loaded()) >= 3, 30)
        told = loaded()
    one, two = first["policy_revision"], second["policy_revision"]
    assert {revision for (revision,) in decided_by} == {one, two}
    assert told == [one, two, one]


def test_another_key(site: Site) -> None:
    """An OPA with the old key refuses the bundle of the new one, goes on with the last good one and
    counts it; one that was given the page's options beside takes it, and no longer an old one."""
    [options] = re.findall(r"\*\*Another key\*\*.*?`(--[^`]*)`", PAGE, re.DOTALL)
    options = " ".join(options.split())
    good = site.holds["/authz/bundle.tar.gz"]
    site.serve(site.build("by a new key", no_nurse, "signing-2.pem")["content"])
    before = site.metric("bundle_failed_load_counter")
    assert until(lambda: site.metric("bundle_failed_load_counter") > before, 30)
    assert site.ask(NURSE)[0][0] == 200
    address, metrics = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
    socket = f"unix://{site.directory / 'next.sock'}"
    server = site.start(socket, address, metrics, options)
    try:
        turned = dataclasses.replace(site, metrics=f"http://{metrics}", api=f"http://{address}")
        assert until(lambda: turned.revision() == "by a new key", 30), turned.revision()
        site.serve(good)
        assert until(lambda: turned.metric("bundle_failed_load_counter"), 30)
        assert turned.revision() == "by a new key"
    finally:
        server.stop()
        site.serve(good)


def test_the_api_changes_nothing(site: Site) -> None:
    """Whoever reaches OPA can load no policy and no data beside the bundle's; ext-authz asks for
    several decisions at once all the same, by the module that came with it."""
    for path, content in (("policies/x", b"package x"), ("data/denied", b"{}")):
        request = urllib.request.Request(f"{site.api}/v1/{path}", data=content, method="PUT")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value:
            assert refused.value.code == 400
    log = site.stack.parts["ext-authz"].log.read_text()
    assert '"together": true' in log
    assert "the wrapper policy is not accepted" not in log


def test_no_more_fields_than_needed(site: Site) -> None:
    """A role that needs some fields of a record gets these, and may not ask for others: Envoy asks
    the service for them, whatever the client left out."""
    more = [
        Request(BILLING.person, "GET", f"{BILLING.path}?{query}")
        for query in ("_elements=birthDate", "%5felements=birthDate", "_elements=name,birthDate",
                      "_summary=false", "_format=json")
    ]  # fmt: skip
    (status, body), *others = site.ask(BILLING, *more)
    wanted = {"resourceType", "id", "meta", "name"}
    assert (status, json.loads(body).keys()) == (200, wanted)
    assert [status for status, _ in others] == [403, 403, 403, 403, 200]
    assert json.loads(others[-1][1]).keys() == wanted
