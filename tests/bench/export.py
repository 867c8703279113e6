"""What exports cost, and their check: one table, against a floor of the same run.

A log whose records lie over a year is made in the embedded ClickHouse and exported in each form.
CPU is this process's, all its threads; the server's stands beside it, for it writes the text out of
the columns. The floor is the server writing the same text to a file of its own, in one query. The
check is `authz verify-proof` of the NDJSON.

Must: 100,000 NDJSON records a second and core (of the two together). Aim: 300,000.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from clickhouse_driver import Client
from rich.console import Console
from rich.table import Table

from authz.report.exports.check import check_export
from authz.report.exports.manifest import FILES
from authz.report.exports.write import write_export
from authz.store import rows
from authz.store.client import connect
from authz.store.exports import Selection
from authz.store.pages import Filters
from tests.bench.verify.__main__ import TRUST, Cost, Server, fill
from tests.bench.verify.build import Built

_SELECTIONS = {
    "ndjson": Selection(),
    "ndjson of one person": Selection(filters=Filters(subject="person-7")),
    "csv": Selection(),
    "fhir": Selection(),
}


def export(client: Client, folder: Path, form: str, wanted: Selection) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    origins = [log.origin for log in TRUST]
    return write_export(client, origins, folder, form, wanted, lambda *_: None).records


def floor(client: Client, size: int) -> int:
    """The server writes the leaves to a file."""
    text = rows._leaves_query(f"origin = '{TRUST[0].origin}' ORDER BY index")
    file = "INSERT INTO FUNCTION file('floor.ndjson', 'TSVRaw', 'text String')"
    settings = {"engine_file_truncate_on_insert": 1}
    client.execute(f"{file} SELECT text FROM ({text})", settings=settings)
    return size


def check(folder: Path) -> int:
    checked = check_export(folder / "manifest.json", TRUST)
    assert checked.proven
    return checked.manifest.records


def peak(store: str, folder: str) -> int:
    """MB that an export holds at most, in a process that does nothing else."""
    with connect(store) as client:
        export(client, Path(folder), "ndjson", Selection())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def row(name: str, cost: Cost) -> list[str]:
    both = cost.own + cost.server
    return [
        name, f"{cost.records:,}", f"{cost.wall:.2f}", f"{cost.own:.2f}", f"{cost.server:.2f}",
        f"{cost.records / both:,.0f}", f"{cost.records / max(cost.own, 0.001):,.0f}",
        f"{cost.records / cost.wall:,.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "clickhouse")
        try:
            measure(options, console, server, Path(directory))
        finally:
            server.embedded.stop()


def measure(options: argparse.Namespace, console: Console, server: Server, directory: Path) -> None:
    store = server.embedded.store
    log = Built(directory, store)
    memory = []
    for part in (options.records // 10, options.records):
        fill(log, part, options.records)
        memory.append((log.journal.next, _peak_apart(store, directory / "peak")))
    size = log.journal.next
    table = Table(title=f"exports; seconds, best of {options.rounds}")
    for name in ("", "records", "wall", "CPU", "server's CPU", "records/s and core", "of our CPU",
                 "records/s"):  # fmt: skip
        table.add_column(name, justify="right" if name else "left")

    def best(name: str, run: Callable[[], int]) -> None:
        costs = [server.cost(run) for _ in range(options.rounds)]
        table.add_row(*row(name, min(costs, key=lambda cost: cost.wall)))

    with connect(store) as client:
        best("floor: the server alone", lambda: floor(client, size))
        for name, wanted in _SELECTIONS.items():
            form = name.split()[0]
            folder = directory / name.replace(" ", "-")
            best(name, lambda: export(client, folder, form, wanted))  # noqa: B023 - run at once
            assert (folder / FILES[form]).stat().st_size
    best("check of the ndjson", lambda: check(directory / "ndjson"))
    console.print(table)
    for count, most in memory:
        console.print(f"an export of {count:,} records: {most} MB at most")
    console.print(
        f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {platform.machine()}, Python"
        f" {platform.python_version()}",
        style="dim",
    )
    log.end()


def _peak_apart(store: str, folder: Path) -> int:
    code = "import sys; from tests.bench.export import peak; print(peak(*sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, store, str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


if __name__ == "__main__":
    main()
