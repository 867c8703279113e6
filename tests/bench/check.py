"""CPU and latency of a Check, beside opa-envoy-plugin: one run, one table.

    python -m tests.bench.check [--plugin PROGRAM] [--checks N]

Needs OPA and ghz on the PATH or in ~/go/bin. The load comes from ghz, every request different
unless the row says otherwise; CPU is what the processes themselves used. Without ``--plugin`` only
our rows are printed. The machine should be otherwise idle.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from rich.console import Console
from rich.table import Table

from authz.demo.stack import free_port

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
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """One row: microseconds of CPU per Check, and latency."""

    name: str
    cpu_us: float
    mean_us: float
    p50_us: float
    p99_us: float


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path.home() / "go" / "bin"))
    if found is None:
        sys.exit(f"{name} is missing: see the top of this file")
    return found


def descriptors() -> bytes:
    """The Authorization service and all it imports, for ghz."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in files:
            for wanted in file.dependencies:
                add(wanted)
            files[file.name] = file

    add(external_auth_pb2.DESCRIPTOR)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString()


def request(varied: bool) -> dict[str, object]:
    """A Check as Envoy sends it; ghz fills the templates in."""
    number = "{{.RequestNumber}}" if varied else "7"
    path = f"/fhir/Patient/p-{number}?_count=5"
    headers = {
        ":authority": "ehr.example", ":method": "GET", ":path": path, ":scheme": "https",
        "user-agent": "chart/2.1", "accept": "application/fhir+json",
        "x-request-id": "{{.UUID}}", "x-forwarded-for": "10.0.0.9", "x-forwarded-proto": "https",
    }  # fmt: skip
    claims = {"iss": "https://idp.example", "sub": f"dr.{number}", "roles": ["physician"],
              "aud": "fhir", "exp": 1900000000, "tenant": "lakeside"}  # fmt: skip
    socket = {"address": "10.0.0.9", "port_value": 40000}
    return {
        "attributes": {
            "source": {"address": {"socket_address": socket}},
            "destination": {"address": {"socket_address": {**socket, "port_value": 8443}}},
            "request": {
                "time": "2026-11-23T01:02:03.000456Z",
                "http": {"id": "{{.UUID}}", "method": "GET", "path": path, "host": "ehr.example",
                         "scheme": "https", "protocol": "HTTP/1.1", "headers": headers},
            },
            "metadata_context": {
                "filter_metadata": {"envoy.filters.http.jwt_authn": {"verified_jwt": claims}}
            },
        }
    }  # fmt: skip


def cpu_seconds(processes: list["subprocess.Popen[bytes]"]) -> float:
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def load(
    name: str, port: int, processes: list["subprocess.Popen[bytes]"], work: Path,
    checks: int, in_flight: int, varied: bool,
) -> Measured:  # fmt: skip
    """Warm up, then measure."""
    command = [
        program("ghz"), "--insecure", "--protoset", str(work / "auth.protoset"),
        "--call", "envoy.service.auth.v3.Authorization.Check",
        "--data", json.dumps(request(varied)), "--concurrency", str(in_flight),
        "--connections", str(min(2, in_flight)), "--timeout", "5s", "--format", "json",
    ]  # fmt: skip
    address = f"127.0.0.1:{port}"
    subprocess.run([*command, "--total", "1000", address], check=True, capture_output=True)
    before = cpu_seconds(processes)
    run = subprocess.run(
        [*command, "--total", str(checks), address], check=True, capture_output=True
    )
    used = cpu_seconds(processes) - before
    report = json.loads(run.stdout)
    if report.get("errorDistribution"):
        sys.exit(f"{name}: {report['errorDistribution']}")
    centiles = {
        item["percentage"]: item["latency"] / 1000 for item in report["latencyDistribution"]
    }
    return Measured(name, used / checks * 1e6, report["average"] / 1000, centiles[50], centiles[99])


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    import socket

    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        time.sleep(1)
        yield process
    finally:
        process.terminate()
        process.wait()


def ours(work: Path, checks: int, durability: str) -> Iterator[Measured]:
    opa_port, port = free_port(), free_port()
    opa = [program("opa"), "run", "--server", "--addr", f"127.0.0.1:{opa_port}",
           "--log-level", "error", str(work / "policy")]  # fmt: skip
    authz = [sys.executable, "-m", "authz", "serve", "ext-authz", "--listen", f"127.0.0.1:{port}",
             "--policy", f"http://127.0.0.1:{opa_port}", "--durability", durability,
             "--data-dir", str(work / f"data-{durability}")]  # fmt: skip
    with (
        running(opa, opa_port, work / "opa.log") as first,
        running(authz, port, work / "authz.log") as second,
    ):
        both = [first, second]
        name = f"authz + OPA, {durability}"
        yield load(f"{name}, 16 in flight", port, both, work, checks, 16, varied=True)
        yield load(f"{name}, 16 in flight, cached", port, both, work, checks, 16, varied=False)
        yield load(f"{name}, 1 in flight", port, both, work, checks // 8, 1, varied=True)


def plugin(path: str, work: Path, checks: int, *, log: bool) -> Iterator[Measured]:
    port = free_port()
    command = [path, "run", "--server", "--addr", f"127.0.0.1:{free_port()}",
               "--diagnostic-addr", f"127.0.0.1:{free_port()}", "--log-level", "error",
               "--set", f"plugins.envoy_ext_authz_grpc.addr=127.0.0.1:{port}",
               "--set", "plugins.envoy_ext_authz_grpc.path=envoy/authz/allow"]  # fmt: skip
    if log:
        command += ["--set", "decision_logs.console=true"]
    with running([*command, str(work / "policy")], port, work / "plugin.log") as process:
        name = f"plugin, {'with' if log else 'without'} decision log"
        yield load(f"{name}, 16 in flight", port, [process], work, checks, 16, varied=True)
        yield load(f"{name}, 1 in flight", port, [process], work, checks // 8, 1, varied=True)


def show(rows: list[Measured]) -> None:
    base = {
        in_flight: next(
            (
                r
                for r in rows
                if r.name.startswith("plugin, with ") and f", {in_flight} in" in r.name
            ),
            None,
        )
        for in_flight in (1, 16)
    }
    table = Table(title=f"A Check ({platform.processor() or platform.machine()}, "
                        f"{os.cpu_count()} cores, Python {platform.python_version()})")  # fmt: skip
    for column in ("", "CPU µs", "x plugin with log", "mean µs", "p50 µs", "p99 µs", "x p50"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        peer = base[1 if ", 1 in" in row.name else 16]
        ratio = f"{row.cpu_us / peer.cpu_us:.2f}" if peer else ""
        latency = f"{row.p50_us / peer.p50_us:.2f}" if peer else ""
        table.add_row(row.name, f"{row.cpu_us:.0f}", ratio, f"{row.mean_us:.0f}",
                      f"{row.p50_us:.0f}", f"{row.p99_us:.0f}", latency)  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plugin", help="the program opa-envoy-plugin, built elsewhere")
    parser.add_argument("--checks", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "auth.protoset").write_bytes(descriptors())
        (work / "policy").mkdir()
        (work / "policy" / "policy.rego").write_text(POLICY)
        (work / "policy" / "data.json").write_text(json.dumps(DATA))
        rows = []
        if options.plugin:
            for log in (True, False):
                rows += list(plugin(options.plugin, work, options.checks, log=log))
        for durability in ("fsync",):
            rows += list(ours(work, options.checks, durability))
    show(rows)


if __name__ == "__main__":
    main()
