"""Reports on a real ClickHouse: whom a person affected, what they did, what a review rests on."""

import time

from test_lookup import HOUR, KEY, NOON, OLD, access, decision, disclosure, stored

from authz.record import notice
from authz.report.activity import activity
from authz.report.breach import breach
from authz.report.breach import document as breach_document
from authz.report.completeness import completeness
from authz.report.looks import look_notice
from authz.report.people import Patient, identified, people
from authz.report.periodic import document as review_document
from authz.report.periodic import periodic
from authz.store import reports
from authz.store.feeds import Loading
from authz.store.lookups import EVER, Window
from authz.store.watched import DAY

NO = {"allowed": False, "reason": "not on the care team", "reason_code": "policy"}


def t(identifier, key=KEY):
    return key.token(identifier)


def test_whom_a_person_affected(log):
    """Whom answers held, and whom requests named that were not refused; nobody else's, and not what
    was denied or failed."""
    stored(log, [
        decision(1, NOON, ["p1"]), access(1, NOON, ["p1"]), disclosure(1, ["p1"], NOON),
        decision(2, NOON + 1, path="/fhir/Observation"), access(2, NOON + 1),
        disclosure(2, ["p1", "p2"], NOON + 1), disclosure(2, ["p3"], NOON + 1),
        decision(3, NOON + 2, ["p4"], **NO), access(3, NOON + 2, ["p4"], **NO, upstream=""),
        decision(4, NOON + 3, ["p5"]), access(4, NOON + 3, ["p5"], status=404),
        decision(5, NOON + 4, ["p6"]),
        decision(6, NOON + 5, ["p7"], **NO, enforced=False),
        access(6, NOON + 5, ["p7"], **NO, enforced=False),
        decision(7, NOON + 6, ["p8"], subject="dr.elm"), access(7, NOON + 6, ["p8"]),
        disclosure(8, ["p2"], NOON + 7, reason_code="cut", complete=False),
    ])  # fmt: skip
    attempts, found = reports.affected(log.client, "dr.alder", EVER)
    told = {one.token: (one.requests, one.held, one.answered) for one in found}
    assert told == {
        t("p1"): (2, 2, 2), t("p2"): (2, 2, 2), t("p3"): (1, 1, 1), t("p6"): (1, 0, 0),
        t("p7"): (1, 0, 1), t("p8"): (1, 0, 1),
    }  # fmt: skip
    assert (attempts.denied, attempts.failed, attempts.unresolved) == (1, 1, 1)
    [elm] = reports.affected(log.client, "dr.elm", EVER)[1]
    assert (elm.token, elm.first_us, elm.resource_types) == (t("p8"), NOON + 6, ("Patient",))
    assert reports.affected(log.client, "dr.elm", Window(None, 1))[1] == []


def test_affected_patients_are_named_by_the_key(log, tmp_path):
    """Each known identifier's token is computed under each key; a patient under two keys is one,
    and who is not known is counted and listed by token."""
    old = disclosure(2, ["p1"], NOON + 1, key=OLD)
    stored(log, [disclosure(1, ["p1", "p2", "p3"]), old])
    attempts, found = reports.affected(log.client, "dr.alder", EVER)
    tokens = [one.token for one in found]
    lines = tmp_path / "identifiers.txt"
    lines.write_text("p0\n\n p1 \np2\n")
    by_line = identified(tokens, [KEY, OLD], lines)
    told = breach(attempts, found, by_line)
    assert [one.patient and one.patient.identifier for one in told.concerned].count(None) == 1
    [p1] = [one for one in told.identified if one.patient.identifier == "p1"]
    assert (set(p1.tokens), p1.requests) == ({t("p1"), t("p1", OLD)}, 2)
    assert (p1.first, p1.last) == (NOON + 900, NOON + 901)
    assert [one.tokens for one in told.unidentified] == [(t("p3"),)]
    table = tmp_path / "patients.csv"
    table.write_text('vip,patient,name,address\n,p3,"Pine, P.",1 Elm Street\n')
    assert identified(tokens, [KEY], table) == {t("p3"): Patient("p3", "Pine, P.", "1 Elm Street")}
    rests_on = completeness(log.client, EVER, NOON)
    shown = str(breach_document(told, rests_on, [], "", asked=True))
    assert "Patients to notify: 2" in shown
    assert "Patients by token: 1" in shown
    assert t("p3") in shown
    assert "'p1'" not in str(
        breach_document(breach(attempts, found, {}), rests_on, [], "", asked=False)
    )


def test_what_a_person_did(log):
    """Each operation once, whatever its records; of many the newest, and how many there are."""
    stored(log, [
        decision(1, NOON, ["p1"]), access(1, NOON, ["p1"]), disclosure(1, ["p1", "p2"], NOON),
        decision(2, NOON + 1, ["p3"], **NO),
        decision(3, NOON + 2, ["p9"], subject="dr.elm"),
        disclosure(4, ["p4"], NOON + 3),
    ])  # fmt: skip
    found = activity(log.client, "dr.alder", EVER, 100)
    assert [(one.outcome, one.roles, one.reason) for one in found.requests] == [
        ("allowed", ("physician",), "care team"), ("denied", ("physician",), NO["reason"]),
        ("allowed", ("physician",), "care team"),
    ]  # fmt: skip
    [first, second, third] = [
        {found.tokens[number - 1] for number in one.patients} for one in found.requests
    ]
    assert (first, second, third) == ({t("p1"), t("p2")}, {t("p3")}, {t("p4")})
    assert (found.total, found.denied, found.more) == (3, 1, 0)
    newest = activity(log.client, "dr.alder", EVER, 1)
    assert ([one.decision_id for one in newest.requests], newest.more) == (["d000000004"], 2)
    nobody = activity(log.client, "nobody", EVER, 1)
    assert (nobody.requests, nobody.total) == ((), 0)


def test_what_a_report_rests_on(log):
    """Sizes and roots of the newest checkpoints, as they were signed; gaps that the receiver told,
    without those that closed and those that somebody else claims; answers that are not known."""

    def told(event, rule, number):  # as the receiver's own
        return notice(event, NOON, {"count": number}, rule=rule)

    log.append([told("gap", "bypass", 3), told("gap", "no_access", 2),
                told("gap_closed", "no_access", 2)])  # fmt: skip
    stored(log, [told("gap", "invented", 5), disclosure(1, [], reason_code="cut", complete=False)])
    batch = log.log.sealed
    found = completeness(log.client, EVER, NOON, ["b", "a", "", "a"], ["k"])
    [one] = found.logs
    assert (one.origin, one.size) == ("test/receiver", batch.size)
    assert found.gaps == {"bypass": 3}
    assert (found.disclosures, found.unresolved) == (True, 1)
    assert (found.policies, found.other_keys) == (("a", "b"), ("k",))


def test_people_by_feed_and_file(log, tmp_path):
    """Departments come from the feed that is loaded, names and addresses from the file."""
    assert people(log.client, ["n.reed", ""])["n.reed"].shown == "n.reed"
    loading = Loading(log.client, 4_000_000_000)
    loading.add("people", [("n.reed", "nurse", "ward 3", "", "", "", "active", 0)])
    loading.commit("me", {"people": "people.csv"})
    file = tmp_path / "people.csv"
    file.write_text("subject,name,address\nn.reed,N. Reed,2 Elm Street\nother,O.,\n")
    found = people(log.client, ["n.reed", "dr.elm"], file)
    reed = found["n.reed"]
    assert (reed.shown, reed.address) == ("N. Reed (n.reed)", "2 Elm Street")
    assert (reed.role, reed.department, reed.status) == ("nurse", "ward 3", "active")
    assert found["dr.elm"].shown == "dr.elm"
    assert sorted(found) == ["dr.elm", "n.reed"]


def test_a_periodic_review(log):
    """Counts, denials, broken glass with its review, findings and what was said, policies, the
    share that is unexplained, and who looked."""
    finding = {"kind": "finding", "event": "raised", "time": NOON, "subject": "n.hazel",
               "rule": "bulk_read", "lane": "act", "score_milli": 9000}  # fmt: skip
    glass = {"break_glass": True, "reason": "break-glass: unconscious"}
    stored(log, [
        decision(1, NOON), decision(2, NOON + HOUR, **NO), decision(3, NOON, **NO, subject="x"),
        decision(4, NOON, ["p"], **glass), decision(5, NOON, ["p"], **glass, subject="dr.elm"),
        finding, disclosure(1, ["p"]),
        notice("policy_loaded", NOON, {"revision": "ab"}) | {"policy_revision": "ab"},
        notice("policy_loaded", NOON + 1, {"revision": "ab"}) | {"policy_revision": "ab"},
        notice(DAY, NOON, {"day": 1, "date": "2026-11-01", "people": 2, "charts": 40,
                           "unexplained": 1}),
        notice(DAY, NOON, {"date": 7}),
        look_notice("lookup", "officer", "w", "", [], NOON, {}),
    ])  # fmt: skip
    said = notice("finding_explained", NOON, {"by": "officer"}, records=["test/receiver@5"])
    reviewed = notice("break_glass_reviewed", NOON, {"by": "officer", "verdict": "justified"},
                      records=["test/receiver@3"])  # fmt: skip
    stored(log, [said | {"reason": "covering for a colleague"}, reviewed | {"reason": "seen"}])
    found = periodic(log.client, EVER, time.time_ns() // 1000, 72)
    assert (found.counts.decisions, found.counts.allowed, found.counts.people) == (5, 3, 3)
    assert found.denials == [("policy", NO["reason"], 2, 2)]
    [raised] = found.findings
    assert (raised.state, raised.said[0].reason) == ("explained", "covering for a colleague")
    assert (len(found.uses), list(found.reviews), found.late) == (2, ["test/receiver@3"], 0)
    [policy] = found.policies
    assert (policy.revision, policy.first, policy.loads) == ("ab", NOON, 2)
    assert (len(found.days), found.charts, found.unexplained) == (1, 40, 1)
    assert found.looks == [("lookup", "officer", 1)]
    shown = str(review_document(found, completeness(log.client, EVER, NOON), [], "Lakeside"))
    for words in ("2.5%", "justified, by officer", "covering for a colleague", "not reviewed"):
        assert words in shown
    assert found.to_json()["findings"][0]["state"] == "explained"
