"""What each `--durability` costs, beside the others.

    python -m tests.bench.check.durability [--checks N] [--rounds N]

All send to one receiver, which syncs its own disk and stores in ClickHouse. `receiver, in memory`
has the journal of ext-authz in a tmpfs. CPU is ext-authz's own: neither OPA's nor the receiver's.
"""

import argparse
import os
import platform
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.check import parts
from tests.bench.check.load import cpu_per_check, through_envoy
from tests.bench.check.parts import Served

_MEMORY = Path("/dev/shm")
_KINDS = ("fsync", "receiver", "receiver, in memory", "os")


@dataclass(frozen=True)
class Figures:
    """In microseconds; CPU is per Check, the rest through Envoy."""

    cpu_16: float
    cpu_1: float
    p50_1: float
    p99_1: float
    p50_16: float
    p99_16: float


_NAMED = {
    "cpu_16": "CPU of ext-authz per Check, 16 in flight",
    "cpu_1": "  1 in flight",
    "p50_1": "through Envoy, 1 in flight, p50",
    "p99_1": "  p99",
    "p50_16": "through Envoy, 16 in flight, p50",
    "p99_16": "  p99",
}


def measure(work: Path, receiver: str, kind: str, checks: int) -> Figures:
    durability, _, memory = kind.partition(", ")
    with (
        tempfile.TemporaryDirectory(dir=_MEMORY if memory else work) as data,
        parts.authz(work, durability=durability, receiver=receiver, data=Path(data)) as served,
        parts.envoy(work, served) as port,
    ):
        alone = Served(served.name, served.ports, served.processes[1:])
        few = checks // 8
        one = through_envoy(port, work, few, 1, varied=True)
        busy = through_envoy(port, work, checks, 16, varied=True)
        return Figures(
            cpu_per_check(alone, work, checks, 16, varied=True),
            cpu_per_check(alone, work, few, 1, varied=True),
            one.p50, one.p99, busy.p50, busy.p99,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", type=int, default=16_000)
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often, in turns; the least of each is shown"
    )
    options = parser.parse_args()
    rounds: dict[str, list[Figures]] = {kind: [] for kind in _KINDS}
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as directory, console.status("measuring") as status:
        work = Path(directory)
        with parts.receiver(work) as receiver:
            for number in range(options.rounds):
                for kind in _KINDS:
                    status.update(f"round {number + 1} of {options.rounds}: {kind}")
                    rounds[kind].append(measure(work, receiver, kind, options.checks))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table(title=f"--durability: the least of {options.rounds} rounds, µs ({machine})")
    table.add_column("measure")
    for kind in _KINDS:
        table.add_column(kind, justify="right")
    for field in fields(Figures):
        least = [min(getattr(one, field.name) for one in rounds[kind]) for kind in _KINDS]
        table.add_row(_NAMED[field.name], *(f"{value:,.0f}" for value in least))
    console.print(table)


if __name__ == "__main__":
    main()
