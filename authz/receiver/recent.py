"""Leaves that were just put into the journal, kept in memory for whoever seals them.

That spares reading them back. It is no more than that: what is not here is read from the journal,
so nothing is lost when this overflows while the store is away, or with the process.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from authz.record import Entry, Record

MOST = 20_000  # records held, some 4 KB each
_MOST_BYTES = 32 << 20  # of them in the journal: attachments count there


@dataclass(frozen=True, slots=True)
class Leaves:
    """Consecutive leaves from index `first`: their records, these in canonical form, the hashes of
    that, and, by index, the records with attachments."""

    first: int
    records: Sequence[Record]
    forms: Sequence[bytes]
    hashes: Sequence[bytes]
    attachments: Mapping[int, Entry]
    size: int
    """Bytes in the journal."""

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    def split(self, count: int) -> "tuple[Leaves, Leaves]":
        """The first `count`, and the rest; the bytes are shared out evenly."""
        middle = self.first + count
        before = {index: kept for index, kept in self.attachments.items() if index < middle}
        after = {index: kept for index, kept in self.attachments.items() if index >= middle}
        size = self.size * count // len(self.records)
        return (
            Leaves(
                self.first,
                self.records[:count],
                self.forms[:count],
                self.hashes[:count],
                before,
                size,
            ),
            Leaves(
                middle,
                self.records[count:],
                self.forms[count:],
                self.hashes[count:],
                after,
                self.size - size,
            ),
        )


class Recent:
    """One thread adds, another takes."""

    def __init__(self) -> None:
        self._held: deque[Leaves] = deque()
        self._count = 0
        self._bytes = 0
        self._mutex = threading.Lock()

    def add(self, leaves: Leaves) -> None:
        """Hold `leaves`, which are durable, if there is room."""
        with self._mutex:
            count, size = self._count + len(leaves.records), self._bytes + leaves.size
            if count <= MOST and size <= _MOST_BYTES:
                self._held.append(leaves)
                self._count, self._bytes = count, size

    def begin(self, index: int) -> int | None:
        """The first index from `index` on that is held; what is before is let go."""
        with self._mutex:
            while self._held and self._held[0].first < index:
                leaves = self._pop()
                if leaves.end > index:
                    self._put_back(leaves.split(index - leaves.first)[1])
            return self._held[0].first if self._held else None

    def take(self, first: int, limit: float, max_bytes: float) -> list[Leaves]:
        """The leaves held from index `first` on without a hole: at most `limit`, and about
        `max_bytes`. They are let go."""
        taken: list[Leaves] = []
        with self._mutex:
            while limit > 0 and max_bytes > 0 and self._held and self._held[0].first == first:
                leaves = self._pop()
                count = min(limit, len(leaves.records) * max_bytes // leaves.size + 1)
                if len(leaves.records) > count:
                    leaves, rest = leaves.split(int(count))
                    self._put_back(rest)
                taken.append(leaves)
                first = leaves.end
                limit -= len(leaves.records)
                max_bytes -= leaves.size
        return taken

    def _pop(self) -> Leaves:
        leaves = self._held.popleft()
        self._count -= len(leaves.records)
        self._bytes -= leaves.size
        return leaves

    def _put_back(self, leaves: Leaves) -> None:
        self._held.appendleft(leaves)
        self._count += len(leaves.records)
        self._bytes += leaves.size
