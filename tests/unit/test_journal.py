"""The journal's promises, under restarts, torn files and failing system calls."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from authz.errors import UsageError
from authz.journal import segments
from authz.journal.segments import CorruptJournalError, Journal, JournalError, JournalFullError


def everything(journal: Journal, number: int | None = None) -> list[bytes]:
    """All records from `number` (or the oldest) on."""
    reader = journal.reader(journal.first if number is None else number)
    found: list[bytes] = []
    while more := reader.take(7):
        found += more
    reader.close()
    return found


class Model(RuleBasedStateMachine):
    """A journal beside a plain list, through appends, trims, followers, failures and restarts."""

    def __init__(self):
        super().__init__()
        self.directory = Path(os.environ["AUTHZ_TEST_TMP"]) / os.urandom(6).hex()
        self.model: dict[int, bytes] = {}
        self.open()

    def open(self):
        self.journal = Journal(self.directory, segment_bytes=300)
        self.follower = self.journal.reader(self.journal.next)

    @rule(payloads=st.lists(st.binary(max_size=80), min_size=1, max_size=6))
    def append(self, payloads):
        first = self.journal.next
        self.journal.append(payloads)
        self.model |= dict(enumerate(payloads, first))
        assert self.follower.take(100) == payloads

    @rule(payloads=st.lists(st.binary(max_size=80), min_size=1, max_size=3))
    def fail(self, payloads):
        first = self.journal.next
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments.os, "fdatasync", failing(errno.EIO))
            with pytest.raises(JournalError):
                self.journal.append(payloads)
        assert self.journal.next == first, "the numbers are free again"
        self.append(payloads)  # so that what failed is superseded before any restart

    @rule(back=st.integers(0, 20))
    def trim(self, back):
        self.journal.trim(self.journal.next - back)

    @rule()
    def restart(self):
        self.follower.close()
        self.journal.close()
        self.open()

    @invariant()
    def holds_what_was_acknowledged(self):
        newest = max(self.model, default=0)
        assert self.journal.next == newest + 1
        assert self.journal.first <= max(newest, 1)
        kept = [self.model[number] for number in range(self.journal.first, newest + 1)]
        assert everything(self.journal) == kept

    def teardown(self):
        self.follower.close()
        self.journal.close()


def test_model(tmp_path, monkeypatch):
    """Whatever happens to it, a journal holds exactly what was acknowledged, in order."""
    monkeypatch.setenv("AUTHZ_TEST_TMP", str(tmp_path))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Model, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )


def failing(code: int):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["open", "write", "fsync", "fdatasync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_calls(tmp_path, monkeypatch, call, code):
    """A system call that fails refuses its records, loses none before, and hinders none after."""
    journal = Journal(tmp_path, segment_bytes=60)
    journal.append([b"one", b"two" * 20])  # fills the segment, so the next append begins another
    monkeypatch.setattr(segments.os, call, failing(code))
    for _ in range(3):
        with pytest.raises(JournalError, match="cannot write"):
            journal.append([b"lost"])
    monkeypatch.undo()
    journal.append([b"three"])
    assert everything(journal) == [b"one", b"two" * 20, b"three"]
    journal.close()
    assert everything(Journal(tmp_path)) == [b"one", b"two" * 20, b"three"]


def test_failed_but_persisted(tmp_path, monkeypatch):
    """A record whose sync failed may be found by a restart; what was acknowledged surely is."""
    journal = Journal(tmp_path)
    journal.append([b"kept"])
    monkeypatch.setattr(segments.os, "fdatasync", failing(errno.EIO))
    with pytest.raises(JournalError):
        journal.append([b"unsure"])
    monkeypatch.undo()
    journal.close()
    assert everything(Journal(tmp_path))[:1] == [b"kept"]


def test_superseded_records_stay_dead(tmp_path, monkeypatch):
    """Once a later record has a failed one's number, no restart brings the failed one back."""
    journal = Journal(tmp_path)
    journal.append([b"kept"])
    monkeypatch.setattr(segments.os, "fdatasync", failing(errno.EIO))
    with pytest.raises(JournalError):
        journal.append([b"failed", b"failed"])
    monkeypatch.undo()
    journal.append([b"right"])
    journal.close()
    journal = Journal(tmp_path)
    assert everything(journal) == [b"kept", b"right"]
    assert journal.next == 3


def test_torn_tail(tmp_path):
    """A file cut anywhere in its last frame ends before it; the journal goes on from there."""
    directory = tmp_path / "whole"
    journal = Journal(directory)
    journal.append([b"first", b"second"])
    journal.close()
    [path] = directory.glob("*.journal")
    whole = path.read_bytes()
    last = len(whole) - 8 - len(b"second")
    for cut in range(last, len(whole)):
        torn = tmp_path / str(cut)
        torn.mkdir()
        (torn / path.name).write_bytes(whole[:cut])
        journal = Journal(torn)
        journal.append([b"third"])
        assert everything(journal) == [b"first", b"third"]
        journal.close()
        assert everything(Journal(torn)) == [b"first", b"third"]


def test_torn_header(tmp_path):
    """A segment that got no further than part of its header is nothing."""
    (tmp_path / "0000000000000001-0000.journal").write_bytes(b"AUTH")
    journal = Journal(tmp_path)
    journal.append([b"one"])
    assert everything(journal) == [b"one"]


def test_damage_is_not_a_torn_tail(tmp_path):
    """A damaged record that later segments vouch for was acknowledged: that is an error."""
    journal = Journal(tmp_path, segment_bytes=50)
    for number in range(4):
        journal.append([bytes([number]) * 40])
    journal.close()
    path = sorted(tmp_path.glob("*.journal"))[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptJournalError, match="restore"):
        Journal(tmp_path)


def test_missing_segment(tmp_path):
    """So is a segment that is gone from the middle."""
    journal = Journal(tmp_path, segment_bytes=50)
    for number in range(4):
        journal.append([bytes([number]) * 40])
    journal.close()
    sorted(tmp_path.glob("*.journal"))[1].unlink()
    with pytest.raises(CorruptJournalError):
        Journal(tmp_path)


def test_bound(tmp_path):
    """At its bound a journal refuses, and takes again once it was trimmed."""
    journal = Journal(tmp_path, max_bytes=600, segment_bytes=100)
    while journal.fill < 0.9:
        journal.append([b"x" * 50])
    with pytest.raises(JournalFullError, match="600"):
        journal.append([b"x" * 70])
    journal.trim(journal.next)
    journal.append([b"again"])
    assert everything(journal)[-1] == b"again"


def test_one_owner(tmp_path):
    """A second process is refused, with the mend, until the first is gone."""
    journal = Journal(tmp_path)
    with pytest.raises(UsageError, match="in use by another process"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_trimmed_records_cannot_be_read(tmp_path):
    """Reading what is gone is an error, not silence."""
    journal = Journal(tmp_path, segment_bytes=50)
    for _ in range(5):
        journal.append([b"x" * 40])
    journal.trim(4)
    with pytest.raises(CorruptJournalError):
        journal.reader(1)
    assert len(everything(journal, 5)) == 1
