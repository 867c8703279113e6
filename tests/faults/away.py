"""ClickHouse is away under load, and comes back.

    python -m tests.faults.away [--minutes M] [--rate R] [--fast] [--envoys N]

M minutes' worth of requests, R a second, each a decision by a writer's stream and an access by one
of N Envoys' streams; with --fast as quick as the receiver takes them. It must hold them all in
level memory, and be done with them after ClickHouse is back in less time than they stand for.
Then the log is verified. Exit 1 if anything is amiss.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from rich.console import Console
from streams import Writer, now_us

from authz.store.client import QUERY_ERRORS, connect
from authz.trust import load_trust
from authz.verify import verify_store

from .cutting import Cutter
from .feeding import Server, Site, database, decision, log_message, ready, site

GROWTH = 1.2  # of the memory after the first fifth
SPARE_BYTES = 300 << 20  # with this much more: what was taken last is held in memory too
_AT_ONCE = 100  # decisions written, and accesses told, with one call
_AHEAD = 20_000  # decisions that may wait in the writer's journal with --fast
_BYTES = 8 << 30  # the journal's bound; a request takes some 1.2 kB


@dataclass(slots=True)
class Result:
    requests: int = 0
    sending: float = 0.0
    """Seconds that it took to send them."""
    catching_up: float = 0.0
    memory: list[int] = field(default_factory=list)
    """Bytes resident, now and then, while ClickHouse was away."""
    peak: int = 0
    """The most while it caught up."""
    verifying: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Load:
    """A writer and Envoys; every access is acknowledged, or `tell` raises."""

    def __init__(self, directory: Path, address: str, envoys: int) -> None:
        self.writer = Writer(directory, address)
        self._address = address
        self._number = envoys
        self.sent = 0

    async def __aenter__(self) -> "Load":
        await self.writer.__aenter__()
        started = self.writer.identity.start_notice(now_us(), "test")
        self.writer.write((started, b""))
        self._channel = grpc.aio.insecure_channel(self._address)
        tell = self._channel.stream_unary("/envoy.service.accesslog.v3.AccessLogService/"
                                          "StreamAccessLogs")  # fmt: skip
        self._calls = [tell() for _ in range(self._number)]
        self._named = [False] * self._number
        self._next = itertools.cycle(range(self._number))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()
        await self.writer.__aexit__(*error)

    async def send(self, count: int) -> None:
        """So many decisions, and their accesses by the next Envoy; returns once the writes went
        through, which is where a receiver that cannot follow holds us."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        self.writer.write(*[(decision(name), b"") for name in ids])
        place = next(self._next)
        await self._calls[place].write(log_message(ids, named=not self._named[place]))
        self._named[place] = True
        self.sent += count

    async def end(self) -> None:
        """Returns when all is acknowledged by both roads."""
        for call in self._calls:
            await call.done_writing()
            await call
        while await self.writer.forwarder.drain(60):
            pass

    @property
    def behind(self) -> int:
        return self.writer.forwarder.unacknowledged


async def away(
    directory: Path, requests: int, rate: float, *, fast: bool = False, envoys: int = 8,
    told: Callable[[str], None] = lambda _: None,
) -> Result:  # fmt: skip
    """`requests` while ClickHouse is away, `rate` a second unless it is `fast`."""
    result = Result(requests)
    server = Server(directory / "clickhouse")
    try:
        with database(server.store) as store:
            cutter = Cutter(store)
            settings = {"AUTHZ_JOURNAL__MAX_BYTES": str(_BYTES)}
            settings["AUTHZ_RECEIVER__BATCH_SECONDS"] = "1"
            with site(directory / "site", cutter.url, **settings) as here:
                here.start()
                await ready(here)
                async with Load(directory / "writer", here.address, envoys) as load:
                    await load.send(_AT_ONCE)
                    await _stored(store, load)
                    cutter.away = True
                    cutter.cut_all()
                    await _send(here, load, result, rate, fast=fast, told=told)
                    told(f"{load.sent} sent in {result.sending:.0f} s; memory, MB: {_mb(result)}")
                    cutter.away = False
                    await _catch_up(here, store, load, result, told)
                    _verify(here, store, load, result)
                if here.stop() != 0:
                    result.wrong.append("it did not stop well")
            cutter.close()
    finally:
        server.stop()
    return result


async def _send(
    here: Site, load: Load, result: Result, rate: float, *, fast: bool, told: Callable[[str], None]
) -> None:
    begun = time.monotonic()
    end, step = load.sent + result.requests, result.requests // 20
    while load.sent < end:
        await load.send(min(_AT_ONCE, end - load.sent))
        while fast and load.behind > _AHEAD:
            await asyncio.sleep(0.01)
        if not fast:
            late = (load.sent - end + result.requests) / rate - (time.monotonic() - begun)
            await asyncio.sleep(max(late, 0))
        if (end - load.sent) // step < 19 - len(result.memory):
            result.memory.append(here.rss())
            told(f"{load.sent} sent, {time.monotonic() - begun:.0f} s,"
                 f" {result.memory[-1] >> 20} MB")  # fmt: skip
    await load.end()
    result.memory.append(here.rss())
    result.sending = time.monotonic() - begun
    early, late = result.memory[len(result.memory) // 5], max(result.memory)
    if late > early * GROWTH + SPARE_BYTES:
        result.wrong.append(f"memory grew while ClickHouse was away: {_mb(result)} MB")


async def _catch_up(
    here: Site, store: str, load: Load, result: Result, told: Callable[[str], None]
) -> None:
    begun = time.monotonic()

    async def look() -> None:
        while True:
            result.peak = max(result.peak, here.rss())
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look())
    await _stored(store, load)
    looking.cancel()
    result.catching_up = time.monotonic() - begun
    told(f"caught up in {result.catching_up:.0f} s, at most {result.peak >> 20} MB")
    if result.peak > max(result.memory) * GROWTH + 256 * (1 << 20):
        result.wrong.append(f"memory grew while it caught up: {result.peak >> 20} MB")


async def _stored(store: str, load: Load) -> None:
    """Until all that was sent is in ClickHouse, under a checkpoint."""

    def found() -> Any:
        try:
            with connect(store) as client:
                return client.execute(
                    "SELECT countIf(kind = 'decision'), countIf(kind = 'access') FROM audit_log"
                    " WHERE index < (SELECT max(size) FROM checkpoints)"
                )
        except QUERY_ERRORS:
            return None

    while await asyncio.to_thread(found) != [(load.sent, load.sent)]:
        await asyncio.sleep(0.2)


def _verify(here: Site, store: str, load: Load, result: Result) -> None:
    begun = time.monotonic()
    with connect(store) as client:
        report = verify_store(client, load_trust(here.data_dir / "trust.yaml"))
        [(gaps,)] = client.execute("SELECT count() FROM notices WHERE event = 'gap'")
    result.verifying = time.monotonic() - begun
    result.wrong += [f"{finding.kind} {finding.where}" for finding in report.findings]
    counts = report.decisions, report.accesses, report.matched
    if counts != (load.sent,) * 3:
        result.wrong.append(f"{load.sent} requests; decisions, accesses, matched: {counts}")
    if report.gaps or gaps:
        result.wrong.append(f"gaps where none are: {report.gaps}, {gaps} in the log")


def _mb(result: Result) -> str:
    return " ".join(str(size >> 20) for size in result.memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--fast", action="store_true", help="as quick as they are taken")
    parser.add_argument("--envoys", type=int, default=8)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    console = Console()
    requests = int(options.minutes * 60 * options.rate)
    with tempfile.TemporaryDirectory(prefix="authz-away-") as directory:
        result = asyncio.run(
            away(
                Path(directory),
                requests,
                options.rate,
                fast=options.fast,
                envoys=options.envoys,
                told=lambda text: console.print(text, soft_wrap=True),
            )
        )
    stand_for = requests / options.rate
    factor = stand_for / result.catching_up
    if factor < 1:
        result.wrong.append("it catches up slower than requests come")
    console.print(
        f"{requests} requests ({2 * requests} records) stand for {stand_for:.0f} s; sent in"
        f" {result.sending:.0f} s, stored in {result.catching_up:.0f} s after: {factor:.1f} times"
        f" as fast as they came, {2 * requests / result.catching_up:.0f} a second; verified in"
        f" {result.verifying:.0f} s; {result.wrong or 'nothing amiss'}",
        soft_wrap=True,
    )
    sys.exit(1 if result.wrong else 0)


if __name__ == "__main__":
    main()
