"""Leaves as the database writes them, for exports: those of a log that meet some conditions."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from clickhouse_driver import Client

from authz.store import rows
from authz.store.lookups import EVER, Window
from authz.store.pages import ANY, Filters

_MOST_RECORDS = 16_384  # in a batch
_MOST_BYTES = 16 << 20  # about so many, by the size of the records of the batch before
_FARTHEST = 1 << 24  # how much of a log is looked through at once


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are wanted; what is empty excludes none."""

    window: Window = EVER
    filters: Filters = ANY
    kinds: tuple[str, ...] = ()

    @property
    def condition(self) -> str:
        kinds = "kind IN %(kinds)s" if self.kinds else ""
        return " AND ".join(filter(None, (self.window.condition, self.filters.condition, kinds)))

    @property
    def values(self) -> dict[str, Any]:
        return {**self.window.values, **self.filters.values, "kinds": list(self.kinds)}


@dataclass(frozen=True, slots=True)
class Leaves:
    """Some of a log's, in its order: an index may be there twice, with two leaves."""

    indexes: Sequence[int]
    leaves: Sequence[bytes]


def leaves(client: Client, origin: str, end: int, wanted: Selection) -> Iterator[Leaves]:
    """The leaves of `origin` before index `end` that are `wanted`, batch by batch.

    The next batch is asked for while the caller is at one: until the last, `client` is not to be
    used for anything else.
    """
    first, step, limit = 0, _MOST_RECORDS, _MOST_RECORDS
    with ThreadPoolExecutor(1) as ahead:

        def ask(first: int, step: int, limit: int) -> Future[_Found]:
            stop = min(first + step, end)
            values = wanted.values
            return ahead.submit(
                rows.leaves_that, client, origin, first, stop, wanted.condition, values, limit
            )

        asked = ask(first, step, limit)
        while first < end:
            indexes, found = asked.result()
            full = len(indexes) >= limit
            first = indexes[-1] + 1 if full else min(first + step, end)
            if indexes:
                limit = _limit(found)
            # A query looks at a part of the log: without an end it would begin to read every month
            # that is to come. Where few records are wanted, the parts grow.
            if full:
                step = max(step // 4, limit)
            elif len(indexes) < limit // 4:
                step = min(step * 4, _FARTHEST)
            following = ask(first, step, limit) if first < end else None
            if indexes:
                # Rows that are no text are read again, behind the query that is under way.
                yield _tidied(indexes, found, lambda at: ahead.submit(_escaped, client, origin, at))
            if following is None:
                return
            asked = following


_Found = tuple[Sequence[int], Sequence[bytes]]


def _limit(found: Sequence[bytes]) -> int:
    """How many records of this size a batch takes."""
    size = sum(map(len, found)) // len(found) + 1
    return max(min(_MOST_BYTES // size, _MOST_RECORDS), 1)


def _tidied(
    indexes: Sequence[int], found: Sequence[bytes], escaped: Callable[[int], Future[bytes]]
) -> Leaves:
    if len(set(indexes)) < len(indexes):
        # A row that is there twice is one record; a second record for a place is kept.
        pairs = sorted(set(zip(indexes, found, strict=True)))
        indexes, found = [index for index, _ in pairs], [leaf for _, leaf in pairs]
    if not _is_text(found):
        found = [
            leaf if _is_text([leaf]) else escaped(index).result()
            for index, leaf in zip(indexes, found, strict=True)
        ]
    return Leaves(indexes, found)


def _is_text(found: Sequence[bytes]) -> bool:
    data = b"".join(found)
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return False
    return True


def _escaped(client: Client, origin: str, index: int) -> bytes:
    """A row that holds bytes which are no text, and so is no record that was ever sealed: with
    these escaped, so that it can be read. It proves nothing."""
    for record in rows.read(client, "audit_log", origin, index, index + 1):
        return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return b"{}"
