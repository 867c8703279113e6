"""A log's account of itself: told once, whatever happens, and as a verifier counts it."""

from random import Random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.receiver.accounts import Accounts
from authz.reconcile import RECONCILED
from authz.verify.accounts import Accounts as Verified

SECOND = 1_000_000
SHOWN = {"discloses": True, "status": 200}  # a request whose answer Envoy shows
LIMITS = {"interval_seconds": 10, "grace_seconds": 5, "patience_seconds": 60}


def decision(number, *, allowed=True, **more):
    record = {"kind": "decision", "decision_id": f"d{number}", "enforced": True, "writer": "w",
              "writer_seq": 1, "request_id": f"r{number}"}  # fmt: skip
    return record | ({"allowed": True} if allowed else {}) | more


def access(number, *, allowed=True, **more):
    record = decision(number, allowed=allowed) | {"kind": "access", "writer": "envoy:e"}
    del record["writer_seq"]
    return record | ({"upstream": "10.0.0.1:80"} if allowed else {}) | more


def ended(number):
    record = access(number, allowed=False)
    del record["decision_id"]
    return record


class Database:
    """What ClickHouse would answer, from the records themselves."""

    def __init__(self, logs):
        self.logs = logs

    def search(self, decision_ids, since_us):
        ids = set(decision_ids)
        return [
            record
            for log in self.logs.values()
            for record in log
            if record["kind"] in RECONCILED and record.get("decision_id") in ids
        ]

    def newest(self, writers):
        return {}


class Log:
    """One receiver's log, told and counted as time goes on."""

    def __init__(self, origin="a", logs=None, before=()):
        """`before`: records that are older than the log's accounts."""
        self.origin = origin
        self.records = []
        self.first = 0
        self.now = 100 * SECOND
        self.logs = {} if logs is None else logs
        self.logs[origin] = self.records
        self.under_way = {}
        self.start()
        self.append(*before)
        self.first = len(before)
        self.start()

    def start(self, unstored=0):
        """As after a crash: from what the log says, and a state that is older than the last
        `unstored` summaries."""
        told = [orjson.loads(one["details"]) for one in self.notices("interval_summary")]
        # Of what is durable, the last may not have been stored when it crashed.
        accounted = max([d["end"] for d in told[: len(told) - unstored]], default=self.first)
        self.accounts = Accounts(
            self.origin, accounted, **LIMITS, under_way=self.under_way, started_us=0
        )
        carried = {one for r in self.notices("interval_summary") for one in r.get("records", [])}
        carried -= {one for r in self.notices("gap") for one in r.get("records", [])}
        ended_ = {r.get("decision_id") for r in self.records if r["kind"] == "access"}
        open_ = [r for r in self.records if r["kind"] == "decision"
                 and r["decision_id"] in carried - ended_]  # fmt: skip
        self.accounts.restore(
            [(d["first"], d["end"], d["until"], d["as_of"]) for d in told], open_, {}, ()
        )
        self.accounts.add(self.records[self.accounts.next :])

    def notices(self, event):
        return [record for record in self.records if record.get("event") == event]

    def summaries(self):
        return [(one["index"], one["details"]) for one in self.notices("interval_summary")]

    def append(self, *records):
        for told in records:
            place = {"origin": self.origin, "index": len(self.records), "sealed_at": self.now}
            self.records.append({**told, **place})
            self.accounts.add(self.records[-1:])

    def tick(self, seconds):
        self.now += int(seconds * SECOND)
        while told := self.accounts.close(self.now, Database(self.logs)):
            self.append(*told)

    def told(self):
        """Gaps and closed gaps by kind, and the sum of the summaries."""
        gaps, closed, sums = {}, {}, {}
        for record in self.records:
            details = orjson.loads(record["details"]) if "details" in record else {}
            if record.get("event") in ("gap", "gap_closed"):
                into = gaps if record["event"] == "gap" else closed
                into[record["rule"]] = into.get(record["rule"], 0) + details["count"]
            elif record.get("event") == "interval_summary":
                for name, value in details.items():
                    if isinstance(value, int):
                        sums[name] = sums.get(name, 0) + value
        return gaps, closed, sums


def verified(*logs):
    """What a verifier finds wrong with the summaries, and its own count."""
    found = Verified({log.origin: log.summaries() for log in logs}, LIMITS["grace_seconds"])
    wrong = []
    merged = sorted((r for log in logs for r in log.records), key=lambda r: r["sealed_at"])
    for record in merged:
        wrong += [(record["index"], text) for text in found.add(record, record["origin"])]
    return wrong, found.finish()


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


def disclosure(number, *, part=1, **more):
    """Of an answer's patients; in full unless `more` says why not."""
    told = {"kind": "disclosure", "decision_id": f"d{number}", "writer": "w", "writer_seq": 1,
            "details": f'{{"part":{part},"parts":2}}', **more}  # fmt: skip
    return told if "reason_code" in more else {**told, "complete": True}


def shown(random, both):
    """The same, on a route whose answers Envoy shows: some with one disclosure, some with more or
    none."""
    answers = [{**one, **SHOWN} for one in both]
    number = number_of(both)
    kind = random.random()
    told = [disclosure(number), disclosure(number, part=2)]
    if kind < 0.2:
        told = []
    elif kind < 0.4:
        told = [disclosure(number, reason_code="cut")]
    return [*answers, *told]


def disturbed(random, log, both):
    """What becomes of the two accounts of a request."""
    kind = random.random()
    if kind < 0.1:
        return both[:1]
    if kind < 0.2:
        return [both[0], ended(number_of(both)) | {"request_id": both[0]["request_id"]}]
    if kind < 0.25:
        return both[1:]
    if kind < 0.3:
        again = {**both[0], "allowed": False, "reason_code": "client_gone"}
        return [both[0], {k: v for k, v in again.items() if k != "allowed"}, both[1]]
    if kind < 0.35:
        log.under_way[both[0]["decision_id"]] = log.now
    return both


def number_of(both):
    return both[0]["decision_id"][1:]


def traffic(random, log, restarts):
    """Some time of a log's life, with every disturbance."""
    late, number = [], 0
    for _ in range(random.randint(1, 60)):
        for _ in range(random.randint(0, 4)):
            number += 1
            allowed = random.random() < 0.8
            ids = {"request_id": f"r{random.randint(0, 5)}"} if random.random() < 0.3 else {}
            both = [
                decision(number, allowed=allowed, **ids),
                access(number, allowed=allowed, **ids),
            ]
            both = disturbed(random, log, both)
            if random.random() < 0.5:
                both = shown(random, both)
            if random.random() < 0.3:
                random.shuffle(both)
            for record in both:
                if random.random() < 0.6:
                    log.append(record)
                else:
                    late.append((log.now + random.randint(0, 30) * SECOND, record))
        log.tick(random.choice((0, 0.5, 1, 3, 12)))
        for due, record in [one for one in late if one[0] <= log.now]:
            late.remove((due, record))
            log.append(record)
        if restarts and random.random() < 0.15:
            log.start(random.choice((0, 1)))
    for _, record in late:
        log.append(record)
    for _ in range(60):
        log.tick(1)


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
