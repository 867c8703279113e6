"""What an answer waits for with `durability: receiver`: that the receiver has it on its disk.

A record goes these steps, each before the next:

1. It is in this writer's own journal, synced: what is sent again after a cut, or a restart of
   either side. The promise does not need the sync; the chain does. Were the receiver ahead of a
   journal whose end went with the power, this writer could not go on from there.
2. It is sent, at once. What is written while others are under way goes along together.
3. The receiver acknowledges it. Whoever waits goes on. Only now has anybody been told.

A crash between 1 and 3 leaves a record that nobody was told of; the next start sends it. If the
disk is gone as well, so is the record, and a new writer begins. A crash after 3 loses nothing.
"""

import threading
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

from authz.journal.group import GroupCommit, Ticket
from authz.journal.segments import JournalError

T = TypeVar("T")

NOT_YET = "not connected to the receiver yet"
OVERDUE = "the receiver does not acknowledge in time"


class Receipts(Generic[T]):
    """A `GroupCommit` whose `wait` returns when the receiver has the items.

    Threads wait; the stream's side tells `connected`, `taken` and `cut`, from any thread. While
    the stream is known to be down, or an acknowledgement is more than `patience` seconds overdue,
    items that somebody would wait for are refused at once, and not written.
    """

    def __init__(self, committer: GroupCommit[T], patience: float) -> None:
        self._committer = committer
        self._patience = patience
        self._changed = threading.Condition()  # over the next three
        self._taken = 0  # the receiver has all up to this number
        self._overdue = 0  # this number was waited for in vain
        self._down = NOT_YET

    @property
    def unavailable(self) -> str:
        """Why nothing can be acknowledged now, empty if it can."""
        return self._down or (OVERDUE if self._taken < self._overdue else "")

    def enqueue(self, items: Sequence[T]) -> Ticket[T]:
        """As `GroupCommit.enqueue`."""
        if items and (reason := self.unavailable):
            ticket = Ticket(items, awaited=True)
            ticket.done, ticket.error = True, JournalError(reason)
            return ticket
        return self._committer.enqueue(items)

    def wait(self, ticket: Ticket[T]) -> None:
        """Return once the receiver has its items. Raises `JournalError`; it may have them even
        so."""
        self._committer.wait(ticket)
        until = time.monotonic() + self._patience
        with self._changed:
            while self._taken < ticket.last:
                if self._down:
                    raise JournalError(self._down)
                left = until - time.monotonic()
                if left <= 0:
                    self._overdue = max(self._overdue, ticket.last)
                    raise JournalError(OVERDUE)
                self._changed.wait(left)

    def post(self, item: T) -> None:
        """As `GroupCommit.post`: nobody waits for it, so it needs no receiver now."""
        self._committer.post(item)

    def connected(self) -> None:
        """The receiver takes records."""
        with self._changed:
            self._down = ""

    def taken(self, seq: int) -> None:
        """The receiver has all records up to `seq` on its disk."""
        with self._changed:
            self._taken = max(self._taken, seq)
            self._changed.notify_all()

    def cut(self, reason: str) -> None:
        """There is no receiver. Those who wait are told at once."""
        with self._changed:
            self._down = reason
            self._changed.notify_all()
