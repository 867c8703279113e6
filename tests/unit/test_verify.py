"""An intact log is verified, and what is no tampering is not taken for it."""

import base64
from concurrent.futures import ThreadPoolExecutor

from logs import TRUST
from verified import (
    BATCHES,
    ORIGIN,
    SIZE,
    all_records,
    checkpoint,
    found,
    put,
    root_at,
    tiles,
    update,
)  # fmt: skip

from authz.ledger import Signer
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
