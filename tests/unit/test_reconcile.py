"""Decisions against accesses: each kind of gap, and no false one."""

from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.reconcile import Reconciler, Rest, Tally, Writers
from authz.record import canonical

SECOND = 1_000_000


def decision(number, *, allowed=True, at=0, **more):
    return {"kind": "decision", "decision_id": f"d{number}", "enforced": True, "allowed": allowed,
            "sealed_at": at, "request_id": f"r{number}"} | more  # fmt: skip


def access(number, *, allowed=True, at=0, **more):
    record = {"kind": "access", "decision_id": f"d{number}", "enforced": True, "allowed": allowed,
              "sealed_at": at, "request_id": f"r{number}"}  # fmt: skip
    return record | ({"upstream": "10.0.0.1:80"} if allowed else {}) | more


def ended(number, **more):
    """An access that Envoy ended before any decision."""
    record = access(number, allowed=False) | more
    del record["decision_id"]
    return record


def late(at=1000 * SECOND):
    """Something long after, so that the grace time is over."""
    return {"kind": "access", "sealed_at": at}


def finished(reconciler):
    """The whole count, as a verifier has it."""
    rest, writers = Rest(), Writers()
    rest.add(reconciler.unmatched())
    reconciler.finish()
    tally = Tally()
    tally.add(reconciler.tally)
    tally.add(rest.finish(reconciler.newest, writers))
    return tally


def gaps(*records):
    reconciler = Reconciler()
    for record in [*records, late()]:
        reconciler.add(record)
    tally = finished(reconciler)
    return tally.kinds, tally


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_matched_pairs_leave_nothing(seed, count):
    """In whatever order the two accounts of each request arrive, the count is even and quiet."""
    random = Random(seed)
    records = []
    for number in range(count):
        allowed = random.random() < 0.7
        records += [decision(number, allowed=allowed), access(number, allowed=allowed)]
    random.shuffle(records)
    found, tally = gaps(*records)
    assert found == {}
    assert (tally.decisions, tally.matched, tally.pending) == (count, count, 0)
    assert tally.allowed + tally.denied == count


@pytest.mark.parametrize(
    ("kind", "records"),
    [
        ("no_access", [decision(1)]),
        ("no_decision", [access(1)]),
        ("no_decision", [access(1, allowed=False)]),
        ("bypass", [ended(1, upstream="10.0.0.1:80")]),
        ("denied_but_reached", [decision(1, allowed=False), access(1)]),
        ("denied_but_reached", [access(1), decision(1, allowed=False)]),
        ("disagrees", [decision(1), access(1, allowed=False)]),
    ],
)
def test_each_gap(kind, records):
    """What does not add up is one gap of its kind, at its record."""
    found, tally = gaps(*records)
    assert found == {kind: 1}
    [[gap]] = [found.some for found in tally.gaps.values()]
    assert gap.decision_id == records[-1].get("decision_id", "")


@pytest.mark.parametrize(
    "records",
    [
        [decision(1, allowed=False)],
        [ended(1)],
        [decision(1), ended(1)],
        [ended(1), decision(1)],
        [decision(1, allowed=False, enforced=False), access(1, allowed=False, enforced=False,
                                                           upstream="10.0.0.1:80")],
        [decision(1), decision(1, allowed=False, reason_code="client_gone"), ended(1)],
        [decision(1), ended(1), decision(1, allowed=False, reason_code="client_gone")],
        [decision(1), decision(1, allowed=False, reason_code="deadline")],
        [decision(1), access(1, allowed=False), decision(1, allowed=False, reason_code="deadline")],
    ],
    ids=["denied, entry lost", "rejected", "unanswered", "unanswered, early", "dry run",
         "client gone", "client gone late", "deadline", "deadline late"],
)  # fmt: skip
def test_no_false_alarm(records):
    """What lets nobody at anything is no gap, and each decision counts once."""
    found, tally = gaps(*records)
    assert found == {}
    assert tally.decisions == len({r["decision_id"] for r in records if r["kind"] == "decision"})


def test_within_the_grace_time_nothing_is_a_gap():
    """What is only just unmatched is pending."""
    reconciler = Reconciler()
    reconciler.add(decision(1))
    reconciler.add(access(2))
    tally = finished(reconciler)
    assert (tally.pending, tally.gaps) == (2, {})


def test_memory_follows_what_is_under_way():
    """What has met is forgotten after the grace time, however long the log."""
    reconciler = Reconciler()
    for number in range(5000):
        at = number * SECOND
        reconciler.add(decision(number, at=at))
        reconciler.add(access(number, at=at))
        reconciler.add(ended(f"x{number}", sealed_at=at))
    held = [reconciler._decided, reconciler._accessed, reconciler._asked, reconciler._settled,
            reconciler._ended]  # fmt: skip
    assert sum(map(len, held)) < 200


def test_a_dry_run_as_it_is_recorded():
    """A denial in dry-run leaves `enforced` out of the leaf, and is no gap when it is reached."""
    record = decision(1, allowed=False, enforced=False)
    found, _ = gaps(
        orjson.loads(canonical(record)),
        orjson.loads(canonical(access(1, allowed=False, enforced=False, upstream="10.0.0.1:80"))),
    )
    assert found == {}


def test_an_access_that_repeats_nothing():
    """Where something went wrong with the decision, its id alone comes back: that contradicts
    nothing."""
    bare = {"kind": "access", "decision_id": "d1"}
    assert gaps(decision(1, allowed=False, reason_code="internal_error"), bare)[0] == {}
    assert gaps(decision(1), bare)[0] == {"disagrees": 1}


def test_what_the_access_leaves_out_excuses_nothing():
    """A denial that was to be enforced and was reached is a gap, whatever the access repeats."""
    bare = {"kind": "access", "decision_id": "d1", "upstream": "10.0.0.1:80"}
    assert gaps(decision(1, allowed=False), bare)[0] == {"denied_but_reached": 1}


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_repeated_request_ids(seed, pairs, unanswered, rejected):
    """Clients can repeat a request id; in whatever order things arrive, each is counted as what it
    was, and no gap is made of it."""
    random = Random(seed)
    records = []
    for number in range(pairs):
        records += [decision(number, request_id="r"), access(number, request_id="r")]
    for number in range(pairs, pairs + unanswered):
        records += [decision(number, request_id="r"), ended(number, request_id="r")]
    records += [ended(f"x{number}", request_id="r") for number in range(rejected)]
    random.shuffle(records)
    found, tally = gaps(*records)
    assert found == {}
    assert (tally.matched, tally.unanswered) == (pairs, unanswered)
    assert tally.rejected_by_envoy == rejected + 1  # and the late one
    assert (tally.decisions, tally.accesses) == (
        pairs + unanswered,
        len(records) - tally.decisions + 1,
    )


def test_request_ids_are_forgotten():
    """Also when the access carries another request id, or none, nothing is left of a pair."""
    reconciler = Reconciler()
    for number in range(1000):
        at = number * SECOND
        reconciler.add(decision(number, at=at))
        reconciler.add(access(number, at=at, request_id="" if number % 2 else f"x{number}"))
    assert len(reconciler._asked) == 0
    assert len(reconciler._decided) == 0


@given(st.integers(0, 2**32))
def test_any_order_of_anything(seed):
    """The count does not depend on the order in which the accounts arrive."""
    random = Random(seed)
    records = []
    for number in range(random.randint(1, 6)):
        ids = {"request_id": f"r{random.randint(0, 2)}"}
        allowed = random.random() < 0.6
        records += random.sample(
            [
                decision(number, allowed=allowed, **ids),
                access(number, allowed=random.random() < 0.6, **ids),
                ended(number, **ids),
                ended(number, upstream="10.0.0.1:80", **ids),
            ],
            random.randint(1, 4),
        )

    def counted():
        random.shuffle(records)
        found, tally = gaps(*records)
        found.pop("no_access", None)  # which of several of one id was unanswered, nobody can say
        return found, tally.decisions, tally.allowed, tally.accesses, tally.matched

    assert counted() == counted()
