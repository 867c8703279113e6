"""Who saw a patient, on a real ClickHouse: by request and by answer, folded and counted."""

import random
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.record import notice
from authz.record.privacy import PrivacyKey
from authz.report import look_up
from authz.report.looks import look_notice
from authz.report.lookup import look_up_with_days
from authz.store import lookups, rows, timelines
from authz.store.client import connect
from authz.store.lookups import Window

KEY = PrivacyKey.of(bytes(range(32)))
OLD = PrivacyKey.of(bytes(32))
HOUR = 3_600_000_000
NOON = 1_795_000_000_000_000


def tokens(*identifiers, keys=(KEY,)):
    """What `look_up` takes."""
    return [[key.token(one) for key in keys] for one in identifiers]


def who(subject="dr.alder", **more):
    """What a decision says, and its access and disclosure repeat."""
    return {
        "subject": subject, "roles": ["physician"], "purpose": "TREAT", "reason": "care team",
        "path": "/fhir/Patient/{id}", "action": "R", "allowed": True, "enforced": True,
    } | more  # fmt: skip


def decision(number, at=NOON, patients=(), **more):
    named = {"patients": [KEY.token(one) for one in patients]}
    said = who(**more) | {"decision_id": f"d{number:09}", "method": "GET", "source_ip": "192.0.2.7"}
    return said | {"kind": "decision", "time": at, "resource_type": "Patient"} | named


def access(number, at=NOON, patients=(), **more):
    upstream = {"upstream": "10.0.0.1:80", "status": 200, "kind": "access", "time": at + 1000}
    return decision(number, at, patients) | upstream | more


def disclosure(number, held, at=NOON, key=KEY, **more):
    """An answer that held these patients."""
    repeated = {k: v for k, v in who().items() if k not in ("allowed", "enforced")}
    own = {"kind": "disclosure", "decision_id": f"d{number:09}", "time": at + 900, "status": 200}
    own |= {"complete": not more.get("reason_code")}
    return repeated | own | {"patients": [key.token(one) for one in held]} | more


def stored(log, records):
    """`records` in ClickHouse, sealed."""
    for begin in range(0, len(records), 500):
        log.append(log.written(records[begin : begin + 500]))
        log.seal()


def test_known_by_request_and_by_answer(log):
    """A chart that was asked for, and one that was in a search's answer, are both found, once each,
    with who, when, why, what, from where, and the records that prove it."""
    stored(log, [
        decision(1, patients=["p1"]), access(1, patients=["p1"]), disclosure(1, ["p1"]),
        decision(2, NOON + HOUR, subject="dr.elm", path="/fhir/Observation"),
        access(2, NOON + HOUR), disclosure(2, ["p0", "p1"], NOON + HOUR),
        decision(3, patients=["p3"]), access(3, patients=["p3"]),
    ])  # fmt: skip
    found = look_up(log.client, tokens("p1"))
    read, search = found.requests
    assert (read.known, search.known) == (("request", "answer"), ("answer",))
    assert (read.subject, read.roles, read.purpose) == ("dr.alder", ("physician",), "TREAT")
    assert (read.time, read.reason, read.method) == (NOON, "care team", "GET")
    assert (read.source_ip, read.status) == ("192.0.2.7", 200)
    assert read.answered
    assert read.allowed
    assert (search.subject, search.path) == ("dr.elm", "/fhir/Observation")
    assert read.records == ("test/receiver/0", "test/receiver/1", "test/receiver/2")
    assert search.records == ("test/receiver/3", "test/receiver/4", "test/receiver/5")
    assert (found.total, found.people, found.denied, found.more) == (2, 2, 0, 0)
    assert (found.first, found.last) == (NOON, NOON + HOUR)
    assert look_up(log.client, tokens("p2")).requests == ()


def test_each_of_twenty_patients_finds_the_answer(log):
    """A search whose answer holds 20 patients is found by each of the 20, and by nobody else."""
    held = [f"p{n}" for n in range(20)]
    stored(log, [decision(1), access(1), disclosure(1, held), decision(2), access(2)])
    for one in held:
        [request] = look_up(log.client, tokens(one)).requests
        assert request.decision_id == "d000000001"
        assert request.known == ("answer",)
    assert not look_up(log.client, tokens("p20")).requests
    [both] = look_up(log.client, tokens("x", "p3", "p7")).requests
    assert both.patients == (2, 3)


def test_an_answer_with_many_patients(log):
    """Of a bulk export's many records only those that hold the patient prove it."""
    parts = [disclosure(1, [f"p{part}-{n}" for n in range(1000)]) for part in range(30)]
    stored(log, [decision(1), access(1), *parts])
    [request] = look_up(log.client, tokens("p17-999")).requests
    assert request.records == ("test/receiver/0", "test/receiver/1", "test/receiver/19")


def test_outcomes(log):
    """A denial shows as one; so do what was only to be denied, what nobody decided on, and what
    Envoy refused by itself."""
    no = {"allowed": False, "reason": "not on the care team"}
    nobody = {"kind": "access", "patients": [KEY.token("p")], "method": "GET"}
    stored(log, [
        decision(1, NOON, ["p"], **no), access(1, NOON, ["p"], **no, upstream="", status=403),
        decision(2, NOON + 1, ["p"], **no, enforced=False),
        access(2, NOON + 1, ["p"], **no, enforced=False),
        decision(3, NOON + 2, ["p"]),
        nobody | {"time": NOON + 3, "status": 401},
        nobody | {"time": NOON + 4, "status": 200, "upstream": "10.0.0.1:80"},
    ])  # fmt: skip
    found = look_up(log.client, tokens("p"))
    told = [(r.outcome, r.answered, r.status) for r in found.requests]
    assert told == [
        ("denied", False, 403), ("dry-run", True, 200), ("allowed", False, 0),
        ("rejected", False, 401), ("unasked", True, 200),
    ]  # fmt: skip
    assert found.requests[0].reason == "not on the care team"
    assert (found.denied, found.people) == (2, 1)
    few = look_up(log.client, tokens("p"), limit=1)
    assert (few.denied, few.people, few.total, few.more) == (2, 1, 5, 4)


def test_halves(log):
    """A decision whose access is missing, an access whose decision is, and a disclosure alone are
    each a request."""
    stored(log, [decision(1, 1, ["p"]), access(2, 2000, ["p"]), disclosure(3, ["p"], 4000)])
    found = look_up(log.client, tokens("p")).requests
    assert [request.known for request in found] == [("request",), ("request",), ("answer",)]
    assert [request.subject for request in found] == ["dr.alder"] * 3
    assert [request.answered for request in found] == [False, True, True]


def test_old_keys(log):
    """Under the new key and the old one a patient is one; a key that is not given is told."""
    old = decision(1) | {"patients": [OLD.token("p")]}
    stored(log, [old, decision(2, NOON + 1, ["p"])])
    both = look_up(log.client, tokens("p", keys=(KEY, OLD)))
    assert [request.patients for request in both.requests] == [(1,), (1,)]
    assert both.other_keys == ()
    one = look_up(log.client, tokens("p"))
    assert len(one.requests) == 1
    assert one.other_keys == (OLD.id,)


def test_what_is_no_token_hides_no_key(log):
    """Whatever stands where a token should, the keys that others are under are told."""
    wrong = [
        decision(number) | {"patients": [text]} for number, text in enumerate(("0", "0.", ".."))
    ]
    stored(log, [*wrong, decision(7) | {"patients": [OLD.token("p")]}, decision(8, NOON, ["p"])])
    log.client.execute(
        "INSERT INTO audit_log (origin, index, kind, patients)"
        " SELECT 'other', 0, 'decision', [unhex('00FF')]"
    )
    assert OLD.id in look_up(log.client, tokens("p")).other_keys


def test_newest_and_how_many_more(log):
    """The newest are shown, in order of time, and how many older ones there are is told."""
    days = list(range(250))
    random.Random(7).shuffle(days)
    records = [decision(day, NOON + day * HOUR) for day in days]
    records += [disclosure(day, ["p"], NOON + day * HOUR) for day in days]
    stored(log, records)
    found = look_up(log.client, tokens("p"), limit=150)
    assert [r.decision_id for r in found.requests] == [f"d{day:09}" for day in range(100, 250)]
    assert (found.total, found.more) == (250, 100)
    assert (found.last, found.first - NOON < HOUR) == (NOON + 249 * HOUR, True)
    assert look_up(log.client, tokens("p"), limit=250).more == 0


def test_window(log):
    """`since` is in it, `until` is not, by the receiver's clock; of a request that is in it, what
    was sealed before is shown as well."""
    stored(log, [decision(1)])
    stored(log, [access(1), disclosure(1, ["p"])])
    stored(log, [decision(2), disclosure(2, ["p"], reason_code="cut")])
    query = "SELECT index, toUnixTimestamp64Micro(sealed_at) FROM audit_log ORDER BY index"
    sealed = dict(log.client.execute(query))

    def ids(since, until):
        found = look_up(log.client, tokens("p"), Window(since, until))
        return [r.decision_id for r in found.requests], found.unresolved

    assert ids(None, None) == (["d000000001", "d000000002"], 1)
    assert ids(sealed[2], sealed[3]) == (["d000000001"], 0)
    assert ids(sealed[3], None) == (["d000000002"], 1)
    assert ids(None, sealed[2]) == ([], 0)
    [request] = look_up(log.client, tokens("p"), Window(sealed[1], sealed[3])).requests
    assert len(request.records) == 3


def test_partly_in_the_window(log):
    """A request whose decision named the patient before the window is known by both."""
    stored(log, [decision(1, patients=["p"])])
    stored(log, [access(1, patients=["p"]), disclosure(1, ["p", "q"])])
    query = "SELECT toUnixTimestamp64Micro(sealed_at) FROM audit_log WHERE index = 1"
    [(since,)] = log.client.execute(query)
    log.client.execute("ALTER TABLE audit_log DELETE WHERE kind = 'access' SETTINGS"
                       " mutations_sync = 2")  # fmt: skip
    [request] = look_up(log.client, tokens("q", "p"), Window(since, None)).requests
    assert request.known == ("request", "answer")
    assert request.patients == (1, 2)


def test_far_apart(log, database):
    """A decision that was sealed days before its answer ended is still shown with it."""
    log.append(log.written([decision(1, method="GET")]))
    log.seal()
    late = disclosure(1, ["p"]) | {
        "origin": "other/receiver", "index": 5, "sealed_at": NOON + 1000 * HOUR
    }  # fmt: skip
    import orjson

    with connect(database) as client:
        rows.insert(client, [orjson.dumps(late, option=orjson.OPT_SORT_KEYS)])
        [request] = look_up(client, tokens("p")).requests
    assert request.records == ("other/receiver/5", "test/receiver/0")
    assert request.method == "GET"


def test_doubled_rows_count_once(log):
    """A row that is there twice is one record."""
    stored(log, [decision(1, patients=["p"])])
    log.client.execute("INSERT INTO audit_log SELECT * FROM audit_log")
    found = look_up(log.client, tokens("p"))
    assert found.total == 1
    assert found.requests[0].records == ("test/receiver/0",)


def test_unresolved_counts_answers(log):
    """Answers that were not understood are counted, each once, and only they."""
    many = [disclosure(1, [f"p{n}"], reason_code="too_many") for n in range(3)]
    stored(log, [*many, disclosure(2, [], reason_code="cut"), disclosure(3, ["p0"])])
    found = look_up(log.client, tokens("p0"))
    assert (found.unresolved, found.disclosures) == (2, True)
    before = look_up(log.client, tokens("p0"), Window(None, 1))
    assert (before.unresolved, before.disclosures) == (0, False)


def test_answers_that_were_not_shown_are_unresolved(log):
    """An answer of which no disclosure came is one more of which it is not known whose data it
    held, until it comes late."""
    gap = notice("gap", NOON, {"count": 3}, rule="no_disclosure", records=["d1", "d2", "d3"])
    late = notice("gap_closed", NOON, {"count": 1}, rule="no_disclosure", records=["d1"])
    other = notice("gap", NOON, {"count": 9}, rule="no_access", records=["d4"])
    log.append([gap, late, other])
    log.seal()
    stored(log, [disclosure(2, [], reason_code="cut")])
    assert look_up(log.client, tokens("p0")).unresolved == 3


def test_a_look_is_no_request(log):
    """That somebody looked is in the log with the patient's token, and is not a request."""
    look = look_notice("lookup", "ash", "a complaint", "HCOMPL", [KEY.token("p")], NOON, {})
    stored(log, [look])
    found = look_up(log.client, tokens("p"))
    assert (found.requests, found.total) == ((), 0)
    kept = log.client.execute(
        "SELECT event, subject, reason, purpose, patients, details FROM notices"
    )
    details = '{"by":"ash","command":"lookup"}'
    assert kept == [("look", "ash", "a complaint", "HCOMPL", [KEY.token("p")], details)]


def test_bytes_that_are_no_text(log):
    """What somebody wrote into the table over text is shown escaped, and stops nothing."""
    stored(log, [decision(1, patients=["p"])])
    log.client.execute(
        "INSERT INTO audit_log (origin, index, kind, decision_id, subject, patients)"
        " SELECT 'x', 1, 'access', decision_id, unhex('ff1b'), patients FROM audit_log"
    )
    log.client.execute(
        "INSERT INTO audit_log (origin, index, kind, decision_id, subject, patients)"
        " SELECT 'x', 2, 'access', unhex('fffe'), unhex('ff1b'), patients FROM audit_log LIMIT 1"
    )
    found = look_up(log.client, tokens("p"))
    assert {request.subject for request in found.requests} == {"dr.alder", "\\xff\x1b"}


PATIENTS = ["a", "b", "c"]
FACTS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["decision", "access", "disclosure"]),
        st.sets(st.sampled_from(PATIENTS)),
    ),
    max_size=15,
)


@settings(max_examples=12,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(FACTS, st.sets(st.sampled_from(PATIENTS), min_size=1), st.integers(1, 7), st.booleans())
def test_against_a_fold_in_memory(log, facts, asked, limit, many):
    """Whatever records there are, what is found is what going over all of them by hand finds; also
    of a patient of whom there is too much to take it in at once."""
    log.client.execute("TRUNCATE TABLE audit_log")
    make = {"decision": decision, "access": access}
    records = [
        disclosure(number, sorted(held), NOON + number * HOUR) if kind == "disclosure"
        else make[kind](number, NOON + number * HOUR, sorted(held))
        for number, kind, held in facts
    ]  # fmt: skip
    if records:
        stored(log, records)
    expected: dict[int, set[str]] = {}
    for number, kind, held in facts:
        if held & asked:
            how = "answer" if kind == "disclosure" else "request"
            expected.setdefault(number, set()).add(how)
    with patch.object(lookups, "_MOST_AT_ONCE", 1 if many else 20_000):
        found, days = look_up_with_days(log.client, tokens(*sorted(asked)), Window(), limit)
    assert sum(one.requests for one in days) == len(expected)
    own = [token for [token] in tokens(*sorted(asked))]
    assert days == timelines.of_patient(log.client, own, Window())
    shown = {int(r.decision_id[1:]): set(r.known) for r in found.requests}
    assert shown == {number: expected[number] for number in sorted(expected)[-limit:]}
    assert found.total == len(expected)
    assert found.more == max(0, len(expected) - limit)


@pytest.mark.parametrize("most", [1, 20_000])
def test_totals_agree(log, most, monkeypatch):
    """The counts that the database makes, those made of all of its records, and those made of all
    that is shown are the same."""
    monkeypatch.setattr(lookups, "_MOST_AT_ONCE", most)
    random_of = random.Random(11)
    records = []
    for number in range(60):
        no = {"allowed": random_of.random() < 0.6, "subject": f"s{random_of.randrange(9)}"}
        records.append(decision(number, NOON + number, ["p"], **no))
        if random_of.random() < 0.7:
            records.append(access(number, NOON + number, ["p"], **no))
    stored(log, records)
    whole = look_up(log.client, tokens("p"))
    counted = lookups.newest(log.client, [KEY.token("p")], Window(), 5).totals
    assert (counted.requests, counted.people, counted.denied, counted.first_us) == (
        whole.total, whole.people, whole.denied, whole.first
    )  # fmt: skip
