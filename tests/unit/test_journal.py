"""What the journal said is durable is there after anything; what it did not say, it may be."""

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from random import Random

import pytest
from disk import Disk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from authz import files
from authz.errors import UsageError
from authz.files import replace_file
from authz.journal import segments
from authz.journal.segments import (
    CorruptJournalError,
    Journal,
    JournalError,
    JournalFullError,
    Reader,
)

BATCHES = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6)
SMALL = {"max_bytes": 1 << 20, "segment_bytes": 100}


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(segments, "os", disk)
    monkeypatch.setattr(files, "os", disk)
    return disk


def contents(journal: Journal, number: int | None = None) -> list[bytes]:
    with contextlib.closing(journal.reader(journal.first if number is None else number)) as reader:
        return reader.take(10_000)


@contextlib.contextmanager
def opened(directory, **settings):
    journal = Journal(directory, **(SMALL | settings))
    try:
        yield journal
    finally:
        journal.close()


class AnyOrder(RuleBasedStateMachine):
    """Appends, failures, crashes, lost power, reads and trims, against a list."""

    @initialize(start=st.sampled_from([0, 1, 2**32 - 3]))
    def begin(self, start):
        self.disk = Disk()
        segments.os = files.os = self.disk
        self.directory = Path(tempfile.mkdtemp())
        self.start, self.kept = start, start
        self.durable: list[bytes] = []  # from number `start`
        self.floating: list[list[bytes]] = []  # failed since the last append that did not
        self.open()
        self.follower = self.journal.reader(start)

    def open(self):
        self.journal = Journal(self.directory, start=self.start, **SMALL)

    def teardown(self):
        if hasattr(self, "journal"):
            self.disk.kill()
            segments.os = files.os = os
            self.follower.close()
            shutil.rmtree(self.directory)

    @rule(batch=BATCHES)
    def append(self, batch):
        self.journal.append(batch)
        self.durable += batch
        self.floating.clear()

    @rule(batch=BATCHES, at=st.integers(0, 8))
    def append_to_failing_disk(self, batch, at):
        self.disk.fail_at, self.disk.failed = at, ""
        try:
            self.journal.append(batch)
        except JournalError:
            assert self.disk.failed
            self.floating.append(batch)
        else:
            assert not self.disk.failed
            self.durable += batch
            self.floating.clear()
        self.disk.fail_at = None

    @rule(data=st.data())
    def read(self, data):
        number = data.draw(st.integers(self.journal.first, self.journal.next))
        assert contents(self.journal, number) == self.durable[number - self.start :]

    @rule(limit=st.integers(1, 10))
    def follow(self, limit):
        first = self.follower.number - self.start
        assert self.follower.take(limit) == self.durable[first : first + limit]

    @rule(data=st.data())
    def trim(self, data):
        below = data.draw(st.integers(self.start, self.follower.number))
        self.journal.trim(below)
        self.kept = max(self.kept, min(below, self.journal.next - 1))

    @rule()
    def restart(self):
        number = self.follower.number
        self.journal.close()
        self.reopen(number)

    @rule()
    def crash(self):
        number = self.follower.number
        self.disk.kill()
        self.reopen(number)

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed):
        number = self.follower.number
        self.disk.kill()
        self.disk.cut_power(self.directory, Random(seed))
        self.reopen(number)

    def reopen(self, number):
        self.follower.close()
        self.open()
        more = self.journal.next - self.start - len(self.durable)
        assert more >= 0, "acknowledged records are lost"
        if more:
            extra = contents(self.journal, self.journal.next - more)
            assert any(batch[:more] == extra for batch in self.floating)
            self.durable += extra
            self.floating.clear()
        self.follower = self.journal.reader(number)

    @invariant()
    def numbers(self):
        if hasattr(self, "journal"):
            assert self.journal.next == self.start + len(self.durable)
            assert self.journal.first <= max(self.kept, self.start)

    @precondition(lambda self: self.durable)
    @invariant()
    def the_newest_is_there(self):
        assert contents(self.journal, self.journal.next - 1) == self.durable[-1:]


AnyOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("zeros", [False, True])
def test_torn_tail(tmp_path, start, zeros):
    """Cut at any byte of the last frame (and whether or not zeros follow), the journal holds all
    before it and goes on at the same number."""
    for count in (1, 3):
        whole = tmp_path / f"whole{count}"
        with opened(whole, start=start, segment_bytes=1 << 20) as journal:
            payloads = [b"record %d" % n for n in range(count)]
            journal.append(payloads)
        [segment] = whole.glob("*.journal")
        size = segment.stat().st_size
        for lost in range(1, 8 + len(payloads[-1]) + 1):
            directory = tmp_path / f"{count}-{lost}"
            shutil.copytree(whole, directory)
            os.truncate(directory / segment.name, size - lost)
            if zeros:
                os.truncate(directory / segment.name, size)
            for _ in "ab":
                with opened(directory, start=start) as journal:
                    assert contents(journal) == payloads[:-1]
                    assert journal.next == start + count - 1
            with opened(directory, start=start) as journal:
                journal.append([b"another"])
            with opened(directory, start=start) as journal:
                assert contents(journal) == [*payloads[:-1], b"another"]


@pytest.mark.parametrize("content", [b"", b"AUTHZ", bytes(16)])
def test_segment_without_a_header(tmp_path, content):
    """A segment whose header never reached the disk is passed over, and its name used again."""
    with opened(tmp_path) as journal:
        journal.append([b"a" * 100])
    (tmp_path / f"{2:016d}-0000.journal").write_bytes(content)
    with opened(tmp_path) as journal:
        journal.append([b"b"])
        assert contents(journal) == [b"a" * 100, b"b"]


def test_damage_in_an_older_segment(tmp_path):
    """Any changed byte before the newest segment is told as damage, never skipped over."""
    with opened(tmp_path / "whole") as journal:
        journal.append([b"x" * 120])
        journal.append([b"y" * 120])
        journal.append([b"z" * 120])
    paths = sorted((tmp_path / "whole").glob("*.journal"))
    assert len(paths) == 3
    for path in paths[:2]:
        data = path.read_bytes()
        for place in range(len(data)):
            directory = tmp_path / f"{path.stem}-{place}"
            shutil.copytree(tmp_path / "whole", directory)
            changed = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
            (directory / path.name).write_bytes(changed)
            with pytest.raises(CorruptJournalError), opened(directory):
                pass


def test_missing_segment(tmp_path):
    """A segment that is gone from the middle is told, with where it was."""
    with opened(tmp_path) as journal:
        for _ in range(3):
            journal.append([b"x" * 120])
    sorted(tmp_path.glob("*.journal"))[1].unlink()
    with pytest.raises(CorruptJournalError, match="restore"), opened(tmp_path):
        pass


def test_damage_while_running(tmp_path):
    """A durable record that can no longer be read stops its reader."""
    with opened(tmp_path) as journal:
        journal.append([b"x" * 120])
        [path] = tmp_path.glob("*.journal")
        with path.open("r+b") as file:
            file.seek(60)
            file.write(b"y")
        with (
            contextlib.closing(journal.reader(1)) as reader,
            pytest.raises(CorruptJournalError, match="damaged"),
        ):
            reader.take(1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("at", range(7))
@pytest.mark.parametrize("crash", [False, True])
def test_every_call_may_fail(disk, tmp_path, error, at, crash):
    """Whichever call of an append fails, it says so, loses nothing and its numbers are reused."""
    with opened(tmp_path) as journal:
        journal.append([b"a" * 200, b"b"])
        disk.error, disk.fail_at = error, at
        with pytest.raises(JournalError, match=os.strerror(error)):
            journal.append([b"c", b"d"])
        assert journal.next == 3
        assert contents(journal) == [b"a" * 200, b"b"]
        if not crash:
            disk.fail_at = None
            journal.append([b"e"])
            assert contents(journal) == [b"a" * 200, b"b", b"e"]
    disk.fail_at = None
    with opened(tmp_path) as journal:
        found = contents(journal)
    if crash:
        assert found in ([b"a" * 200, b"b", b"c", b"d"][:n] for n in (2, 3, 4))
    else:
        assert found == [b"a" * 200, b"b", b"e"]


def test_a_segment_is_given_up_after_a_failed_sync(disk, tmp_path):
    """After a failed sync nothing is written to that file again, however often the disk fails."""
    with opened(tmp_path, segment_bytes=1 << 20) as journal:
        journal.append([b"a"])
        [first] = tmp_path.glob("*.journal")
        for _ in range(3):
            disk.fail_at = 1
            with pytest.raises(JournalError):
                journal.append([b"b"])
            disk.fail_at = None
        size = first.stat().st_size
        journal.append([b"c"])
        assert first.stat().st_size == size
        assert contents(journal) == [b"a", b"c"]


def test_failing_close(disk, tmp_path, monkeypatch):
    """A close that fails (as on NFS) neither hides what is durable nor leaves the file in use."""
    with opened(tmp_path, segment_bytes=1 << 20) as journal:
        journal.append([b"a"])

        def close(file):
            os.close(file)
            raise OSError(errno.EIO, "Input/output error")

        disk.fail_at = 1
        monkeypatch.setattr(disk, "close", close, raising=False)
        with pytest.raises(JournalError):
            journal.append([b"b"])
        monkeypatch.undo()
        disk.fail_at = None
        journal.append([b"c"])
        assert contents(journal) == [b"a", b"c"]


def test_full(tmp_path):
    """At its bound the journal refuses and says so; it takes more once its reader has caught up."""
    with opened(tmp_path, max_bytes=4096) as journal:
        while journal.size + 108 <= 4096:
            journal.append([b"x" * 100])
        assert journal.next > 20
        size, number = journal.size, journal.next
        with pytest.raises(JournalFullError, match="bound"):
            journal.append([b"x" * 200])
        assert (journal.size, journal.next) == (size, number)
        journal.trim(journal.next)
        journal.append([b"y" * 100])
        assert journal.fill < 0.5


def test_one_owner(tmp_path):
    """A second process is refused the directory, and gets it when the first is done."""
    with (
        opened(tmp_path),
        pytest.raises(UsageError, match="in use by another process"),
        opened(tmp_path),
    ):
        pass
    with opened(tmp_path) as journal:
        assert journal.next == 1


def test_room(disk, tmp_path):
    """A segment has room before its records, and a start or a finished segment gives it back; where
    none is to be had, it grows by what is written."""
    path = tmp_path / "0000000000000001-0000.journal"
    journal = Journal(tmp_path)
    journal.append([b"one"])
    assert path.stat().st_size > 100_000
    assert journal.size < 100
    disk.kill()
    journal = Journal(tmp_path)
    assert path.stat().st_size == journal.size < 100
    disk.no_room = True
    journal.append([b"two"])
    reader = journal.reader(1)
    assert reader.take(10) == [b"one", b"two"]
    reader.close()
    journal.close()
    sizes = [file.stat().st_size for file in tmp_path.glob("*.journal")]
    assert sum(sizes) == journal.size


def test_without_sync(disk, tmp_path):
    """Durability `os` leaves the disk to the operating system: a crash of the process is survived,
    and nothing is synced."""
    disk.fsync = disk.fdatasync = lambda _: pytest.fail("synced")
    with opened(tmp_path, sync=False) as journal:
        journal.append([b"a", b"b"])
        disk.kill()
        with opened(tmp_path, sync=False) as again:
            assert contents(again) == [b"a", b"b"]
        journal._file = None
        journal._lock = os.dup(0)


def test_reading_what_is_gone(tmp_path):
    """A record that was trimmed is asked for in vain, with a mend."""
    with opened(tmp_path) as journal:
        for _ in range(5):
            journal.append([b"x" * 120])
        journal.trim(4)
        assert journal.first == 4
        with pytest.raises(CorruptJournalError, match="restore"):
            journal.reader(3)
        with pytest.raises(CorruptJournalError):
            Reader(journal, 3).take(1)


def test_limits_of_a_read(tmp_path):
    """A read is bounded in records and bytes, but gives at least one."""
    with opened(tmp_path) as journal:
        journal.append([b"x" * 50] * 10)
        with contextlib.closing(journal.reader(1)) as reader:
            assert len(reader.take(3)) == 3
            assert len(reader.take(100, max_bytes=1)) == 1
            assert len(reader.take(100, max_bytes=120)) == 3
            assert len(reader.take(100)) == 3
            assert reader.take(100) == []


def test_a_reader_follows_a_live_journal(tmp_path):
    """While one thread appends over many segments and fails now and then, a reader in another sees
    each record once, in order, and trims behind itself."""
    count = 2000
    with opened(tmp_path, sync=False, segment_bytes=1000) as journal:

        def write():
            random = Random(1)
            number = 0
            while number < count:
                size = random.randint(1, 7)
                journal.append([b"%d" % n for n in range(number, number + size)])
                number += size

        thread = threading.Thread(target=write)
        thread.start()
        reader, seen = journal.reader(1), []
        while len(seen) < count:
            seen += reader.take(50)
            journal.trim(reader.number)
        thread.join()
        reader.close()
        assert seen == [b"%d" % n for n in range(len(seen))]
        assert len(list(tmp_path.glob("*.journal"))) < 10


def test_files_are_private(tmp_path):
    """Records are for this user's eyes only."""
    with opened(tmp_path) as journal:
        journal.append([b"a"])
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


@pytest.mark.parametrize("at", range(8))
def test_replaced_whole_or_not(disk, tmp_path, at):
    """A file is replaced whole, or, whichever call fails, keeps its old content."""
    path = tmp_path / "state"
    replace_file(path, b"old")
    disk.fail_at = at
    try:
        replace_file(path, b"new")
    except OSError:
        # Only the directory's sync comes after the rename.
        assert path.read_bytes() in ((b"old",) if at < 3 else (b"old", b"new"))
    else:
        assert path.read_bytes() == b"new"
    disk.fail_at = None
    replace_file(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_disk_of_unknown_size(tmp_path, disk):
    """Where a filesystem does not say how large it is, the journal takes what it is given."""
    disk.statvfs = lambda _: os.statvfs_result([0] * 10)
    with opened(tmp_path) as journal:
        journal.append([b"one"])
        assert contents(journal) == [b"one"]
