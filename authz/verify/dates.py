"""When checkpoints were written, by the database's clock, held against the log's own times."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from authz.ledger import leaf_hash
from authz.store.logs import Part

APART_US = 600_000_000  # that the clocks of a receiver and a database may be
_LOOKED_AT = 256  # records before a checkpoint's end: of them somebody else's tells the time


class Dates:
    """One log's: a checkpoint is written after what it covers was sealed, and after smaller
    ones. What the database says of its own rows is signed by nobody, so it proves no more.

    One that seems to be written before is in order, and worth a note only, if what it covers had
    happened by then, as writers and Envoys have it: it was the receiver's clock that ran ahead.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._before = 0  # when the checkpoint in front was written
        self._told = ""  # of many in a row that are alike the first is told
        self._tail: Sequence[bytes] = ()  # the last leaves of the part in front

    def check(self, part: Part, written: Mapping[int, int]) -> Iterator[str]:
        """`written` is when each of the part's checkpoints was, by size. Yields what is wrong."""
        for size, at in written.items():
            sealed = _sealed_at(part, size - 1)
            said = f"the checkpoint of size {size} was written at {_moment(at)}, and"
            if at < self._before - APART_US:
                self._told = "smaller"
                yield f"{said} a smaller one at {_moment(self._before)}"
            elif at >= sealed - APART_US:
                self._told = ""
            elif 0 < self._happened(part, size - 1) <= at + APART_US:
                if self._told != "ahead":
                    self.notes.append(
                        f"{said} what it covers was sealed at {_moment(sealed)}, but had happened"
                        " by then: the receiver's clock ran ahead of the database's"
                    )
                self._told = "ahead"
            else:
                if self._told != "sealed":
                    yield f"{said} what it covers was sealed at {_moment(sealed)}"
                self._told = "sealed"
            self._before = at
        self._tail = part.leaves[-_LOOKED_AT:]

    def _happened(self, part: Part, index: int) -> int:
        """When the newest of the last records up to `index` did, by other clocks than the
        receiver's; 0 if none says."""
        end = bisect_right(part.indexes, index)
        leaves = (*self._tail, *part.leaves[max(end - _LOOKED_AT, 0) : end])
        return max(_told_times(leaves[-_LOOKED_AT:]), default=0)


def _told_times(leaves: Iterable[bytes]) -> Iterator[int]:
    for leaf in leaves:
        try:
            record: dict[str, Any] = orjson.loads(leaf)
        except ValueError:
            continue
        if "writer_seq" in record or record.get("kind") == "access":
            yield record.get("time", 0)


def _sealed_at(part: Part, index: int) -> int:
    """When a record was; 0 if it is not there as it was sealed."""
    place = bisect_left(part.indexes, index)
    if (
        place == len(part.indexes)
        or leaf_hash(part.leaves[place]) != part.hashes[index - part.first]
    ):
        return 0
    try:
        return int(orjson.loads(part.leaves[place]).get("sealed_at", 0))
    except ValueError:
        return 0


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(" ", "seconds")
