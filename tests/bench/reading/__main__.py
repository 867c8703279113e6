"""What people wait for when they read six years of a hospital: one table, in milliseconds.

The log (`fill`) is made in the embedded ClickHouse, in `--data-dir` if one is given, where a later
run finds it. Pages are asked of a real console over HTTP, each look on record by a real receiver;
dashboards' queries as Grafana would send them, for the time that they show at first. The floor
reads one column of the log, whole.

Must: 1 s for every page and query (p95), 300 ms for who saw a patient and what a person did in six
years, 1 s to the first paint; 100,000 NDJSON records a second and core. Aim: 300 ms, 100 ms, 300 ms
and 300,000.
"""

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clickhouse_driver import Client
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from authz.record.privacy import PrivacyKey
from authz.report.activity import activity
from authz.report.exports.write import write_export
from authz.report.lookup import look_up
from authz.store.client import connect
from authz.store.exports import Selection
from authz.store.lookups import Window
from deploy.grafana.board import ALL
from deploy.grafana.build import BOARDS
from tests.bench.reading.fill import COPIES, ORIGIN, fill
from tests.bench.reading.site import first_paints, site
from tests.bench.verify.__main__ import Server
from tests.dashboards import query_of

_DAY_US = 86_400_000_000
_SIX_YEARS = 6 * 366 * _DAY_US


@dataclass
class Times:
    """Milliseconds, and of which."""

    name: str
    must: int
    all: list[float] = field(default_factory=list)

    def take(self, run: Callable[[], object]) -> None:
        begun = time.perf_counter()
        run()
        self.all.append((time.perf_counter() - begun) * 1e3)

    @property
    def p95(self) -> float:
        return sorted(self.all)[(len(self.all) * 95 + 99) // 100 - 1]

    def row(self, floor: float) -> list[str]:
        told = sorted(self.all)
        return [
            self.name, str(len(told)), f"{told[len(told) // 2]:,.0f}", f"{self.p95:,.0f}",
            f"{told[-1]:,.0f}", f"{self.must:,}", f"{self.p95 / floor:.2f}",
        ]  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """People who were there lately, patients and records to ask for; half of the patients are there
    all the years."""

    people: list[str]
    patients: list[str]
    places: list[int]


def draw(client: Client, number: int) -> Drawn:
    drawn = random.Random(1)
    query = (
        "SELECT DISTINCT subject FROM audit_log WHERE kind = 'decision' AND subject != ''"
        " AND sealed_at > now() - INTERVAL 30 DAY ORDER BY cityHash64(subject) LIMIT 2000"
    )
    people = [one for (one,) in client.execute(query)]
    patients = [
        one
        for stays in (0, 1)
        for (one,) in client.execute(
            "SELECT patients[1] AS one FROM audit_log WHERE kind = 'decision' AND index % 997 < 3"
            f" AND notEmpty(patients) AND (cityHash64(one) % 3 = 0) = {stays}"
            f" GROUP BY one ORDER BY cityHash64(one) LIMIT {number}"
        )
    ]
    places = [
        index
        for (index,) in client.execute(
            "SELECT index FROM audit_log WHERE kind = 'decision' AND index % 9973 = 0"
        )
    ]
    return Drawn(
        drawn.sample(people, min(number, len(people))), drawn.sample(patients, len(patients)),
        drawn.sample(places, min(number, len(places))),
    )  # fmt: skip


def questions(client: Client, drawn: Drawn, rounds: int) -> Iterable[Times]:
    """What is asked for all six years."""
    window = Window(time.time_ns() // 1000 - _SIX_YEARS)
    patient = Times("who saw this patient in six years", 300)
    for token in drawn.patients[: 2 * rounds]:
        patient.take(lambda: look_up(client, [[token]], window))  # noqa: B023 - run at once
    yield patient
    person = Times("what did this person do in six years", 300)
    for subject in drawn.people[:rounds]:
        person.take(lambda: activity(client, subject, window, 1_000))  # noqa: B023 - too
    yield person


def dashboards(store: str, drawn: Drawn, rounds: int) -> Iterable[Times]:
    """Each query as Grafana sends it, without settings of ours; told is each board's slowest."""
    client = Client.from_url(store)
    now = int(time.time())
    for board in BOARDS:
        worst = None
        for panel in board.panels:
            times = Times(f"dashboard {board.name}: {panel.title}", 1_000)
            for subject, patient in zip(drawn.people, drawn.patients, strict=False):
                values = {"tenant": ALL, "subject": subject, "patient": patient}
                times.take(lambda: client.execute(query_of(board, panel, now, values)))  # noqa: B023 - too
                if len(times.all) == rounds:
                    break
            if worst is None or times.p95 > worst.p95:
                worst = times
        assert worst
        yield worst


def pages(get: Callable[[str], None], drawn: Drawn, rounds: int) -> Iterable[Times]:
    """Each page of the console; a search also by each filter, over six years."""
    since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - _SIX_YEARS / 1e6))
    paths = {
        "overview": ["/"],
        "search, a week": ["/search"],
        "search by person": [f"/search?since={since}&subject={one}" for one in drawn.people],
        "search by patient": [f"/search?since={since}&patient={one}" for one in drawn.patients],
        "search by role": [f"/search?since={since}&role={one}" for one in ("nurse", "it", "none")],
        "search by reason": [f"/search?since={since}&reason={one}" for one in ("read Claim", "zz")],
        "search for denials": [f"/search?since={since}&decision=denied"],
        "search for broken glass": [f"/search?since={since}&decision=break_glass"],
        "search by address": [f"/search?since={since}&source_ip={one}" for one in
                              ("10.1.1.27", "10.9.9.9")],
        "search by country": [f"/search?since={since}&country=XX"],
        "a record": [f"/record/{ORIGIN}@{one}" for one in drawn.places],
        "a person": [f"/person/{one}" for one in drawn.people],
        "a patient": [f"/patient/{one}" for one in drawn.patients],
        "findings": ["/findings"],
        "policy": ["/policy"],
        "verification": ["/verify"],
    }  # fmt: skip
    for name, some in paths.items():
        times = Times(f"console: {name}", 1_000)
        for number in range(rounds):
            times.take(lambda: get(some[number % len(some)]))  # noqa: B023 - run at once
        yield times


def floor(client: Client) -> float:
    """Milliseconds to read one column of all there is, without any index."""
    times = Times("floor: one column of all records", 0)
    for _ in range(5):
        times.take(lambda: client.execute("SELECT count() FROM audit_log WHERE subject = 'nobody'"
                                          " SETTINGS use_skip_indexes = 0"))  # fmt: skip
    return sorted(times.all)[2]


def exported(server: Server, client: Client, directory: Path, records: int) -> str:
    """NDJSON of about so many of the newest records."""
    [(end,)] = client.execute("SELECT max(index) FROM audit_log WHERE origin = %(o)s",
                              {"o": ORIGIN})  # fmt: skip
    [(since,)] = client.execute(
        "SELECT toUnixTimestamp64Micro(min(sealed_at)) FROM audit_log WHERE origin = %(o)s"
        " AND index > %(first)s", {"o": ORIGIN, "first": end - 2 * records},
    )  # fmt: skip
    wanted = Selection(window=Window(since))
    cost = server.cost(
        lambda: write_export(client, [ORIGIN], directory, "ndjson", wanted, lambda *_: None).records
    )
    both = cost.records / (cost.own + cost.server)
    return (
        f"export of {cost.records:,} of them as NDJSON: {both:,.0f}"
        f" records/s and core with the server's, {cost.records / cost.own:,.0f} of ours alone,"
        f" {cost.records / cost.wall:,.0f} records/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--export", type=int, default=1_000_000)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(options.data_dir or Path(directory) / "clickhouse")
        try:
            measure(options, server, Path(directory))
        finally:
            server.embedded.stop()


def measure(options: argparse.Namespace, server: Server, directory: Path) -> None:
    console = Console(width=110)
    table = Table()
    for name in ("", "times", "p50 ms", "p95", "most", "must", "p95 / floor"):
        table.add_column(name, justify="right" if name else "left")
    with connect(server.embedded.store) as client, Progress(console=console) as progress:
        if not client.execute("EXISTS TABLE checkpoints")[0][0]:
            making = progress.add_task("making six years", total=COPIES)
            fill(client, options.records, lambda done: progress.update(making, completed=done))
        [(count,)] = client.execute("SELECT count() FROM audit_log")
        drawn = draw(client, options.rounds)
        least = floor(client)
        asking = progress.add_task("asking", total=None)

        def told(some: Iterable[Times]) -> None:
            for times in some:
                table.add_row(*times.row(least))
                progress.update(asking, description=times.name)

        told(questions(client, drawn, options.rounds))
        told(dashboards(server.embedded.store, drawn, max(options.rounds // 4, 2)))
        key = PrivacyKey.of(bytes(32))
        with site(server.embedded.store, directory, key) as there:
            told(pages(there.get, drawn, options.rounds))
            paint = Times("first paint of the console, Chromium", 1_000)
            paint.all = first_paints(there.url, max(options.rounds // 2, 3))
            told([paint])
        rate = exported(server, client, directory / "export", options.export)
    table.title = f"{count:,} records of six years; the floor reads a column in {least:,.0f} ms"
    console.print(table)
    console.print(rate)
    console.print(
        f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {platform.machine()}", style="dim"
    )


if __name__ == "__main__":
    main()
