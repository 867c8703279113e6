"""What comes in: access log entries from Envoys, and writers' acknowledged streams."""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import structlog
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from google.protobuf.message import DecodeError

from authz.blocks import fault, is_blocking
from authz.envoy.access_log import Access, http_access, identifier, tcp_access
from authz.journal.chain import ChainError, chain_hash, check_attachment, check_link, split
from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.places import nowhere
from authz.receiver.access import access_record
from authz.receiver.metrics import (
    BLOCKS,
    ENTRIES,
    FINDINGS,
    LOST_MESSAGES,
    RECORDS,
    STREAMS,
    count_gaps,
)
from authz.receiver.sequence import Log
from authz.receiver.state import Place
from authz.record import Entry, notice
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources
from authz.risk import HOURS
from authz.v1 import stream_pb2 as pb

_RETRY_SECONDS, _RETRY_MAX_SECONDS = 0.2, 2
_COMPLAIN_SECONDS = 5
_QUIET_SECONDS = 5
_GIVE_WAY_SECONDS = 0.01
_MOST_UNDER_WAY = 100_000  # decisions; the log carries far fewer

logger = structlog.get_logger()


class Intake:
    """Both services. Nothing is read from a stream while what it sent before waits for the disk:
    that is the backpressure."""

    def __init__(
        self, log: Log, committer: Committer[list[Entry]], resources: Resources,
        key: PrivacyKey | None, *, synced: bool = False, risk_hours: float = HOURS,
        country: Callable[[str], str] = nowhere,
    ) -> None:  # fmt: skip
        self._log = log
        self._committer = committer
        self._resources = resources
        self._key = key
        self._country = country
        self._synced = synced  # what is acknowledged survives the machine
        self._risk_hours = risk_hours
        self._writers: dict[str, asyncio.Lock] = {}
        self._newest: dict[str, asyncio.Task[Any]] = {}  # who serves each writer's newest stream
        self._alarms: set[tuple[str, int]] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        self._complained = 0.0
        self._blocks = log.blocks  # as the streams were told last
        self._telling: set[asyncio.Event] = set()
        self._heard: dict[str, float] = {}  # writers with a stream: when their last batch came
        self.under_way: dict[str, int] = {}  # decisions: when Envoy said so last (microseconds)
        self.received: Counter[str] = Counter()  # access log entries, by Envoy's node
        self._count()

    @property
    def behind(self) -> bool:
        """Whether messages that were read from streams are not on disk yet."""
        return bool(self._keeping)

    async def settle(self, seconds: float = math.inf) -> int:
        """Wait until everything read from a stream is on disk, at most `seconds`; returns how many
        messages are not."""
        until = time.monotonic() + seconds
        while self._keeping and (left := until - time.monotonic()) > 0:
            await asyncio.wait(self._keeping, timeout=None if math.isinf(left) else left)
        return len(self._keeping)

    def handlers(self) -> list["grpc.GenericRpcHandler[Any, Any]"]:
        logs = grpc.stream_unary_rpc_method_handler(self.access_logs)
        write = grpc.stream_stream_rpc_method_handler(
            self.write, pb.FromWriter.FromString, pb.FromReceiver.SerializeToString
        )
        return [
            grpc.method_handlers_generic_handler(
                "envoy.service.accesslog.v3.AccessLogService", {"StreamAccessLogs": logs}
            ),
            grpc.method_handlers_generic_handler("authz.v1.RecordStream", {"Write": write}),
        ]

    async def access_logs(
        self, messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> bytes:
        """AccessLogService.StreamAccessLogs. The identifier comes in the first message only."""
        node = ""
        with STREAMS.labels("envoy").track_inprogress():
            async for data in messages:
                try:
                    message = StreamAccessLogsMessage.FromString(data)
                except DecodeError:
                    LOST_MESSAGES.inc()
                    logger.error("access log message is not readable", peer=context.peer())
                    continue
                if message.HasField("identifier"):
                    node = identifier(message)[0]
                # Cut or not, what has been read is kept.
                keeping = asyncio.create_task(self._keep(self._accesses(message, node), "access"))
                self._keeping.add(keeping)
                keeping.add_done_callback(self._keeping.discard)
                await asyncio.shield(keeping)
                while self._log.pressed:
                    await asyncio.sleep(_GIVE_WAY_SECONDS)
        return b""  # an empty StreamAccessLogsResponse

    def _accesses(self, message: StreamAccessLogsMessage, node: str) -> list[Entry]:
        entries = [http_access(entry) for entry in message.http_logs.log_entry]
        entries += [tcp_access(entry) for entry in message.tcp_logs.log_entry]
        self.received[node] += len(entries)
        ends = [entry for entry in entries if "end_of_stream" in entry]
        if len(ends) < len(entries):
            self._note_under_way(entries)
        ENTRIES.labels("end").inc(len(ends))
        ENTRIES.labels("intermediate").inc(len(entries) - len(ends))
        known = node, self._resources, self._key, self._country
        return [(access_record(entry, *known), b"") for entry in ends]

    def _note_under_way(self, entries: list[Access]) -> None:
        now_us = self._log.now_us()
        for entry in entries:
            said = entry.get("authz")
            if "end_of_stream" in entry or not isinstance(said, dict) or "decision_id" not in said:
                continue
            decision_id = str(said["decision_id"])
            if decision_id in self.under_way or len(self.under_way) < _MOST_UNDER_WAY:
                self.under_way[decision_id] = now_us

    async def _keep(self, group: list[Entry], source: str) -> None:
        """Get `group` onto the disk, however long that takes: an Envoy will not send it again, and
        a writer would at once. Its stream waits."""
        pause = _RETRY_SECONDS
        while group:
            try:
                await self._submit(group)
            except JournalError as error:
                self._complain(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX_SECONDS)
            else:
                RECORDS.labels(source).inc(len(group))
                return

    async def _submit(self, group: list[Entry]) -> None:
        durable = self._committer.submit(group)
        durable.add_done_callback(self._tell)
        try:
            await asyncio.shield(durable)
        except asyncio.CancelledError:
            # The stream was cut, but the group is on its way to the disk. Whoever streams for
            # this writer next must see it there, or it would be taken twice.
            await asyncio.wait([durable])
            raise
        finally:
            del durable  # its error knows this frame: a circle that would keep the group

    def _complain(self, error: JournalError) -> None:
        """Say that streams wait, not for each of them."""
        if (now := time.monotonic()) > self._complained + _COMPLAIN_SECONDS:
            self._complained = now
            logger.error("streams wait for the disk", error=str(error))

    async def write(
        self,
        messages: AsyncIterator[pb.FromWriter],
        context: "grpc.aio.ServicerContext[pb.FromWriter, pb.FromReceiver]",
    ) -> AsyncIterator[pb.FromReceiver]:
        """RecordStream.Write: see protos/authz/v1/stream.proto."""
        messages = aiter(messages)
        hello = (await anext(messages, pb.FromWriter())).hello
        if refusal := self._refusal(hello):
            logger.error("writer refused", writer=hello.writer, reason=refusal)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        async with self._turn(hello.writer, context):
            place = self._log.writers.get(hello.writer, Place())
            if hello.first_seq > place.seq + 1:
                reason = f"the log has {hello.writer} up to {place.seq}, and it begins at"
                reason += f" {hello.first_seq}: records between are lost"
                logger.error("writer refused", writer=hello.writer, reason=reason)
                self._alarm(hello.writer, place.seq, reason)
                await context.abort(grpc.StatusCode.DATA_LOSS, reason)
            with self._connection(hello.writer), self._told() as changed:
                welcome = pb.Welcome(
                    origin=self._log.origin, taken_seq=place.seq, synced=self._synced
                )
                yield pb.FromReceiver(welcome=welcome)
                sent = None
                async with contextlib.aclosing(_incoming(messages, changed)) as incoming:
                    async for message in incoming:
                        if message is None:
                            if sent is not self._log.blocks:
                                sent = self._log.blocks
                                now_us = time.time_ns() // 1000
                                blocks = sent.message(now_us, self._risk_hours)
                                yield pb.FromReceiver(blocks=blocks)
                            continue
                        self._heard[hello.writer] = math.inf  # until this is on disk
                        try:
                            place = await self._take(hello.writer, place, message.batch)
                        except ChainError as error:
                            logger.error("writer's chain is broken", error=str(error))
                            self._alarm(hello.writer, place.seq, str(error))
                            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
                        self._heard[hello.writer] = time.monotonic()
                        yield pb.FromReceiver(ack=pb.Ack(seq=place.seq))

    @contextlib.asynccontextmanager
    async def _turn(
        self, writer: str, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[None]:
        """One stream at a time moves a writer on. A newer one ends the older, whose connection may
        have died without a word, and begins when that has settled."""
        task = asyncio.current_task()
        assert task is not None
        older, self._newest[writer] = self._newest.get(writer), task
        if older:
            older.cancel()
        try:
            async with self._writers.setdefault(writer, asyncio.Lock()):
                yield
        except asyncio.CancelledError:
            if self._newest.get(writer) is not task:
                await context.abort(grpc.StatusCode.ABORTED, f"{writer} has a newer stream")
            raise
        finally:
            if self._newest.get(writer) is task:
                del self._newest[writer]

    def _alarm(self, writer: str, last_seq: int, reason: str) -> None:
        """Tell in the log, once, that a writer's records do not follow those that are there."""
        what = (writer, last_seq)
        if what in self._alarms:
            return
        self._alarms.add(what)
        told = {"kind": "writer_sequence", "source": writer, "count": 1, "last_seq": last_seq}
        told["reason"] = reason
        gap = notice("gap", time.time_ns() // 1000, told, rule="writer_sequence")

        def over(durable: "asyncio.Future[None]") -> None:
            if durable.exception() is None:
                count_gaps([gap])
            else:
                self._alarms.discard(what)  # the writer comes again

        self._committer.submit([(gap, b"")]).add_done_callback(over)

    @contextlib.contextmanager
    def _connection(self, writer: str) -> Iterator[None]:
        self._heard[writer] = time.monotonic()
        try:
            with STREAMS.labels("writer").track_inprogress():
                yield
        finally:
            del self._heard[writer]

    def caught_up(self) -> set[str]:
        """Writers whose stream is open and who have nothing more to send."""
        quiet = time.monotonic() - _QUIET_SECONDS
        return {writer for writer, heard in list(self._heard.items()) if heard < quiet}

    @contextlib.contextmanager
    def _told(self) -> Iterator[asyncio.Event]:
        """An event that is set now, and whenever the blocks have changed."""
        changed = asyncio.Event()
        changed.set()
        self._telling.add(changed)
        try:
            yield changed
        finally:
            self._telling.discard(changed)

    def _tell(self, _: object) -> None:
        """Something is durable: if it changed the blocks or findings, they are in force, and
        all are told."""
        if self._log.blocks is not self._blocks:
            self._blocks = self._log.blocks
            self._count()
            for changed in self._telling:
                changed.set()

    def _count(self) -> None:
        BLOCKS.set(len(self._blocks.blocks))
        FINDINGS.set(len(self._blocks.findings))

    def _refusal(self, hello: pb.Hello) -> str:
        if not hello.writer or len(hello.public_key) != 32:
            return "the first message must be a Hello with the writer's id and Ed25519 key"
        if hello.origin and hello.origin not in (self._log.origin, self._log.stored.follows):
            return f"{hello.writer} is bound to {hello.origin}, this is {self._log.origin}"
        if hello.privacy_key_id and not self._log.pin_privacy_key(hello.privacy_key_id):
            return (
                f"privacy key {hello.privacy_key_id} is not this deployment's"
                f" ({self._log.privacy_key_id}); give every part the same --privacy-key"
            )
        return ""

    async def _take(self, writer: str, place: Place, batch: pb.Batch) -> Place:
        """Append what of `batch` is new; returns the writer's place once that is on disk."""
        group: list[Entry] = []
        for seq, payload in enumerate(batch.records, batch.first_seq):
            if seq <= place.seq:
                continue  # sent again after a cut: it is in the log already
            if seq != place.seq + 1:
                raise ChainError(f"{writer}: record {place.seq + 1} is missing before {seq}")
            form, attachment = split(payload)
            record = check_link(form, writer, seq, place.head)
            check_attachment(record, attachment)
            if is_blocking(record) and (wrong := fault(record)):
                raise ChainError(f"{writer} {seq}: {wrong}")
            group.append((record, attachment))
            place = Place(seq, chain_hash(form))
        if group:
            await self._keep(group, "writer")
        return place


async def _incoming(
    messages: AsyncIterator[pb.FromWriter], changed: asyncio.Event
) -> AsyncGenerator[pb.FromWriter | None, None]:
    """What the writer sends, and None each time `changed` is set, also while it sends nothing."""
    reading = asyncio.ensure_future(anext(messages, None))
    waiting = asyncio.ensure_future(changed.wait())
    try:
        while True:
            await asyncio.wait([reading, waiting], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                changed.clear()
                waiting = asyncio.ensure_future(changed.wait())
                yield None
            if reading.done():
                message = reading.result()
                if message is None:
                    return
                yield message
                reading = asyncio.ensure_future(anext(messages, None))
    finally:
        reading.cancel()
        waiting.cancel()
