"""Logs witness each other: what is removed from one, the rosters in the others still name."""

import json
from dataclasses import dataclass

import pytest
from logs import SIGNER, TRUST, TestLog

from authz.ledger import Checkpoint, Signer, open_note, sign_note
from authz.receiver import sequence
from authz.receiver.accounts import Accounts
from authz.receiver.roster import Roster
from authz.record import FIELD, canonical, misfit
from authz.store import checkpoints
from authz.store.accounts import Accounted
from authz.store.client import connect
from authz.trust import TrustedLog
from authz.verify import dates, verify_store
from authz.verify import logs as verify
from authz.verify.accounts import Accounts as Verified
from authz.verify.roster import Rosters

OTHER = Signer("test/other", bytes(range(1, 33)))
BOTH = [*TRUST, TrustedLog(OTHER.name, (OTHER.verifier,))]
A, B = SIGNER.name, OTHER.name


def signed(signer, size, root=bytes(32)):
    return sign_note(Checkpoint(signer.name, size, root).text(), signer)


def test_notice():
    """Names each log with its newest checkpoint as signed; what is no checkpoint is left out."""
    rows = [(A, 7, signed(SIGNER, 7)), (B, 8, signed(OTHER, 9)), ("c", 1, "no note")]
    [record] = Roster.of([*rows, ("d", 1, "x" * 9999)]).records(5)
    assert (record["kind"], record["event"], record["time"]) == ("notice", "roster", 5)
    [entry] = json.loads(record["details"])["logs"]
    assert (entry["origin"], entry["size"]) == (A, 7)
    assert Checkpoint.parse(open_note(entry["note"], [SIGNER.verifier])[0]).size == 7


def test_nothing_to_tell():
    """Without any log there is no notice."""
    assert Roster.of([]).records(5) == []


def test_differs():
    """It is told again when a log comes or goes, not when one grows."""
    told = Roster.of([(A, 7, signed(SIGNER, 7))])
    assert not Roster.of([(A, 8, signed(SIGNER, 8))]).differs(told)
    assert Roster.of([(A, 8, signed(SIGNER, 8)), (B, 8, signed(OTHER, 8))]).differs(told)
    assert Roster.of([]).differs(told)


def test_very_many_logs():
    """They are told in several notices, each within the bounds of a record, none left out."""
    signers = [Signer(f"log {n} \u00e9\n".strip(), bytes(32)) for n in range(1500)]
    records = Roster.of([(s.name, 5, signed(s, 5)) for s in signers]).records(1)
    assert 1 < len(records) < 20
    named = []
    for record in records:
        assert misfit(record) == ""
        assert canonical(record)
        assert len(record["details"]) < FIELD["details"].cap
        named += [log["origin"] for log in json.loads(record["details"])["logs"]]
    assert sorted(named) == sorted(signer.name for signer in signers)


@dataclass
class Two:
    """Two receivers' logs in one database."""

    client: object
    store: str
    a: TestLog
    b: TestLog
    directory: object

    def fill(self, log, *numbers):
        for number in numbers:
            log.append([{"kind": "notice", "event": f"e{number}", "time": number}])
        log.seal()

    def roster(self, log):
        """What the receiver of `log` tells."""
        log.append(Roster.of(one[:3] for one in checkpoints.newest(self.client)).records(1))
        log.seal()

    def drop(self, origin, size=0):
        """Remove all that the database has of a log beyond `size` records."""
        for table, column in (("audit_log", "index"), ("tiles", "index"), ("checkpoints", "size")):
            bound = {"audit_log": size, "tiles": 1 if size else 0, "checkpoints": size + 1}[table]
            self.client.execute(
                f"ALTER TABLE {table} DELETE WHERE origin = %(origin)s AND {column} >= %(bound)s",
                {"origin": origin, "bound": bound},
            )

    def found(self, trust=BOTH):
        report = verify_store(self.client, trust)
        assert report.verified == (not report.findings)
        return sorted((f.kind, f.origin, f.first, f.last) for f in report.findings)


@pytest.fixture
def two(database, tmp_path, monkeypatch):
    """Both are filled, each has a roster, and all is well."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0.1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a = TestLog(tmp_path / "a", database)
    b = TestLog(tmp_path / "b", database, signer=OTHER)
    with connect(database, mutations_sync=1) as client:
        two = Two(client, database, a, b, tmp_path)
        two.fill(a, 1, 2, 3)
        two.fill(b, 4, 5)
        two.roster(b)
        two.roster(a)
        two.fill(a, 6)
        assert two.found() == []
        yield two
    for log in (a, b):
        log.end()


def test_missing(two):
    """A log that is gone as a whole is named by the others."""
    two.drop(A)
    assert two.found() == [("missing_log", A, -1, -1), ("no_checkpoint", A, -1, -1)]
    [finding] = [f for f in verify_store(two.client, BOTH).findings if f.kind == "missing_log"]
    assert finding.text == f"the log is gone; log '{B}' saw it with 3 records (2)"


def test_untrusted(two):
    """So is one that the trust file leaves out, whether its rows are there or not."""
    there = ("unknown_origin", A, 0, 4)
    assert two.found(BOTH[1:]) == [there, ("unlisted_log", A, -1, -1)]
    two.drop(A)
    assert two.found(BOTH[1:]) == [("unlisted_log", A, -1, -1)]


def test_rollback(two):
    """A log that was set back consistently is smaller than another saw it."""
    two.fill(two.a, 7)
    two.roster(two.b)
    two.client.execute(f"INSERT INTO tiles VALUES ('{A}', 0, 0, 3, '')")
    two.drop(A, 5)
    assert ("rollback", A, 5, 5) in two.found()


def test_fork(two):
    """A log that was written anew, with the same key, differs from what another saw."""
    two.drop(A)
    (two.directory / "new").mkdir()
    new = TestLog(two.directory / "new", two.store)
    two.fill(new, 1, 2, 9)
    two.fill(new, 8)
    assert two.found() == [("fork", A, -1, -1)]
    new.end()


def test_checkpoint_gone(two):
    """A checkpoint that another saw and that is gone is told, and is not taken for more."""
    two.client.execute(f"ALTER TABLE checkpoints DELETE WHERE origin = '{A}' AND size = 3")
    assert two.found() == [("missing_checkpoint", A, -1, -1)]


def test_slipped_in(two):
    """A row that somebody slipped into the table while a roster was made proves nothing."""
    note = sign_note(Checkpoint(A, 99, bytes(32)).text(), Signer(A, bytes(32)))
    two.client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(A, 99, note)])
    two.roster(two.b)
    two.client.execute("ALTER TABLE checkpoints DELETE WHERE size = 99")
    assert two.found() == []


def test_a_log_at_work():
    """A log that has gone on since its checkpoints were read is not set back, nor forked."""
    roots = {3: bytes(32)}
    rosters = Rosters({A: (TRUST[0].keys, roots.get)})
    root = b"\1" * 32
    [record] = Roster.of([(A, 5, signed(SIGNER, 5, root))]).records(1)
    rosters.add(record, B)

    def found():
        newest = Checkpoint(A, max(roots), roots[max(roots)])
        return [finding.kind for finding in rosters.findings(lambda _: newest)]

    assert found() == ["rollback"]
    roots[5] = root
    assert found() == []
    roots[5] = bytes(32)
    assert found() == ["fork"]


@pytest.mark.parametrize("details", ["", "[]", '{"logs": 1}', '{"logs": [1]}', '{"logs": [{}]}'])
def test_malformed(details):
    """What is no roster tells nothing."""
    rosters = Rosters({A: (TRUST[0].keys, lambda _: None)})
    rosters.add({"kind": "notice", "event": "roster", "details": details}, B)
    assert list(rosters.findings(lambda _: None)) == []


class Watched(Verified):
    """Remembers the most it held."""

    most = 0

    def add(self, record, origin):
        wrong = super().add(record, origin)
        Watched.most = max(Watched.most, len(self))
        return wrong


@pytest.mark.thorough
def test_decisions_in_one_accesses_in_the_other(two, monkeypatch):
    """Half an hour of requests, one every two seconds, each decided in one log and told of in the
    other: none is missing its half, and what is held is what a few minutes bring."""
    pairs, clock = 800, [sequence.time.time_ns()]
    monkeypatch.setattr(sequence.time, "time_ns", lambda: clock[0])
    books = {
        log: (Accounts(log.signer.name, 0, interval_seconds=60, grace_seconds=60,
                       patience_seconds=600, under_way={}, started_us=clock[0] // 1000),
              Accounted(two.client, log.signer.name))
        for log in (two.a, two.b)
    }  # fmt: skip
    for log, (accounts, accounted) in books.items():
        accounts.add(accounted.rows(0, log.log.stored.tree.size))
    for number in range(0, pairs, 4):
        clock[0] += 8_000_000_000
        ids = [f"d{number + n}" for n in range(4)]
        decisions = [{"kind": "decision", "decision_id": one, "allowed": True} for one in ids]
        two.a.append(decisions)
        two.b.append([{**decision, "kind": "access"} for decision in decisions])
        if number % 40 == 36:
            for log, (accounts, accounted) in books.items():
                accounts.add(log.seal().records)
                while told := accounts.close(clock[0] // 1000, accounted):
                    log.append(told)
                    accounts.add(log.seal().records)
    monkeypatch.setattr(
        dates, "APART_US", 3600_000_000
    )  # their clock has run ahead of ClickHouse's
    monkeypatch.setattr(verify, "_CHUNK", 512)
    monkeypatch.setattr(verify, "Accounts", Watched)
    report = verify_store(two.client, BOTH)
    assert report.findings == []
    assert (report.gaps, report.pending, report.matched) == ({}, 0, pairs)
    assert 0 < Watched.most < pairs / 2
