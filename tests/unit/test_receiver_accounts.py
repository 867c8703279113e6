"""A log's account of itself: told once, whatever happens."""

import orjson
import pytest
from accounted import LIMITS, SECOND, SHOWN, Log, access, decision, disclosure, ended, verified

from authz.verify.accounts import Accounts as Verified


def test_an_interval_is_told_once():
    """Requests that all met give one summary that comes out even, and an idle log gives no more."""
    log = Log()
    for number in range(5):
        log.append(decision(number), access(number))
    for _ in range(100):
        log.tick(1)
    assert len(log.records) == 11
    gaps, _, sums = log.told()
    assert gaps == {}
    assert (sums["decisions"], sums["allowed"], sums["matched"], sums["explained"]) == (5, 5, 5, 5)
    assert (sums["first"], sums["end"]) == (0, 10)
    assert verified(log)[0] == []


@pytest.mark.parametrize(
    ("kind", "records"),
    [
        ("no_access", [decision(1)]),
        ("no_decision", [access(1)]),
        ("bypass", [ended(1) | {"upstream": "10.0.0.1:80"}]),
        ("denied_but_reached", [decision(1, allowed=False), access(1)]),
        ("disagrees", [decision(1, subject="ann"), access(1, subject="ben")]),
        ("repeated", [decision(1), access(1), access(1)]),
        ("no_disclosure", [decision(1, **SHOWN), access(1, **SHOWN)]),
    ],
)
def test_each_gap_is_told(kind, records):
    """What does not add up is a notice of its kind, after the grace time and not before."""
    log = Log()
    log.append(*records)
    log.tick(14)
    assert log.told()[0] == {}
    log.tick(2)
    assert log.told()[0] == {kind: 1}
    [gap] = log.notices("gap")
    assert gap["records"] == [records[-1].get("decision_id", "a/0")]
    wrong, tally = verified(log)
    assert wrong == []
    log.tick(1000)
    assert log.told()[0] == {kind: 1}
    if kind not in ("no_access", "no_disclosure"):
        assert tally.kinds == {kind: 1}


def test_late_access_closes_its_gap():
    """An access that comes after its gap was told closes it; both facts are in the log."""
    log = Log()
    log.append(decision(1))
    log.tick(20)
    assert log.told()[:2] == ({"no_access": 1}, {})
    log.append(access(1))
    log.tick(20)
    assert log.told()[:2] == ({"no_access": 1}, {"no_access": 1})
    assert verified(log)[0] == []
    assert verified(log)[1].kinds == {}


def test_late_decision_closes_its_gap():
    """The same for a decision that its writer kept for long."""
    log = Log()
    log.append(access(1))
    log.tick(20)
    log.append(decision(1))
    log.tick(20)
    assert log.told()[:2] == ({"no_decision": 1}, {"no_decision": 1})
    assert verified(log)[0] == []


def test_disclosures():
    """What is told of an answer meets its access, in whatever order; what is missing is a gap, what
    comes late closes it, and what could not be resolved is counted."""
    log = Log()
    for number in range(3):
        both = [access(number, **SHOWN), disclosure(number)]
        log.append(decision(number, **SHOWN), *(both if number else reversed(both)))
        log.append(disclosure(number, part=2))
    log.append(decision(7, **SHOWN), access(7, **SHOWN))
    log.append(decision(8, **SHOWN), access(8, **SHOWN))
    log.append(disclosure(8, reason_code="too_large"))
    # The client left before any answer.
    log.append(decision(9, discloses=True), access(9, discloses=True))
    broken = SHOWN | {"response_details": "upstream_reset_after_response_started", "status": 502}
    log.append(decision(10, **SHOWN), access(10, **broken))  # held, so nothing of it went out
    log.append(disclosure(99))  # of an access that got lost
    log.tick(20)
    gaps, closed, sums = log.told()
    assert (gaps, closed) == ({"no_disclosure": 1}, {})
    assert (sums["disclosed"], sums["unresolved"]) == (4, 1)
    log.append(disclosure(7))
    log.tick(20)
    assert log.told()[:2] == ({"no_disclosure": 1}, {"no_disclosure": 1})
    wrong, tally = verified(log)
    assert wrong == []
    assert (tally.kinds, tally.disclosed, tally.disclosed_late) == ({}, 4, 1)
    assert len(log.accounts._reconciler.unmatched().ids) == 0


def test_a_disclosure_soon_after_its_gap():
    """What was told as missing is closed also where it comes right after that: an access at the end
    of its interval is not waited for as long as one at its beginning."""
    log = Log()
    log.append(decision(1), access(1))
    log.tick(LIMITS["interval_seconds"] - 1)
    log.append(decision(7, **SHOWN), access(7, **SHOWN))
    log.tick(1 + LIMITS["grace_seconds"])
    assert log.told()[:2] == ({"no_disclosure": 1}, {})
    log.append(disclosure(7))
    log.tick(60)
    assert log.told()[:2] == ({"no_disclosure": 1}, {"no_disclosure": 1})
    wrong, tally = verified(log)
    assert (wrong, tally.kinds) == ([], {})


def test_a_disclosure_whose_parts_lie_in_two_intervals():
    """Nothing was missing, so nothing is closed."""
    log = Log()
    log.append(decision(1), access(1))
    log.tick(LIMITS["interval_seconds"] - 1)
    log.append(decision(7, **SHOWN), access(7, **SHOWN), disclosure(7))
    log.tick(1 + LIMITS["grace_seconds"])
    log.append(decision(2), access(2), disclosure(7, part=2))
    log.tick(60)
    assert log.told()[:2] == ({}, {})
    wrong, tally = verified(log)
    assert (wrong, tally.kinds) == ([], {})


def test_two_logs():
    """Decisions in one log and accesses in the other are no gaps, and each says so."""
    logs = {}
    one, two = Log("a", logs), Log("b", logs)
    for number in range(5):
        one.append(decision(number))
        two.append(access(number))
    for log in (one, two):
        log.tick(20)
    assert one.told()[0] == two.told()[0] == {}
    assert one.told()[2]["matched_elsewhere"] == 5
    assert two.told()[2]["explained_elsewhere"] == 5
    wrong, tally = verified(one, two)
    assert wrong == []
    assert (tally.matched_elsewhere, tally.kinds, tally.pending) == (5, {}, 0)


@pytest.mark.parametrize("restarted", [False, True])
def test_long_requests(restarted):
    """A request that Envoy says to be running is no gap, however long and over a restart; one that
    it no longer speaks of is."""
    log = Log()
    log.append(decision(1), decision(2))
    for second in range(100):
        log.under_way["d1"] = log.now
        if second < 50:
            log.under_way["d2"] = log.now
        log.tick(1)
        if restarted and second == 30:
            log.start()
    assert log.told()[0] in ({}, {"no_access": 1})
    assert log.told()[2]["open"] == 2
    log.append(access(1), access(7), decision(7))
    log.tick(20)
    gaps, closed, _ = log.told()
    assert (gaps, closed) == ({"no_access": 1}, {})
    wrong, tally = verified(log)
    assert wrong == []
    assert tally.kinds == {"no_access": 1}


def test_a_writer_that_is_away_and_lost():
    """Accesses of a writer that has not come so far are not bypasses; when it stays away, it is
    told as lost, once."""
    log = Log()
    at = (log.now // 1000).to_bytes(6).hex()
    ids = [f"{at[:8]}-{at[8:]}-7000-8000-00000000000{n}" for n in range(3)]
    log.append(decision(1, time=log.now - SECOND), access(1))
    for one in ids:
        log.append(access(1, decision_id=one, decided_by="w"))
    log.tick(20)
    assert log.told()[0] == {"writer_away": 3}
    log.tick(100)
    log.append(access(1, decision_id=ids[0].replace("7000", "7001"), decided_by="w"))
    log.tick(20)
    assert log.told()[0] == {"writer_away": 3, "writer_lost": 1}
    [lost] = log.notices("writer_lost")
    assert orjson.loads(lost["details"])["writer"] == "w"
    assert verified(log)[0] == []
    assert verified(log)[1].kinds == {"writer_lost": 4}


def test_records_older_than_the_accounts():
    """A log that had records before its receiver could tell intervals: nothing is wrong with the
    first that it tells, and the older ones are counted all the same."""
    older = [decision(1), access(1), decision(2), access(3), decision(4, allowed=False), access(4)]
    log = Log(before=older)
    log.append(decision(11), access(11), access(2))
    log.tick(20)
    [summary] = log.notices("interval_summary")
    assert orjson.loads(summary["details"])["first"] == len(older)
    wrong, tally = verified(log)
    assert wrong == []
    assert (tally.decisions, tally.accesses) == (4, 5)
    assert tally.kinds == {"no_decision": 1, "denied_but_reached": 1}


def test_told_before_the_state_was_written():
    """A crash right after an interval became durable: it is not told again."""
    log = Log()
    for number in range(3):
        log.append(decision(number), access(number))
        log.tick(20)
        log.start(unstored=1)
        log.tick(20)
    assert len(log.summaries()) == 3
    assert verified(log)[0] == []


def test_many_intervals_are_held_one_by_one():
    """A verifier's memory does not grow with the intervals of a log."""
    log = Log()
    for number in range(200):
        log.append(decision(number), access(number))
        log.tick(20)
    ahead = []

    def summaries():
        for summary in log.summaries():
            ahead.append(summary)
            yield summary

    found = Verified({"a": summaries()})
    for seen, record in enumerate(log.records):
        assert not list(found.add(record, "a"))
        assert len(ahead) <= seen // 3 + 2
    assert found.finish().matched == 200
