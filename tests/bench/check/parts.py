"""What is measured: Check servers with the same policy and data, and Envoy in front of them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from authz.demo.stack import envoy_program, free_port

POLICY = """package envoy.authz

import rego.v1

jwt := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"]

claims := jwt.verified_jwt

default allow := {"allowed": false, "audit": {"reason": "no rule allows it"}}

allow := {"allowed": true, "audit": audit} if {
	some role in claims.roles
	input.attributes.request.http.method in data.roles[role].methods
	input.parsed_path[1] in data.roles[role].types
	reason := sprintf("%s may read %s", [role, input.parsed_path[1]])
	audit := {"subject": claims.sub, "roles": claims.roles, "reason": reason}
}
"""
DATA = {"roles": {"physician": {"methods": ["GET"], "types": ["Patient", "Observation"]}}}
CLAIMS = {"iss": "https://idp.example", "sub": "dr.7", "roles": ["physician"], "aud": "fhir",
          "exp": 1900000000, "tenant": "lakeside"}  # fmt: skip
TICK = os.sysconf("SC_CLK_TCK")


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path.home() / "go" / "bin"))
    if found is None:
        sys.exit(f"{name} is missing: see tests/bench/check/__init__.py")
    return found


@dataclass(frozen=True)
class Served:
    """A Check server under load: where it listens, and the processes whose CPU it costs."""

    name: str
    ports: tuple[int, ...]
    processes: tuple[int, ...]

    def cpu_seconds(self) -> float:
        return sum(map(_cpu_ticks, self.processes)) / TICK

    def memory_mib(self) -> float:
        return sum(map(_resident_kib, self.processes)) / 1024


def _cpu_ticks(pid: int) -> int:
    """Of a process and its children that live, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) + sum(map(_cpu_ticks, _children(pid)))


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(own.split()[1]) + sum(map(_resident_kib, _children(pid)))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], port: int, log: Path, **environment: str
) -> Iterator[int]:
    """A process that listens on `port`; its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output,
            # Nobody is turned away here because the machine is busy.
            env={**os.environ, "AUTHZ_EXT_AUTHZ__TIMEOUT_MS": "5000", **environment},
        )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        time.sleep(1)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def policy(work: Path) -> Path:
    directory = work / "policy"
    directory.mkdir(exist_ok=True)
    (directory / "policy.rego").write_text(POLICY)
    (directory / "data.json").write_text(json.dumps(DATA))
    return directory


@contextlib.contextmanager
def authz(
    work: Path, *, workers: int = 1, durability: str = "fsync", receiver: str = "",
    data: Path | None = None,
) -> Iterator[Served]:  # fmt: skip
    """authz with an OPA server; a decision is durable, as `durability` says, before its answer."""
    name = f"authz, {workers} workers" if workers > 1 else "authz"
    opa_port, port = free_port(), _free_ports(workers)
    opa = [program("opa"), "run", "--server", "--addr", f"127.0.0.1:{opa_port}",
           "--log-level", "error", policy(work)]  # fmt: skip
    command = [sys.executable, "-m", "authz", "serve", "ext-authz", "--workers", str(workers),
               "--listen", f"127.0.0.1:{port}", "--policy", f"http://127.0.0.1:{opa_port}",
               "--durability", durability,
               "--data-dir", (data or work) / f"data-{port}"]  # fmt: skip
    if receiver:
        command += ["--receiver", receiver, "--privacy-key", work / "privacy.key"]
    with (
        running(opa, opa_port, work / "opa.log") as first,
        running(command, port + workers - 1, work / "authz.log") as second,
    ):
        yield Served(name, tuple(range(port, port + workers)), (first, second))


@contextlib.contextmanager
def receiver(work: Path) -> Iterator[str]:
    """A receiver that stores in ClickHouse; its address."""
    port, tcp, log = free_port(), free_port(), work / "clickhouse.log"
    serve = [sys.executable, "-m", "authz", "serve"]
    clickhouse = [*serve, "clickhouse", "--data-dir", work / "clickhouse", "--json",
                  "--tcp", str(tcp)]  # fmt: skip
    command = [*serve, "receiver", "--listen", f"127.0.0.1:{port}", "--data-dir",
               work / "receiver"]  # fmt: skip
    with running(clickhouse, tcp, log):
        told = [line for line in log.read_text().splitlines() if line.startswith('{"store"')]
        store = json.loads(told[-1])["store"]
        with running(command, port, work / "receiver.log", AUTHZ_STORE=store):
            yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def plugin(path: str, work: Path, *, log: bool) -> Iterator[Served]:
    """opa-envoy-plugin, with its decision log on the console or none."""
    port = free_port()
    command = [path, "run", "--server", "--addr", f"127.0.0.1:{free_port()}",
               "--diagnostic-addr", f"127.0.0.1:{free_port()}", "--log-level", "error",
               "--set", f"plugins.envoy_ext_authz_grpc.addr=127.0.0.1:{port}",
               "--set", "plugins.envoy_ext_authz_grpc.path=envoy/authz/allow"]  # fmt: skip
    if log:
        command += ["--set", "decision_logs.console=true"]
    with running([*command, policy(work)], port, work / "plugin.log") as process:
        yield Served(f"plugin, {'with' if log else 'no'} decision log", (port,), (process,))


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first + 1, first + count):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first


@contextlib.contextmanager
def envoy(work: Path, served: Served | None) -> Iterator[int]:
    """Envoy that asks `served` (or nobody) and answers 200 by itself; its port."""
    port = free_port()
    config = work / f"envoy-{port}.json"
    config.write_text(json.dumps(_bootstrap(port, served.ports if served else ())))
    command = [envoy_program(), "-c", config, "--concurrency", "1", "--log-level", "error",
               "--disable-hot-restart"]  # fmt: skip
    with running(command, port, work / "envoy.log"):
        yield port


def _bootstrap(port: int, checked_by: tuple[int, ...]) -> dict[str, object]:
    extension = "type.googleapis.com/envoy.extensions.filters"
    metadata = {"metadata_namespace": "envoy.filters.http.jwt_authn",
                "value": {"verified_jwt": CLAIMS}}  # fmt: skip
    ext_authz = {
        "@type": f"{extension}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "5s"},
        "metadata_context_namespaces": ["envoy.filters.http.jwt_authn"],
    }
    filters = [
        ("envoy.filters.http.set_metadata", {"@type": f"{extension}.http.set_metadata.v3.Config",
                                             "metadata": [metadata]}),
        *([("envoy.filters.http.ext_authz", ext_authz)] if checked_by else []),
        ("envoy.filters.http.router", {"@type": f"{extension}.http.router.v3.Router"}),
    ]  # fmt: skip
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": f"{extension}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [{"name": name, "typed_config": config} for name, config in filters],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    filter_chain = {"filters": [{"name": "http", "typed_config": manager}]}
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = {
        "name": "authz",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "load_assignment": {
            "cluster_name": "authz",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _socket(one)}} for one in checked_by]}
            ],
        },
    }
    listener = {"name": "in", "address": _socket(port), "filter_chains": [filter_chain]}
    return {
        "static_resources": {"listeners": [listener], "clusters": [cluster] if checked_by else []}
    }


def _socket(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
