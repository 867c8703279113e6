"""Nothing is added to a log by a process that does not own it, or has an old copy of it."""

import asyncio
import shutil

import pytest
from logs import SIGNER, TestLog

from authz.errors import UsageError
from authz.ledger import Checkpoint, Signer, sign_note
from authz.serve.owner import Owner
from authz.store import checkpoints, lease
from authz.store.client import connect
from authz.store.writer import StoreWriter


@pytest.fixture
def log(tmp_path, database):
    """A log of three records that are stored."""
    (tmp_path / "log").mkdir()
    log = TestLog(tmp_path / "log", database)
    fill(log, 3)
    yield log
    log.end()


def fill(log, count):
    log.append([{"kind": "notice", "event": "e", "time": 5 + n} for n in range(count)])
    log.seal()


def owner(log):
    return Owner(log.store, log.log, log.directory / "journal" / "lock")


async def run_until_held(mine):
    running = asyncio.create_task(mine.run())
    held = asyncio.create_task(mine.held())
    await asyncio.wait([running, held], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    held.cancel()
    return await asyncio.gather(running, held, return_exceptions=True)


def test_own(log):
    """The owner of what the database has may add to it, until it gives the lease back."""
    mine = owner(log)
    with pytest.raises(OSError, match="lease"):
        mine.check()
    asyncio.run(run_until_held(mine))
    mine.check()
    mine.release()
    with pytest.raises(OSError, match="lease"):
        mine.check()


def test_older_copy(log, tmp_path, database):
    """A copy that the log has outgrown is refused, and does not keep the lease."""
    shutil.copytree(log.directory, tmp_path / "copy")
    fill(log, 2)
    copy = TestLog(tmp_path / "copy", database)
    other = owner(copy)
    refused, _ = asyncio.run(run_until_held(other))
    assert isinstance(refused, UsageError)
    assert "rows 3 to 4, and 3 records are sealed here" in str(refused)
    assert "older copy" in str(refused)
    mine = owner(log)
    asyncio.run(run_until_held(mine))
    mine.check()
    for one in (mine, other):
        one.release()
    copy.end()


def test_signed_and_not_stored(log):
    """What was signed and not yet stored is the log's own, also if its rows are there already."""
    log.append([{"kind": "notice", "event": "e", "time": 9}])
    batch = log.log.seal(10)
    log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
    log.restart()
    assert log.log.stored.tree.size == 3
    assert checkpoints.foreign(log.client, log.log.sealed, log.log.verifiers) == ""


@pytest.mark.parametrize(
    ("size", "root", "signer", "wrong"),
    [
        (9, b"\1", SIGNER, "a checkpoint over 9 records, and 3 are sealed here"),
        (3, b"\1", SIGNER, "another checkpoint over 3 records"),
        (9, b"\1", Signer(SIGNER.name, bytes(32)), ""),  # not with our key: tells nothing
        (2, b"\1", SIGNER, ""),  # what is before is the verifier's to judge
    ],
)
def test_foreign_checkpoints(log, size, root, signer, wrong):
    """So is a directory whose key has signed what is not in it."""
    note = sign_note(Checkpoint(SIGNER.name, size, root * 32).text(), signer)
    values = [(SIGNER.name, size, note)]
    log.client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", values)
    assert checkpoints.foreign(log.client, log.log.sealed, log.log.verifiers) == wrong


@pytest.mark.parametrize("good", range(4))
def test_no_lease_no_insert(log, good):
    """Once the lease has ended, none of the statements of a batch that add something is sent."""
    left = [None] * good

    def check():
        if not left:
            raise OSError("ended")
        left.pop()

    log.append([{"kind": "notice", "event": "e", "time": 9}])
    batch = log.log.seal(10)
    writer = StoreWriter(log.client, SIGNER.name, check)
    with pytest.raises(OSError, match="ended"):
        writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
    with connect(log.store) as client:
        [(rows,)] = client.execute("SELECT count() FROM audit_log WHERE index >= 3")
        [(tiles,)] = client.execute("SELECT count() FROM tiles WHERE width >= 4")
        [(notes,)] = client.execute("SELECT count() FROM checkpoints WHERE size >= 4")
    assert (rows, tiles, notes) == (int(good > 0), int(good > 2), 0)


def test_the_claims_are_read_in_order(log):
    """The lease's connection asks a cluster for what the lease rests on."""
    with connect(log.store, **lease.SETTINGS) as client:
        query = "SELECT name, value FROM system.settings WHERE name IN %(names)s AND changed"
        found = dict(client.execute(query, {"names": list(lease.SETTINGS)}))
    assert found == {name: str(value) for name, value in lease.SETTINGS.items()}
