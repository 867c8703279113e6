"""The receiver killed at the durable steps of a key's rotation ends it at its next start."""

import asyncio
import signal
import sys

import pytest

from authz.keys import LOG_KEY, NEXT_KEY, read_key, write_key
from authz.ledger import Signer
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import verify_store

from .feeding import ORIGIN, ready, site
from .test_kill_receiver import KILLED

pytestmark = pytest.mark.thorough

OLD, NEXT = Signer(ORIGIN, b"1" * 32), Signer(ORIGIN, b"2" * 32)

# What is called, which of its calls, and when it is killed then. The journal's first record is
# that of the start, and the second the rotation.
STEPS = [
    ("authz.serve.log_keys:write_trust", 2, "after"),
    ("authz.journal.segments:Journal.append", 2, "after"),
    ("authz.receiver.sequence:replace_file", 1, "after"),  # signed by the new key
    ("authz.receiver.sequence:Log.finish", 1, "after"),  # stored
    ("authz.serve.log_keys:sync_directory", 1, "before"),  # the new key is the log's
]


@pytest.mark.parametrize(
    ("place", "count", "when"), STEPS, ids=lambda value: str(value).rpartition(":")[2]
)
def test_kill(tmp_path, database, place, count, when):
    """Killed there and started again, it has one rotation, the new key alone, and a log that
    verifies by the trust file it wrote."""

    async def run():
        program = (sys.executable, KILLED, place, when, str(count))
        with site(tmp_path, database, AUTHZ_RECEIVER__BATCH_SECONDS="0.5") as receiver:
            receiver.data_dir.mkdir()
            write_key(receiver.data_dir / LOG_KEY, OLD)
            write_key(receiver.data_dir / NEXT_KEY, NEXT)
            receiver.start(program=program)
            assert await asyncio.to_thread(receiver.process.wait, 60) == -signal.SIGKILL
            receiver.start()
            await ready(receiver)
            while (receiver.data_dir / NEXT_KEY).exists():
                await asyncio.sleep(0.05)
            assert receiver.stop() == 0, receiver.log.read_text()

    asyncio.run(asyncio.wait_for(run(), 100))
    directory = tmp_path / "receiver"
    assert read_key(directory / LOG_KEY) == NEXT
    [log] = load_trust(directory / "trust.yaml")
    assert log.keys == (OLD.verifier, NEXT.verifier)
    with connect(database) as client:
        report = verify_store(client, [log])
        query = "SELECT count() FROM notices WHERE event = 'key_rotation'"
        assert client.execute(query) == [(1,)]
    assert (report.findings, report.logs[0].doubles) == ([], 0)
