"""A log's account of itself, as a verifier counts it: one that lies or is damaged is found."""

from random import Random

import orjson
import pytest
from accounted import Log, access, decision, traffic, verified
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.booleans())
def test_summaries_are_what_a_verifier_counts(seed, restarts):
    """Whatever the traffic, the disturbance and the restarts: every summary is what a verifier
    counts over the same records, intervals follow each other, and no decision is left out."""
    log = Log()
    traffic(Random(seed), log, restarts)
    wrong, tally = verified(log)
    assert wrong == []
    sums = log.told()[2]
    if log.summaries():
        assert sums["decisions"] == tally.decisions
        assert sums["accesses"] == tally.accesses
        assert sums["unresolved"] == tally.unresolved
    assert tally.pending == 0 or log.under_way


DAMAGED = [
    b"", b"{", b"null", b"[]", b"7", b"{}", b'{"first":0,"end":3,"as_of":3}',
    b'{"first":"0","end":3,"as_of":3}', b'{"first":0,"end":3,"as_of":9e99}',
    b'{"first":0,"end":900000,"as_of":900000}', b'{"first":0,"end":2,"as_of":2,"missing":"x"}',
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_summary(damaged, place):
    """Whatever somebody wrote over a summary, it is a finding, and no more than its neighbour is
    drawn in."""
    log = Log()
    for number in range(6):
        log.append(decision(number), access(number))
        log.tick(20)
    summaries = log.notices("interval_summary")
    summaries[place]["details"] = damaged.decode()
    wrong, tally = verified(log)
    drawn_in = {index for index, _ in wrong}
    assert summaries[place]["index"] in drawn_in
    assert drawn_in <= {one["index"] for one in summaries[place : place + 2]}
    assert (tally.decisions, tally.matched + tally.matched_late, tally.kinds) == (6, 6, {})


def test_a_damaged_writer_lost():
    """The same of who was told as lost."""
    log = Log()
    log.append({"kind": "notice", "event": "writer_lost", "details": "{"}, access(1))
    log.tick(20)
    assert verified(log)[1].kinds == {"no_decision": 1}


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.data())
def test_a_summary_that_lies_is_found(seed, data):
    """A count that was changed in any summary is told by the verifier."""
    log = Log()
    traffic(Random(seed), log, restarts=False)
    if not log.summaries():
        return
    record = data.draw(st.sampled_from(log.notices("interval_summary")))
    details = orjson.loads(record["details"])
    name = data.draw(st.sampled_from(["decisions", "allowed", "matched", "accesses", "missing"]))
    details[name] += 1
    record["details"] = orjson.dumps(details, option=orjson.OPT_SORT_KEYS).decode()
    assert verified(log)[0]
