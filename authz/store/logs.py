"""The logs in a database, as whoever verifies them reads them. Errors are `client.QUERY_ERRORS`."""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.record import Record, text
from authz.store import definitions, retention, rows

_NOTE_CAP = 65_536
_ORIGIN_CAP = 1024
_REVISIONS = 1000  # asked about at once
_READ_AT_ONCE = 100
_NEAR = 20_000  # records: within so many there is nearly always a checkpoint
_RANGE = "origin = %(origin)s AND index >= %(first)s AND index < %(end)s"


@dataclass(frozen=True, slots=True)
class Part:
    """What is there of one log from index `first` up to `end`."""

    first: int
    end: int
    indexes: Sequence[int]
    """In order; one may be there twice, or not at all."""
    leaves: Sequence[bytes]
    """One for each of `indexes`."""
    hashes: Sequence[bytes | None]
    """The leaf hashes in the log's tiles, for each index; None where there is no tile."""
    checkpoints: Sequence[tuple[int, str]]
    """Those over more than `first` and at most `end` records: size and note."""
    sealed: Sequence[tuple[int, str, str]]
    """The sealed inputs: index, decision id and hash (hexadecimal) as they are."""
    written: Sequence[int] = ()
    """When each of `checkpoints` was written first, by the database's clock; empty if that is not
    known."""


class StoredLogs:
    """In `client`'s current database. For any thread; one query at a time."""

    grows = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()

    def part(self, origin: str, first: int, end: int) -> Part:
        with self._lock:
            indexes, leaves = rows.leaves(self._client, origin, first, end)
        notes = self._checkpoints(origin, first, end)
        return Part(
            first, end, indexes, leaves, self._leaf_hashes(origin, first, end),
            [(size, note) for size, note, _ in notes], self._sealed(origin, first, end),
            [written for _, _, written in notes],
        )  # fmt: skip

    def records(self, origin: str, first: int, end: int) -> Sequence[Record]:
        """The same rows, each value as its column has it."""
        with self._lock:
            return list(rows.read(self._client, "audit_log", origin, first, end))

    def leaf_hashes(self, origin: str, first: int, end: int) -> Sequence[bytes | None]:
        return self._leaf_hashes(origin, first, end)

    def tiles(self, origin: str, level: int, first: int, end: int) -> Sequence[tuple[int, bytes]]:
        """Tiles `first` up to `end` of a level: index and data, the widest of each last."""
        query = (
            "SELECT index, data FROM tiles WHERE origin = %(origin)s AND level = %(level)s"
            " AND index >= %(first)s AND index < %(end)s ORDER BY index, width"
        )
        values = {"origin": origin, "level": level, "first": first, "end": end}
        return self._ask(query, values, settings={"strings_as_bytes": True})

    def newest(self, origin: str, beyond: int = -1) -> Iterator[tuple[int, str]]:
        """The checkpoints over more than `beyond` records, the newest first."""
        newest = (
            "SELECT max(size), count() FROM checkpoints WHERE origin = %(origin)s"
            " AND size > %(beyond)s AND size < %(below)s"
        )
        before = (
            "SELECT DISTINCT size, note FROM checkpoints WHERE origin = %(origin)s"
            " AND size > %(beyond)s AND size < %(below)s ORDER BY size DESC LIMIT %(limit)s"
            " WITH TIES"
        )
        values = {"origin": origin, "beyond": beyond, "below": 2**63, "limit": _READ_AT_ONCE}
        # The newest is nearly always all that is asked for: of the others no note is read.
        [(size, count)] = self._ask(newest, values)
        found = [(size, note) for note in self.checkpoints(origin, size)] if count else []
        while found:
            yield from ((size, text(note, _NOTE_CAP)) for size, note in found)
            found = self._ask(before, values | {"below": found[-1][0]})

    def following(self, origin: str, least: int) -> Iterator[tuple[int, str]]:
        """The checkpoints over `least` records or more, the smallest first."""
        query = (
            "SELECT DISTINCT size, note FROM checkpoints WHERE origin = %(origin)s"
            " AND size >= %(least)s AND size < %(below)s ORDER BY size LIMIT %(limit)s WITH TIES"
        )
        values: dict[str, Any] = {"origin": origin, "limit": _READ_AT_ONCE}
        near = least + _NEAR
        while found := (
            self._ask(query, values | {"least": least, "below": near})
            or self._ask(query, values | {"least": least, "below": 2**63})
        ):
            yield from ((size, text(note, _NOTE_CAP)) for size, note in found)
            least = found[-1][0] + 1
            near = least + _NEAR

    def checkpoints(self, origin: str, size: int) -> Sequence[str]:
        """The notes over just `size` records."""
        query = "SELECT DISTINCT note FROM checkpoints WHERE origin = %(origin)s AND size = %(n)s"
        return [
            text(note, _NOTE_CAP) for (note,) in self._ask(query, {"origin": origin, "n": size})
        ]

    def beyond(self, origin: str, size: int) -> tuple[int, int, int]:
        """The first and last index of rows from `size` on, and how many there are."""
        query = (
            "SELECT min(index), max(index), count() FROM audit_log"
            " WHERE origin = %(origin)s AND index >= %(size)s"
        )
        [(first, last, count)] = self._ask(query, {"origin": origin, "size": size})
        return first, last, count

    def sealed_from(self, origin: str, first: int, end: int) -> tuple[int, int] | None:
        """The first row from index `first` on and before `end`: its index, and when it says that
        it was sealed (microseconds)."""
        query = (
            "SELECT index, toUnixTimestamp64Micro(sealed_at) FROM audit_log"
            f" WHERE {_RANGE} ORDER BY index LIMIT 1"
        )
        for stop in (min(first + 256, end), end):  # near by, there are few rows to look through
            for row in self._ask(query, {"origin": origin, "first": first, "end": stop}):
                return row[0], row[1]
        return None

    def span(self, origin: str, since_us: int, until_us: int) -> tuple[int, int]:
        """From which index up to which there are rows that say that they were sealed in a time;
        (0, 0) if none do."""
        query = (
            "SELECT min(index), max(index) + 1, count() FROM audit_log WHERE origin = %(origin)s"
            " AND sealed_at >= fromUnixTimestamp64Micro(%(since)s, 'UTC')"
            " AND sealed_at < fromUnixTimestamp64Micro(%(until)s, 'UTC')"
        )
        values = {"origin": origin, "since": since_us, "until": until_us}
        [(first, end, count)] = self._ask(query, values)
        return (first, end) if count else (0, 0)

    def others(self, origins: Sequence[str]) -> Sequence[tuple[str, int, int]]:
        """Rows of logs that are none of `origins`: the log, its first and its last index."""
        query = (
            "SELECT origin, min(index), max(index) FROM audit_log"
            " WHERE origin NOT IN %(origins)s GROUP BY origin"
        )
        found = self._ask(query, {"origins": list(origins)})
        return [(text(origin, _ORIGIN_CAP), first, last) for origin, first, last in found]

    def notices(self, origin: str, event: str) -> Iterator[tuple[int, str]]:
        """A log's own notices of `event`, in order: index and details. Read as they are taken."""
        query = (
            "SELECT index, details FROM audit_log WHERE origin = %(origin)s AND kind = 'notice'"
            " AND event = %(event)s AND writer_seq = 0 AND index >= %(first)s"
            " ORDER BY index LIMIT %(limit)s"
        )
        first = 0
        while True:
            values = {"origin": origin, "event": event, "first": first, "limit": _READ_AT_ONCE}
            found = self._ask(query, values)
            for index, details in found:
                yield index, text(details, 65_536)
            if len(found) < _READ_AT_ONCE:
                return
            first = found[-1][0] + 1

    def expiry_notices(self) -> Iterator[Record]:
        """What writers told of holds and of what has expired, in all logs, in log order."""
        with self._lock:
            yield from list(retention.read_notices(self._client))

    def wrong_policies(self, revisions: Sequence[str]) -> Iterator[str]:
        """Those whose archived text is another."""
        query = (
            "SELECT DISTINCT revision FROM policies"
            " WHERE lower(hex(SHA256(text))) != revision AND revision IN %(names)s"
        )
        names = iter(revisions)
        while some := list(itertools.islice(names, _REVISIONS)):
            for (revision,) in self._ask(query, {"names": some}):
                yield text(revision, 256)

    def detached(self) -> Sequence[str]:
        """Partitions of the log's table that somebody has detached, by name (a month)."""
        query = (
            "SELECT DISTINCT partition_id FROM system.detached_parts"
            " WHERE database = currentDatabase() AND table IN ('audit_log', 'audit_log_local')"
            " AND reason = '' ORDER BY 1"
        )
        return [str(name) for (name,) in self._ask(query, {})]

    def definitions(self) -> Sequence[tuple[str, str]]:
        """Tables and views that are not what the schema made: name, and what is wrong."""
        with self._lock:
            return list(definitions.wrong(self._client))

    def _leaf_hashes(self, origin: str, first: int, end: int) -> Sequence[bytes | None]:
        hashes: list[bytes | None] = [None] * (end - first)
        for index, data in self.tiles(origin, 0, first // 256, -(-end // 256)):
            place = index * 256 - first
            found = [data[at : at + 32] for at in range(0, min(len(data) // 32, 256) * 32, 32)]
            if place < 0:
                found, place = found[-place:], 0
            found = found[: end - first - place]
            hashes[place : place + len(found)] = found
        return hashes

    def _checkpoints(self, origin: str, first: int, end: int) -> Sequence[tuple[int, str, int]]:
        query = (
            "SELECT size, note, toUnixTimestamp64Micro(min(written_at)) FROM checkpoints"
            " WHERE origin = %(origin)s AND size > %(first)s AND size <= %(end)s"
            " GROUP BY size, note ORDER BY size, note"
        )
        found = self._ask(query, {"origin": origin, "first": first, "end": end})
        return [(size, text(note, _NOTE_CAP), written) for size, note, written in found]

    def _sealed(self, origin: str, first: int, end: int) -> Sequence[tuple[int, str, str]]:
        query = (
            "SELECT index, decision_id, lower(hex(SHA256(ciphertext))) FROM sealed_originals"
            f" WHERE {_RANGE} ORDER BY index"
        )
        found = self._ask(query, {"origin": origin, "first": first, "end": end})
        return [(index, text(decision, 256), digest) for index, decision, digest in found]

    def _ask(
        self, query: str, values: Mapping[str, Any], settings: dict[str, Any] | None = None
    ) -> list[Any]:
        with self._lock:
            found: list[Any] = self._client.execute(query, values, settings=settings)
        return found
