r"""The journal: numbered records on this machine's disk, in checksummed segment files.

Durable steps, and what a restart finds after a crash at each:

1. A segment file is created, its header written, file and directory synced. Found: an empty
   segment; it holds nothing and is passed over.
2. Frames are appended and `fdatasync`ed, all waiting records at once. Found: the frames whole, or
   a torn tail that no checksum vouches for; nobody was told of those records, so the tail ends the
   segment. Whole frames that were not synced yet are synced by the start that finds them.
3. A write or sync fails. The segment is never written again, for what the disk holds is unknown;
   the next append starts a new segment at the same number. Found: two segments that claim a
   number; the later one is right, since the failed records were never acknowledged. (Failed, and
   then a crash before the new segment: the records may be found after all. Whoever reads the
   journal must bear a record whose append failed.)
4. A segment whose records are all trimmed is unlinked. Found: it, or not.
5. A file gets its room before its records, in steps, so that a sync need not write its new length
   (that takes three times as long); a segment that is done is cut to its records. Found: zeros
   after the records, which are no frame; they are cut off.

A process never appends to a segment it did not create: a start begins a new one.

Segment: ``AUTHZJ1\n``, first number (8 bytes). Frame: length (4 bytes), CRC-32 of the payload
seeded with the low 32 bits of its number (4 bytes), payload. Integers are little-endian. No payload
is empty, so that zeros, which a loss of power may leave, are no frame.
"""

import contextlib
import errno
import os
import struct
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from authz.errors import UsageError
from authz.files import lock_directory, make_directory, sync_directory, write_all

_MAGIC = b"AUTHZJ1\n"
_HEADER = struct.Struct("<8sQ")
_FRAME = struct.Struct("<II")
_READ = 1 << 20
_ROOM = 1 << 20  # bytes that a segment grows by
# Bytes of the disk, and at most a sixteenth of it, left to the files that records wait for.
_SPARE = 4 << 20


class JournalError(Exception):
    """A record could not be made durable: the disk is full or failing. Nothing was promised."""


class JournalFullError(JournalError):
    """The journal has reached its bound; it empties as its reader catches up."""


class CorruptJournalError(UsageError):
    """Records that were acknowledged are missing from, or damaged in, the journal's files."""


class Journal:
    """Durable records numbered from 1 (or `start`) without gaps. One process owns a directory.

    Thread-safe: one thread appends, others read and trim. `sync` false leaves durability to the
    operating system (it survives a crash of this process, not of the machine).
    """

    def __init__(
        self,
        directory: Path,
        *,
        start: int = 1,
        max_bytes: int = 4 << 30,
        segment_bytes: int = 64 << 20,
        sync: bool = True,
    ) -> None:
        make_directory(directory)
        self._directory = directory
        self._max_bytes = max_bytes
        # Room comes back by whole segments, so there must be several within the bound and the disk.
        disk_bytes, _ = _disk(directory)
        self._segment_bytes = min(segment_bytes, max_bytes // 8, disk_bytes // 16)
        self._spare = min(_SPARE, disk_bytes // 16)
        self._sync = sync
        self._mutex = threading.Lock()
        self._lock = lock_directory(directory)
        self._file: int | None = None
        self._room = 0  # the length of the file that is being written
        self._segments: list[_Segment] = []
        self._next = start
        self._recover()

    @property
    def next(self) -> int:
        """The number the next record gets; all before it are durable."""
        return self._next

    @property
    def first(self) -> int:
        """The oldest number still held; equals `next` when none is."""
        return self._segments[0].first if self._segments else self._next

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def fill(self) -> float:
        """How much of its bound the journal uses, 0 to 1."""
        return self.size / self._max_bytes

    def append(self, payloads: Sequence[bytes]) -> None:
        """Make `payloads` durable under the next numbers, all or (as far as anyone is told) none.

        Raises `JournalError`; the numbers are then free for the next append.
        """
        frames = []
        number = self._next
        for payload in payloads:
            if not payload:
                raise ValueError("a record of the journal cannot be empty")
            frames.append(_FRAME.pack(len(payload), _checksum(payload, number)))
            frames.append(payload)
            number += 1
        data = b"".join(frames)
        if self.size + len(data) > self._max_bytes:
            raise JournalFullError(f"the journal has reached its bound of {self._max_bytes} bytes")
        try:
            file = self._file if self._file is not None else self._begin_segment()
            self._make_room(file, self._segments[-1].size + len(data))
            write_all(file, data)
            if self._sync:
                os.fdatasync(file)
        except OSError as error:
            self._abandon_segment()
            raise JournalError(f"the journal cannot write: {error.strerror}") from error
        with self._mutex:
            segment = self._segments[-1]
            segment.size += len(data)
            self._next = number
        if segment.size >= self._segment_bytes:
            self._finish_segment()

    def reader(self, number: int) -> "Reader":
        """Reads durable records from `number` on. Raises `CorruptJournalError` if it is gone."""
        if number < self.first:
            raise CorruptJournalError(
                f"{self._directory}: record {number} is needed but the journal begins at"
                f" {self.first}; restore the directory from the disk it was on"
            )
        return Reader(self, number)

    def holder(self, number: int) -> tuple["_Segment", int]:
        """The segment that holds durable record `number`, and the number it is right up to."""
        with self._mutex:
            end = self._next
            for segment in reversed(self._segments):
                if segment.first <= number:
                    return segment, end
                end = segment.first
        raise CorruptJournalError(f"{self._directory}: record {number} has been trimmed")

    def trim(self, below: int) -> None:
        """Forget records numbered less than `below`, by whole segments.

        The newest record is always kept: a writer's chain goes on from it.
        """
        below = min(below, self._next - 1)
        with self._mutex:
            while len(self._segments) > 1 and self._segments[1].first <= below:
                old = self._segments.pop(0)
                old.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._finish_segment()
        os.close(self._lock)

    def _make_room(self, file: int, end: int) -> None:
        """Have the file reach beyond `end`. Where there is no room, the write will say so.

        The last of the disk is not taken: what empties the journal must write its state, or a full
        disk would stay full. Raises `OSError`.
        """
        if end <= self._room:
            return
        left = _disk(self._directory)[1] - self._spare - (end - self._room)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room = end + min(_ROOM, self._segment_bytes, left)
        with contextlib.suppress(OSError):
            if self._sync:
                os.posix_fallocate(file, self._room, room - self._room)
            self._room = room

    def _finish_segment(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # then a start cuts it
                os.ftruncate(self._file, self._segments[-1].size)
        self._abandon_segment()

    def _abandon_segment(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what is durable, the sync said
                os.close(file)

    def _begin_segment(self) -> int:
        attempt = 0
        while (path := self._path(self._next, attempt)).exists():
            attempt += 1
        header = _HEADER.pack(_MAGIC, self._next)
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            write_all(file, header)
            self._room = 0
            self._make_room(file, len(header))
            if self._sync:
                os.fsync(file)
                sync_directory(self._directory)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._file = file
        with self._mutex:
            self._segments.append(_Segment(path, self._next, len(header)))
        return file

    def _path(self, first: int, attempt: int) -> Path:
        return self._directory / f"{first:016d}-{attempt:04d}.journal"

    def _recover(self) -> None:
        """Find what is durable: the same walk at every start, after a crash or not."""
        paths = sorted(self._directory.glob("*.journal"))
        found = []
        for path in paths:
            segment = _Segment.open(path)
            if segment:
                found.append(segment)
            else:
                path.unlink()  # created, but its header never reached the disk
        if found:
            self._next = found[0].first
        for index, segment in enumerate(found):
            if segment.first != self._next:
                raise CorruptJournalError(
                    f"{segment.path}: begins at record {segment.first}, but the segment before it"
                    f" ends at {self._next - 1}; restore the journal from the disk it was on"
                )
            end = found[index + 1].first if index + 1 < len(found) else None
            self._next = segment.first + segment.read_through(end)
        for index, segment in enumerate(found):
            last = index + 1 == len(found)
            empty = (self._next if last else found[index + 1].first) == segment.first
            if empty:
                segment.path.unlink()
            else:
                self._segments.append(segment)
        if self._segments and self._sync:
            # A process that was killed before its sync leaves frames the disk may not hold yet.
            file = os.open(self._segments[-1].path, os.O_RDONLY)
            try:
                os.fdatasync(file)
            finally:
                os.close(file)


class Reader:
    """A place in the journal; `take` moves it on. For one thread at a time."""

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self._segment: _Segment | None = None
        self._file: BinaryIO | None = None
        self._read = b""  # from the file, of which the first `_used` bytes are done with
        self._used = 0
        self.number = number

    def take(self, limit: int, max_bytes: int = 32 << 20) -> list[bytes]:
        """Up to `limit` durable records (at least one if any is there), from `number` on."""
        taken: list[bytes] = []
        room = max_bytes
        while len(taken) < limit and room > 0 and self.number < self._journal.next:
            segment, end = self._journal.holder(self.number)
            self._go_to(segment)
            while len(taken) < limit and room > 0 and self.number < end:
                payload = self._frame(segment, self.number)
                taken.append(payload)
                room -= len(payload)
                self.number += 1
        return taken

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _go_to(self, segment: "_Segment") -> None:
        """Stand at `number`, which is in `segment`."""
        if self._file is None or self._segment is not segment:
            self.close()
            self._file = segment.path.open("rb", buffering=0)
            self._file.seek(_HEADER.size)
            self._segment = segment
            self._read, self._used = b"", 0
            for number in range(segment.first, self.number):
                self._frame(segment, number)

    def _frame(self, segment: "_Segment", number: int) -> bytes:
        """The payload of the next frame, which is durable."""
        head = self._bytes(segment, _FRAME.size)
        if len(head) == _FRAME.size:
            length, checksum = _FRAME.unpack(head)
            payload = self._bytes(segment, length)
            if length == len(payload) and _checksum(payload, number) == checksum:
                return payload
        raise CorruptJournalError(f"{segment.path}: record {number} is damaged")

    def _bytes(self, segment: "_Segment", count: int) -> bytes:
        """The next `count` bytes, fewer if there are no more. Never read ahead of what is written:
        that is room, which another thread fills."""
        assert self._file is not None
        while len(self._read) - self._used < count:
            more = self._file.read(min(_READ, max(segment.size - self._file.tell(), 0)))
            if not more:
                break
            self._read, self._used = self._read[self._used :] + more, 0
        found = self._read[self._used : self._used + count]
        self._used += len(found)
        return found


class _Segment:
    __slots__ = ("first", "path", "size")

    def __init__(self, path: Path, first: int, size: int) -> None:
        self.path = path
        self.first = first
        self.size = size

    @classmethod
    def open(cls, path: Path) -> "_Segment | None":
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header == bytes(_HEADER.size):
            return None
        magic, first = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise CorruptJournalError(f"{path}: not a journal segment of this program")
        return cls(path, first, path.stat().st_size)

    def read_through(self, end: int | None) -> int:
        """How many records are whole, up to number `end` or the first that is not. Room after them
        that was never written is cut off."""
        number = self.first
        with self.path.open("rb", buffering=_READ) as file:
            place = file.seek(_HEADER.size)
            while end is None or number < end:
                payload = _read_frame(file, number)
                if payload is None:
                    break
                place += _FRAME.size + len(payload)
                number += 1
            file.seek(place)
            while blank := file.read(_READ):
                if blank.strip(b"\0"):
                    return number - self.first
        if place < self.size:
            os.truncate(self.path, place)
            self.size = place
        return number - self.first


def _read_frame(file: BinaryIO, number: int) -> bytes | None:
    """The payload under `number` at the file's place, or None if it is not whole."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(head)
    payload = file.read(length)
    if not length or len(payload) < length or _checksum(payload, number) != checksum:
        return None
    return payload


def _checksum(payload: bytes, number: int) -> int:
    return zlib.crc32(payload, number & 0xFFFFFFFF)


def _disk(directory: Path) -> tuple[int, int]:
    """How many bytes the directory's disk has, and how many are left; without end where the
    filesystem does not say."""
    disk = os.statvfs(directory)
    if not disk.f_blocks:
        return sys.maxsize, sys.maxsize
    return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
