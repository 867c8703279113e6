"""Runs the measures and prints the table."""

import argparse
import contextlib
import http.client
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from authz.demo.people import PEOPLE
from authz.demo.stack import running
from authz.store.client import connect
from tests.bench.check.parts import TICK, _cpu_ticks, _resident_kib
from tests.live import Tuned

WAYS = {
    "none": ("true", "true"),
    "shown": ("false", "true"),
    "observe": ("false", "true"),
    "hold": ("true", "false"),
}
# "shown" is the floor: Envoy shows its answers to a processor that leaves them unread.
_PAUSE = 0.08  # long enough for the answer before to have been read
SIZES = {"1 KB": 500, "50 KB": 50_000, "1 MB": 1_000_000}


class Sized(Tuned):
    """A stack whose service answers with bundles of a size."""

    def __init__(self, directory: Path, way: str) -> None:
        off = dict(zip(("OBSERVE_OFF", "HOLD_OFF"), WAYS[way], strict=True))
        settings = {
            "none": {"AUTHZ_DISCLOSURE__ROUTES": "[]"},
            "shown": {"AUTHZ_DISCLOSURE__MAX_CONCURRENT": "0"},
        }.get(way, {})
        super().__init__(directory / way, envoy=off, ext_authz=settings, timeout_ms=5000)

    def _add_service(self) -> None:
        super()._add_service()
        part = self.parts["service"]
        module = "tests.bench.disclosure.upstream"
        part.command = [sys.executable, "-m", module, "--listen", part.address]

    def pid(self, name: str) -> int:
        process = self.parts[name].process
        assert process is not None
        return process.pid


@dataclass
class Cost:
    """Of one answer: microseconds of latency, and of CPU."""

    p50: float
    p99: float
    ext_authz: float
    envoy: float


def measure(stack: Sized, size: int, requests: int) -> Cost:
    """Of answers that come one at a time, every `_PAUSE` seconds."""
    parts = ("ext-authz", "envoy")
    where = urlsplit(stack.envoy)
    headers = {"authorization": f"Bearer {stack.keys.token(PEOPLE['linden'])}"}
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    times = []
    for number in range(-5, requests):  # the first warm up
        if number == 0:
            before = [_cpu_ticks(stack.pid(name)) for name in parts]
        began = time.perf_counter()
        connection.request("GET", f"/fhir/_fault/{size}", headers=headers)
        response = connection.getresponse()
        response.read()
        if number >= 0:
            times.append((time.perf_counter() - began) * 1e6)
        if response.status != 200:
            raise RuntimeError(f"a request was answered with {response.status}")
        time.sleep(_PAUSE)
    after = [_cpu_ticks(stack.pid(name)) for name in parts]
    connection.close()
    times.sort()
    cpu = [(b - a) / TICK / requests * 1e6 for a, b in zip(before, after, strict=True)]
    return Cost(times[len(times) // 2], times[len(times) * 99 // 100], *cpu)


def least(costs: list[Cost]) -> Cost:
    return Cost(*(min(getattr(one, name) for one in costs) for name in Cost.__annotations__))


@contextlib.contextmanager
def stacks(work: Path) -> Iterator[dict[str, Sized]]:
    with contextlib.ExitStack() as up:
        made = {way: Sized(work, way) for way in WAYS}
        for stack in made.values():
            up.enter_context(running(stack, lambda _: None))
        yield made


def stream(stack: Sized, megabytes: int) -> tuple[float, float, float]:
    """One long answer: ext-authz's memory before and at most meanwhile (MiB), and seconds."""
    token = stack.keys.token(PEOPLE["linden"])
    url = f"{stack.envoy}/fhir/_fault/{megabytes * 1_000_000}"
    command = ["curl", "-s", "-o", os.devnull, "-H", f"authorization: Bearer {token}", url]
    before = most = _resident_kib(stack.pid("ext-authz")) / 1024
    began = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        most = max(most, _resident_kib(stack.pid("ext-authz")) / 1024)
        time.sleep(0.05)
    return before, most, time.monotonic() - began


def table(costs: dict[tuple[str, str], Cost]) -> Table:
    shown = Table(title="µs an answer, one every 0.1 s; least of all rounds")
    for name in ("answer", "way", "p50", "ratio", "p99", "CPU ext-authz", "CPU Envoy"):
        shown.add_column(name, justify="left" if name in ("answer", "way") else "right")
    for (size, way), cost in costs.items():
        ratio = cost.p50 / costs[size, "none"].p50
        figures = (cost.p99, cost.ext_authz, cost.envoy)
        row = (size, way, f"{cost.p50:,.0f}", f"{ratio:.2f}", *(f"{one:,.0f}" for one in figures))
        shown.add_row(*row, end_section=way == "hold")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream", type=int, default=100, metavar="MB")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as directory, stacks(Path(directory)) as made:
        found: dict[tuple[str, str], list[Cost]] = {}
        for _ in range(options.rounds):
            for size, length in SIZES.items():
                for way, stack in made.items():
                    cost = measure(stack, length, options.requests)
                    found.setdefault((size, way), []).append(cost)
                    console.print(f"{size} {way}: p50 {cost.p50:,.0f} µs", style="dim")
        console.print(table({key: least(costs) for key, costs in found.items()}))
        before, most, seconds = stream(made["observe"], options.stream)
        text = (
            f"{options.stream} MB of NDJSON observed: {before:.0f} MiB before, {most:.0f} at most"
        )
        console.print(f"{text}, {seconds:.1f} s")
        time.sleep(3)
        with connect(made["observe"].store) as client:
            query = "SELECT complete, reason_code, count() FROM disclosures GROUP BY ALL"
            console.print("disclosures (complete, reason, count):", client.execute(query))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
