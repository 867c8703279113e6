"""A writer's chain: lost, reordered, changed and invented records show."""

import hashlib

import orjson
import pytest
from hostile import RECORDS
from hypothesis import given
from hypothesis import strategies as st

from authz.errors import UsageError
from authz.journal.chain import (
    Chain,
    ChainError,
    chain_hash,
    check_attachment,
    check_link,
    join,
    load_identity,
    policy_notice,
    split,
)
from authz.journal.segments import Journal
from authz.record import canonical

ME = "writer-1"


def linked(directory, records):
    """The payloads of a new chain of `records`."""
    journal = Journal(directory)
    chain = Chain(ME, journal)
    payloads = chain.frame([(record, b"") for record in records], journal.next)
    journal.append(payloads)
    chain.committed()
    journal.close()
    return payloads


def follow(payloads, first=1, prev=""):
    """Check each payload as the receiver does."""
    for seq, payload in enumerate(payloads, first):
        check_link(payload, ME, seq, prev)
        prev = chain_hash(payload)
    return prev


@pytest.fixture
def payloads(tmp_path):
    records = [{"kind": "decision", "reason": str(number)} for number in range(5)]
    return linked(tmp_path / "journal", records)


def test_chain_holds(payloads):
    """An untouched chain is accepted from its first record on."""
    follow(payloads)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: [p[0], *p[2:]],
        lambda p: [p[1], p[0], *p[2:]],
        lambda p: [p[0], p[0], *p[1:]],
        lambda p: [*p[:2], p[2].replace(b'"2"', b'"9"'), *p[3:]],
        lambda p: [*p[:4], p[4].replace(b":5", b":6")],
        lambda p: [p[0].replace(ME.encode(), b"writer-2"), *p[1:]],
        lambda p: [b" " + p[0], *p[1:]],
        lambda p: [b"[]", *p[1:]],
        lambda p: [b"{", *p[1:]],
    ],
    ids=[
        "dropped",
        "swapped",
        "repeated",
        "changed",
        "renumbered",
        "another",
        "spaced",
        "list",
        "cut",
    ],
)
def test_spoilt_chain_is_refused(payloads, spoil):
    """What was done to a chain shows, at the record where it was done or the one after."""
    with pytest.raises(ChainError):
        follow(spoil(payloads))


@pytest.mark.parametrize("name", ["origin", "index", "sealed_at"])
def test_receivers_values_are_refused(name):
    """A writer may not give what is the receiver's to give."""
    record = {"writer": ME, "writer_seq": 1, name: "x" if name == "origin" else 7}
    with pytest.raises(ChainError, match="receiver's to give"):
        check_link(canonical(record), ME, 1, "")


@pytest.mark.parametrize(
    "values",
    [
        {"nonsense": "x"},
        {"subject": 5},
        {"subject": ["x"]},
        {"roles": "x"},
        {"allowed": 1},
        {"allowed": "yes"},
        {"schema": True},
        {"time": "now"},
        {"status": 65_536},
    ],
)
def test_what_no_row_can_hold_is_refused(values):
    """A record whose row would say something else, or could not be inserted, never gets into the
    log: it would stop it, or look like tampering, for good."""
    with pytest.raises(ChainError, match=next(iter(values))):
        check_link(canonical({"writer": ME, "writer_seq": 1} | values), ME, 1, "")


@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_chain_of_hostile_records(records):
    """Whatever its records hold, a chain holds."""
    from tempfile import TemporaryDirectory

    for record in records:
        for name in ("origin", "index", "sealed_at"):
            record.pop(name, None)
    with TemporaryDirectory() as directory:
        from pathlib import Path

        follow(linked(Path(directory), records))


def test_chain_goes_on_after_a_restart(tmp_path):
    """The next process continues number and hash, also when the journal was trimmed."""
    directory = tmp_path / "journal"
    prev = follow(linked(directory, [{"reason": "a"}, {"reason": "b"}]))
    journal = Journal(directory)
    journal.trim(journal.next)
    chain = Chain(ME, journal)
    assert chain.place == (2, prev)
    follow(chain.frame([({"reason": "c"}, b"")], journal.next), first=3, prev=prev)
    journal.close()


def test_failed_write_leaves_the_chain(tmp_path):
    """A batch that was framed and not written does not move the chain."""
    journal = Journal(tmp_path)
    chain = Chain(ME, journal)
    chain.frame([({"reason": "lost"}, b"")], 1)
    [payload] = chain.frame([({"reason": "kept"}, b"")], 1)
    journal.append([payload])
    chain.committed()
    assert chain.place == (1, chain_hash(payload))
    assert orjson.loads(payload).get("prev", "") == ""
    journal.close()


def test_identity_is_kept(tmp_path):
    """A writer keeps id, key and log over restarts; its file is nobody else's to read."""
    path = tmp_path / "writer.json"
    identity = load_identity(path)
    identity.bind("c/r")
    again = load_identity(path)
    assert (again.writer, again.signer, again.origin) == (identity.writer, identity.signer, "c/r")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        load_identity(path)
    path.chmod(0o600)
    for damaged in (b"{}", b"", b"[]", b"\xff", b'{"key": 5, "origin": ""}'):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="restore"):
            load_identity(path)


def test_identities_differ(tmp_path):
    """Two writers never share an id."""
    assert load_identity(tmp_path / "a").writer != load_identity(tmp_path / "b").writer


@given(RECORDS, st.binary(max_size=64))
def test_payload_is_split_where_it_was_joined(record, attachment):
    """Whatever a record and its attachment hold, both come out of the payload as they went in."""
    form = canonical(record)
    assert split(join(form, attachment)) == (form, attachment)


def test_chain_goes_on_after_an_attachment(tmp_path):
    """What is chained is the record alone, also when the next process reads it off the journal."""
    journal = Journal(tmp_path)
    payloads = Chain(ME, journal).frame([({"reason": "a"}, b"b\nc"), ({"reason": "d"}, b"")], 1)
    journal.append(payloads[:1])
    prev = follow([split(payload)[0] for payload in payloads[:1]])
    assert Chain(ME, journal).place == (1, prev)
    follow(payloads[1:], 2, prev)
    journal.close()


SEALED = b"0123abcd.x"
DECISION = {"kind": "decision", "sealed": hashlib.sha256(SEALED).hexdigest()}


def test_attachments_that_are_named():
    """An attachment passes if the record names it, and a policy also without."""
    check_attachment(DECISION, SEALED)
    check_attachment({"kind": "decision"}, b"")
    check_attachment(*policy_notice(1, hashlib.sha256(b"text").hexdigest(), b"text"))
    check_attachment(*policy_notice(1, "any name"))


@pytest.mark.parametrize(
    ("record", "attachment"),
    [
        (DECISION, SEALED + b"x"),
        (DECISION, b""),
        (DECISION | {"sealed": DECISION["sealed"].upper()}, SEALED),
        (DECISION | {"kind": "access"}, SEALED),
        ({"kind": "decision"}, b"x"),
        ({"kind": "notice", "event": "chain_head"}, b"x"),
        (policy_notice(1, "any name")[0], b"x"),
        ({"kind": "access", "policy_revision": hashlib.sha256(b"x").hexdigest()}, b"x"),
    ],
)
def test_attachments_that_are_not(record, attachment):
    """Bytes that no record names are refused, and a sealed input that is not brought."""
    with pytest.raises(ChainError):
        check_attachment(record, attachment)
