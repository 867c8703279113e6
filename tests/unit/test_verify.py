"""An intact log is verified, and what is no tampering is not taken for it."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from logs import TRUST
from verified import (
    BATCHES,
    ORIGIN,
    SIZE,
    all_records,
    checkpoint,
    fill,
    found,
    put,
    reset,
    root_at,
    tiles,
    update,
)  # fmt: skip

from authz.ledger import Signer
from authz.receiver import sequence
from authz.store import rows
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify import log as verify
from authz.verify import verify_store
from authz.verify.astray import Astray


def test_untouched(copied):
    """An untouched log is verified, its counts are told and its state is remembered."""
    state, progress = {}, []
    report = verify_store(copied, TRUST, state, lambda done, total: progress.append((done, total)))
    assert report.findings == []
    assert report.verified
    assert report.records == SIZE
    assert progress[-1] == (SIZE, SIZE)
    [log] = report.logs
    assert (log.checkpoints, log.writers, log.doubles) == (len(BATCHES), 1, 0)
    assert log.root == base64.b64encode(root_at(copied, SIZE)).decode()
    assert (state[ORIGIN]["size"], state[ORIGIN]["root"]) == (SIZE, log.root)
    assert report.matched > 200
    assert not set(report.gaps) - {"no_decision"}
    assert found(copied, state) == []


def test_doubled_row(copied):
    """The same row twice is counted, and is no tampering."""
    put(copied, all_records(copied)[10:20])
    report = verify_store(copied, TRUST)
    assert report.verified
    assert report.logs[0].doubles == 10


def test_checkpoint_repeated(copied):
    """The same checkpoint twice is harmless."""
    copied.execute("INSERT INTO checkpoints SELECT * FROM checkpoints")
    assert found(copied) == []


def test_tiles_ahead_of_the_checkpoint(copied):
    """Tiles that a receiver at work has grown since are no tampering."""
    [(_, data)] = tiles(copied, 1)
    copied.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 1, 0, 3, data + bytes(32)), (ORIGIN, 2, 0, 1, bytes(32))],
    )
    assert found(copied) == []


def test_rows_sealed_meanwhile(copied):
    """Rows that are covered while verification runs are a receiver at work."""
    put(copied, [{"origin": ORIGIN, "index": SIZE, "kind": "decision"}])
    check = verify.LogCheck(StoredLogs(copied), TRUST[0], 256, Astray())
    assert check.begin() == SIZE
    with ThreadPoolExecutor(1) as ahead:
        for part in check.parts(ahead):
            assert list(check.records(part))
    checkpoint(copied, SIZE + 1, bytes(32))
    check.finish()
    assert check.report.findings == []


def test_two_logs(copied):
    """Each log is checked by its own key: one that is spoilt does not spoil the other."""
    other = Signer("other/receiver", bytes(32))
    trust = [*TRUST, TrustedLog(other.name, (other.verifier,))]
    report = verify_store(copied, trust)
    assert [(f.kind, f.origin) for f in report.findings] == [("no_checkpoint", other.name)]
    assert report.logs[0].findings == []


def test_bound_on_findings(copied):
    """A log with everything wrong is told with its worst hundred, and how many there are."""
    update(copied, "subject = 'x'", "1")
    report = verify_store(copied, TRUST)
    [log] = report.logs
    assert len(log.findings) == 100
    assert log.more_findings > 500


def test_clock_step(new_log, monkeypatch):
    """A receiver's clock that is set back leaves a log that is intact: what it seals then has a
    time right after the record before, though what it is told has an earlier one."""
    real, step = time.time_ns, [0]
    with monkeypatch.context() as patched:
        patched.setattr(sequence.time, "time_ns", lambda: real() + step[0])
        fill(new_log, begin=lambda batch: step.__setitem__(0, -batch * 3600 * 10**9))
    client = new_log.client
    query = "SELECT max(sealed_at) - min(sealed_at) FROM audit_log WHERE index >= 300"
    assert client.execute(query)[0][0] < 60
    assert found(client) == []


@pytest.mark.parametrize("step", ["sealed", "rows stored", "all stored"])
def test_interrupted_run(new_log, step):
    """A receiver that ends between any two steps and starts again leaves an intact log, with not a
    record twice."""

    def interrupt(batch):
        if batch != 3:
            return
        new_log.append([{"kind": "notice", "event": f"e{number}"} for number in range(20)])
        begun = new_log.log.seal(10)
        if step == "rows stored":
            rows.insert(new_log.client, begun.leaves[:7])
        if step == "all stored":
            new_log.writer.put(begun.first, begun.leaves, begun.tiles, begun.note, [])
        new_log.restart()
        assert new_log.seal().note == begun.note

    fill(new_log, begin=interrupt)
    report = verify_store(new_log.client, TRUST)
    assert report.findings == []
    assert (report.records, report.logs[0].doubles) == (SIZE + 20, 0)


def test_grown_log(copied):
    """What came after the last time is no tampering: the log has gone on."""
    state = {}
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 300")
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size > 300")
    assert found(copied, state) == []
    reset(copied)
    assert found(copied, state) == []
    assert state[ORIGIN]["size"] == SIZE


def test_bound_of_one_kind(copied):
    """Many findings of one kind do not crowd out those of another."""
    update(copied, "subject = 'someone else'", "index < 400")
    copied.execute("ALTER TABLE audit_log DELETE WHERE index IN (500, 600)")
    [log] = verify_store(copied, TRUST).logs
    assert log.kinds == {"changed": 400, "missing": 2}
    assert len(log.findings) == 102
    assert log.more_findings == 300
