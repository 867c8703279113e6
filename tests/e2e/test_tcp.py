"""TCP connections through Envoy's network ext_authz filter: decided, recorded and matched.

The policy has what a connection shows: its address, the workload in its certificate, and the port
that it came to.
"""

import contextlib
import datetime as dt
import re
import socket
import socketserver
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live import Account, Tuned, account
from live import read as read_account

from authz.demo.stack import HOST, deploy_dir, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.thorough

FRIEND, STRANGER = "127.0.0.2", "127.0.0.3"
FEEDER, OTHER = "spiffe://lakeside/feeder", "spiffe://lakeside/other"
GREETING = b"220 ready\r\n"

POLICY = """package envoy.authz
import rego.v1

default allow := {"allowed": false, "audit": {"reason": "no rule"}}

from := input.attributes.source.address.socketAddress.address

port := input.attributes.destination.address.socketAddress.portValue

# By address, on one port; by workload, on the other. Neither has an HTTP part.
allow := {"allowed": true, "audit": {"subject": "feed", "reason": "a friend"}} if {
	port == PLAIN
	from == "127.0.0.2"
	not input.attributes.request.http
}

allow := {"allowed": true, "audit": {"subject": "feed", "reason": "the feeder"}} if {
	port == SECURE
	input.source_principal == "spiffe://lakeside/feeder"
	input.attributes.source.principal == input.source_principal
}
"""

README = (deploy_dir() / "envoy" / "README.md").read_text()
TLS, _, LISTENER = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


class Service(socketserver.ThreadingTCPServer):
    """Answers each message with itself, in capitals; says GREETING first if `greets`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Answer)
        self.greets = False
        self.received: list[bytes] = []


class _Answer(socketserver.BaseRequestHandler):
    server: Service

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            if self.server.greets:
                self.request.sendall(GREETING)
            while message := self.request.recv(1000):
                self.server.received.append(message)
                self.request.sendall(message.upper())


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that was made: what was said, and what was heard until it ended."""

    said: bytes
    heard: bytes


@dataclass(frozen=True, slots=True)
class Row:
    kind: str
    decision_id: str
    allowed: bool
    reason_code: str
    subject: str
    principal: str
    source_ip: str
    upstream: str
    bytes_in: int


@dataclass
class Site:
    """A stack with TCP listeners, the connections made to them, and their records."""

    stack: Tuned
    service: Service
    ports: dict[str, int]
    made: dict[str, Connection] = field(default_factory=dict)
    found: Account | None = None
    later: Account | None = None
    rows: list[Row] = field(default_factory=list)
    rows_before: list[Row] = field(default_factory=list)
    """What was recorded before the service began to speak first."""

    def access(self, decision: Row) -> Row:
        """The one access that names `decision`."""
        [found] = [
            row
            for row in self.rows
            if row.kind == "access" and row.decision_id == decision.decision_id
        ]
        return found


def certificates(directory: Path) -> None:
    """ca.crt, and NAME.crt, NAME.key for the server and two workloads."""
    now = dt.datetime.now(dt.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, alternative: x509.GeneralName):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        is_authority = x509.BasicConstraints(ca=key is authority, path_length=None)
        return (
            x509.CertificateBuilder()
            .subject_name(issuer if key is authority else subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(is_authority, critical=True)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .sign(authority, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    (directory / "ca.crt").write_bytes(certificate("ca", authority, x509.DNSName("ca")))
    names = {
        "server": x509.DNSName("localhost"),
        "feeder": x509.UniformResourceIdentifier(FEEDER),
        "other": x509.UniformResourceIdentifier(OTHER),
    }
    for name, alternative in names.items():
        key = ec.generate_private_key(ec.SECP256R1())
        (directory / f"{name}.crt").write_bytes(certificate(name, key, alternative))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def opened(directory: Path, *, tcp: bool) -> Iterator[Site]:
    ports = {name: free_port() for name in ("plain", "secure", "eager")}
    policy = directory / "policy.rego"
    policy.write_text(
        POLICY.replace("PLAIN", str(ports["plain"])).replace("SECURE", str(ports["secure"]))
    )
    certificates(directory)
    service = Service()

    def bootstrap(text: str) -> str:
        """With the listener of deploy/envoy/README.md three times: as it is, with TLS, and with a
        tcp_proxy that connects at once."""
        document = yaml.safe_load(text)
        resources = document["static_resources"]
        for name, port in ports.items():
            listener = yaml.safe_load(LISTENER)
            listener["name"] = name
            listener["address"]["socket_address"]["port_value"] = port
            [chain] = listener["filter_chains"]
            ext_authz, proxy = (one["typed_config"] for one in chain["filters"])
            ext_authz["grpc_service"]["timeout"] = "2s"
            if name == "secure":
                chain |= yaml.safe_load(TLS.replace("/etc/authz/tls", str(directory)))
            if name == "eager":
                del proxy["upstream_connect_mode"], proxy["max_early_data_bytes"]
            resources["listeners"].append(listener)
        [behind] = [one for one in resources["clusters"] if one["name"] == "service"]
        database = yaml.safe_load(yaml.safe_dump({**behind, "name": "database"}))
        database["load_assignment"]["cluster_name"] = "database"
        [[endpoint]] = [one["lb_endpoints"] for one in database["load_assignment"]["endpoints"]]
        port = service.server_address[1]
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
        resources["clusters"].append(database)
        return yaml.safe_dump(document)

    settings = {"AUTHZ_EXT_AUTHZ__TCP": "true"} if tcp else {}
    stack = Tuned(
        directory / "data", policy=policy, bootstrap=bootstrap, ext_authz=settings, timeout_ms=2000
    )
    with service, running(stack, lambda _: None):
        Thread(target=service.serve_forever, daemon=True).start()
        site = Site(stack, service, ports)
        _connect_all(site, directory)
        site.found = _account(site)
        site.rows_before = site.rows
        if tcp:
            service.greets = True
            site.made["greeted"] = _connection(ports["eager"], STRANGER, b"")
            site.made["reset"] = _connection(ports["eager"], STRANGER, b"", reset=True)
            site.later = _account(site)
        yield site
        service.shutdown()


def _connect_all(site: Site, directory: Path) -> None:
    plain, secure = site.ports["plain"], site.ports["secure"]
    site.made["friend"] = _connection(plain, FRIEND, b"hello from friend")
    site.made["stranger"] = _connection(plain, STRANGER, b"hello from stranger")
    site.made["silent"] = _connection(plain, STRANGER, b"")
    for name in ("feeder", "other"):
        context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
        context.check_hostname = False
        context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
        site.made[name] = _connection(secure, FRIEND, f"hello from {name}".encode(), context)


def _connection(
    port: int,
    source: str,
    said: bytes,
    context: ssl.SSLContext | None = None,
    *,
    reset: bool = False,
) -> Connection:
    """Connect from `source`, say `said`, hear an answer or the end, and close or reset."""
    heard = b""
    raw = socket.create_connection((HOST, port), 5, source_address=(source, 0))
    with context.wrap_socket(raw) if context else raw as connection:
        connection.settimeout(5 if said else 0.5)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if said:
                connection.sendall(said)
            heard = connection.recv(1000)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return Connection(said, heard)


def _account(site: Site) -> Account:
    """What the log holds, once a checkpoint has each connection's access: those without a method.
    A connection is told of when it is over, which may be after the request that came last."""
    account(site.stack)
    end = time.monotonic() + 30
    with connect(site.stack.store) as client:
        while time.monotonic() < end:
            query = (
                "SELECT count() FROM accesses WHERE method = ''"
                " AND index < (SELECT max(size) FROM checkpoints)"
            )
            if client.execute(query)[0][0] >= len(site.made):
                break
            time.sleep(0.2)
        names = ", ".join(Row.__dataclass_fields__)
        rows = client.execute(f"SELECT {names} FROM audit_log WHERE method = ''")
        site.rows = [Row(*row) for row in rows]
    return read_account(site.stack)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("decided"), tcp=True)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("refused"), tcp=False)


@pytest.fixture(params=["decided", "refused"])
def site(request):
    return request.getfixturevalue(request.param)


def test_allowed_and_denied(decided):
    """By its address or its certificate one connection is served; of another no byte passes."""
    heard = {name: connection.heard for name, connection in decided.made.items()}
    assert heard["friend"] == b"HELLO FROM FRIEND"
    assert heard["feeder"] == b"HELLO FROM FEEDER"
    assert (heard["stranger"], heard["silent"], heard["other"]) == (b"", b"", b"")
    assert decided.service.received == [b"hello from friend", b"hello from feeder"]


def test_both_are_recorded_and_matched(decided):
    """Each connection has a decision and the access that names it, which agree."""
    ours = decided.rows_before
    decisions = [row for row in ours if row.kind == "decision"]
    assert len(decisions) == 5
    assert len([row for row in ours if row.kind == "access"]) == 5
    for decision in decisions:
        access = decided.access(decision)
        for name in ("allowed", "reason_code", "subject", "principal", "source_ip"):
            assert getattr(access, name) == getattr(decision, name)
        assert bool(access.upstream) == decision.allowed
    told = {(row.allowed, row.subject, row.principal, row.source_ip) for row in decisions}
    assert told == {
        (True, "feed", "", FRIEND),
        (False, "", "", STRANGER),
        (True, "feed", FEEDER, FRIEND),
        (False, "", OTHER, FRIEND),
    }


def test_unless_configured_all_are_denied(refused):
    """Without `ext_authz.tcp` no connection is let through, whatever the policy says of it."""
    assert {connection.heard for connection in refused.made.values()} == {b""}
    assert refused.service.received == []
    decisions = [row for row in refused.rows_before if row.kind == "decision"]
    assert len(decisions) == 5
    assert {(row.allowed, row.reason_code) for row in decisions} == {(False, "bad_request")}
    assert not any(refused.access(decision).upstream for decision in decisions)


def test_log(site):
    """The log verifies, without a gap between decisions and accesses."""
    report = site.found.report
    assert report.verified, report.findings
    assert (report.gaps, report.pending) == ({}, 0)
    assert report.rejected_by_envoy == 0


def test_a_service_that_speaks_first(decided):
    """Envoy asks when the client has spoken, so a service that speaks first is heard by anybody,
    unless Envoy connects to it only then; the log shows whom it was not meant for."""
    assert decided.made["greeted"].heard == decided.made["reset"].heard == GREETING
    assert decided.later.report.verified
    assert decided.later.report.gaps == {"denied_but_reached": 1, "bypass": 1}
