"""Each rule finds what it is for, says so, and is silent where nothing is unusual."""

from typing import Any

import pytest

from authz.detect.detector import Finding
from authz.detect.feeds import Chart, Feeds, Known
from authz.detect.suspicion import World
from authz.places import Place
from authz.record import Record
from tests.detected import HOUR_US, access, detector, explained, found, ward, working_day

PEOPLE, DAYS = 40, 35


def told(
    records: list[Record], feeds: Feeds | None = None, world: World | None = None
) -> dict[str, Finding]:
    """By rule, the first finding about what follows `ward`, which gives none to act on itself."""
    feeds = feeds or explained(PEOPLE, DAYS)
    watcher = detector(feeds, world)
    before = found(watcher, ward(PEOPLE, DAYS))
    assert not [finding for finding in before if finding.lane == "act"]
    first: dict[str, Finding] = {}
    for finding in found(watcher, records):
        first.setdefault(finding.rule, finding)
    return first


def with_reasons(records: list[Record]) -> Feeds:
    """The ward's feeds, and a reason for each of these."""
    feeds = explained(PEOPLE, DAYS)
    for record in records:
        for patient in record.get("patients", ()):  # type: ignore[union-attr]
            feeds.add_reason(str(record["subject"]), patient, 0, 2**62, "order")
    return feeds


def test_bulk_read() -> None:
    """Ten times as many charts as usual are told while they are read, though each is explained."""
    records = [access("n.003", DAYS, 9 + n / 60, f"b-{n}") for n in range(100)]
    findings = told(records, with_reasons(records))
    # One of the rules that see it tells it.
    [rule] = findings.keys() & {"bulk_read", "fast_read"}
    finding = findings[rule]
    assert finding.subject == "n.003"
    assert finding.time < int(records[60]["time"])  # type: ignore[call-overload]
    assert "different patients" in finding.evidence
    assert "Usual for this person" in finding.evidence
    assert set(finding.records) <= {record["decision_id"] for record in records}


def test_unexplained() -> None:
    """A few charts that nothing explains tell more than many that something does."""
    records = [access("n.004", DAYS, 9 + n / 10, f"u-{n}") for n in range(6)]
    assert told(records)["unexplained"].records
    assert "unexplained" not in told(records, with_reasons(records))


def test_slow_read() -> None:
    """Half as much again, each day for four weeks, of which no day is unusual by itself."""
    records = [record for day in range(DAYS, DAYS + 28) for record in working_day("n.005", day, 14)]
    assert "slow_read" in told(records, with_reasons(records))


@pytest.mark.parametrize(
    ("known", "chart", "says"),
    [
        (Known(household="h9"), Chart(household="h9"), "same household"),
        (Known(surname="aspen"), Chart(surname="aspen"), "same surname"),
        (Known(), Chart(vip=True), "VIP list"),
    ],
)
def test_relations(known: Known, chart: Chart, says: str) -> None:
    """One record of somebody one may be curious about, where nothing explains it."""
    feeds = explained(PEOPLE, DAYS)
    for number in range(5_000):
        feeds.add_patient(f"other-{number}", Chart(f"name-{number}", f"house-{number}"))
    feeds.add_person("n.006", known)
    feeds.add_patient("p-them", chart)
    records = [*working_day("n.006", DAYS, 5), access("n.006", DAYS, 16.5, "p-them")]
    for record in records[:5]:
        feeds.add_reason("n.006", record["patients"][0], 0, 2**62, "order")  # type: ignore[index]
    finding = told(records, feeds)["relation"]
    assert says in finding.evidence
    assert finding.records == (records[-1]["decision_id"],)
    feeds.add_reason("n.006", "p-them", 0, 2**62, "appointment")
    assert "relation" not in told(records, feeds)


@pytest.mark.parametrize("until", [0, 1_769_000_000_000_000])
def test_terminated(until: int) -> None:
    """Somebody who has left, told at their first request, whether or not it is known since when."""
    feeds = explained(PEOPLE, DAYS)
    feeds.add_person("n.999", Known(gone=True, until=until))
    finding = told([access("n.999", DAYS, 10, "p-1", allowed=False, status=403)], feeds)[
        "terminated"
    ]
    assert finding.lane == "act"


def test_who_left_later_is_no_finding_before() -> None:
    """The status of today says nothing about the weeks in which they worked."""
    feeds = explained(PEOPLE, DAYS)
    feeds.add_person("n.007", Known(gone=True))
    assert "terminated" not in told([], feeds)
    late = [access("n.007", DAYS + 9, 10, "p-1")]
    assert told(late, feeds)["terminated"].subject == "n.007"


def test_elsewhere_at_night() -> None:
    """A country and an hour where this person never was."""
    records = [
        access("n.008", DAYS, 2.5 + n / 60, f"e-{n}", source_ip="203.0.113.9", country="BR")
        for n in range(3)
    ]
    findings = told(records)
    place = findings.get("new_place") or findings["combination"]
    assert "from BR for the first time" in place.evidence


def test_impossible_travel() -> None:
    """Two cities an hour apart; not if one of the addresses is a VPN's."""
    cities = {
        "198.51.100.1": Place(52.5, 13.4, 20, "DE"),
        "203.0.113.9": Place(-23.5, -46.6, 50, "BR"),
    }
    records = [
        access("n.009", DAYS, 9, source_ip="198.51.100.1"),
        access("n.009", DAYS, 10, source_ip="203.0.113.9"),
    ]
    finding = told(records, world=World(place=cities.get))["impossible_travel"]
    assert finding.records == tuple(record["decision_id"] for record in records)
    vpn = World(place=cities.get, shared=lambda address: address == "203.0.113.9")
    assert "impossible_travel" not in told(records, world=vpn)


def test_denials_and_failed_authentications() -> None:
    """A burst of each; what names nobody is told by the address that Envoy saw."""
    denied = [access("n.010", DAYS, 9 + n / 100, allowed=False, status=403) for n in range(30)]
    assert told(denied)["denials"].subject == "n.010"
    failed: list[Record] = [
        {
            "kind": "access", "time": int(denied[0]["time"]) + n * 1_000_000, "status": 401,  # type: ignore[call-overload]
            "response_details": "jwt_authn_access_denied{Jwt_verification_fails}",
            "source_ip": "192.0.2.44", "origin": "a/b", "index": 10_000 + n,
        }
        for n in range(30)
    ]  # fmt: skip
    watcher = detector()
    findings = found(watcher, failed)
    assert [(one.rule, one.subject, one.address) for one in findings] == [
        ("failed_authentications", "", "192.0.2.44")
    ]
    assert findings[0].records[0] == "a/b@10000"


def test_a_program_that_drifts() -> None:
    """A service account on a path that it never used."""
    feeds = explained(PEOPLE, DAYS)
    watcher = detector(feeds)
    usual = [
        access("svc.lab", day, hour, path="/Observation", roles=["service"])
        for day in range(20)
        for hour in range(24)
    ]
    assert not found(watcher, usual)
    [finding] = found(watcher, [access("svc.lab", 20, 3, path="/Patient", roles=["service"])])
    assert finding.rule == "service_drift"
    assert "/Patient" in finding.evidence


def test_a_request_counts_once() -> None:
    """A decision, its access and its disclosures are one request."""
    watcher = detector()
    for n in range(5):
        one: dict[str, Any] = access("n.011", 0, 9 + n, f"p-{n}", decision_id=f"d-{n}")
        watcher.add({**one, "kind": "decision"})
        watcher.add(one)
        watcher.add(
            {
                "kind": "disclosure",
                "decision_id": f"d-{n}",
                "subject": "n.011",
                "time": one["time"],
                "patients": [f"q-{n}"],
            }
        )
    day = watcher.memory.people["n.011"].day
    assert day is not None
    assert day.counts[:2] == [5, 10]


def test_a_told_time_that_cannot_be_is_not_believed() -> None:
    """A forged time moves no day: the log's own stands in."""
    watcher = detector()
    watcher.add(access("n.012", 0, 9))
    forged = access("n.012", 4000, 9)
    watcher.add(forged | {"sealed_at": int(access("n.012", 0, 10)["time"])})  # type: ignore[call-overload]
    day = watcher.memory.people["n.012"].day
    assert day is not None
    assert day.counts[0] == 2
    assert watcher.memory.date * 24 * HOUR_US <= int(access("n.012", 1, 0)["time"])  # type: ignore[call-overload]
