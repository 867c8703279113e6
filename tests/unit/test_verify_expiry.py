"""What may be gone of a log, and what is wrong with a notice that says so."""

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import Signer, leaf_hash, tree_hash
from authz.retention import (
    SIX_YEARS,
    Expired,
    Expiry,
    Hold,
    Rule,
    Spans,
    expired_notice,
    hold_notice,
    release_notice,
)
from authz.verify.expiry import Expiries, Told

LOG, OTHER = "test/receiver", "test/other"
SIGNER = Signer("officer-1", bytes(range(32)))
SIZE = 100
NOTICE = 98
HASHES = [leaf_hash(bytes([number])) for number in range(SIZE)]


def us(*day):
    return int(dt.datetime(*day, tzinfo=dt.UTC).timestamp()) * 1_000_000


NOW = us(2026, 11, 25)
BEFORE = us(2020, 11, 1)
OLD, NEW = us(2020, 10, 31), us(2020, 11, 2)


def root_at(origin, size):
    """The roots of one log, as its tiles have them."""
    return tree_hash(HASHES[:size]) if origin == LOG and size <= SIZE else None


def expired(first, end, gone, origin=LOG):
    return Expired(origin, first, end, tree_hash(HASHES[:end]), Spans.parse(gone))


def expiry(*ranges, **more):
    return Expiry(
        more.pop("rule", SIX_YEARS), more.pop("before", BEFORE), "officer", ranges, **more
    )


def notice(told, index=NOTICE, origin=LOG, signer=SIGNER, **more):
    record = expired_notice(told.signed(signer), NOW)
    return placed(record, index, origin) | more


def placed(record, index, origin=LOG):
    place = {"origin": origin, "index": index, "sealed_at": NOW, "writer": SIGNER.name}
    return record | place | {"writer_seq": index}


def found(notices, records=None, writers=None, kept=OLD, roots=root_at):
    """The findings about `notices`, when the log's records are these (and a first kept one that was
    sealed at `kept`)."""
    expiries = Expiries(notices, writers)
    for record in notices if records is None else records:
        expiries.confirm(record, record["origin"])
    for told in expiries.ranges(LOG):
        if kept and told.range.end in expiries.wanted()[LOG]:
            expiries.confirm({"index": told.range.end, "sealed_at": kept}, LOG)
    return [(kind, index, text) for kind, _, index, text in expiries.findings(roots)]


GOOD = expiry(expired(0, 20, "1-4,6-19"))


def test_a_good_notice():
    """What a notice names may be missing, and nothing else; nothing is wrong with it."""
    expiries = Expiries([notice(GOOD)])
    assert str(expiries.absent(LOG)) == "1-4,6-19"
    assert expiries.absent(OTHER) == Spans()
    assert expiries.ranges(LOG) == [Told(GOOD.ranges[0], (LOG, NOTICE))]
    assert expiries.ranges(OTHER) == []
    assert expiries.wanted() == {LOG: {NOTICE, 20}}
    assert found([notice(GOOD)]) == []
    assert found([notice(GOOD)], writers=[SIGNER.verifier]) == []


def test_no_notice():
    """Without notices nothing may be missing."""
    expiries = Expiries([])
    assert (expiries.absent(LOG), expiries.wanted()) == (Spans(), {})
    assert list(expiries.findings(root_at)) == []


STRANGER = Signer("officer-1", bytes(32))


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (replace(GOOD, ranges=(replace(GOOD.ranges[0], root=bytes(32)),)), "another root"),
        (expiry(replace(GOOD.ranges[0], origin=OTHER)), "has no 20 records"),
        (expiry(expired(0, 101, "0-100")), "came after it"),
        (expiry(expired(0, 99, "1")), "came after it"),
    ],
)
def test_forged(told, text):
    """A notice about what the log never was is told, at its place."""
    [(kind, index, said), *_] = found([notice(told)])
    assert (kind, index) == ("forged_expiry", NOTICE)
    assert text in said


def test_forged_writer():
    """Where the trust file says who may expire, nobody else's notice lets anything be gone."""
    for record in (notice(GOOD, signer=STRANGER), notice(GOOD, rule="7y")):
        [(kind, _, said), *_] = found([record], writers=[SIGNER.verifier])
        assert kind == "forged_expiry"
        assert "'officer-1' is none that the trust file" in said
        assert Expiries([record], [SIGNER.verifier]).absent(LOG) == Spans()
    assert (
        found([notice(GOOD, signer=STRANGER)], writers=[SIGNER.verifier, STRANGER.verifier]) == []
    )
    assert Expiries([notice(GOOD)], []).absent(LOG) == Spans()


@pytest.mark.parametrize(
    "change", [{"details": "{}"}, {"rule": "5y"}, {"sealed_at": NOW + 1}, {"writer_seq": 97},
               {"kind": "finding"}, None]
)  # fmt: skip
def test_not_in_the_log(change):
    """A notice that the verified log does not hold as it was read is told."""
    there = [] if change is None else [notice(GOOD) | change]
    [(kind, index, said)] = found([notice(GOOD)], there)
    assert (kind, index, said.partition(" that ")[0]) == (
        "forged_expiry", NOTICE, "a notice of expiry"
    )  # fmt: skip


def test_malformed_notices():
    """A notice that tells nothing clear lets nothing be gone; one of no writer's is none."""
    record = notice(GOOD) | {"details": "{}"}
    assert [kind for kind, *_ in found([record])] == ["forged_expiry"]
    assert Expiries([record]).absent(LOG) == Spans()
    unsigned = {name: value for name, value in notice(GOOD).items() if name != "writer_seq"}
    assert Expiries([unsigned]).absent(LOG) == Spans()


@pytest.mark.parametrize(
    ("told", "kept", "text"),
    [
        (expiry(*GOOD.ranges, before=us(2020, 12, 1)), OLD, "its own rule"),
        (GOOD, NEW, "does not show"),
        (GOOD, BEFORE, "does not show"),
        (GOOD, 0, "the first record kept, 20, is not there"),
        (expiry(*GOOD.ranges, rule=Rule(years=5)), OLD, "shorter than six years"),
        (expiry(*GOOD.ranges, rule=Rule(days=90)), OLD, "shorter than six years"),
    ],
)
def test_early(told, kept, text):
    """A notice that reaches into what was too young is told, as far as can be seen."""
    [(kind, index, said)] = found([notice(told)], kept=kept)
    assert (kind, index) == ("early_expiry", NOTICE)
    assert text in said


def test_a_reason_makes_a_shorter_rule_good():
    """A shorter rule with a reason is no finding, and the report has the reason."""
    told = expiry(*GOOD.ranges, rule=Rule(days=90), before=us(2026, 8, 1), override="closed")
    assert found([notice(told)]) == []
    expiries = Expiries([notice(told)])
    assert expiries.accepted() == []
    expiries.confirm(notice(told), LOG)
    assert [(one.override, str(one.rule)) for one in expiries.accepted()] == [("closed", "90d")]


def test_later_notices():
    """Of several, the last one's end must be shown to be old enough; those before it lie before."""
    notices = [notice(GOOD, 97), notice(expiry(expired(20, 40, "21-39")), NOTICE)]
    assert Expiries(notices).wanted() == {LOG: {97, NOTICE, 40}}
    assert str(Expiries(notices).absent(LOG)) == "1-4,6-19,21-39"
    assert found(notices) == []


HOLD = placed(hold_notice(Hold("hold-1", "case", "officer", subject="dr.elm"), NOW), 97)


def test_a_hold_that_was_there_before():
    """A notice that leaves out a hold which its log had before it lets nothing be gone, and is no
    finding by itself: who expires looks again, and tells another."""
    good = notice(replace(GOOD, holds=("hold-1",)), 99)
    assert Expiries([HOLD, notice(GOOD)]).absent(LOG) == Spans()
    assert found([HOLD, notice(GOOD)]) == []
    assert str(Expiries([HOLD, notice(GOOD), good]).absent(LOG)) == "1-4,6-19"
    after = HOLD | {"index": 99}
    elsewhere = HOLD | {"origin": OTHER}
    for hold in (after, elsewhere, HOLD | {"details": "{}"}):
        assert str(Expiries([hold, notice(GOOD)]).absent(LOG)) == "1-4,6-19"


def test_a_release_that_was_there_before():
    """A hold that was released by then need not be known; released since, it had to be."""
    release = release_notice("hold-1", "over", "officer", NOW)
    hold = HOLD | {"index": 90}
    for where, lets in ((95, True), (99, False)):
        notices = [hold, notice(GOOD), placed(release, where)]
        assert bool(Expiries(notices).absent(LOG)) == lets
    assert Expiries([hold, notice(GOOD), placed(release, 3, OTHER)]).absent(LOG)


@given(
    st.lists(st.tuples(st.integers(0, 90), st.sets(st.integers(0, 7), min_size=1)), max_size=6),
)
def test_only_what_is_named_may_be_gone(parts):
    """Whatever good notices tell, what may be gone is what they name; their roots are the log's."""
    notices, named = [], set()
    for index, (first, offsets) in enumerate(parts, 92):
        gone = Spans.of((first + n, first + n + 1) for n in offsets if first + n < index)
        if not gone:
            continue
        end = gone.pairs[-1][1]
        notices.append(notice(expiry(expired(first, end, str(gone))), index))
        named |= {first + n for n in offsets if first + n < index}
    expiries = Expiries(notices)
    assert {n for n in range(SIZE) if n in expiries.absent(LOG)} == named
    assert found(notices) == []
    assert len(expiries.ranges(LOG)) == len(notices)
    for told in expiries.ranges(LOG):
        assert root_at(LOG, told.range.end) == told.range.root
