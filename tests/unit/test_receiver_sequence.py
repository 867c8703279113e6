"""The log's state: after each durable step, a start finds its way on."""

import pytest
from logs import SIGNER, TestLog

from authz.errors import UsageError
from authz.journal.segments import CorruptJournalError
from authz.ledger import Checkpoint, Signer, leaf_hash, tree_hash
from authz.receiver.sequence import Log
from authz.receiver.state import Place
from authz.record import canonical


@pytest.fixture
def log(tmp_path):
    log = TestLog(tmp_path)
    yield log
    log.end()


def records(count, start=0):
    return [{"kind": "access", "reason": str(start + number)} for number in range(count)]


def checkpoint_of(log):
    return Checkpoint.parse((log.directory / "checkpoint").read_text())


def test_checkpoint_is_over_the_leaves(log):
    """The signed root is the Merkle tree's over the records in order, with what the log adds."""
    log.append(records(300))
    batch = log.log.seal(1000)
    assert [record["index"] for record in batch.records[1:]] == list(range(1, 300))
    root = tree_hash([leaf_hash(canonical(record)) for record in batch.records])
    assert Checkpoint.parse(batch.note) == Checkpoint(SIGNER.name, 300, root)
    assert checkpoint_of(log).size == 300


def test_start_between_any_two_steps(log):
    """Stopped after the journal, after the checkpoint, after the state: a start goes on, and the
    same records get the same checkpoint."""
    log.append(records(10))
    log.restart()  # after step 1: nothing is sealed yet
    assert log.log.waiting() == 10
    first = log.log.seal(6)
    log.append(records(10, 10))
    log.restart()  # after step 2: a checkpoint of size 6 was signed, nothing is stored
    again = log.log.seal(1000)
    assert again.note == first.note, "what was signed is finished as it was begun"
    assert again.records == first.records
    log.log.finish(again)
    log.restart()  # after step 4
    rest = log.log.seal(1000)
    assert rest.first == 6
    assert len(rest.records) == 14
    log.log.finish(rest)
    log.restart()
    assert log.log.waiting() == 0
    assert log.log.seal(1000) is None
    assert checkpoint_of(log).size == 20


def test_roots_agree_with_one_go(log, tmp_path):
    """However it was cut into batches and restarts, the tree is the same."""
    log.append(records(700))
    leaves = []
    for limit in (1, 255, 1, 300, 1000):
        batch = log.log.seal(limit)
        leaves += [leaf_hash(canonical(record)) for record in batch.records]
        log.log.finish(batch)
        log.restart()
        assert checkpoint_of(log).root == tree_hash(leaves)
    assert len(leaves) == 700


def test_trim_keeps_what_is_not_stored(log):
    """The journal forgets what is stored, and only that."""
    for number in range(50):
        log.append(records(10, number * 10))
    log.log.finish(log.log.seal(200))
    assert 0 < log.journal.first <= 200
    log.restart()
    assert log.log.waiting() == 300


def test_lost_journal_is_refused(log):
    """A log whose journal lacks what was signed over does not go on as if nothing were."""
    log.append(records(10))
    log.log.seal(10)
    log.close()
    for path in (log.directory / "journal").glob("*.journal"):
        path.unlink()
    from authz.journal.segments import Journal

    log.journal = Journal(log.directory / "journal", start=0)
    with pytest.raises(CorruptJournalError, match="restore"):
        Log(log.directory, log.journal, SIGNER)


def test_another_key_is_refused(log):
    """A checkpoint by another key is not taken for the log's own."""
    log.append(records(1))
    log.log.seal(1)
    with pytest.raises(UsageError, match="own key"):
        Log(log.directory, log.journal, Signer(SIGNER.name, bytes(32)))


def test_clock_step(log, monkeypatch):
    """When the clock goes back, sealed_at goes on at half its pace until the clock has caught up,
    also over a restart."""
    clock, stopwatch = 100_000_000, 0
    monkeypatch.setattr("authz.receiver.sequence.time.time_ns", lambda: clock)
    monkeypatch.setattr("authz.receiver.sequence.time.monotonic_ns", lambda: stopwatch)

    def append(seconds=0, step=0):
        """After so many thousandths, and with the clock set by others."""
        nonlocal clock, stopwatch
        stopwatch += seconds * 1_000_000
        clock += (seconds + step) * 1_000_000
        log.append(records(1))

    log.restart()
    append()
    append(step=-50)
    append(20)
    append(20)
    log.restart()
    append(40)
    append(40)
    sealed = [record["sealed_at"] for record in log.log.seal(10).records]
    assert sealed == [100_000, 100_000, 110_000, 120_000, 140_000, 170_000]


def test_writers_places(log):
    """How far each writer came survives restarts, stored or not, trimmed or not."""
    log.append(log.written([{"kind": "decision", "reason": str(n)} for n in range(5)]))
    log.append(records(3))
    place = Place(*log.chain.place)
    for _ in range(2):
        log.restart()
        assert log.log.writers == {log.identity.writer: place}
        log.log.finish(log.log.seal(1000)) if log.log.waiting() else None
    log.append(log.written([{"kind": "decision"}]))
    log.restart()
    assert log.log.writers == {log.identity.writer: Place(*log.chain.place)}


def test_privacy_key_is_pinned(log):
    """The first privacy key is the log's, over restarts and batches; another is refused."""
    assert log.log.pin_privacy_key("k1")
    assert not log.log.pin_privacy_key("k2")
    log.append(records(1))
    log.log.finish(log.log.seal(1))
    log.restart()
    assert log.log.pin_privacy_key("k1")
    assert not log.log.pin_privacy_key("k2")


@pytest.mark.parametrize(
    "state",
    [
        b"", b"{", b"[]", b"{}", b"\xff", b"null", b"5",
        b'{"size": 1, "edge": [], "sealed_at": 0, "writers": {}, "privacy_key_id": ""}',
        b'{"size": 0, "edge": [], "sealed_at": 0, "writers": [], "privacy_key_id": ""}',
        b'{"size": 0, "edge": [], "sealed_at": 0, "writers": {"a": 5}, "privacy_key_id": ""}',
        b'{"size": 1, "edge": [["AAAA"]], "sealed_at": 0, "writers": {}, "privacy_key_id": ""}',
        b'{"size": 1, "edge": [["!"]], "sealed_at": 0, "writers": {}, "privacy_key_id": ""}',
        b'{"size": 1, "edge": 7, "sealed_at": 0, "writers": {}, "privacy_key_id": ""}',
        b'{"size": 0, "edge": [], "sealed_at": 0, "writers": {}, "privacy_key_id": "", "keys": 5}',
        b'{"size": -1, "edge": [], "sealed_at": 0, "writers": {}, "privacy_key_id": ""}',
    ],
)  # fmt: skip
def test_damaged_state_is_refused(log, state):
    """A state that is not one stops the start with its mend, and is never begun anew."""
    (log.directory / "state.json").write_bytes(state)
    with pytest.raises(UsageError, match=r"state\.json.*restore"):
        Log(log.directory, log.journal, SIGNER)


@pytest.mark.parametrize("note", [b"", b"\xff", b"a\n1\nAAAA\n", b"a\n\n\xe2\x80\x94 b c\n"])
def test_damaged_checkpoint_is_refused(log, note):
    """So is a checkpoint."""
    (log.directory / "checkpoint").write_bytes(note)
    with pytest.raises(UsageError, match="checkpoint"):
        Log(log.directory, log.journal, SIGNER)


def test_journal_that_holds_something_else(log, tmp_path):
    """Records that are not those a checkpoint was signed over are never sealed under another."""
    log.append(records(10))
    log.log.seal(10)
    log.close()
    for path in (log.directory / "journal").glob("*.journal"):
        path.unlink()
    from authz.journal.segments import Journal

    log.journal = Journal(log.directory / "journal", start=0)
    forged = [
        canonical({"kind": "access", "reason": "other", "index": n, "sealed_at": 1})
        for n in range(10)
    ]
    log.journal.append(forged)
    log.log.close()
    log.log = Log(log.directory, log.journal, SIGNER)
    before = (log.directory / "checkpoint").read_bytes()
    with pytest.raises(CorruptJournalError, match="restore"):
        log.log.seal(10)
    assert (log.directory / "checkpoint").read_bytes() == before


def test_a_record_of_no_kind(log):
    """A writer of another version sends what it likes: it becomes a leaf like any other, and does
    not keep the log from going on."""
    log.append([*log.written([{"reason": "no kind"}]), *log.written([{"kind": "later"}])])
    log.append(records(1))
    batch = log.log.seal(10)
    assert [record.get("kind") for record in batch.records] == [None, "later", "access"]
    log.log.finish(batch)
    assert log.log.stored.writers[log.identity.writer].seq == 2
