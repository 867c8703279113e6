"""Runs the measures and prints the table."""

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from authz.store import embedded, migrations
from authz.store.client import connect
from tests.bench.receiver import stages
from tests.bench.receiver.load import Load
from tests.bench.receiver.parts import Served, cpu_seconds, receiver, resident_mib
from tests.bench.receiver.store import Readable, Store

_BLOCK = 50_000  # requests: decisions of so many, then their accesses
_RATE = 2000


@dataclass(frozen=True)
class Cost:
    """Of one account's records, until they are rows under a checkpoint: µs of CPU a record, and
    how many a second."""

    receiver: float
    clickhouse: float
    rate: float


@dataclass(frozen=True)
class Block:
    """Some requests' decisions and then accesses, and the receiver's memory after them."""

    decisions: Cost
    accesses: Cost
    memory_mib: float


@dataclass(frozen=True)
class Delay:
    """Of a share of all, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Paced:
    """At a steady rate: the receiver's and ClickHouse's share of a core, and how long it takes."""

    receiver_core: float
    clickhouse_core: float
    decision: Delay
    access: Delay
    access_since_told: Delay
    bytes_now: dict[str, float]
    bytes_merged: dict[str, float]


@dataclass(frozen=True)
class Figures:
    machine: str
    blocks: list[Block]
    stages: dict[str, float]
    paced: Paced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--entries", type=int, default=500_000, help="accesses, and as many requests"
    )
    parser.add_argument("--seconds", type=int, default=30, help="of the steady rate")
    parser.add_argument("--rounds", type=int, default=3, help="of the stages; the least is shown")
    parser.add_argument("--memory", action="store_true", help="10 million entries instead")
    parser.add_argument("--json", type=Path, help="where to write the figures, too")
    options = parser.parse_args()
    console = Console(width=110)
    entries = 10_000_000 if options.memory else options.entries
    with tempfile.TemporaryDirectory() as directory, console.status("measuring") as status:
        work = Path(directory)
        status.update(f"{_RATE} requests a second")
        paced = at_rate(work / "paced", options.seconds)
        status.update("stage by stage")
        found = by_stage(work / "stages", options.rounds)
        blocks: list[Block] = []
        with served(work / "flat") as (parts, load, store):
            block = min(_BLOCK, max(1000, entries // 10))
            while len(blocks) * block < entries:
                status.update(f"{len(blocks) * block:,} of {entries:,} entries")
                blocks.append(measured(parts, load, store, block))
            if unmatched := store.unmatched():
                sys.exit(f"{unmatched} decision ids are not in one decision and one access")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
    machine += f" load average {os.getloadavg()[2]:.1f}"
    figures = Figures(machine, blocks, found, paced)
    show(console, figures)
    if options.json:
        options.json.write_bytes(orjson.dumps(asdict(figures), option=orjson.OPT_INDENT_2))


@contextlib.contextmanager
def served(work: Path) -> Iterator[tuple[Served, Load, Store]]:
    """A receiver, its load, and its store."""
    work.mkdir()
    with receiver(work) as parts, contextlib.ExitStack() as stack:
        load = Load(parts.address)
        stack.callback(load.close)
        store = Store(parts.store)
        stack.callback(store.close)
        load.prepare(2000)
        load.decide()  # warms up
        load.access()
        store.wait("access", 2000, parts.check)
        yield parts, load, store


def measured(parts: Served, load: Load, store: Store, count: int) -> Block:
    decided = load.prepare(count)
    decisions = _cost(parts, store, "decision", decided, load.decide)
    accesses = _cost(parts, store, "access", count, load.access)
    return Block(decisions, accesses, resident_mib(parts.receiver))


def _cost(parts: Served, store: Store, kind: str, count: int, send: Callable[[], None]) -> Cost:
    pids = parts.receiver, parts.clickhouse
    before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
    send()
    store.wait(kind, count, parts.check)
    took = time.monotonic() - began
    ours, theirs = (cpu_seconds(pid) - b for pid, b in zip(pids, before, strict=True))
    return Cost(ours / count * 1e6, theirs / count * 1e6, count / took)


def at_rate(work: Path, seconds: int) -> Paced:
    with served(work) as (parts, load, store):
        pids = parts.receiver, parts.clickhouse
        before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
        with Readable(parts.store) as readable:
            sent = load.paced(_RATE, seconds)
            took = time.monotonic() - began
            ours, theirs = ((cpu_seconds(p) - b) / took for p, b in zip(pids, before, strict=True))
            store.wait("access", len(sent.accesses), parts.check)
            time.sleep(0.2)
        told = dict(sent.accesses)  # when each was sent; requests have different times
        decision, access, since_told = [], [], []
        for index, at_us in store.told("decision"):
            if at_us in told:
                decision.append(readable.since(index) - at_us)
        for index, at_us in store.told("access"):
            if at_us in told:
                access.append(readable.since(index) - at_us)
                since_told.append(readable.since(index) - told[at_us])
        as_it_is = store.bytes_a_record()
        store.merge()
        return Paced(
            ours, theirs, _delay(decision), _delay(access), _delay(since_told),
            as_it_is, store.bytes_a_record(),
        )  # fmt: skip


def _delay(micros: Sequence[int]) -> Delay:
    found = sorted(micros)
    return Delay(found[len(found) // 2] / 1e6, found[len(found) * 99 // 100] / 1e6)


def by_stage(work: Path, rounds: int) -> dict[str, float]:
    work.mkdir()
    server = embedded.start(work / "clickhouse")
    try:
        client = connect(server.store)
        migrations.migrate(client)
        client.disconnect()
        found = [stages.cost(work / str(number), server.store) for number in range(rounds)]
    finally:
        server.stop()
    return {name: min(one[name] for one in found) for name in stages.NAMES}


def show(console: Console, figures: Figures) -> None:
    blocks, paced = figures.blocks, figures.paced
    table = Table(title=f"The receiver ({figures.machine})")
    table.add_column("measure")
    for name in ("figure", "must", "aim"):
        table.add_column(name, justify="right")

    def row(what: str, figure: str, must: str = "", aim: str = "") -> None:
        table.add_row(what, figure, must, aim)

    # Noise only ever adds; what the first block warms up is not counted.
    settled = blocks[1:] or blocks
    each = min(block.accesses.receiver for block in settled)
    middle = statistics.median(block.accesses.receiver for block in settled)
    row("entries a second and receiver core, sealed", f"{1e6 / each:,.0f}", "40,000", "60,000")
    row("  median of the blocks", f"{1e6 / middle:,.0f}")
    row("  a second, as it was", f"{max(block.accesses.rate for block in settled):,.0f}")
    row("CPU an entry, receiver, µs", f"{each:.1f}", "25", "16")
    for name in stages.NAMES:
        row(f"  {name}", f"{figures.stages[name]:.1f}")
    row("  streams and the rest", f"{each - sum(figures.stages.values()):.1f}")
    row("  first tenth, last tenth", " ".join(f"{cost:.1f}" for cost in _tenths(blocks)), "flat")
    row("CPU an entry, ClickHouse, µs", f"{min(b.accesses.clickhouse for b in settled):.1f}")
    decision = min(block.decisions.receiver for block in settled)
    row("CPU a decision, receiver, µs", f"{decision:.1f}")
    row("  a second and core, sealed", f"{1e6 / decision:,.0f}")
    row("  a second, as it was", f"{max(block.decisions.rate for block in settled):,.0f}")
    row(f"request to row at {_RATE:,}/s, p99, s: access", f"{paced.access.p99:.2f}", "2", "1")
    row("  p50", f"{paced.access.p50:.2f}")
    row("  since Envoy told it, p50, p99", _both(paced.access_since_told))
    row("  decision, p50, p99", _both(paced.decision))
    row("  cores: receiver, ClickHouse", f"{paced.receiver_core:.2f} {paced.clickhouse_core:.2f}")
    for what, sizes in (("merged", paced.bytes_merged), ("as they are", paced.bytes_now)):
        rows_, tiles = sizes["audit_log"], sizes["tiles"]
        row(f"bytes a record, {what}", f"{rows_ + tiles:.0f}", "report", "160")
        row(
            "  rows, tiles, other tables",
            f"{rows_:.1f} {tiles:.1f} {sum(sizes.values()) - rows_ - tiles:.1f}",
        )
    row(
        "memory, MiB, by tenths",
        " ".join(f"{block.memory_mib:.0f}" for block in _ten(blocks)),
        "flat",
    )
    console.print(table)


def _both(delay: Delay) -> str:
    return f"{delay.p50:.2f} {delay.p99:.2f}"


def _ten(blocks: Sequence[Block]) -> Sequence[Block]:
    return blocks[:: max(1, len(blocks) // 10)][:10]


def _tenths(blocks: Sequence[Block]) -> tuple[float, float]:
    """The least cost of an access in the first tenth, without the first block, and in the last."""
    tenth = max(1, len(blocks) // 10)
    first = blocks[1 : tenth + 1] or blocks
    return tuple(min(b.accesses.receiver for b in some) for some in (first, blocks[-tenth:]))


if __name__ == "__main__":
    main()
