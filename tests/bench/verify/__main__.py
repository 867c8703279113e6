"""What verification costs, and sealing: one table, against a floor of the same run.

A log whose records lie over a year is made in the embedded ClickHouse, and verified: all of it,
what is new after one percent more, and a day. CPU is this process's, all its threads; the server's
stands beside it, for it writes the leaves, and shares the machine's cores. The floor reads the same
leaves and hashes them, and does nothing else.

Must: 100,000 records a second and core. Aim: 200,000.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickhouse_driver import Client
from rich.console import Console
from rich.table import Table

from authz.ledger import Checkpoint, Signer, Tree, leaf_hashes, sign_note
from authz.store import embedded, rows
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify import Report
from authz.verify.logs import Window, verify_logs
from tests.bench.verify.build import SIGNER, Built, build

TRUST = [TrustedLog(SIGNER.name, (SIGNER.verifier,))]
_YEAR, _DAY = 365 * 86_400_000_000, 86_400_000_000
_BEGIN = 1_700_000_000_000_000
_CHUNK = 16_384  # as verification reads them
_BATCH = 10_000  # as the receiver seals them, at most
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Seconds, and what was checked in them."""

    wall: float
    own: float
    server: float
    records: int

    def row(self, name: str, whole: "Cost | None" = None) -> list[str]:
        share = f"{self.wall / whole.wall:.1%}" if whole else ""
        return [
            name, f"{self.records:,}", f"{self.wall:.2f}", f"{self.own:.2f}", f"{self.server:.2f}",
            f"{self.records / self.own:,.0f}", f"{self.records / self.wall:,.0f}", share,
        ]  # fmt: skip


class Server:
    """The embedded ClickHouse, and what it has used of the processor."""

    def __init__(self, directory: Path) -> None:
        self.embedded = embedded.start(directory)

    def cpu(self) -> float:
        stat = Path(f"/proc/{self.embedded.process.pid}/stat").read_text()
        told = stat.rpartition(")")[2].split()
        return (int(told[11]) + int(told[12])) / _TICKS

    def cost(self, run: Callable[[], int]) -> Cost:
        wall, own, server = time.perf_counter(), time.process_time(), self.cpu()
        records = run()
        return Cost(
            time.perf_counter() - wall, time.process_time() - own, self.cpu() - server, records
        )


def checked(report: Report) -> int:
    assert report.verified, report.findings[:5]
    return report.checked


def floor(client: Client, size: int) -> int:
    """Read the leaves and hash them."""
    for first in range(0, size, _CHUNK):
        _, leaves = rows.leaves(client, TRUST[0].origin, first, min(first + _CHUNK, size))
        leaf_hashes(leaves)
    return size


def fill(log: Built, records: int, per_year: int) -> None:
    """Once a day a group of records, a signed head and a checkpoint."""
    for _ in build(log, records, max(per_year // 730, 10), _YEAR // per_year, _BEGIN):
        pass


def peak(store: str, trust: Path) -> int:
    """MB that ``authz verify`` holds at most, by its parent's account."""
    command = [sys.executable, "-m", "authz", "verify", "--store", store, "--trust", str(trust)]
    subprocess.run(command, check=True, capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def sealing(sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Microseconds to seal a record, in batches, once a log has so many leaves."""
    signer, tree, found = Signer("bench/receiver", bytes(32)), Tree(), []
    hashes = [os.urandom(32) for _ in range(_BATCH)]

    def seal() -> float:
        begun = time.perf_counter()
        grown = tree.copy()
        grown.append(hashes)
        grown.partial_tiles()
        sign_note(Checkpoint("bench/receiver", grown.size, grown.root()).text(), signer)
        return (time.perf_counter() - begun) / _BATCH * 1e6

    for size in sizes:
        while tree.size < size:
            tree.append(hashes[: size - tree.size])
        found.append((size, statistics.median(seal() for _ in range(101))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--leaves", type=int, default=1_000_000, help="of the log that is sealed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "clickhouse")
        try:
            measure(options, console, server, Path(directory))
        finally:
            server.embedded.stop()
    table = Table(title="sealing a record")
    for name in ("leaves", "µs a record"):
        table.add_column(name, justify="right")
    for size, cost in sealing([10**n for n in range(5, 9) if 10**n <= options.leaves]):
        table.add_row(f"{size:,}", f"{cost:.3f}")
    console.print(table)


def measure(options: Any, console: Console, server: Server, directory: Path) -> None:
    """Everything about verification."""
    store = server.embedded.store
    log = Built(directory, store)
    trust = directory / "trust.yaml"
    [key] = TRUST[0].keys
    trust.write_text(json.dumps({"logs": [{"origin": TRUST[0].origin, "keys": [str(key)]}]}))
    memory = []
    for part in (options.records // 10, options.records):
        fill(log, part, options.records)
        memory.append((log.journal.next, _peak_apart(store, trust)))
    with connect(store) as client:
        source = StoredLogs(client)
        size = log.journal.next
        state: dict[str, Any] = {}
        full = _best(server, lambda: checked(verify_logs(source, TRUST, state)), options.rounds)
        least = _best(server, lambda: floor(client, size), options.rounds)
        day = Window(_BEGIN + 200 * _DAY, _BEGIN + 201 * _DAY)
        window = _best(
            server, lambda: checked(verify_logs(source, TRUST, window=day)), options.rounds
        )
        fill(log, size + size // 100, options.records)

        def grown() -> int:
            kept = json.loads(json.dumps(state))
            return checked(verify_logs(source, TRUST, kept, incremental=True))

        more = _best(server, grown, options.rounds)
    load = os.getloadavg()[0]
    table = Table(title=f"verification; seconds, best of {options.rounds}")
    names = "records", "wall", "CPU", "server's CPU", "records/s of CPU", "records/s", "of the full"
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    table.add_row(*full.row("all"))
    table.add_row(*least.row("floor: leaves read and hashed", full))
    table.add_row(*more.row("what is new after 1 %", full))
    table.add_row(*window.row("a day of the year", full))
    console.print(table)
    for count, most in memory:
        console.print(f"authz verify of {count:,} records: {most} MB at most")
    console.print(
        f"load {load:.1f}, {os.cpu_count()} cores, {platform.machine()}, Python"
        f" {platform.python_version()}",
        style="dim",
    )
    log.end()


def _best(server: Server, run: Callable[[], int], rounds: int) -> Cost:
    return min((server.cost(run) for _ in range(rounds)), key=lambda cost: cost.wall)


def _peak_apart(store: str, trust: Path) -> int:
    """In a process that has no other child: the server is one of this."""
    code = "import sys, pathlib; from tests.bench.verify.__main__ import peak;"
    code += "print(peak(sys.argv[1], pathlib.Path(sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", code, store, str(trust)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


if __name__ == "__main__":
    main()
