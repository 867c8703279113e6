"""Group commit: everyone who waits for the disk shares one write and one sync."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from authz.journal.segments import Journal, JournalError, JournalFullError

Item_contra = TypeVar("Item_contra", contravariant=True)
T = TypeVar("T")


class Framer(Protocol[Item_contra]):
    """Makes the durable form of items, in order. Called in the journal's thread."""

    def frame(self, items: Sequence[Item_contra], first: int) -> list[bytes]:
        """The payloads of `items`, one or several each; the first gets number `first`."""

    def committed(self) -> None:
        """What `frame` returned last is durable. Not called when the write failed."""


class Committer(Generic[T]):
    """Appends items to a journal in the order submitted, as many at once as are waiting.

    Numbers are given when a batch is written, so a failed batch leaves no hole. An item becomes
    durable whole or not at all. `max_waiting` bounds how many wait in memory.
    """

    def __init__(self, journal: Journal, framer: Framer[T], max_waiting: int = 20_000) -> None:
        self._journal = journal
        self._framer = framer
        self._max_waiting = max_waiting
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._running: asyncio.Task[None] | None = None
        self.failing = False  # the last write failed
        self.on_durable: list[asyncio.Event] = []

    def submit(self, item: T) -> "asyncio.Future[None]":
        """Queue `item`; the future is done once it is durable, or raises `JournalError`.

        It is queued for good: cancelling the future does not take it back.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= self._max_waiting:
            future.set_exception(JournalFullError("too many records wait for the disk"))
            return future
        self._enqueue(item, future)
        return future

    def _enqueue(self, item: T, future: "asyncio.Future[None]") -> None:
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await loop.run_in_executor(self._thread, self._commit, batch)
                except Exception as error:  # noqa: BLE001 - whatever it was, the waiters must know
                    self.failing = True
                    _fail(batch, error)
                    continue
                self.failing = False
                for _, future in batch:
                    if not future.done():
                        future.set_result(None)
                for event in self.on_durable:
                    event.set()
        finally:
            self._running = None

    def _commit(self, batch: list[tuple[T, "asyncio.Future[None]"]]) -> None:
        items = [item for item, _ in batch]
        self._journal.append(self._framer.frame(items, self._journal.next))
        self._framer.committed()

    async def drain(self) -> None:
        """Wait until nothing waits for the disk."""
        while self._running is not None:
            await asyncio.shield(self._running)

    def close(self) -> None:
        self._thread.shutdown()


def _fail(batch: "list[tuple[T, asyncio.Future[None]]]", error: Exception) -> None:
    # A new one: the error's traceback holds what was to be written, and the waiters hold the error.
    shown = JournalError(str(error) if isinstance(error, JournalError) else repr(error))
    for _, future in batch:
        if not future.done():
            future.set_exception(shown)
            future.exception()  # a waiter that went away must not turn this into a warning
