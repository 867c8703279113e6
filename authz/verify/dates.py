"""When checkpoints were written, by the database's clock, held against the log's own times."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import orjson

from authz.ledger import leaf_hash
from authz.store.logs import Part

APART_US = 600_000_000  # that the clocks of a receiver and a database may be


class Dates:
    """One log's: a checkpoint is written after what it covers was sealed, and after smaller
    ones. What the database says of its own rows is signed by nobody, so it proves no more."""

    def __init__(self) -> None:
        self._before = 0  # when the checkpoint in front was written
        self._early = False  # whether that was before its records were sealed

    def check(self, part: Part, written: Mapping[int, int]) -> Iterator[str]:
        """`written` is when each of the part's checkpoints was, by size. Yields what is wrong."""
        for size, at in written.items():
            sealed = _sealed_at(part, size - 1)
            early, said = at < sealed - APART_US, ""
            if at < self._before - APART_US:
                said = f"a smaller one at {_moment(self._before)}"
            elif early and not self._early:  # of many in a row the first
                said = f"what it covers was sealed at {_moment(sealed)}"
            if said:
                yield f"the checkpoint of size {size} was written at {_moment(at)}, and {said}"
            self._before, self._early = at, early


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
