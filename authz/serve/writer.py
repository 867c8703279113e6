"""This process as a writer: its journal and chain, and what it says of itself in them."""

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version

import structlog

from authz.blocks import Blocks
from authz.config import Config, ExtAuthz
from authz.errors import UsageError
from authz.journal.chain import Chain, load_identity
from authz.journal.group import GroupCommit
from authz.journal.receipts import Receipts
from authz.journal.segments import Journal, JournalError
from authz.record import Entry, notice
from authz.serve import tls
from authz.serve.forward import Forwarder

_BELL_SECONDS = 0.02  # records that nobody waits for wait this long for others, and are then sent

logger = structlog.get_logger()


class Writer:
    """`committer` takes records from any thread; the rest is for the main loop."""

    def __init__(self, config: Config) -> None:
        directory = config.data_dir
        try:
            self.journal = Journal(
                directory / "journal",
                max_bytes=config.journal.max_bytes,
                sync=config.journal.durability != "os",
            )
            self.identity = load_identity(directory / "writer.json")
        except OSError as error:
            raise UsageError(
                f"--data-dir {directory}: {error.strerror}; choose a directory this user may write"
            ) from None
        self._chain = Chain(self.identity.writer, self.journal)
        self.committer: GroupCommit[Entry] = GroupCommit(self.journal, self._chain)
        self.receipts: Receipts[Entry] | None = None
        if config.journal.durability == "receiver":
            self.receipts = Receipts(self.committer, config.ext_authz.timeout_ms / 1000)
        self._head_seconds = config.ext_authz.head_seconds
        self._signed = 0
        self._told_lost = 0

    def start(self) -> None:
        """Announce the key that signs this writer's heads."""
        try:
            started = self.identity.start_notice(now_us(), version("authz"))
            self.committer.commit([(started, b"")])
        except JournalError as error:
            if self.journal.next == 1:
                raise UsageError(f"the journal cannot begin: {error}") from None
            # The key was announced at the first start. A full journal empties once this is up.
            logger.error("this start is not on record", error=str(error))

    def forwarder(self, options: ExtAuthz, privacy_key_id: str, blocks: Blocks) -> Forwarder:
        """What sends the journal to the receiver of `options`. Raises `UsageError`."""
        durable = asyncio.Event()
        self.committer.on_durable = _bell(durable, 0 if self.receipts else _BELL_SECONDS)
        connect = tls.to_receiver(options)
        return Forwarder(
            self.journal, self.identity, privacy_key_id, connect, durable, blocks.replace,
            self.receipts,
        )  # fmt: skip

    @property
    def unavailable(self) -> str:
        """Why decisions cannot be recorded now, empty if they can."""
        if self.committer.failing:
            return "the journal's disk fails"
        return self.receipts.unavailable if self.receipts else ""

    def close(self) -> None:
        self.committer.close()
        self.journal.close()

    async def sign_heads(self) -> None:
        """Sign the chain's head every so often, if it moved."""
        while True:
            await asyncio.sleep(self._head_seconds)
            self.sign_head()

    def sign_head(self) -> None:
        seq, head = self._chain.place
        if seq > self._signed:
            self._signed = seq + 1  # the notice itself does not count as a move
            self.committer.post((self.identity.head_notice(now_us(), seq, head), b""))

    def tell_lost(self) -> None:
        """Record how much could not be recorded, as soon as that can be: which is also how a
        writer that gets no requests any more finds out that it can write again."""
        if lost := self.committer.lost - self._told_lost:
            try:
                told = notice("journal_unavailable", now_us(), {"records": lost})
                self.committer.commit([(told, b"")])
            except JournalError:
                return
            self._told_lost += lost


def _bell(event: asyncio.Event, seconds: float) -> Callable[[], None]:
    """Something to call from any thread, often, that sets `event` that long after."""
    loop = asyncio.get_running_loop()
    rung = False

    def ring() -> None:
        nonlocal rung
        if not rung:
            rung = True
            if seconds:
                loop.call_soon_threadsafe(loop.call_later, seconds, answer)
            else:
                loop.call_soon_threadsafe(answer)

    def answer() -> None:
        nonlocal rung
        rung = False
        event.set()

    return ring


def now_us() -> int:
    return time.time_ns() // 1000
