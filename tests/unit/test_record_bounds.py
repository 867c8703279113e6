"""Every leaf fits an entry bundle, and what matters most stays in it."""

import pytest
from hostile import RECORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import TestLog

from authz.journal.chain import ChainError, chain_hash, check_link
from authz.ledger import Checkpoint, Signer, sign_note
from authz.ledger.tiles import MAX_ENTRY, pack
from authz.receiver.roster import Roster
from authz.record import (
    FIELDS,
    MAX_INT,
    MOST_BYTES,
    WRITERS_BYTES,
    canonical,
    clean,
    details_of,
    form,
    misfit,
    notice,
    shorten,
)
from authz.record.privacy import PrivacyKey

TOKENS = [PrivacyKey.of(bytes(32)).token(str(number)) for number in range(1000)]
WIDE = ("\x00", "\U0001f600", '"', "\\", "\u2028", "x")


def full(character):
    """A record of which every value is as large as its field takes."""
    values = {"text": lambda f: character * f.cap, "bool": lambda _: True,
              "texts": lambda f: [character * f.cap] * f.items}  # fmt: skip
    record = {f.name: values.get(f.type, lambda f: f.cap)(f) for f in FIELDS}
    return clean(record)


def test_the_bound_is_the_bundles():
    """It is what a C2SP entry bundle takes."""
    assert MOST_BYTES == MAX_ENTRY
    pack([b"x" * MOST_BYTES])
    worst = {"origin": "\x01" * 200, "index": MAX_INT, "sealed_at": MAX_INT}
    assert len(form(worst)) <= MOST_BYTES - WRITERS_BYTES


@pytest.mark.parametrize("character", WIDE)
def test_a_record_that_is_full(tmp_path, character):
    """Whatever is in it, it goes through a writer's chain and a receiver's log and fits; what it
    is and whose decision it tells is whole."""
    log = TestLog(tmp_path)
    record = full(character)
    for name in ("origin", "index", "sealed_at", "sealed"):
        del record[name]
    kept = {name: record[name] for name in ("kind", "decision_id", "event", "time", "allowed")}
    foreign = dict(record)
    [written] = log.written([record])
    assert len(form(written)) <= WRITERS_BYTES
    assert misfit(written) == ""
    for name in ("writer_seq", "writer", "prev"):
        foreign.pop(name, None)
    payloads = log.log.frame([[(written, b"")], [(foreign, b"")]], 0)
    assert all(len(payload) <= MOST_BYTES for payload in payloads)
    for told in (written, foreign):
        assert kept.items() <= told.items()
        assert canonical(told) == form(told)
    log.end()


@settings(max_examples=100)
@given(RECORDS, st.integers(30_000, MOST_BYTES))
def test_shorten(record, most):
    """It fits afterwards, is what a record may be, and is untouched if it fitted before."""
    record = clean(record)
    before = {name: list(v) if isinstance(v, list) else v for name, v in record.items()}
    shorten(record, most)
    assert len(form(record)) <= most
    assert record.keys() == before.keys()
    assert misfit(record) == ""
    if len(form(before)) <= most:
        assert record == before


def test_patients_come_last():
    """A thousand patients' tokens are all there, whatever else a record holds."""
    for kind in ("disclosure", "decision"):
        record = clean(full("\x00") | {"kind": kind, "patients": TOKENS})
        shorten(record, WRITERS_BYTES)
        assert record["patients"] == TOKENS
    plain = clean({"kind": "decision", "patients": TOKENS, "path": "/x", "roles": ["nurse"]})
    before = form(plain)
    shorten(plain, WRITERS_BYTES)
    assert form(plain) == before


def test_what_a_notice_tells_stays_readable():
    """Details that are cut are still a JSON object with their shorter members, and say so."""
    told = notice("x", 1, {"part": 2, "of": "y", "long": '"' * 29_000, "more": ["z"] * 100})
    assert len(form(told)) > 58_000
    shorten(told, 50_000)
    assert details_of(told) == {"part": 2, "of": "y", "more": ["z"] * 100, "cut": True}
    broken = {"kind": "notice", "details": "x" * 65_536}
    shorten(broken, 60_000)
    assert details_of(broken) == {"cut": True}


def test_a_writer_that_sends_more(tmp_path):
    """A foreign writer's record that would fit no bundle is refused: it cannot be cut, since its
    hash is in the next one."""
    record = {"kind": "decision", "writer": "w", "writer_seq": 1, "details": "x" * WRITERS_BYTES}
    with pytest.raises(ChainError, match="bytes"):
        check_link(canonical(record), "w", 1, "")
    record["details"] = record["details"][200:]
    check_link(canonical(record), "w", 1, "")


def test_a_chain_goes_on_behind_a_record_that_was_cut(tmp_path):
    """What is hashed and chained is what was kept."""
    log = TestLog(tmp_path)
    large = {"kind": "decision", "evidence": "\x00" * 4096, "details": "x" * 60_000}
    first, second = log.written([large, {"kind": "decision"}])
    assert second["prev"] == chain_hash(form(first))
    log.end()


def test_rosters_are_not_cut():
    """A roster of very many logs is told in as many notices as it takes, each of which fits."""
    signers = [Signer(f'log\\"{number}\x01', bytes(32)) for number in range(600)]
    rows = [(s.name, 5, sign_note(Checkpoint(s.name, 5, bytes(32)).text(), s)) for s in signers]
    records = Roster.of(rows).records(1)
    assert all(len(form(record)) <= MOST_BYTES - 512 for record in records)
    assert sum(len(details_of(record)["logs"]) for record in records) == len(rows)
