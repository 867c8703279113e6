"""The Check server as an operator runs it: certificates, workers, dry-run, reflection, traces."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from certificates import Certificates
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from programs import AUTHZ, World, free_port, listens, run, until, world

from authz.store.client import connect

POLICY = """package envoy.authz
import rego.v1
default allow := false
allow if input.attributes.request.http.path == "/yes"
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
CHECK = "/envoy.service.auth.v3.Authorization/Check"


@dataclass
class Server:
    """One ``authz serve ext-authz``, and how to ask it."""

    where: World
    directory: Path
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self, *options: str | Path, last_port: int = 0) -> "Server":
        policy = self.directory / "policy.rego"
        policy.write_text(POLICY)
        command = [*AUTHZ, "serve", "ext-authz", "--listen", f"127.0.0.1:{self.port}", "--policy",
                   policy, "--data-dir", self.directory / "data", *options]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stderr=log,
                env={**self.where.environment, **self.settings},
            )  # fmt: skip
        assert until(lambda: listens(last_port or self.port), 30), self.log.read_text()
        return self

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def said(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    with world() as where:
        server = Server(where, tmp_path)
        yield server
        where.end()
        if server.process is not None:
            server.process.wait()


def request(path: str, traceparent: str = "") -> CheckRequest:
    message = CheckRequest()
    http = message.attributes.request.http
    http.method, http.path, http.host = "GET", path, "a.example"
    if traceparent:
        http.headers["traceparent"] = traceparent
    return message


def check(channel: grpc.Channel, path: str, traceparent: str = "") -> CheckResponse:
    call = channel.unary_unary(
        CHECK, CheckRequest.SerializeToString, CheckResponse.FromString, _registered_method=False
    )
    return call(request(path, traceparent), timeout=10, wait_for_ready=True)


@contextlib.contextmanager
def open_channel(port: int, credentials=None) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a handshake of its own
    address = f"127.0.0.1:{port}"
    if credentials is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, credentials, options)
    with channel:
        yield channel


def refused(port: int, credentials=None) -> bool:
    """Whether no call gets through."""
    with open_channel(port, credentials) as channel:
        call = channel.unary_unary(CHECK)
        try:
            call(request("/yes").SerializeToString(), timeout=5)
        except grpc.RpcError:
            return True
        return False


def test_mutual_tls_and_renewal(server, tmp_path):
    """Only clients with a certificate of the authority are heard; a renewed server certificate is
    in use at the next handshake, and one that cannot be used leaves the last good one."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    authority, stranger = Certificates(ours), Certificates(theirs)
    cert, key = authority.issue("127.0.0.1", file="server")
    server.settings = {
        "AUTHZ_EXT_AUTHZ__TLS_CERT": str(cert),
        "AUTHZ_EXT_AUTHZ__TLS_KEY": str(key),
        "AUTHZ_EXT_AUTHZ__TLS_CLIENT_CA": str(authority.ca_file),
    }
    server.start()

    def credentials(client: Certificates | None, trusted: Certificates) -> grpc.ChannelCredentials:
        shown = client.issue("envoy") if client else (None, None)
        chain, private = (file and file.read_bytes() for file in shown)
        return grpc.ssl_channel_credentials(trusted.ca_file.read_bytes(), private, chain)

    good = credentials(authority, authority)
    with open_channel(server.port, good) as channel:
        assert check(channel, "/yes").status.code == 0
    assert refused(server.port)
    assert refused(server.port, credentials(None, authority))
    assert refused(server.port, credentials(stranger, authority))
    # The server's next certificate is of the other authority: who trusts that one gets in now.
    new_cert, new_key = stranger.issue("127.0.0.1")
    renewed = credentials(authority, stranger)
    assert refused(server.port, renewed)
    new_key.rename(key)
    new_cert.rename(cert)
    with open_channel(server.port, renewed) as channel:
        assert check(channel, "/yes").status.code == 0
    key.write_text("no key")
    with open_channel(server.port, renewed) as channel:
        assert check(channel, "/no").status.code == 7
    assert any("last good ones stay" in str(line["message"]) for line in server.said())
    assert server.stop() == 0


def test_plain_text_to_others_is_refused(server, tmp_path):
    """An address that other hosts reach needs TLS, or a word that the network is private."""
    (tmp_path / "policy.rego").write_text(POLICY)
    command = [*AUTHZ, "serve", "ext-authz", "--listen", f"0.0.0.0:{server.port}", "--policy",
               tmp_path / "policy.rego", "--data-dir", tmp_path / "data"]  # fmt: skip
    ended = run(command, server.where)
    assert ended.returncode == 2
    assert "tls_cert" in ended.stderr
    assert "plaintext" in ended.stderr


def test_certificate_errors(server, tmp_path):
    """A certificate that is missing, or half of the pair, is an error that names it."""
    for settings, said in (
        ({"AUTHZ_EXT_AUTHZ__TLS_CERT": "/none.pem"}, "needed together"),
        (
            {"AUTHZ_EXT_AUTHZ__TLS_CERT": "/none.pem", "AUTHZ_EXT_AUTHZ__TLS_KEY": "/none.key"},
            "No such file",
        ),
    ):
        server.where.environment = {**server.where.environment, **settings}
        command = [*AUTHZ, "serve", "ext-authz", "--policy", tmp_path, "--data-dir", tmp_path]
        ended = run(command, server.where)
        assert ended.returncode == 2
        assert said in ended.stderr


def test_health_turns(server):
    """Health is told and watched: serving, and not at the end."""
    server.start()
    with open_channel(server.port) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        service = "envoy.service.auth.v3.Authorization"
        for name in ("", service):
            request = health_pb2.HealthCheckRequest(service=name)
            told = (answer.status for answer in stub.Watch(request, wait_for_ready=True))
            assert next(status for status in told if status == SERVING)  # it has just begun
            assert stub.Check(request).status == SERVING
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        assert next(watched).status == SERVING
        server.process.terminate()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.process.wait(30) == 0


def test_reflection(server):
    """With reflection on, a tool that knows nothing lists the services and gets their messages;
    without, there is no such method."""
    server.settings = {"AUTHZ_EXT_AUTHZ__REFLECTION": "true"}
    server.start()
    with open_channel(server.port) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="envoy.service.auth.v3.Authorization"
            ),
        ]
        listed, described = stub.ServerReflectionInfo(iter(asked), wait_for_ready=True)
        names = {service.name for service in listed.list_services_response.service}
        assert "envoy.service.auth.v3.Authorization" in names
        assert described.file_descriptor_response.file_descriptor_proto
    server.stop()
    server.settings = {}
    server.start()
    with open_channel(server.port) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            next(stub.ServerReflectionInfo(iter(asked), wait_for_ready=True))


def test_dry_run_cannot_be_mistaken(server):
    """In dry-run everything is let through, and every metric of a Check and every line of the log
    says so; the real decision is counted."""
    metrics = free_port()
    server.settings = {"AUTHZ_EXT_AUTHZ__DRY_RUN": "true"}
    server.start("--metrics", f"127.0.0.1:{metrics}")
    with open_channel(server.port) as channel:
        assert check(channel, "/no").status.code == 0
        assert check(channel, "/yes").status.code == 0
    url = f"http://127.0.0.1:{metrics}/metrics"
    until, counted = time.monotonic() + 30, []
    while len(counted) < 2 and time.monotonic() < until:  # what is answered is counted right after
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        counted = [line for line in text.splitlines() if line.startswith("authz_checks_total{")]
    assert "authz_dry_run 1.0" in text
    assert sorted(counted) == [
        'authz_checks_total{enforced="false",outcome="allowed",reason_code="allowed"} 1.0',
        'authz_checks_total{enforced="false",outcome="denied",reason_code="denied"} 1.0',
    ]
    server.stop()
    assert all(line.get("dry_run") is True for line in server.said())


class Collector(BaseHTTPRequestHandler):
    """An OTLP collector, over HTTP."""

    spans: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        for resource in body["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.spans.extend(scope["spans"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_traces_go_on(server):
    """A sampled request's trace goes on through the Check, with the stages and the outcome and
    nothing of the request; one that is not sampled has no span."""
    collecting = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collecting.serve_forever, daemon=True).start()
    server.settings = {"AUTHZ_EXT_AUTHZ__TRACING": f"http://127.0.0.1:{collecting.server_port}"}
    server.start()
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with open_channel(server.port) as channel:
        answer = check(channel, "/no?secret=word", f"00-{trace}-{parent}-01")
        check(channel, "/no", f"00-{trace[::-1]}-{parent}-00")
    assert server.stop() == 0
    collecting.shutdown()
    collecting.server_close()
    [span] = Collector.spans
    assert (span["traceId"], span["parentSpanId"]) == (trace, parent)
    assert [event["name"] for event in span["events"]] == ["parse", "decide", "record", "answer"]
    told = {item["key"]: item["value"] for item in span["attributes"]}
    decision_id = answer.dynamic_metadata["decision_id"]
    assert told["authz.decision_id"] == {"stringValue": decision_id}
    assert told["authz.reason_code"] == {"stringValue": "denied"}
    assert told["authz.allowed"] == {"boolValue": False}
    assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert "secret" not in str(span)


@pytest.fixture
def receiver(tmp_path, database) -> Iterator[str]:
    """A receiver's address."""
    port = free_port()
    with world() as where:
        command = [*AUTHZ, "serve", "receiver", "--listen", f"127.0.0.1:{port}",
                   "--data-dir", str(tmp_path / "receiver")]  # fmt: skip
        process = subprocess.Popen(
            command, env={**where.environment, "AUTHZ_STORE": database},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert until(lambda: listens(port), 30)
        yield f"127.0.0.1:{port}"
        process.terminate()
        process.wait(30)


def decisions(database: str) -> dict[str, int]:
    """How many decisions each writer has in the log."""
    with connect(database) as client:
        query = "SELECT writer, count() FROM decisions GROUP BY writer"
        return dict(client.execute(query))


@pytest.mark.alone  # the next port must be free too
def test_workers(server, receiver, database):
    """Workers answer on ports of their own, under writer ids of their own; one that is killed comes
    back and goes on with its journal; with fewer workers the journal of one that is no more is
    adopted. No decision is lost or doubled."""
    if listens(server.port + 1):
        server.port = free_port() + 10
    server.start("--workers", "2", last_port=server.port + 1)  # no receiver: journals fill

    def ask(port: int, times: int) -> None:
        with open_channel(port) as channel:
            for _ in range(times):
                assert check(channel, "/yes").status.code == 0

    ask(server.port, 20)
    ask(server.port + 1, 30)
    parent = server.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert until(lambda: not listens(server.port + 1), 10)
    assert until(lambda: listens(server.port + 1), 30)
    ask(server.port + 1, 5)
    assert server.stop() == 0
    server.start("--receiver", receiver)
    assert until(lambda: sum(decisions(database).values()) >= 55, 30)
    time.sleep(1.5)  # what would be doubled would have come by now
    assert sorted(decisions(database).values()) == [20, 35]
    ask(server.port, 1)
    assert until(lambda: sorted(decisions(database).values()) == [21, 35], 10)
    assert server.stop() == 0


def test_workers_that_cannot_start(server, tmp_path):
    """A mistake that every worker would meet ends all of them, with the mistake's exit code."""
    command = [*AUTHZ, "serve", "ext-authz", "--listen", f"127.0.0.1:{server.port}", "--policy",
               tmp_path / "nothing", "--data-dir", tmp_path / "data", "--workers", "2"]  # fmt: skip
    ended = run(command, server.where)
    assert ended.returncode == 2
    assert "--policy" in ended.stderr
    assert until(lambda: not server.where.running(), 10), server.where.running()


@pytest.mark.thorough
def test_writer_and_receiver_over_tls(server, tmp_path, database):
    """Decisions reach a receiver over mutual TLS, and not without our certificate."""
    authority = Certificates(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    own_cert, own_key = authority.issue("writer")
    port = free_port()
    settings = {
        "AUTHZ_STORE": database,
        "AUTHZ_RECEIVER__TLS_CERT": str(cert),
        "AUTHZ_RECEIVER__TLS_KEY": str(key),
        "AUTHZ_RECEIVER__TLS_CLIENT_CA": str(authority.ca_file),
    }
    command = [*AUTHZ, "serve", "receiver", "--listen", f"127.0.0.1:{port}", "--data-dir",
               str(tmp_path / "receiver")]  # fmt: skip
    receiving = subprocess.Popen(
        command, env={**server.where.environment, **settings}, stderr=subprocess.DEVNULL
    )
    assert until(lambda: listens(port), 30)
    server.settings = {"AUTHZ_EXT_AUTHZ__RECEIVER_CA": str(authority.ca_file)}
    server.start("--receiver", f"127.0.0.1:{port}")
    with open_channel(server.port) as channel:
        assert check(channel, "/yes").status.code == 0
    time.sleep(2)
    assert decisions(database) == {}
    server.stop()
    server.settings |= {
        "AUTHZ_EXT_AUTHZ__RECEIVER_CERT": str(own_cert),
        "AUTHZ_EXT_AUTHZ__RECEIVER_KEY": str(own_key),
    }
    server.start("--receiver", f"127.0.0.1:{port}")
    assert until(lambda: list(decisions(database).values()) == [1], 20)
    assert server.stop() == 0
    receiving.terminate()
    assert receiving.wait(30) == 0
