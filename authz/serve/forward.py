"""From a writer's journal to its receiver, over an acknowledged stream.

What is not acknowledged stays in the journal. After any cut the receiver's welcome says how far it
came, and the stream goes on from there, so each record enters the log once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from prometheus_client import Gauge
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from authz.errors import UsageError
from authz.journal.chain import Identity
from authz.journal.receipts import Receipts
from authz.journal.segments import Journal
from authz.serve.grpc_server import KEEPALIVE
from authz.v1 import stream_pb2 as pb

_BATCH = 1000
_BATCH_BYTES = 256 << 10
_PAUSE_SECONDS = 0.1  # between a cut and the next attempt
_PAUSE_MAX_SECONDS = 1  # a receiver that is back has blocks to tell
_IN_FLIGHT = 4  # batches sent and not acknowledged
_PATIENCE_SECONDS = 30  # without an acknowledgement, the stream is given up and begun anew
# A receiver that vanished may have blocks to tell.
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), *KEEPALIVE]
_CUT = (grpc.RpcError, asyncio.InvalidStateError)  # what a write raises when the stream has ended
_TRANSIENT = (grpc.aio.AioRpcError, TimeoutError, OSError)
_UNFIT = grpc.StatusCode.FAILED_PRECONDITION
_FOR_GOOD = (_UNFIT, grpc.StatusCode.DATA_LOSS)
_UNSYNCED = (
    "it does not sync its disk, so an acknowledgement is worth nothing to durability: receiver;"
    " set journal.durability: fsync there"
)

_MOST_SAID = 300

UNSENT = Gauge("authz_writer_unacknowledged", "Records the receiver has not acknowledged")
CONNECTED = Gauge("authz_writer_connected", "1 while the stream to the receiver is open")

logger = structlog.get_logger()


class Forwarder:
    """Sends everything in `journal` to the receiver that `connect` leads to (with
    `CHANNEL_OPTIONS`), and trims what it has taken.

    `on_blocks` is called (in a thread) with each set of blocks that the receiver sends. `receipts`
    is told of acknowledgements and cuts; with it, only a receiver that syncs its disk will do.
    """

    def __init__(
        self, journal: Journal, identity: Identity, privacy_key_id: str,
        connect: Callable[[], grpc.aio.Channel], durable: asyncio.Event,
        on_blocks: Callable[[pb.Blocks], None] = lambda _: None,
        receipts: Receipts[Any] | None = None,
    ) -> None:  # fmt: skip
        self._journal = journal
        self._identity = identity
        self._privacy_key_id = privacy_key_id
        self._connect = connect
        self._durable = durable
        self._on_blocks = on_blocks
        self._receipts = receipts
        self.connected = False  # welcomed by the receiver
        self.refusal = ""  # what the receiver said when it refused this writer for good
        self._acked = journal.first - 1
        self._sent = self._acked
        self._progress = asyncio.Event()

    @property
    def unacknowledged(self) -> int:
        return self._journal.next - 1 - self._acked

    async def run(self) -> None:
        """Until cancelled; reconnects, for as long as it takes."""
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_TRANSIENT),
                wait=wait_random_exponential(multiplier=0.1, max=_PAUSE_MAX_SECONDS),
            ):
                with attempt:
                    await self._connection()
            # It was connected, so the next attempt is a first one again.
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _connection(self) -> None:
        """One connection; returns when one that was welcomed is cut. Raises `_TRANSIENT`."""
        self.connected = False
        try:
            await self._stream()
        except _TRANSIENT as error:
            welcomed, self.connected = self.connected, False
            CONNECTED.set(0)
            self._tell(error)
            if not welcomed:
                raise

    async def drain(self, seconds: float) -> int:
        """Wait until all is acknowledged, at most `seconds`; returns how much is left."""
        until = time.monotonic() + seconds
        while self.unacknowledged and (left := until - time.monotonic()) > 0:
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), left)
            except TimeoutError:
                break
        return self.unacknowledged

    async def _stream(self) -> None:
        async with self._connect() as channel:
            write: Any = channel.stream_stream(
                "/authz.v1.RecordStream/Write",
                request_serializer=pb.FromWriter.SerializeToString,
                response_deserializer=pb.FromReceiver.FromString,
            )
            call = write()
            await call.write(pb.FromWriter(hello=self._hello()))
            answer = await asyncio.wait_for(call.read(), _PATIENCE_SECONDS)
            if not isinstance(answer, pb.FromReceiver) or not answer.HasField("welcome"):
                raise await _ended(call)
            self._welcome(answer.welcome)
            self.connected, self.refusal = True, ""
            CONNECTED.set(1)
            if self._receipts:
                self._receipts.connected()
            sending = asyncio.create_task(self._send(call))
            receiving = asyncio.create_task(self._receive(call))
            try:
                await asyncio.wait([sending, receiving], return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not isinstance(sending.exception(), _CUT):
                    sending.result()  # not the stream, but something of ours: that ends the process
                await receiving
            finally:
                sending.cancel()
                receiving.cancel()
                await asyncio.gather(sending, receiving, return_exceptions=True)

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            writer=self._identity.writer,
            public_key=self._identity.signer.verifier.public_key,
            privacy_key_id=self._privacy_key_id,
            origin=self._identity.origin,
            first_seq=self._journal.first,
        )

    def _welcome(self, welcome: pb.Welcome) -> None:
        if self._receipts and not welcome.synced:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(_UNFIT, empty, empty, _UNSYNCED, None)
        if welcome.taken_seq >= self._journal.next:
            raise UsageError(
                f"the receiver has this writer's records up to {welcome.taken_seq}, but the journal"
                f" ends at {self._journal.next - 1}: it is an older copy; restore the newest, or"
                " start with an empty --data-dir (a new writer)"
            )
        if welcome.origin != self._identity.origin:  # the first, or it follows the one before
            self._identity.bind(welcome.origin)
        self._sent = welcome.taken_seq
        self._ack(welcome.taken_seq)

    async def _send(self, call: Any) -> None:
        reader = self._journal.reader(self._sent + 1)
        # Where answers wait, what is written while a batch is under way goes along together.
        most = 0 if self._receipts else _IN_FLIGHT * _BATCH
        try:
            while True:
                self._durable.clear()
                first = reader.number
                records = reader.take(_BATCH, _BATCH_BYTES)
                if not records:
                    await self._durable.wait()
                    continue
                self._sent = reader.number - 1
                await call.write(pb.FromWriter(batch=pb.Batch(first_seq=first, records=records)))
                while self._sent - self._acked > most:
                    self._progress.clear()
                    await self._progress.wait()
        finally:
            reader.close()

    async def _receive(self, call: Any) -> None:
        async for message in _patiently(call, self._outstanding):
            if message.HasField("blocks"):
                await asyncio.to_thread(self._on_blocks, message.blocks)
            else:
                self._ack(message.ack.seq)
        raise await _ended(call)

    def _outstanding(self) -> bool:
        return self._sent > self._acked

    def _ack(self, seq: int) -> None:
        self._acked = max(self._acked, seq)
        if self._receipts:
            self._receipts.taken(self._acked)
        self._journal.trim(self._acked + 1)
        UNSENT.set(self.unacknowledged)
        self._progress.set()

    def _tell(self, error: Exception) -> None:
        if isinstance(error, grpc.aio.AioRpcError) and error.code() in _FOR_GOOD:
            reason = self.refusal = error.details() or error.code().name
            logger.error("the receiver refuses this writer", reason=reason)
        else:
            reason = "no receiver is connected"
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else None
            logger.warning(
                "no receiver; the journal holds the records", unsent=self.unacknowledged,
                error=(why or type(error).__name__)[:_MOST_SAID],
            )  # fmt: skip
        if self._receipts:
            self._receipts.cut(reason)


async def _patiently(call: Any, outstanding: Callable[[], bool]) -> AsyncIterator[pb.FromReceiver]:
    """Messages until the stream ends; `TimeoutError` if one that is owed does not come."""
    while True:
        reading = asyncio.ensure_future(call.read())
        try:
            while not (await asyncio.wait([reading], timeout=_PATIENCE_SECONDS))[0]:
                if outstanding():
                    raise TimeoutError
            message = reading.result()
        finally:
            reading.cancel()
        if not isinstance(message, pb.FromReceiver):
            return
        yield message


async def _ended(call: Any) -> grpc.aio.AioRpcError:
    """The error that ended the stream; a stream never ends well while this side is open."""
    code, details = await call.code(), await call.details()
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details or "the receiver closed it", None)
