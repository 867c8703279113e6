"""How much misuse detection finds in simulated hospitals, and at which cost in alerts: one table.

Each hospital's records go through the real record form, ClickHouse and the rules, on simulated
time (`--no-store`: straight to the rules). Must: 75 % of all misuse, 95 % of the plain kinds, at
most 1.5 alerts to act on per 1,000 user-days. Aim: 85 %, 99 %, 1.0.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from authz.config import Watch
from authz.detect.detector import detector_of
from authz.detect.record import to_json
from authz.record import canonical, clean
from authz.store import embedded, rows
from authz.store.client import Client, connect
from authz.store.migrations import migrate
from tests.bench.detect.hospital import Hospital, generate
from tests.bench.detect.options import Options
from tests.bench.detect.score import DAY_US, Score, UserDays, score

TRAINING_DAYS = 30
PLAIN = ("bulk_export", "stolen_credential", "denied_burst", "failed_authentication", "terminated",
         "service_drift")  # fmt: skip
# Rules that add up a day's or some days' requests, and show some of them.
DAILY = frozenset((
    "bulk_requests", "bulk_read", "fast_read", "unexplained", "denials", "shared_credential",
    "break_glass", "slow_read", "slow_unexplained", "combination", "terminated",
))  # fmt: skip
_BATCH = 50_000
_PLACE = frozenset(("origin", "index", "sealed_at"))
ORIGIN = "bench/receiver"


@dataclass(frozen=True)
class Run:
    """One hospital, judged."""

    name: str
    score: Score
    records: int
    user_days: int
    unexplained: float
    microseconds: list[float]
    """CPU of the rules by record, of each batch."""


def run(name: str, options: Options, client: Client | None, progress: Progress) -> Run:
    hospital = generate(options)
    task = progress.add_task(name, total=options.days)
    with tempfile.TemporaryDirectory() as directory:
        feeds = Path(directory)
        hospital.feeds(feeds)
        detector = detector_of(Watch(feeds=feeds))
    gc.freeze()
    after = (options.begin(TRAINING_DAYS)) * 1_000_000
    users = UserDays(after, options.begin(0) * 1_000_000)
    found, count = [], 0
    spent: list[float] = []
    for batch in _batches(hospital, client):
        for record in batch:
            users.add(record)
        begun = time.process_time()
        new = [finding for record in batch for finding in detector.add(record)]
        spent.append((time.process_time() - begun) / len(batch) * 1e6)
        found += new
        count += len(batch)
        day = (batch[-1]["time"] - options.begin(0) * 1_000_000) // DAY_US
        progress.update(task, completed=min(day, options.days))
    progress.remove_task(task)
    judged = score(map(to_json, found), hospital.truth, users.count, after, DAILY)
    memory = detector.memory
    return Run(
        name, judged, count, users.count, memory.unexplained,
        spent,
    )  # fmt: skip


def _batches(hospital: Hospital, client: Client | None) -> Iterator[list[dict[str, Any]]]:
    records, first = hospital.records(), 0
    while batch := list(islice(records, _BATCH)):
        if client:
            batch = _stored(client, batch, first)
        yield batch
        first += len(batch)


def _stored(client: Client, batch: list[dict[str, Any]], first: int) -> list[Any]:
    """The same, as the database gives them back; without their places, since the truth names
    requests."""
    leaves = [
        canonical(clean(record | {
            "origin": ORIGIN, "index": first + number, "sealed_at": record["time"],
        }))
        for number, record in enumerate(batch)
    ]  # fmt: skip
    rows.insert(client, leaves)
    read = rows.read(client, "audit_log", ORIGIN, first, first + len(batch))
    return [{name: record[name] for name in record if name not in _PLACE} for record in read]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--people", type=int, default=6_000)
    parser.add_argument("--patients", type=int, default=130_000)
    parser.add_argument("--days", type=int, default=120)
    parser.add_argument("--misuses", type=int, default=12, help="of each kind")
    parser.add_argument(
        "--more", action="store_true", help="6 and 10 %% unexplained, doubled VPN and floats"
    )
    parser.add_argument("--no-store", action="store_true")
    options = parser.parse_args()
    console = Console(width=110)
    runs = []
    with tempfile.TemporaryDirectory() as directory, Progress(console=console) as progress:
        server = None if options.no_store else embedded.start(Path(directory))
        try:
            for seed in options.seeds:
                base = Options(
                    seed, options.people, options.patients, options.days, misuses=options.misuses
                )
                for name, each in _variants(base, more=options.more):
                    if server:
                        with connect(server.store) as client:
                            migrate(client)
                            client.execute("TRUNCATE TABLE audit_log")
                            runs.append(run(name, each, client, progress))
                    else:
                        runs.append(run(name, each, None, progress))
        finally:
            if server:
                server.stop()
    _show(console, runs)


def _variants(base: Options, *, more: bool) -> Iterator[tuple[str, Options]]:
    yield f"seed {base.seed}", base
    if more:
        for share in (0.06, 0.10):
            yield f"seed {base.seed}, {share:.0%} unexplained", replace(base, unexplained=share)
        doubled = replace(base, vpn=base.vpn * 2, floats=base.floats * 2)
        yield f"seed {base.seed}, VPN and floats doubled", doubled


def _show(console: Console, runs: list[Run]) -> None:
    table = Table(title=f"misuse found, after {TRAINING_DAYS} days of training")
    table.add_column("")
    for one in runs:
        table.add_column(one.name, justify="right")
    kinds = sorted({kind for one in runs for kind in one.score.kinds})
    for kind in kinds:
        table.add_row(kind, *(
            f"{one.score.kinds[kind].caught}/{one.score.kinds[kind].of}" for one in runs
        ))  # fmt: skip
    table.add_section()
    rows_: list[tuple[str, list[str]]] = [
        ("all", [f"{one.score.overall.share:.1%}" for one in runs]),
        ("plain kinds", [f"{_plain(one.score):.1%}" for one in runs]),
        ("by act now alone", [f"{one.score.acted.share:.1%}" for one in runs]),
        *(
            (f"{lane}: alerts per 1,000 user-days (false)", [
                f"{one.score.lanes[lane].per_1000:.2f} ({one.score.lanes[lane].false_per_1000:.2f})"
                for one in runs
            ])
            for lane in ("act", "review")
        ),
        ("alerts with evidence and records", [f"{one.score.evidenced:.0%}" for one in runs]),
        ("accesses unexplained", [f"{one.unexplained:.1%}" for one in runs]),
        ("records", [f"{one.records:,}" for one in runs]),
        ("user-days after training", [f"{one.user_days:,}" for one in runs]),
        ("CPU a record, µs", [f"{fmean(one.microseconds):.1f}" for one in runs]),
        ("at 100,000 records of history", [f"{fmean(one.microseconds[2:6]):.1f}" for one in runs]),
        ("at the end", [f"{fmean(one.microseconds[-5:-1]):.1f}" for one in runs]),
    ]  # fmt: skip
    for name, values in rows_:
        table.add_row(name, *values)
    console.print(table)
    for one in runs:
        told = ", ".join(
            f"{lane} {rule} {count}"
            for (lane, rule), count in list(one.score.false_alerts.items())[:12]
        )
        console.print(f"{one.name}, false alerts: {told}", style="dim")


def _plain(judged: Score) -> float:
    plain = [judged.kinds[kind] for kind in PLAIN if kind in judged.kinds]
    return sum(one.caught for one in plain) / max(sum(one.of for one in plain), 1)


if __name__ == "__main__":
    main()
