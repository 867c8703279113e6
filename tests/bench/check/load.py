"""The load: Checks sent directly (ghz), and requests sent through Envoy (h2load)."""

import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.bench.check.parts import CLAIMS, Served, program

_PATHS = 20_000


@dataclass(frozen=True)
class Latency:
    """Of whole requests, in microseconds."""

    mean: float
    p50: float
    p99: float


def cpu_per_check(
    served: Served, work: Path, checks: int, in_flight: int, *, varied: bool
) -> float:
    """Microseconds of CPU that all of `served` costs per Check, after a warm-up."""
    command = [
        program("ghz"), "--insecure", "--protoset", str(_protoset(work)),
        "--call", "envoy.service.auth.v3.Authorization.Check",
        "--data", json.dumps(_check(varied)), "--timeout", "5s", "--format", "json",
    ]  # fmt: skip
    each = max(1, in_flight // len(served.ports))
    load = ["--concurrency", str(each), "--connections", str(min(2, each))]
    _all([[*command, *load, "--total", "2000", f"127.0.0.1:{port}"] for port in served.ports])
    before = served.cpu_seconds()
    share = str(checks // len(served.ports))
    _all([[*command, *load, "--total", share, f"127.0.0.1:{port}"] for port in served.ports])
    return (served.cpu_seconds() - before) / checks * 1e6


def _all(commands: list[list[str]]) -> None:
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    for process in started:
        report = json.loads(process.communicate()[0])
        if report.get("errorDistribution"):
            raise RuntimeError(str(report["errorDistribution"]))


def through_envoy(port: int, work: Path, requests: int, in_flight: int, *, varied: bool) -> Latency:
    """The latency of GETs, each for another chart if `varied`. On one connection: each of several
    would go through the same list."""
    uris = work / f"uris-{port}"
    numbers = range(_PATHS) if varied else (7,)
    uris.write_text("".join(f"http://127.0.0.1:{port}/fhir/Patient/p-{n}\n" for n in numbers))
    log = work / "h2load.tsv"
    for total in (1000, requests):  # the first warms up
        log.unlink(missing_ok=True)
        subprocess.run(
            [program("h2load"), "-n", str(total), "-c", "1", "-m", str(in_flight),
             "-i", str(uris), "--log-file", str(log)],
            check=True, capture_output=True,
        )  # fmt: skip
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    refused = [row for row in rows if row[1] != "200"]
    if refused:
        raise RuntimeError(f"{len(refused)} of {len(rows)} requests were not answered with 200")
    times = sorted(int(row[2]) for row in rows)
    return Latency(statistics.fmean(times), times[len(times) // 2], times[len(times) * 99 // 100])


def _protoset(work: Path) -> Path:
    """The Authorization service and all it imports, for ghz."""
    path = work / "auth.protoset"
    if not path.exists():
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
        path.write_bytes(found.SerializeToString())
    return path


def _check(varied: bool) -> dict[str, object]:
    """A Check as Envoy sends it; ghz fills the templates in."""
    number = "{{.RequestNumber}}" if varied else "7"
    path = f"/fhir/Patient/p-{number}?_count=5"
    headers = {
        ":authority": "ehr.example", ":method": "GET", ":path": path, ":scheme": "https",
        "user-agent": "chart/2.1", "accept": "application/fhir+json",
        "x-request-id": "{{.UUID}}", "x-forwarded-for": "10.0.0.9", "x-forwarded-proto": "https",
    }  # fmt: skip
    claims = {**CLAIMS, "sub": f"dr.{number}"}
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
