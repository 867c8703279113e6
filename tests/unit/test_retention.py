"""Rules, spans and notices of retention: what expires, what is held, and what is told of it."""

import datetime as dt

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.errors import UsageError
from authz.ledger import Signer
from authz.record import canonical, details_of
from authz.retention import (
    SIX_YEARS,
    Expired,
    Expiry,
    Hold,
    Rule,
    Spans,
    expired_notice,
    expiry_of,
    hold_notice,
    holds_in_force,
    partition_of,
    release_notice,
)
from authz.retention.notices import lifted
from authz.trust import load_expiry_writers

SIGNER = Signer("officer-1", bytes(range(32)))
NOW = 1_795_000_000_000_000
MOMENTS = st.integers(0, 4_000_000_000_000_000)
INDEXES = st.sets(st.integers(0, 60))


def us(*day):
    return int(dt.datetime(*day, tzinfo=dt.UTC).timestamp()) * 1_000_000


def spans(indexes):
    return Spans.of((index, index + 1) for index in indexes)


def indexes(found):
    return {index for first, end in found for index in range(first, end)}


@pytest.mark.parametrize(
    ("rule", "now", "cutoff", "before"),
    [
        ("6y", (2026, 11, 25, 9), (2020, 11, 25, 9), (2020, 11, 1)),
        ("1y", (2024, 2, 29), (2023, 2, 28), (2023, 2, 1)),
        ("90d", (2026, 3, 31), (2025, 12, 31), (2025, 12, 1)),
        ("100y", (2026, 1, 1), (1970, 1, 1), (1970, 1, 1)),
        ("60000d", (2026, 1, 1), (1970, 1, 1), (1970, 1, 1)),
    ],
)
def test_rules(rule, now, cutoff, before):
    """A rule's cutoff is by the calendar, and what expires are the months before the cutoff's."""
    parsed = Rule.parse(rule)
    assert str(parsed) == rule
    assert parsed.cutoff(us(*now)) == us(*cutoff)
    assert parsed.before(us(*now)) == us(*before)


@given(st.integers(30, 40_000), MOMENTS)
def test_nothing_younger_than_the_rule_expires(days, now):
    """Whatever the rule and the moment, the bound is the beginning of a month, not after the
    cutoff, and less than a month before it."""
    rule = Rule(days=days)
    before = rule.before(now)
    assert before <= rule.cutoff(now) < before + 31 * 86_400_000_000
    assert partition_of(before) == partition_of(rule.cutoff(now))
    if before:
        assert partition_of(before - 1) < partition_of(before)


@pytest.mark.parametrize("text", ["", "6", "y6", "0y", "29d", "201y", "6 y", "-6y", "6m", "९y"])
def test_no_rule(text):
    """What is no rule, or too short a one to be meant, is refused by its option's name."""
    with pytest.raises(UsageError, match="--sealed-older-than"):
        Rule.parse(text, "--sealed-older-than")


def test_shorter_than_six_years():
    """Six years are six years by the calendar, whatever unit they are given in."""
    now = us(2026, 11, 25)
    assert Rule.parse("5y").shorter_than(SIX_YEARS, now)
    assert Rule.parse("2190d").shorter_than(SIX_YEARS, now)
    assert not Rule.parse("2192d").shorter_than(SIX_YEARS, now)
    assert not Rule.parse("6y").shorter_than(SIX_YEARS, now)


@given(INDEXES, INDEXES, st.integers(0, 60), st.integers(0, 60))
def test_spans_are_sets(a, b, first, end):
    """Spans are sets of indexes, also as text."""
    one, other = spans(a), spans(b)
    assert indexes(one) == a
    assert len(one) == len(a)
    assert all((index in one) == (index in a) for index in range(62))
    assert indexes(one | other) == a | b
    assert indexes(one - other) == a - b
    assert indexes(one.within(first, end)) == {index for index in a if first <= index < end}
    assert Spans.parse(str(one)) == one
    for made in (one | other, one - other, one.within(first, end)):
        assert made == spans(indexes(made))  # one form for one set


@given(INDEXES, st.integers(1, 40))
def test_spans_in_parts(found, longest):
    """Parts follow each other, are all of it, and are as short as they can be."""
    parts = list(spans(found).parts(longest))
    assert [pair for part in parts for pair in part] == list(spans(found))
    assert all(len(str(part)) <= longest or len(part.pairs) == 1 for part in parts)


@pytest.mark.parametrize("text", ["1,1", "2,1", "1,2", "3-1", "1-1", "a", "01", "1,", "1 ,3", "-1"])
def test_no_spans(text):
    """There is one form of each set, and what is not in it is no set."""
    with pytest.raises(ValueError, match="indexes"):
        Spans.parse(text)


def an_expiry(**more):
    one = Expired("test/receiver", 5, 20, bytes(32), Spans.parse("5-9,12"))
    values = {"ranges": (one,), "holds": ("hold-1",), "override": "closed", "sealed_rule": "90d"}
    values |= {"sealed_before_us": us(2026, 6, 1)} | more
    return Expiry(SIX_YEARS, us(2020, 11, 1), "officer", **values)


def record(expiry, **more):
    told = expired_notice(expiry.signed(SIGNER), NOW)
    place = {"origin": "test/receiver", "index": 99, "sealed_at": NOW, "writer": "officer-1"}
    return told | place | {"writer_seq": 3} | more


def test_expiry_there_and_back():
    """A notice tells what it was made of, and its signature is over all of that."""
    expiry = an_expiry()
    found = expiry_of(orjson.loads(canonical(record(expiry))))
    assert (found.rule, found.ranges, found.holds) == (expiry.rule, expiry.ranges, expiry.holds)
    assert (found.place, found.sealed_at) == (("test/receiver", 99), NOW)
    SIGNER.verifier.verify(found.text, found.signature)
    for other in (an_expiry(override=""), an_expiry(holds=()), an_expiry(sealed_before_us=0)):
        assert other.text != expiry.text
    assert expiry_of(record(an_expiry(ranges=(), override="", sealed_before_us=0))).ranges == ()


@pytest.mark.parametrize(
    "change",
    [
        {"before": -1},
        {"before": "x"},
        {"ranges": {}},
        {"ranges": [{}]},
        {"ranges": [{"origin": "a", "first": 0, "end": 9, "root": "AA==", "gone": "0"}]},
        {"ranges": [an_expiry().ranges[0].to_json() | {"gone": "4"}]},
        {"ranges": [an_expiry().ranges[0].to_json() | {"gone": ""}]},
        {"ranges": [an_expiry().ranges[0].to_json() | {"more": 1}]},
        {"holds": "hold-1"},
        {"holds": [1]},
        {"sealed": []},
        {"signature": "?"},
        {"more": "of it"},
    ],
)
def test_malformed_expiry(change):
    """A notice in another form than ours tells nothing."""
    told = record(an_expiry())
    details = details_of(told) | change
    with pytest.raises(ValueError, match="malformed"):
        expiry_of(told | {"details": orjson.dumps(details).decode()})


def test_a_notice_that_is_too_long():
    """What would be cut off is refused, before it is told."""
    long = Expired("test/receiver", 0, 99_999_999, bytes(32), spans(range(0, 30_000, 2)))
    with pytest.raises(ValueError, match="60,000"):
        expired_notice(an_expiry(ranges=(long,)), NOW)


HELD = (
    Hold("hold-1", "case 7", "officer", subject="dr.elm"),
    Hold("hold-2", "case 8", "officer", patients=("k.t1", "k.t2")),
    Hold("hold-3", "case 9", "officer", since_us=us(2020, 1, 1), until_us=us(2020, 2, 1)),
)


def log_of(*notices, origin="a"):
    """As a log has them."""
    return [one | {"origin": origin, "index": n} for n, one in enumerate(notices, 1)]


def test_holds_there_and_back():
    """A hold says whom it holds, why, by whom, and where it is told."""
    [*found] = holds_in_force(log_of(*(hold_notice(hold, NOW) for hold in HELD)))
    assert [hold.place for hold in found] == [("a", 1), ("a", 2), ("a", 3)]
    for hold, told in zip(found, HELD, strict=True):
        for name in ("id", "reason", "by", "subject", "patients", "since_us", "until_us"):
            assert getattr(hold, name) == getattr(told, name)


def test_a_release_lifts_what_was_before_it():
    """A hold is in force until its release, in its own log or another; one that was told before
    the hold lifts nothing."""
    hold, release = hold_notice(HELD[0], NOW), release_notice("hold-1", "over", "officer", NOW)
    other = release_notice("hold-2", "over", "officer", NOW)
    assert holds_in_force(log_of(hold, release)) == []
    assert holds_in_force([*log_of(hold), *log_of(release, origin="b")]) == []
    assert len(holds_in_force(log_of(release, hold))) == 1
    assert len(holds_in_force(log_of(hold, release, hold))) == 1
    assert len(holds_in_force(log_of(hold, other))) == 1
    assert not lifted(("a", 3), [("a", 2)])


@pytest.mark.parametrize(
    "details", ["{}", "[]", "x", '{"id":1}', '{"id":"h"}', '{"id":"h","window":[]}',
                '{"id":"h","window":{"since":5}}', '{"id":"h","window":{"until":-5}}']
)  # fmt: skip
def test_holds_that_hold_nothing(details):
    """What names nobody, or is malformed, is no hold."""
    told = {"kind": "notice", "event": "legal_hold", "details": details}
    assert holds_in_force(log_of(told)) == []


LOGS = f"logs: [{{origin: {SIGNER.name}, keys: ['{SIGNER.verifier}']}}]\n"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", None),
        ("expiry_writers: []", ()),
        (f"expiry_writers: ['{SIGNER.verifier}']", (SIGNER.verifier,)),
    ],
)
def test_expiry_writers(tmp_path, text, keys):
    """A trust file may say whose notices let records expire; an empty list means nobody's."""
    (tmp_path / "trust.yaml").write_text(LOGS + text)
    assert load_expiry_writers(tmp_path / "trust.yaml") == keys


@pytest.mark.parametrize("text", ["expiry_writers: x", "expiry_writers: 5", "expiry_writers: [x]"])
def test_no_expiry_writers(tmp_path, text):
    """What is none is an error that names the key."""
    (tmp_path / "trust.yaml").write_text(LOGS + text)
    with pytest.raises(UsageError, match="expiry_writers"):
        load_expiry_writers(tmp_path / "trust.yaml")
