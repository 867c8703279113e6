"""The receiver killed between any two of its durable steps keeps attachments and blocks, once."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from streams import FAR, Writer, named, now_us, until

from authz.blocks import Standing, block_notice, unblock_notice
from authz.demo.stack import free_port
from authz.journal.chain import policy_notice
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import verify_store

KILLED = Path(__file__).with_name("killed.py")
TEXT = b"package a"
SEALED = 40

# What is called, which of its calls, and when it is killed then. The journal's first record is
# that of the start; what the writer sends comes with the second append.
STEPS = [
    ("authz.journal.segments:Journal.append", 2, "before"),  # nothing of it is there
    ("authz.journal.segments:Journal.append", 2, "after"),  # step 1, not acknowledged
    ("authz.receiver.sequence:sign_note", 1, "after"),  # signed, and not on disk
    ("authz.receiver.sequence:replace_file", 1, "after"),  # step 2
    ("authz.store.writer:StoreWriter._put_rows", 1, "after"),  # step 3, rows
    ("authz.store.attachments:_revisions", 1, "before"),  # sealed inputs, no policy
    ("authz.store.attachments:put", 1, "after"),
    ("authz.store.writer:StoreWriter._put_tiles", 1, "after"),
    ("authz.store.attachments:read_back", 1, "after"),  # all stored, and not remembered
    ("authz.receiver.sequence:replace_file", 2, "before"),
    ("authz.receiver.sequence:replace_file", 2, "after"),  # step 4
    ("authz.receiver.sequence:Log.finish", 1, "after"),  # step 5
]


def first():
    """A policy, sealed inputs, and three blocks of which one is lifted."""
    entries = [policy_notice(1, named(TEXT), TEXT)]
    for number in range(SEALED):
        sealed = b"0123abcd." + bytes([number, 10]) * 500
        decision = {"kind": "decision", "decision_id": f"d{number}", "sealed": named(sealed)}
        entries.append((decision, sealed))
    changes = [block_notice(name, FAR, "r", "b", 1) for name in "abc"]
    return [*entries, *((record, b"") for record in [*changes, unblock_notice("b", "", "b", 1)])]


@pytest.fixture
def start(tmp_path, database):
    """Starts a receiver, killed at a step or not."""
    address = f"127.0.0.1:{free_port()}"
    started = []

    def run(*killed, seconds):
        program = [str(KILLED), *killed] if killed else ["-m", "authz"]
        command = [sys.executable, *program, "serve", "receiver", "--listen", address]
        command += ["--data-dir", str(tmp_path / "receiver"), "--origin", "test/receiver"]
        environment = {"AUTHZ_STORE": database, "AUTHZ_RECEIVER__BATCH_SECONDS": seconds}
        with (tmp_path / "receiver.log").open("ab") as log:
            process = subprocess.Popen(command, stderr=log, env=os.environ | environment)
        started.append(process)
        return address, process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("place", "count", "when"), STEPS, ids=lambda value: str(value).rpartition(":")[2]
)
def test_kill(tmp_path, database, start, place, count, when):
    """Killed there and started again, the receiver has every record, sealed input and policy once,
    and blocks whom the log says it does."""

    async def run():
        address, process = start(place, when, str(count), seconds="3")
        async with Writer(tmp_path / "writer", address) as writer:
            writer.write(*first())
            await until(lambda: process.poll() is not None, 60)
            assert process.returncode == -signal.SIGKILL, "it was killed, and did not end by itself"
            _, process = start(seconds="0.1")
            assert await writer.forwarder.drain(60) == 0
            await until(lambda: writer.blocked("c") and writer.blocked("a"), 30)
            assert not writer.blocked("b")
            writer.write(
                (unblock_notice("a", "", "b", 1), b""), policy_notice(2, named(TEXT), TEXT)
            )
            assert await writer.forwarder.drain(60) == 0
            await until(lambda: not writer.blocked("a"), 30)
            assert writer.blocked("c")
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, 60)
        assert process.returncode == 0, (tmp_path / "receiver.log").read_text()

    asyncio.run(run())
    with connect(database) as client:
        report = verify_store(client, load_trust(tmp_path / "receiver" / "trust.yaml"))
        assert (report.findings, report.logs[0].doubles) == ([], 0)
        query = "SELECT count(), uniqExact(writer_seq) FROM audit_log WHERE writer_seq > 0"
        assert client.execute(query) == [(SEALED + 7, SEALED + 7)]
        query = "SELECT count(), uniqExact(index) FROM sealed_originals"
        assert client.execute(query) == [(SEALED, SEALED)]
        assert client.execute("SELECT text FROM policies") == [(TEXT.decode(),)]
    state = json.loads((tmp_path / "receiver" / "state.json").read_bytes())
    standing = Standing.from_json(*state["blocks"]).message(now_us())
    assert [block.subject for block in standing.blocks] == ["c"]
