"""Group commit among threads: whoever comes first writes for all who wait, with one sync.

The same promise as `authz.journal.commit`, for a server that works in threads.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from authz.journal.commit import Framer
from authz.journal.segments import Journal, JournalError, JournalFullError

T = TypeVar("T")

_STUCK_SECONDS = 1.0


class Ticket(Generic[T]):
    """Items that one caller wants on disk, and what became of them."""

    __slots__ = ("awaited", "done", "error", "items", "last")

    def __init__(self, items: Sequence[T], *, awaited: bool) -> None:
        self.items = items
        self.awaited = awaited
        self.done = False
        self.error: JournalError | None = None
        self.last = 0
        """Once written: the number up to which the journal holds them, and all before."""


class GroupCommit(Generic[T]):
    """Appends items to a journal in the order they come, as many at once as are waiting.

    Numbers are given when a batch is written, so a failed batch leaves no hole. What one call
    brings becomes durable whole or not at all. `max_waiting` bounds the items in memory.
    """

    def __init__(self, journal: Journal, framer: Framer[T], max_waiting: int = 20_000) -> None:
        self._journal = journal
        self._framer = framer
        self._max_waiting = max_waiting
        self._gate = threading.Lock()  # over the next three; nothing slow is done under it
        self._tickets: list[Ticket[T]] = []
        self._count = 0
        self.lost = 0  # items that could not be made durable, and nobody was there to be told
        self._writing = threading.Lock()  # over journal and framer
        self._failed = False  # the last write
        self._since: float | None = None  # when the write under way began
        self.on_durable: Callable[[], None] = _nothing
        self._posted = threading.Event()
        self._closing = False
        self._closed = False
        self._background = threading.Thread(target=self._write_posted, name="journal", daemon=True)
        self._background.start()

    @property
    def failing(self) -> bool:
        """Whether the last write failed, or one is under way that does not end."""
        since = self._since
        return self._failed or (since is not None and time.monotonic() - since > _STUCK_SECONDS)

    def enqueue(self, items: Sequence[T]) -> Ticket[T]:
        """Fix the place of `items` in the order; `wait` makes them durable."""
        ticket = Ticket(items, awaited=True)
        if not self._queue(ticket):
            ticket.error = JournalFullError("too many records wait for the disk")
            ticket.done = True
        return ticket

    def wait(self, ticket: Ticket[T]) -> None:
        """Return once its items are durable. Raises `JournalError`; they may be on disk even so."""
        if not ticket.done:
            with self._writing:
                if not ticket.done:
                    self._write()
        if ticket.error is not None:
            raise ticket.error

    def commit(self, items: Sequence[T]) -> None:
        """`enqueue` and `wait`."""
        self.wait(self.enqueue(items))

    def post(self, item: T) -> None:
        """Make `item` durable soon, with nobody to tell of success or failure."""
        if self._queue(Ticket([item], awaited=False)):
            self._posted.set()
        else:
            self._lose(1)

    def drain(self) -> None:
        """Return when nothing waits for the disk."""
        with self._writing:
            self._write()

    def close(self) -> None:
        """Write what waits; the journal is not touched after that, whoever still asks for it."""
        self._closing = True
        self._posted.set()
        self._background.join()
        with self._writing:
            self._write()
            self._closed = True

    def _queue(self, ticket: Ticket[T]) -> bool:
        with self._gate:
            if self._count + len(ticket.items) > self._max_waiting:
                return False
            self._tickets.append(ticket)
            self._count += len(ticket.items)
            return True

    def _lose(self, count: int) -> None:
        with self._gate:
            self.lost += count

    def _write_posted(self) -> None:
        while not self._closing:
            self._posted.wait()
            self._posted.clear()
            self.drain()

    def _write(self) -> None:
        """Write all that waits. Under `_writing`."""
        with self._gate:
            tickets, self._tickets = self._tickets, []
            self._count = 0
        if not tickets:
            return
        items = [item for ticket in tickets for item in ticket.items]
        error: JournalError | None = None
        self._since = time.monotonic()
        try:
            if self._closed:
                raise JournalError("the journal is closed")
            self._journal.append(self._framer.frame(items, self._journal.next))
            self._framer.committed()
        except JournalError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - whatever it was, who waits must know
            error = JournalError(type(failure).__name__)
        self._failed, self._since = error is not None, None
        last = self._journal.next - 1
        for ticket in tickets:
            ticket.last = last if ticket.items else 0
            ticket.error = error
            ticket.done = True
            if error is not None and not ticket.awaited:
                self._lose(len(ticket.items))
        if error is None:
            with contextlib.suppress(Exception):  # what is durable is, whoever could not be told
                self.on_durable()


def _nothing() -> None: ...
