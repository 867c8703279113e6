"""Logs that go on from others: what their first records say, and what follows from it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import SIGNER, TestLog

from authz.ledger import Checkpoint, tree_hash
from authz.receiver.sequence import Log
from authz.receiver.state import Place, State, state_after
from authz.record import canonical, notice
from authz.store.epochs import Ended
from authz.verify.chains import Chains
from authz.verify.epochs import Epochs, Followed, followed

TOLD = {"origin": "prod/a", "size": 7, "root": "", "sealed_at": 1, "note": "n"}


def leaf(record):
    return canonical(record)


def started(follows=TOLD):
    return notice("log_started", 1, {"origin": "prod/b", "follows": follows})


def test_who_is_followed():
    """A log's beginning names the log that it follows, and that log's last checkpoint."""
    assert followed(started()) == Followed("prod/a", 7, "n", 1)
    assert followed(notice("log_started", 1, {"origin": "prod/b"})) is None
    assert followed(notice("receiver_started", 1, {"follows": TOLD})) is None


@pytest.mark.parametrize(
    "record",
    [
        started() | {"writer_seq": 1}, started() | {"kind": "access"}, started(None),
        started("prod/a"), started(TOLD | {"size": "7"}), started(TOLD | {"origin": 1}),
        started(TOLD | {"sealed_at": True}),
        started({"origin": "prod/a"}), started() | {"details": "{"},
    ],
)  # fmt: skip
def test_what_says_nothing(record):
    """A writer's word does not count, nor does what is malformed."""
    assert followed(record) is None


@given(st.integers(0, 10))
def test_a_log_that_was_given_up(size):
    """If it goes on after another has taken its place, that is found; that it has less is for
    others to tell."""

    class Source:
        def records(self, origin, first, end):
            return [started()] if origin == "prod/b" else [{"kind": "access"}]

    epochs = Epochs(Source(), ["prod/a", "prod/b"])
    assert epochs.begins("prod/b") == 2, "after the last record of the other"
    assert (epochs.begins("prod/a"), epochs.before("prod/a")) == (0, None)
    found = list(epochs.findings({"prod/a": size, "prod/b": 100}))
    assert [(f.kind, f.origin, f.first, f.last) for f in found] == (
        [("epoch", "prod/a", 7, size - 1)] if size > 7 else []
    )


def test_a_writer_goes_on(tmp_path):
    """In the log that follows, a writer's records continue those of the one before: its next one
    fits, and any other does not."""
    log = TestLog(tmp_path)
    head = log.identity.head_notice
    sent = log.written([log.identity.start_notice(1, "0")])
    sent += log.written([{"kind": "decision", "decision_id": str(n)} for n in range(4)])
    sent += log.written([head(1, *log.chain.place)])
    log.log.close()
    log.journal.close()
    log.writer_journal.close()

    def found(*places):
        before, after = Chains(), Chains()
        after.follow(before)
        wrong = [before.check(sent[place], leaf(sent[place])) for place in range(3)]
        wrong += [after.check(sent[place], leaf(sent[place])) for place in places]
        return [kind for one in wrong for kind, _ in one]

    assert found(3, 4, 5) == []
    assert found(4, 5) == ["sequence"]
    assert found(2, 3) == ["replayed"], "it was in the other log already"
    alone, unknown = Chains(), Chains()
    unknown.follow(None)
    assert [kind for kind, _ in alone.check(sent[3], leaf(sent[3]))] == ["sequence"]
    assert list(unknown.check(sent[3], leaf(sent[3]))) == []


def test_what_it_takes_over(tmp_path):
    """It knows the writers' places and the blocks, and its clock does not go behind the other's
    end; a restart knows it still."""
    log = TestLog(tmp_path / "old")
    log.append(log.written([{"kind": "decision", "decision_id": "a"}]))
    details = json.dumps({"by": "me", "reason": "r", "until": 2**52})
    log.append([{"kind": "notice", "event": "block", "subject": "dr.oak", "details": details}])
    records = log.log.seal(10).records
    place = Place(*log.chain.place)
    far = 2**52
    ended = Ended(Checkpoint("prod/a", 2, tree_hash([])), "n", far, records[:1], records[1:])
    state = state_after(ended)
    assert State.from_json(state.to_json()).to_json() == state.to_json()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "state.json").write_bytes(state.to_json())
    following = TestLog(tmp_path / "new")
    for _ in range(2):
        assert following.log.writers == {log.identity.writer: place}
        assert following.log.stored.follows == "prod/a"
        assert list(following.log.blocks.blocks) == ["dr.oak"]
        following.append([{"kind": "access"}])
        batch = following.log.seal(10)
        assert batch.records[0]["sealed_at"] > far
        following.log.finish(batch)
        following.restart()
    assert isinstance(following.log, Log)
    assert following.log.origin == SIGNER.name
    for one in (log, following):
        one.end()
