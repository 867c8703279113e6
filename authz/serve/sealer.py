"""From the journal into ClickHouse."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from authz.config import Config
from authz.journal.commit import Committer
from authz.receiver import metrics
from authz.receiver.sequence import Batch, Log
from authz.record import Entry
from authz.serve.books import Books
from authz.serve.owner import Owner
from authz.store.client import QUERY_ERRORS, Client, explain
from authz.store.writer import StoreWriter

_IDLE_SECONDS = 1
_DISK_SECONDS = 1  # between two attempts to write

P = ParamSpec("P")
T = TypeVar("T")

logger = structlog.get_logger()


class Sealer:
    """Moves what is in the journal into ClickHouse, batch by batch, until told to stop."""

    def __init__(
        self, config: Config, log: Log, client: Client, committer: Committer[list[Entry]],
        owner: Owner, books: Books,
    ) -> None:  # fmt: skip
        self._rows = config.receiver.batch_rows
        self._seconds = config.receiver.batch_seconds
        self._store = config.store or ""
        self._log = log
        self._writer = StoreWriter(client, log.origin, owner.check)
        self._owner = owner
        self._books = books
        self._running = True
        self._taken = 0.0  # when the last batch was
        self._durable = asyncio.Event()
        self._durable.set()
        committer.on_durable.append(self._durable)

    async def run(self) -> None:
        try:
            while True:
                batch = await self._store_next() if await self._wait_for_batch() else None
                await self._books.keep(batch)
        finally:
            self._running = False

    async def drain(self, seconds: float) -> int:
        """Wait while `run` stores what is there, at most `seconds`; returns what is left."""
        until = time.monotonic() + seconds
        while self._running and self._log.waiting() and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._log.waiting()

    async def _wait_for_batch(self) -> bool:
        """Until a batch is full, or its oldest record has waited long enough; false if there is
        none for a while."""
        oldest = self._taken  # what waits came after that
        self._durable.clear()
        if not self._log.waiting():
            try:
                await asyncio.wait_for(self._durable.wait(), _IDLE_SECONDS)
            except TimeoutError:
                return False
            oldest = time.monotonic()
        until = oldest + self._seconds
        while self._log.waiting() < self._rows and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))
        return True

    async def _store_next(self) -> Batch | None:
        await self._owner.held()  # it has also migrated
        self._taken = time.monotonic()
        batch = await self._insist(self._log.seal, self._rows)
        if batch is None:
            return None
        metrics.WAITING.set(self._log.waiting())
        with metrics.STORE_SECONDS.time():
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(QUERY_ERRORS),
                wait=wait_exponential(multiplier=0.1, max=5),
                before_sleep=self._complain,
            ):
                with attempt:
                    await self._owner.held()
                    await asyncio.to_thread(self._put, batch)
        await self._insist(self._log.finish, batch)
        metrics.STORED.inc(len(batch.records))
        metrics.TREE_SIZE.set(self._log.stored.tree.size)
        metrics.WAITING.set(self._log.waiting())
        return batch

    async def _insist(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `step` returns, which writes to our disk, once that takes it: a full one may get
        room, and what is stored by then makes some."""
        while True:
            try:
                return await asyncio.to_thread(step, *args, **kwargs)
            except OSError as error:
                logger.error("cannot write the log's state", error=error.strerror)
                await asyncio.sleep(_DISK_SECONDS)

    def _put(self, batch: Batch) -> None:
        self._writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)

    def _complain(self, state: object) -> None:
        metrics.STORE_ERRORS.inc()
        outcome = getattr(state, "outcome", None)
        error = outcome.exception() if outcome else None
        text = str(explain(error, self._store)) if isinstance(error, Exception) else ""
        logger.error("cannot store; the journal holds it", error=text, waiting=self._log.waiting())
