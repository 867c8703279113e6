"""How long a finding takes to the policy: real receiver, ClickHouse and ext-authz, on both engines.

A process like `authz watch` writes findings about one person after the other, who all the while
asks for a bill (deploy/opa allows it), one Check after another. Told is the time from the moment
the finding is acknowledged, and from the moment it was made, to the first answer that is a denial.
Below zero: the denial was there before the acknowledgement. Must: a second.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from rich.console import Console
from rich.table import Table

from authz import config
from authz.blocks import Blocks
from authz.demo.stack import deploy_dir, free_port
from authz.detect.detector import Finding
from authz.detect.record import finding_record
from authz.serve.writer import Writer, now_us
from tests.bench.check.parts import program, receiver, running

_CHECK = "/envoy.service.auth.v3.Authorization/Check"


@dataclass(frozen=True)
class Latency:
    """In seconds: from the acknowledgement, and from the writing, to the first denial."""

    acknowledged: float
    written: float


@contextmanager
def ext_authz(work: Path, engine: str, address: str) -> Iterator[str]:
    """Its address; `engine` is embedded or opa."""
    port, opa_port = free_port(), free_port()
    policy = work / "policy"
    if not policy.exists():
        ignored = shutil.ignore_patterns("*_test.rego")
        shutil.copytree(deploy_dir() / "opa", policy, ignore=ignored)
    source = str(policy) if engine == "embedded" else f"http://127.0.0.1:{opa_port}"
    command = [sys.executable, "-m", "authz", "serve", "ext-authz", "--policy", source,
               "--listen", f"127.0.0.1:{port}", "--data-dir", work / f"ext-authz-{engine}",
               "--privacy-key", work / "privacy.key", "--receiver", address]  # fmt: skip
    opa = [program("opa"), "run", "--server", "--addr", f"127.0.0.1:{opa_port}",
           "--log-level", "error", policy]  # fmt: skip
    with running(opa, opa_port, work / "opa.log"), running(command, port, work / f"{engine}.log"):
        yield f"127.0.0.1:{port}"


def look(subject: str) -> bytes:
    """A Check: `subject` reads a bill."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.host = "GET", "/fhir/Claim/clm-00001", "fhir.example"
    claims = {"sub": subject, "roles": ["billing"], "tenant": "lakeside", "purpose": "HPAYMT"}
    metadata = request.attributes.metadata_context.filter_metadata
    metadata["envoy.filters.http.jwt_authn"].update({"verified_jwt": claims})
    return request.SerializeToString()


async def measured(work: Path, engine: str, address: str, check: str, times: int) -> list[Latency]:
    options = {"data_dir": work / f"watch-{engine}", "ext_authz": {"receiver": address}}
    given = config.load(None, options)
    writer = Writer(given)
    writer.start()
    blocks = Blocks.load(given.data_dir / "blocks.json")
    forwarder = writer.forwarder(given.ext_authz, "", blocks)
    sending = asyncio.create_task(forwarder.run())
    found = []
    async with grpc.aio.insecure_channel(check) as channel:
        ask = channel.unary_unary(_CHECK, response_deserializer=CheckResponse.FromString)
        if await forwarder.drain(30):
            sys.exit("the receiver does not answer")
        for number in range(times):
            subject = f"b.{engine}.{number}"
            assert await denied(ask, subject) is None, "nobody is, so far"
            denial = asyncio.create_task(until_denied(ask, subject))
            await asyncio.sleep(0.1)
            finding = Finding(
                time=now_us(), subject=subject, rule="bulk_read", lane="act", score=6.25,
                evidence="", records=(), cause="bench",
            )  # fmt: skip
            written = time.monotonic()
            record = finding_record(finding)
            await asyncio.to_thread(writer.committer.commit, [(record, b"")])
            await forwarder.drain(30)
            acknowledged = time.monotonic()
            first = await denial
            found.append(Latency(first - acknowledged, first - written))
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    writer.close()
    return found


async def denied(
    ask: "grpc.aio.UnaryUnaryMultiCallable[bytes, CheckResponse]", subject: str
) -> float | None:
    """When the answer was there, if it is a denial by the policy."""
    answer = await ask(look(subject), timeout=10)
    return time.monotonic() if answer.denied_response.status.code == 403 else None


async def until_denied(
    ask: "grpc.aio.UnaryUnaryMultiCallable[bytes, CheckResponse]", subject: str
) -> float:
    while (first := await denied(ask, subject)) is None:
        await asyncio.sleep(0.001)
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=30)
    times = parser.parse_args().times
    table = Table("ms to the first denial", "p50", "p95", "most", title=f"{times} findings")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        with receiver(work) as address:
            for engine in ("embedded", "opa"):
                with ext_authz(work, engine, address) as check:
                    found = asyncio.run(measured(work, engine, address, check, times))
                for name in ("acknowledged", "written"):
                    values = sorted(1000 * getattr(one, name) for one in found)
                    p95 = values[min(round(0.95 * len(values)), len(values) - 1)]
                    shown = (statistics.median(values), p95, values[-1])
                    row = [f"{value:.1f}" for value in shown]
                    table.add_row(f"{engine}, once {name}", *row)
    Console().print(table)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} CPUs, load {load}")


if __name__ == "__main__":
    main()
