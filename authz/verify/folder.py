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
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote, unquote

import orjson

from authz.errors import UsageError
from authz.ledger import HASH_BYTES, TILE_WIDTH, Place, leaf_hash, leaf_hashes
from authz.ledger.tiles import ENTRIES, MAX_ENTRY, pack, unpack, width_at
from authz.record import Record, canonical, misfit
from authz.retention import EVENTS
from authz.store.logs import Part, StoredLogs

_CHUNK = 64 * TILE_WIDTH
_MOST_BYTES = TILE_WIDTH * (2 + MAX_ENTRY)
_REVISION = re.compile("[0-9a-f]{64}")
_WIDTH = re.compile("[1-9][0-9]{0,2}")


def directory_of(folder: Path, origin: str) -> Path:
    return folder / "logs" / quote(origin, safe="")


class FolderLogs:
    """As `authz.verify.source.Logs` says. Raises `UsageError` for a folder that is no such one, and
    where its files cannot be read."""

    grows = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _reading():
            try:
                names = sorted(path.name for path in (folder / "logs").iterdir())
            except (FileNotFoundError, NotADirectoryError):
                wanted = "want what `authz export --format bundle` wrote"
                raise UsageError(f"--from {folder}: {wanted}") from None
            self._logs = {unquote(name): _Log(folder / "logs" / name) for name in names}

    def part(self, origin: str, first: int, end: int) -> Part:
        entries = self._entries(origin, first, end)
        found = [(index, leaf) for index, leaf in entries if _is_record(leaf, origin, index)]
        indexes, leaves = [index for index, _ in found], [leaf for _, leaf in found]
        log = self._logs.get(origin)
        notes = list(log.checkpoints(first + 1, end + 1)) if log else []
        return Part(first, end, indexes, leaves, self.leaf_hashes(origin, first, end), notes, ())

    def records(self, origin: str, first: int, end: int) -> Sequence[Record]:
        entries = self._entries(origin, first, end)
        return [orjson.loads(leaf) for index, leaf in entries if _is_record(leaf, origin, index)]

    def leaf_hashes(self, origin: str, first: int, end: int) -> Sequence[bytes | None]:
        hashes: list[bytes | None] = [None] * (end - first)
        for index, data in self.tiles(origin, 0, first // TILE_WIDTH, -(-end // TILE_WIDTH)):
            for number in range(min(len(data) // HASH_BYTES, TILE_WIDTH)):
                place = index * TILE_WIDTH + number - first
                if 0 <= place < end - first:
                    hashes[place] = data[HASH_BYTES * number : HASH_BYTES * (number + 1)]
        return hashes

    def tiles(self, origin: str, level: int, first: int, end: int) -> Sequence[tuple[int, bytes]]:
        log = self._logs.get(origin)
        found = [(index, log.tile(level, index)) for index in range(first, end)] if log else []
        return [(index, data) for index, data in found if data]

    def newest(self, origin: str, beyond: int = -1) -> Iterator[tuple[int, str]]:
        log = self._logs.get(origin)
        return log.checkpoints(beyond + 1, newest_first=True) if log else iter(())

    def following(self, origin: str, least: int) -> Iterator[tuple[int, str]]:
        log = self._logs.get(origin)
        return log.checkpoints(least) if log else iter(())

    def checkpoints(self, origin: str, size: int) -> Sequence[str]:
        log = self._logs.get(origin)
        return [note for _, note in log.checkpoints(size, size + 1)] if log else ()

    def beyond(self, origin: str, size: int) -> tuple[int, int, int]:
        first, last, count = 0, 0, 0
        for index, _ in self._all_entries(origin, size):
            first, last, count = first if count else index, index, count + 1
        return first, last, count

    def sealed_from(self, origin: str, first: int, end: int) -> tuple[int, int] | None:
        raise NotImplementedError  # a folder is checked as a whole

    def span(self, origin: str, since_us: int, until_us: int) -> tuple[int, int]:
        raise NotImplementedError

    def others(self, origins: Sequence[str]) -> Sequence[tuple[str, int, int]]:
        unknown = sorted(self._logs.keys() - set(origins))
        return [(name, 0, max(self._logs[name].size - 1, 0)) for name in unknown]

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
        named = [b'"event":%b' % orjson.dumps(event) for event in events]
        for index, leaf in self._all_entries(origin, 0):
            if any(one in leaf for one in named) and _is_record(leaf, origin, index):
                record: Record = orjson.loads(leaf)
                if record.get("kind") == "notice" and record.get("event") in events:
                    yield record

    def wrong_policies(self, revisions: Sequence[str]) -> Iterator[str]:
        for revision in filter(_REVISION.fullmatch, revisions):
            with _reading():
                path = self._folder / "policies" / revision
                wrong = path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != revision
            if wrong:
                yield revision

    def definitions(self) -> Sequence[tuple[str, str]]:
        return ()

    def detached(self) -> Sequence[str]:
        return ()

    def _all_entries(self, origin: str, first: int) -> Iterator[tuple[int, bytes]]:
        """From index `first` on, in whatever bundles there are."""
        log = self._logs.get(origin)
        for tile in log.bundles() if log else ():
            if tile >= first // TILE_WIDTH:
                start = max(tile * TILE_WIDTH, first)
                yield from self._entries(origin, start, (tile + 1) * TILE_WIDTH)

    def _entries(self, origin: str, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The entries that there are, which may be anything."""
        log = self._logs.get(origin)
        for tile in range(first // TILE_WIDTH, -(-end // TILE_WIDTH)) if log else ():
            assert log is not None
            try:
                entries = list(unpack(log.tile(ENTRIES, tile)))
            except ValueError:
                continue  # its records are missing
            for index, leaf in enumerate(entries[:TILE_WIDTH], tile * TILE_WIDTH):
                if leaf and first <= index < end:
                    yield index, leaf


class _Log:
    """The directory of one log. Its checkpoints may be very many: held is where each begins."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "checkpoints.ndjson"
        self._sizes, self._places = array("Q"), array("Q")
        self._bundles: Sequence[int] | None = None
        place = 0
        with self._path.open("rb") as lines:
            for line in lines:
                size, _ = self._checkpoint(line)
                if size < self.size:
                    raise UsageError(f"--from: {self._path}: its checkpoints are not in order")
                self._sizes.append(size)
                self._places.append(place)
                place += len(line)

    @property
    def size(self) -> int:
        """As its newest checkpoint says, whoever signed it."""
        return self._sizes[-1] if self._sizes else 0

    def checkpoints(
        self, least: int, below: int = 2**64, *, newest_first: bool = False
    ) -> Iterator[tuple[int, str]]:
        """Those over `least` records or more, and less than `below`: size and note."""
        found = range(bisect_left(self._sizes, least), bisect_left(self._sizes, below))
        with _reading(), self._path.open("rb") as lines:
            for number in reversed(found) if newest_first else found:
                lines.seek(self._places[number])
                yield self._checkpoint(lines.readline())

    def bundles(self) -> Sequence[int]:
        """The numbers of the entry bundles that there are, in order."""
        if self._bundles is None:
            with _reading():
                found = set()
                for path in (self._directory / Place(ENTRIES, 0).path).parent.rglob("*"):
                    place = Place.parse(path.relative_to(self._directory).as_posix())
                    if place:
                        found.add(place.index)
                self._bundles = sorted(found)
        return self._bundles

    def tile(self, level: int, index: int) -> bytes:
        """The widest there is of a tile; no bytes if there is none."""
        path = self._directory / Place(level, index).path
        partial = path.with_name(f"{path.name}.p")
        with _reading():
            if not path.exists():
                widths = [int(one.name) for one in partial.iterdir() if _WIDTH.fullmatch(one.name)
                          ] if partial.exists() else []  # fmt: skip
                if not widths:
                    return b""
                path = partial / str(max(widths))
            with path.open("rb") as opened:
                return opened.read(_MOST_BYTES)

    def _checkpoint(self, line: bytes) -> tuple[int, str]:
        try:
            told = orjson.loads(line)
            size, note = told["size"], told["note"]
            if type(size) is int and 0 <= size < 2**63 and type(note) is str:
                return size, note
        except (ValueError, TypeError, KeyError):
            pass
        wanted = 'not checkpoints, {"size": N, "note": TEXT} a line'
        raise UsageError(f"--from: {self._path}: {wanted}")


@contextmanager
def _reading() -> Iterator[None]:
    """Raises `UsageError` for a file that cannot be read, or is none."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--from: {error.filename}: {error.strerror}") from None


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
    chunks = []
    first = end = 0
    while first < size:
        part = source.part(origin, first, min(first + _CHUNK, size))
        if part.leaves or any(part.hashes):
            for tile in range(first // TILE_WIDTH, -(-part.end // TILE_WIDTH)):
                _put_tile(directory, source, origin, part, tile)
            chunks.append(first)
            first = end = part.end
        else:  # any size can be claimed: on to where there is something
            following, _, count = source.beyond(origin, part.end)
            first = following // _CHUNK * _CHUNK if count else size
        progress(first, size)
    for level in range(1, 8):
        for number in sorted({first >> 8 * (level + 1) for first in chunks}):
            for index, data in source.tiles(origin, level, number, number + 1)[-1:]:
                if width := min(width_at(level, index, end), len(data) // HASH_BYTES):
                    _put(directory / Place(level, index, width).path, data[: width * HASH_BYTES])
    with (directory / "checkpoints.ndjson").open("wb") as lines:
        for of_size, said in source.following(origin, 0):
            if of_size > size:
                break  # the log has gone on meanwhile
            lines.write(orjson.dumps({"size": of_size, "note": said}) + b"\n")
    return size


def _put_tile(directory: Path, source: StoredLogs, origin: str, part: Part, tile: int) -> None:
    """The hashes of a tile, and its entry bundle; of two records for one place the one that was
    sealed there."""
    first = tile * TILE_WIDTH
    end = min(first + TILE_WIDTH, part.end)
    hashes = part.hashes[first - part.first : end - part.first]
    known = list(takewhile(lambda one: one is not None, hashes))
    if known:
        data = b"".join(one or b"" for one in known)
        _put(directory / Place(0, tile, len(known)).path, data)
    entries = [b""] * (end - first)
    for index, leaf in _own(source, origin, part, first, end):
        place, right = index - first, leaf_hash(leaf) == hashes[index - first]
        if len(leaf) > MAX_ENTRY:
            if right:
                raise UsageError(f"record {origin}@{index}: its {len(leaf)} bytes fit no bundle")
        elif right or not entries[place]:
            entries[place] = leaf
    _put(directory / Place(ENTRIES, tile, end - first).path, pack(entries))


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
        if _REVISION.fullmatch(revision):
            _put(folder / "policies" / revision, text)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
