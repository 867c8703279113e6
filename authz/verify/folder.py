"""Logs in a folder, for somebody with neither database nor network (``authz export --format
bundle`` writes it).

Each log has a directory of its own, named as its origin with ``/`` and the like percent-encoded::

    logs/ORIGIN/checkpoint            the newest
    logs/ORIGIN/checkpoints.ndjson    all: {"size": N, "note": TEXT}, by size
    logs/ORIGIN/tile/...              C2SP tlog-tiles, entry bundles too
    policies/REVISION                 the archived texts

An entry of no bytes stands for a record that was not there when the folder was written. What is in
a folder may be anybody's: nothing of it is believed before it has been held against a signed root.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import orjson

from authz.errors import UsageError
from authz.ledger import HASH_BYTES, TILE_WIDTH, Place, leaf_hash, leaf_hashes
from authz.ledger.tiles import ENTRIES, pack, unpack, width_at
from authz.record import Record, canonical, misfit
from authz.retention import EVENTS
from authz.store.logs import Part, StoredLogs

_CHUNK = 64 * TILE_WIDTH
_MOST_BYTES = TILE_WIDTH * (2 + 0xFFFF)


def directory_of(folder: Path, origin: str) -> Path:
    return folder / "logs" / quote(origin, safe="")


class FolderLogs:
    """As `authz.verify.source.Logs` says. Raises `UsageError` for a folder that is no such one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            names = sorted(path.name for path in (folder / "logs").iterdir())
        except OSError as error:
            raise UsageError(
                f"--from {folder}: {error.strerror}; want what `authz export --format bundle` wrote"
            ) from None
        self._logs = {unquote(name): self._read(folder / "logs" / name) for name in names}

    def part(self, origin: str, first: int, end: int) -> Part:
        found = [
            (index, leaf if _is_record(leaf, origin, index) else b"\0")
            for index, leaf in self._entries(origin, first, end)
        ]
        notes = self._logs.get(origin, [])
        within = [(size, note) for size, note in notes if first < size <= end]
        indexes, leaves = [index for index, _ in found], [leaf for _, leaf in found]
        return Part(first, end, indexes, leaves, self.leaf_hashes(origin, first, end), within, ())

    def records(self, origin: str, first: int, end: int) -> Sequence[Record]:
        return [
            orjson.loads(leaf)
            for index, leaf in self._entries(origin, first, end)
            if _is_record(leaf, origin, index)
        ]

    def leaf_hashes(self, origin: str, first: int, end: int) -> Sequence[bytes | None]:
        hashes: list[bytes | None] = [None] * (end - first)
        for index, data in self.tiles(origin, 0, first // TILE_WIDTH, -(-end // TILE_WIDTH)):
            for number in range(min(len(data) // HASH_BYTES, TILE_WIDTH)):
                place = index * TILE_WIDTH + number - first
                if 0 <= place < end - first:
                    hashes[place] = data[HASH_BYTES * number : HASH_BYTES * (number + 1)]
        return hashes

    def tiles(self, origin: str, level: int, first: int, end: int) -> Sequence[tuple[int, bytes]]:
        found = [(index, self._tile(origin, level, index)) for index in range(first, end)]
        return [(index, data) for index, data in found if data]

    def newest(self, origin: str, beyond: int = -1) -> Iterator[tuple[int, str]]:
        for size, note in reversed(self._logs.get(origin, [])):
            if size > beyond:
                yield size, note

    def checkpoints(self, origin: str, size: int) -> Sequence[str]:
        return [note for other, note in self._logs.get(origin, []) if other == size]

    def beyond(self, origin: str, size: int) -> tuple[int, int, int]:
        end = (size // TILE_WIDTH + 1) * TILE_WIDTH
        found = [index for index, _ in self._entries(origin, size, end)]
        return (found[0], found[-1], len(found)) if found else (0, 0, 0)

    def span(self, origin: str, since_us: int, until_us: int) -> tuple[int, int]:
        raise NotImplementedError  # a folder is checked as a whole

    def others(self, origins: Sequence[str]) -> Sequence[tuple[str, int, int]]:
        unknown = {name: notes for name, notes in self._logs.items() if name not in origins}
        return [(name, 0, max(notes, default=(1, ""))[0] - 1) for name, notes in unknown.items()]

    def notices(self, origin: str, event: str) -> Iterator[tuple[int, str]]:
        for record in self._told(origin, (event,)):
            if "writer_seq" not in record:
                index = record.get("index", 0)
                assert isinstance(index, int)
                yield index, str(record.get("details", ""))

    def expiry_notices(self) -> Iterator[Record]:
        for origin in self._logs:
            for record in self._told(origin, EVENTS):
                if "writer_seq" in record:
                    yield record

    def _told(self, origin: str, events: Sequence[str]) -> Iterator[Record]:
        """The notices of these events."""
        size = max(self._logs.get(origin, []), default=(0, ""))[0]
        named = [b'"event":%b' % orjson.dumps(event) for event in events]
        for first in range(0, size, _CHUNK):
            for index, leaf in self._entries(origin, first, min(first + _CHUNK, size)):
                if any(one in leaf for one in named) and _is_record(leaf, origin, index):
                    record: Record = orjson.loads(leaf)
                    if record.get("kind") == "notice" and record.get("event") in events:
                        yield record

    def wrong_policies(self, revisions: Sequence[str]) -> Iterator[str]:
        for revision in revisions:
            path = self._folder / "policies" / quote(revision, safe="")
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != revision:
                yield revision

    def definitions(self) -> Sequence[tuple[str, str]]:
        return ()

    def detached(self) -> Sequence[str]:
        return ()

    def _read(self, directory: Path) -> list[tuple[int, str]]:
        """A log's checkpoints, by size."""
        path = directory / "checkpoints.ndjson"
        try:
            told = [json.loads(line) for line in path.read_text().splitlines()]
            return sorted((int(one["size"]), str(one["note"])) for one in told)
        except OSError as error:
            raise UsageError(f"--from: {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"--from: {path}: not checkpoints, one JSON object a line") from None

    def _entries(self, origin: str, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        for tile in range(first // TILE_WIDTH, -(-end // TILE_WIDTH)):
            try:
                entries = list(unpack(self._tile(origin, ENTRIES, tile)))
            except ValueError:
                continue  # its records are missing
            for index, leaf in enumerate(entries[:TILE_WIDTH], tile * TILE_WIDTH):
                if leaf and first <= index < end:
                    yield index, leaf

    def _tile(self, origin: str, level: int, index: int) -> bytes:
        """The widest there is of a tile; no bytes if there is none."""
        directory = directory_of(self._folder, origin)
        whole = directory / Place(level, index).path
        partial = whole.with_name(whole.name + ".p")
        paths = [whole] if whole.is_file() else []
        if not paths and partial.is_dir():
            widths = [int(path.name) for path in partial.iterdir() if path.name.isdecimal()]
            paths = [partial / str(max(widths))] if widths else []
        for path in paths:
            with path.open("rb") as opened:
                return opened.read(_MOST_BYTES)
        return b""


def _is_record(leaf: bytes, origin: str, index: int) -> bool:
    """Whether a leaf is one that a receiver could have made, of this place."""
    try:
        record = orjson.loads(leaf)
        if not isinstance(record, dict) or misfit(record) or canonical(record) != leaf:
            return False
    except (ValueError, TypeError):
        return False
    return record.get("origin") == origin and record.get("index", 0) == index


def write_log(
    source: StoredLogs, origin: str, folder: Path, progress: Callable[[int, int], None]
) -> int:
    """Write log `origin` to `folder`, up to its newest checkpoint; returns its size. Whether it is
    right is for who reads it to find. `progress` is called with records done and all records."""
    directory = directory_of(folder, origin)
    size, note = next(source.newest(origin), (0, ""))
    _put(directory / "checkpoint", note.encode())
    for first in range(0, size, _CHUNK):
        part = source.part(origin, first, min(first + _CHUNK, size))
        for tile in range(first // TILE_WIDTH, -(-part.end // TILE_WIDTH)):
            _put_entries(directory, source, origin, part, tile)
        progress(part.end, size)
    for level in range(8):
        for index in range(-(-(size >> 8 * level) // TILE_WIDTH)):
            width = width_at(level, index, size)
            for _, data in source.tiles(origin, level, index, index + 1)[-1:]:
                _put(directory / Place(level, index, width).path, data[: width * HASH_BYTES])
    told = sorted(set(source.newest(origin)))
    lines = [json.dumps({"size": size, "note": note}) + "\n" for size, note in told]
    _put(directory / "checkpoints.ndjson", "".join(lines).encode())
    return size


def _put_entries(directory: Path, source: StoredLogs, origin: str, part: Part, tile: int) -> None:
    """The entry bundle of a tile; of two records for one place the one that was sealed there."""
    first = tile * TILE_WIDTH
    end = min(first + TILE_WIDTH, part.end)
    entries = [b""] * (end - first)
    hashes = part.hashes[first - part.first : end - part.first]
    for record in _own(source, origin, part, first, end):
        place = record[0] - first
        if not entries[place] or leaf_hash(record[1]) == hashes[place]:
            entries[place] = record[1]
    try:
        data = pack(entries)
    except ValueError as error:
        raise UsageError(f"log {origin}: records {first} to {end - 1}: {error}") from None
    _put(directory / Place(ENTRIES, tile, end - first).path, data)


def _own(
    source: StoredLogs, origin: str, part: Part, first: int, end: int
) -> Iterator[tuple[int, bytes]]:
    """The leaves of a tile: as the database writes them if they are what was sealed."""
    begin, last = bisect_left(part.indexes, first), bisect_left(part.indexes, end)
    leaves = part.leaves[begin:last]
    if leaf_hashes(leaves) == part.hashes[first - part.first : end - part.first]:
        yield from enumerate(leaves, first)
        return
    for record in source.records(origin, first, end):
        try:
            yield int(record.get("index", 0)), canonical(record)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue


def write_policies(texts: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """The archived policies: revisions and their texts."""
    for revision, text in texts:
        _put(folder / "policies" / quote(revision, safe=""), text)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
