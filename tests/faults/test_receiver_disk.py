"""The log's directory on a disk that fails at each of its calls, and then loses power."""

import errno
import os
from pathlib import Path
from random import Random

import orjson
import pytest
from logs import SIGNER, TestLog

from authz.journal.chain import split
from authz.journal.segments import Journal, JournalError
from authz.ledger import Checkpoint, leaf_hash, open_note, tree_hash
from authz.receiver.sequence import Log

from .power import PowerDisk

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)
ROUNDS = 6


class Life:
    """A log on a failing disk: what was acknowledged, and up to where it was stored."""

    def __init__(self, directory: Path) -> None:
        self.log = TestLog(directory)
        self.acknowledged: list[str] = []
        self.stored: list[bytes] = []  # the leaves in the database
        self.number = 0

    def round(self) -> None:
        """Records in, as often as it takes, and a batch out; `OSError` is a loud stop."""
        for size in (1, 4):
            names = [f"{self.number + n:05d}" for n in range(size)]
            self.number += size
            for _ in range(3):  # whoever sent them sends them again
                try:
                    self.log.append([{"kind": "access", "reason": name * 40} for name in names])
                except JournalError:
                    continue
                self.acknowledged += names
                break
        batch = self.log.log.seal(1000)
        if batch is not None:
            del self.stored[batch.first :]
            self.stored += [self._leaf(record) for record in batch.records]
            self.log.log.finish(batch)

    @staticmethod
    def _leaf(record):
        from authz.record import canonical

        return canonical(record)

    def check(self) -> None:
        """After a start: all that was acknowledged is there, in order, and no checkpoint was ever
        over anything else."""
        log: Log = self.log.log
        tail = []
        reader = self.log.journal.reader(log.stored.tree.size)
        while payloads := reader.take(1000):
            tail += [split(payload)[0] for payload in payloads]
        reader.close()
        leaves = self.stored[: log.stored.tree.size] + tail
        assert len(leaves) == self.log.journal.next
        told = [orjson.loads(leaf)["reason"][:5] for leaf in leaves]
        known = set(self.acknowledged)
        assert [name for name in told if name in known] == self.acknowledged
        # Records whose append failed may be there, and then again under the number acknowledged.
        path = self.log.directory / "checkpoint"
        if path.exists():
            text, _ = open_note(path.read_text(), [SIGNER.verifier])
            checkpoint = Checkpoint.parse(text)
            hashes = [leaf_hash(leaf) for leaf in leaves[: checkpoint.size]]
            assert len(hashes) == checkpoint.size, "a checkpoint over what is not there"
            assert tree_hash(hashes) == checkpoint.root


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_every_call_fails_once(tmp_path, monkeypatch, error):
    """Whichever call fails, whether the log goes on or stops there, and whatever a loss of power
    then takes: the next start has every record that was acknowledged, and what was signed."""
    print(f"AUTHZ_TEST_SEED={SEED}")
    disk = PowerDisk()
    monkeypatch.setattr("authz.journal.segments.os", disk)
    monkeypatch.setattr("authz.files.os", disk)
    # As a function: Python binds it to the path.
    monkeypatch.setattr(Path, "replace", lambda fresh, target: disk.rename(fresh, target))  # noqa: PLW0108 - it binds
    random = Random(SEED)
    number, stops = 0, 0
    while True:
        directory = tmp_path / str(number)
        directory.mkdir()
        life = Life(directory)
        disk.fail_at, disk.failed, disk.error = number, "", error
        try:
            for _ in range(ROUNDS):
                life.round()
        except OSError:
            stops += 1
        failed = disk.failed
        disk.lose(directory / "journal", random)
        life.log.open()
        life.check()
        for _ in range(2):
            life.round()
        life.check()
        disk.kill()
        if not failed:
            break
        number += 1
    print(number, "calls failed one after another;", stops, "stopped the receiver")
    assert number > 50


class Little(PowerDisk):
    """A disk of 64 MB with little room left."""

    free = 0

    def statvfs(self, path: Path) -> os.statvfs_result:
        found = list(os.statvfs(path))
        found[0] = found[1] = 4096  # f_bsize, f_frsize
        found[2] = (64 << 20) // 4096  # f_blocks
        found[3] = found[4] = self.free // 4096  # f_bfree, f_bavail
        return os.statvfs_result(found)


def test_the_last_of_the_disk_is_left(tmp_path, monkeypatch):
    """The journal does not take the last of a disk, so that what empties it can write its state;
    its segments are small enough for the disk to get room by and by."""
    disk = Little()
    monkeypatch.setattr("authz.journal.segments.os", disk)
    monkeypatch.setattr("authz.files.os", disk)
    disk.free = 6 << 20
    log = TestLog(tmp_path)
    log.append([{"kind": "access"}])
    disk.free = (4 << 20) + 1000
    with pytest.raises(JournalError, match="No space left"):
        log.append([{"kind": "access", "reason": "x" * 900}] * 2000)
    batch = log.log.seal(1000)
    log.log.finish(batch)
    disk.free = 6 << 20
    log.append([{"kind": "access"}])
    assert log.journal.next == len(batch.records) + 1
    big = Journal(tmp_path / "big")
    for _ in range(60):
        big.append([b"x" * (1 << 20)])
    big.trim(big.next)
    assert big.size < 8 << 20
    big.close()
    log.close()


def test_names_are_durable(tmp_path, monkeypatch):
    """Each directory made for the journal is synced into the one above it."""
    synced = []
    monkeypatch.setattr("authz.files.sync_directory", synced.append)
    Journal(tmp_path / "a" / "b" / "journal").close()
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)
