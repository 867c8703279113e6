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
from dataclasses import asdict, dataclass, field
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
_FLUSH_SECONDS = 0.5  # deploy/envoy/envoy.yaml


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
    memory_mib: float
    bytes_now: dict[str, float]
    bytes_merged: dict[str, float]


@dataclass
class Figures:
    """What was measured; a part that was not is empty."""

    machine: str = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    blocks: list[Block] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    paced: Paced | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--entries", type=int, default=500_000, help="accesses, and as many requests"
    )
    parser.add_argument("--seconds", type=int, default=30, help="of the steady rate")
    parser.add_argument(
        "--flush-seconds", type=float, default=_FLUSH_SECONDS, help="of Envoys at that rate"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the stages; the least is shown")
    parser.add_argument("--memory", action="store_true", help="10 million entries instead")
    parser.add_argument("--only", choices=("flat", "stages", "paced"), help="one part of it")
    parser.add_argument("--json", type=Path, help="where to write the figures, too")
    options = parser.parse_args()
    wanted = {options.only} if options.only else {"flat", "stages", "paced"}
    console = Console(width=110)
    entries = 10_000_000 if options.memory else options.entries
    figures = Figures()
    with tempfile.TemporaryDirectory() as directory, console.status("measuring") as status:
        work = Path(directory)
        if "paced" in wanted:
            status.update(f"{_RATE} requests a second")
            figures.paced = at_rate(work / "paced", options.seconds, options.flush_seconds)
        if "stages" in wanted:
            status.update("stage by stage")
            figures.stages = by_stage(work / "stages", options.rounds)
        if "flat" in wanted:
            figures.blocks = flat_out(work / "flat", entries, status.update)
    figures.machine += f", load average {os.getloadavg()[2]:.1f}"
    show(console, figures)
    if options.json:
        options.json.write_bytes(orjson.dumps(asdict(figures), option=orjson.OPT_INDENT_2))


def flat_out(work: Path, entries: int, tell: Callable[[str], None]) -> list[Block]:
    """Decisions and accesses in turns, as fast as they are taken."""
    blocks: list[Block] = []
    size = min(_BLOCK, max(1000, entries // 10))
    with served(work) as (parts, load, store):
        while len(blocks) * size < entries:
            tell(f"{len(blocks) * size:,} of {entries:,} entries")
            blocks.append(measured(parts, load, store, size))
        if unmatched := store.unmatched():
            sys.exit(f"{unmatched} decision ids are not in one decision and one access")
    return blocks


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


def at_rate(work: Path, seconds: int, flush: float) -> Paced:
    with served(work) as (parts, load, store):
        pids = parts.receiver, parts.clickhouse
        before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
        with Readable(parts.store) as readable:
            sent = load.paced(_RATE, seconds, flush)
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
            resident_mib(parts.receiver), as_it_is, store.bytes_a_record(),
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
    table = Table(title=f"The receiver ({figures.machine})")
    table.add_column("measure")
    for name in ("figure", "must", "aim"):
        table.add_column(name, justify="right")
    for row in (*_flat_rows(figures), *_paced_rows(figures.paced)):
        table.add_row(*row)
    console.print(table)


def _flat_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    blocks = figures.blocks
    settled = blocks[1:] or blocks  # what the first warms up is not counted
    accesses, decisions = [b.accesses for b in settled], [b.decisions for b in settled]
    if blocks:
        # Noise only ever adds.
        each = min(cost.receiver for cost in accesses)
        middle = statistics.median(cost.receiver for cost in accesses)
        yield "entries a second and core, sealed", f"{1e6 / each:,.0f}", "40,000", "60,000"
        yield "  median of the blocks", f"{1e6 / middle:,.0f}"
        yield "  a second, as it was", f"{max(cost.rate for cost in accesses):,.0f}"
        yield "CPU an entry, receiver, µs", f"{each:.1f}", "25", "16"
    for name, micros in figures.stages.items():
        yield f"  {name}", f"{micros:.1f}"
    if blocks and figures.stages:
        yield "  streams and the rest", f"{each - sum(figures.stages.values()):.1f}"
    if blocks:
        yield "  first tenth, last tenth", " ".join(f"{c:.1f}" for c in _tenths(blocks)), "flat"
        yield "CPU an entry, ClickHouse, µs", f"{min(cost.clickhouse for cost in accesses):.1f}"
        yield "CPU a decision, receiver, µs", f"{min(cost.receiver for cost in decisions):.1f}"
        yield "  a second, as it was", f"{max(cost.rate for cost in decisions):,.0f}"
        sizes = " ".join(f"{block.memory_mib:.0f}" for block in _ten(blocks))
        yield "memory, MiB, by tenths", sizes, "flat"


def _paced_rows(paced: Paced | None) -> Iterator[tuple[str, ...]]:
    if paced is None:
        return
    yield f"request to row at {_RATE:,}/s, access, p99, s", f"{paced.access.p99:.2f}", "2", "1"
    yield "  p50", f"{paced.access.p50:.2f}"
    yield "  since Envoy told it, p50, p99", _both(paced.access_since_told)
    yield "  decision, p50, p99", _both(paced.decision)
    cores = f"{paced.receiver_core:.2f} {paced.clickhouse_core:.2f}"
    yield "  cores busy: receiver, ClickHouse", cores
    yield "  memory, MiB", f"{paced.memory_mib:.0f}"
    for what, sizes in (("merged", paced.bytes_merged), ("as they are", paced.bytes_now)):
        told, tiles = sizes["audit_log"], sizes["tiles"]
        yield f"bytes a record, {what}", f"{told + tiles:.0f}", "report", "160"
        others = sum(sizes.values()) - told - tiles
        yield "  rows, tiles, other tables", f"{told:.1f} {tiles:.1f} {others:.1f}"


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
