"""The composition root of ``authz watch``: new records in, findings out, and what was learnt kept.

Order of steps: records are read; what they give cause for goes into this process's journal, on
disk, and from there to the receiver; then, now and then, what was learnt is kept with the place up
to which it was. A restart goes on from that place, so it makes again what was found since: the
findings are told by their keys from those that are on record or in the journal.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import orjson
import structlog
from prometheus_client import Counter, Gauge

from authz.blocks import Blocks
from authz.config import Config
from authz.detect import kept
from authz.detect.break_glass import Uses, late, use_of, without_reason
from authz.detect.detector import Finding, detector_of
from authz.detect.event import record_id
from authz.detect.feeds import Feeds
from authz.detect.record import day_notice, finding_record, key_of
from authz.errors import UnavailableError
from authz.feeds.loaded import Tables
from authz.files import make_directory
from authz.journal.chain import split
from authz.record import Record, details_of
from authz.serve import grpc_server
from authz.serve.queries import Queries
from authz.serve.webhooks import Webhooks
from authz.serve.writer import Writer, now_us
from authz.store import checkpoints, watched
from authz.store.client import QUERY_ERRORS, Client, connect, explain
from authz.store.findings import glass
from authz.store.lookups import Window
from authz.store.migrations import check
from authz.store.watched import DAY

_LOOK_SECONDS = 0.5
_MOST = 50_000  # records of one log at a time
_BUSY = 5_000  # when so many were new, more may be there already
_KEPT_SECONDS = 60
_HOUR_US = 3_600_000_000
_DRAIN_SECONDS = 10
_LATE_HOURS = 24 * 30  # a use is told as late at most so long after its deadline
_SPOKEN_OF = 20_000  # findings, the newest, of which people may still say something
_LATE_SECONDS = 60  # how often that is looked at
_FEEDS_SECONDS = 60  # how often for newer feeds

RECORDS = Counter("authz_watch_records", "Records that were looked at")
FINDINGS = Counter("authz_findings", "Findings", ["rule", "lane"])
BEHIND = Gauge("authz_watch_behind_seconds", "Age of the newest record when it was looked at")
UNEXPLAINED = Gauge(
    "authz_watch_unexplained_ratio", "Accesses to charts that no feed explains, of all"
)
FEED_AGE = Gauge("authz_watch_feed_age_seconds", "Since a feed was last loaded", ["feed"])

logger = structlog.get_logger()

Tell = Callable[[Finding], None]


class Watch:
    """Follows all logs of a store. `tell` is called with each finding once it is on disk."""

    def __init__(self, config: Config, client: Client, writer: Writer | None, tell: Tell) -> None:
        options = config.watch
        self._options = options
        self._client = client
        self._writer = writer
        self._tell = tell
        make_directory(config.data_dir)
        self._path = config.data_dir / "watch.json"
        self._kept = kept.load(self._path) or kept.Kept()
        self._silent_until = 0 if self._kept.next else now_us() - _HOUR_US
        self._kept_at = time.monotonic()
        self._moved = False
        self._detector = detector_of(options, self._kept.memory)
        self._detector.feeds.as_of = now_us()
        self._newer: Feeds | None = None
        self._known, self._told_day = self._on_record()

    def take(self, feeds: Feeds) -> None:
        """Go by `feeds` from the next look on. Any thread may say so."""
        self._newer = feeds

    def look(self) -> int:
        """Look at what is new; returns how many records that were."""
        if (newer := self._newer) is not None:
            self._detector.feeds, self._newer = newer, None
        batch: list[Record] = []
        reached = {}
        for origin, size in checkpoints.sizes(self._client).items():
            first = self._next(origin)
            reached[origin] = max(min(size, first + _MOST), first)
            batch += watched.following(self._client, origin, first, reached[origin])
        self._kept.next |= reached
        if not batch:
            return 0
        batch.sort(key=lambda record: (record.get("time", 0), record.get("index", 0)))
        found = [finding for record in batch for finding in self._of(record)]
        self._raise([finding for finding in found if finding.time >= self._silent_until])
        self._moved = True
        RECORDS.inc(len(batch))
        newest: int = max(record.get("sealed_at", 0) for record in batch)  # type: ignore[assignment]
        BEHIND.set((now_us() - newest) / 1_000_000)
        UNEXPLAINED.set(self._kept.memory.unexplained)
        self._tell_days()
        return len(batch)

    def _of(self, record: Record) -> Iterator[Finding]:
        """What a record gives cause for. What people say of findings is learnt from."""
        yield from self._detector.add(record)
        if (use := use_of(record)) and (finding := without_reason(use)):
            yield finding
        event = record.get("event")
        if record.get("kind") == "finding" and event == "raised":
            cause = details_of(record).get("cause", "")
            causes = self._kept.causes
            causes[record_id(record)] = str(record.get("subject", "")), str(cause)
            if len(causes) > _SPOKEN_OF:
                del causes[next(iter(causes))]
        elif event in ("finding_explained", "finding_confirmed"):
            by = details_of(record).get("by")
            for name in record.get("records", ()):  # type: ignore[union-attr]
                if by == record.get("subject"):
                    continue  # nobody judges themselves
                if known := self._kept.causes.get(name):
                    self._detector.reviewed(*known, confirmed=event == "finding_confirmed")

    def late(self) -> None:
        """Raise uses of break-glass that nobody has reviewed in time."""
        now = now_us()
        hours = self._options.break_glass_hours
        window = Window(now - int((hours + _LATE_HOURS) * _HOUR_US))
        self._raise(late(Uses.of(glass(self._client, window)), now, hours))

    def keep(self, *, now: bool = False) -> None:
        """Keep what was learnt, if it is time to, or `now`. Raises `UnavailableError`."""
        if self._moved and (now or time.monotonic() - self._kept_at > _KEPT_SECONDS):
            self._kept_at = time.monotonic()
            kept.save(self._path, self._kept)
            self._moved = False

    def _next(self, origin: str) -> int:
        """Where to go on; of a log that is new here, as far back as is learnt from."""
        known = self._kept.next.get(origin)
        if known is not None:
            return known
        since = now_us() - self._options.history_days * 24 * _HOUR_US
        return watched.first_since(self._client, origin, since)

    def _tell_days(self) -> None:
        """Put on record how the days were that are over: an interval's own account, as it were."""
        days = [day for day in self._kept.memory.over if day.date > self._told_day]
        if self._writer and days:
            self._writer.committer.commit([(day_notice(day), b"") for day in days])
        self._told_day = max([self._told_day, *(day.date for day in days)])

    def _raise(self, findings: Sequence[Finding]) -> None:
        new = [finding for finding in findings if key_of(finding) not in self._known]
        self._known |= {key_of(finding) for finding in new}
        if self._writer and new:
            self._writer.committer.commit([(finding_record(finding), b"") for finding in new])
        for finding in new:
            FINDINGS.labels(finding.rule, finding.lane).inc()
            self._tell(finding)

    def _on_record(self) -> tuple[set[str], int]:
        """What a restart may come by again: the keys of findings, and the newest day told."""
        since = self._kept.memory.date * 24 * _HOUR_US - 24 * _HOUR_US
        keys, newest = watched.told(self._client, max(since, 0)), watched.told_day(self._client)
        if self._writer:
            journal = self._writer.journal
            reader = journal.reader(journal.first)
            while payloads := reader.take(1000):
                for payload in payloads:
                    record = orjson.loads(split(payload)[0])
                    if record.get("kind") == "finding":
                        keys.add(details_of(record).get("key", ""))
                    elif record.get("event") == DAY:
                        newest = max(newest, details_of(record).get("day", 0))
            reader.close()
        return keys, newest


async def serve(config: Config, tell: Tell, *, once: bool) -> None:
    """Run until SIGTERM, or `once` through what there is. Raises `AuthzError`."""
    store, options = config.database, config.ext_authz
    grpc_server.serve_metrics(config.watch.metrics)
    client = connect(store)
    writer = Writer(config) if options.receiver else None
    tables = None if config.watch.feeds else Tables(connect(store))
    queries = Queries(config, writer) if writer else None
    loops: list[Callable[[], Awaitable[None]]] = []
    try:
        await asyncio.to_thread(check, client)
        watch = await asyncio.to_thread(Watch, config, client, writer, tell)
        if tables:
            await asyncio.to_thread(_take, watch, tables)
            loops.append(partial(_take_newer, watch, tables, store))
        if config.watch.webhooks:
            webhooks = Webhooks(config.watch.webhooks, config.data_dir, store)
            loops.append(webhooks.run)
        if writer and queries:
            writer.start()
            if once:
                await asyncio.to_thread(queries.take_over)
            else:
                loops.append(queries.run)
            blocks = Blocks.load(config.data_dir / "blocks.json")
            forwarder = writer.forwarder(options, "", blocks)
            loops += [forwarder.run, writer.sign_heads]
        else:
            logger.warning(
                "no --receiver: findings are told here; neither they nor queries go on record"
            )
        async with grpc_server.until_stopped() as stopped:
            running = grpc_server.Loops(*loops, partial(_follow, watch, store, stopped, once=once))
            try:
                await running.until(stopped)
                if writer:
                    writer.sign_head()
                    writer.committer.drain()
                    await forwarder.drain(_DRAIN_SECONDS)
            finally:
                await running.cancel()
        await asyncio.to_thread(partial(watch.keep, now=True))
    except QUERY_ERRORS as error:
        raise explain(error, store) from None
    finally:
        if writer:
            writer.close()
        client.disconnect()
        for reader in [reader for reader in (queries, tables) if reader]:
            reader.close()


def _take(watch: Watch, tables: Tables) -> None:
    """Take over what is loaded, if it is not what it was."""
    if (feeds := tables.newer()) is not None:
        watch.take(feeds)
        told = {feed: loaded.rows for feed, loaded in tables.loads.items()}
        logger.info("feeds", **told) if told else logger.warning("no feed is loaded any more")
    FEED_AGE.clear()
    for feed, loaded in tables.loads.items():
        FEED_AGE.labels(feed).set((now_us() - loaded.loaded_at) / 1_000_000)


async def _take_newer(watch: Watch, tables: Tables, store: str) -> None:
    """Look for newer feeds, until cancelled, while records are looked at by the former ones."""
    while True:
        await asyncio.sleep(_FEEDS_SECONDS)
        try:
            await grpc_server.in_thread(_take, watch, tables)
        except QUERY_ERRORS as error:
            tables.close()
            logger.error("the feeds cannot be read", error=str(explain(error, store)))


async def _follow(watch: Watch, store: str, stopped: asyncio.Event, *, once: bool) -> None:
    """Look until `stopped`; `once` through sets it."""
    due = 0.0
    while not stopped.is_set():
        looked = 0
        try:
            looked = await grpc_server.in_thread(watch.look)
            if time.monotonic() >= due and looked < _BUSY:
                await grpc_server.in_thread(watch.late)
                due = time.monotonic() + _LATE_SECONDS
        except QUERY_ERRORS as error:
            if once:
                raise
            logger.error("the store cannot be read", error=str(explain(error, store)))
        else:
            await _keep(watch)
        if once and not looked:
            stopped.set()
        elif looked < _BUSY:
            await asyncio.sleep(_LOOK_SECONDS)


async def _keep(watch: Watch) -> None:
    """Keep what was learnt. Where that fails it is tried again; a restart then learns it again."""
    try:
        await grpc_server.in_thread(watch.keep)
    except UnavailableError as error:
        logger.error("what was learnt is not kept", error=str(error))
