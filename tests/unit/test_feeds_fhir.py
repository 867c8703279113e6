"""Reasons to look in FHIR resources: who, whose chart, and when."""

from datetime import UTC, datetime

import pytest

from authz.detect.feeds import FOREVER
from authz.errors import UsageError
from authz.feeds.fhir import Reader

PATIENT = {"reference": "Patient/p-1"}
ALDER = {"reference": "Practitioner/dr.alder"}
ELM = {"reference": "https://fhir.example/r4/Practitioner/dr.elm/_history/3"}


def us(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


def read(resource, **tables):
    """The reasons of one resource, and what of it gave none."""
    reader = Reader(**tables)
    found = [tuple(one) for one in reader.read(resource, "here")]
    return found, dict(reader.skipped)


def team(**more):
    member = {"member": ALDER} | more.pop("participant", {})
    resource = {"resourceType": "CareTeam", "subject": PATIENT, "status": "active"}
    return resource | {"participant": [member]} | more


def test_care_team():
    """Its members, for its time or their own; without one it is a reason at any time."""
    assert read(team()) == ([("care_team", "dr.alder", "p-1", (0, FOREVER))], {})
    march = {"start": "2026-03-01T08:00:00+01:00", "end": "2026-03-31"}
    [(*_, interval)], _ = read(team(period=march))
    assert interval == (us("2026-03-01T07:00"), us("2026-04-01T00:00") - 1)
    [(*_, interval)], _ = read(team(period=march, participant={"period": {"start": "2026-03-05"}}))
    assert interval == (us("2026-03-05T00:00"), FOREVER)
    found, skipped = read(team(status="inactive"))
    assert found == []
    assert skipped == {("care_team", "status inactive, without an end"): 1}
    assert read(team(status="inactive", period=march))[0]
    assert read(team(status="entered-in-error"))[0] == []


def test_appointment():
    """All people of it have a reason for all patients of it, unless it did not come about."""
    meeting = {
        "resourceType": "Appointment", "status": "booked", "start": "2026-03-01T09:00:00Z",
        "end": "2026-03-01T09:30:00Z",
        "participant": [
            {"actor": PATIENT, "status": "accepted"}, {"actor": ALDER, "status": "accepted"},
            {"actor": ELM, "status": "tentative"}, {"actor": {"reference": "Patient/p-2"}},
            {"actor": {"reference": "Practitioner/dr.rowan"}, "status": "declined"},
            {"actor": {"reference": "Location/room-1"}}, {"type": []},
        ],
    }  # fmt: skip
    found, skipped = read(meeting)
    when = (us("2026-03-01T09:00"), us("2026-03-01T09:30"))
    people, patients = ("dr.alder", "dr.elm"), ("p-1", "p-2")
    assert found == [("appointments", who, whose, when) for who in people for whose in patients]
    assert skipped == {}
    assert read(meeting | {"status": "cancelled"})[0] == []
    assert read(meeting | {"start": None})[1] == {("appointments", "without a start"): 1}


def test_encounter_and_census():
    """Whoever takes part, for their part of it; and the department of each place, for the time
    there."""
    stay = {
        "resourceType": "Encounter", "status": "in-progress", "subject": PATIENT,
        "period": {"start": "2026-03-01"},
        "participant": [{"individual": ALDER, "period": {"start": "2026-03-02"}}, {"actor": ELM}],
        "location": [
            {"location": {"reference": "Location/w3"}, "period": {"end": "2026-03-04T00:00:00Z"}},
            {"location": {"reference": "Location/w4"}},
        ],
    }  # fmt: skip
    found, _ = read(stay)
    first = us("2026-03-01T00:00")
    assert found == [
        ("encounters", "dr.alder", "p-1", (us("2026-03-02T00:00"), FOREVER)),
        ("encounters", "dr.elm", "p-1", (first, FOREVER)),
        ("census", "w3", "p-1", (0, us("2026-03-04T00:00"))),
        ("census", "w4", "p-1", (first, FOREVER)),
    ]
    found, skipped = read(stay, locations={"Location/w3": "ward 3"})
    assert [one[1] for one in found if one[0] == "census"] == ["ward 3"]
    assert sum(skipped.values()) == 1


def test_service_request():
    """Who asked and who performs, from when it was written until when it is to be done."""
    order = {
        "resourceType": "ServiceRequest", "status": "active", "subject": PATIENT,
        "authoredOn": "2026-03-01", "requester": ALDER, "performer": [ELM],
    }  # fmt: skip
    begin = us("2026-03-01T00:00")
    assert [one[3] for one in read(order)[0]] == [(begin, begin)] * 2
    done = order | {"occurrenceDateTime": "2026-03"}
    assert [one[3] for one in read(done)[0]] == [(begin, us("2026-04-01T00:00") - 1)] * 2
    period = order | {"occurrencePeriod": {"start": "2026-03-03", "end": "2026-03-04T12:00:00Z"}}
    assert [one[3] for one in read(period)[0]] == [(begin, us("2026-03-04T12:00"))] * 2
    assert read(order | {"authoredOn": None})[1] == {("orders", "without a time"): 1}


def test_who_a_practitioner_is():
    """By the operator's table, by id or type and id; whoever is not in it is counted, nobody is
    guessed. Without a table only a Practitioner is known by its id."""
    role = team(participant={"member": {"reference": "PractitionerRole/r-7"}})
    assert read(role)[0] == []
    assert read(role, practitioners={"PractitionerRole/r-7": "n.reed"})[0][0][1] == "n.reed"
    assert read(team(), practitioners={"dr.alder": "a.alder"})[0][0][1] == "a.alder"
    found, skipped = read(team(), practitioners={"x": "y"})
    assert (found, list(skipped.values())) == ([], [1])
    numbered = {"type": "Practitioner", "identifier": {"system": "urn:npi", "value": "100"}}
    member = team(participant={"member": numbered})
    assert read(member, practitioners={"100": "dr.ash"})[0][0][1] == "dr.ash"


@pytest.mark.parametrize(
    "subject",
    [{"reference": "Group/g"}, {"reference": "urn:uuid:7"}, {"display": "somebody"}, None],
)
def test_patients_are_known_by_id_alone(subject):
    """What leads to no patient by id gives no reason, and is counted."""
    found, skipped = read(team(subject=subject))
    assert (found, skipped) == ([], {("care_team", "without a patient"): 1})


@pytest.mark.parametrize(
    ("resource", "told"),
    [
        (team(period={"start": "p-secret"}), r"CareTeam.period.start: no FHIR dateTime"),
        (team(subject=["p-secret"]), r"CareTeam.subject: want an object"),
        (team(subject={"reference": 7}), r"CareTeam.subject.reference: want a text"),
        (team() | {"participant": {"p-secret": 1}}, r"CareTeam.participant: want an array"),
        (team() | {"participant": ["p-secret"]}, r"CareTeam.participant\[0\]: want an object"),
    ],
)
def test_what_is_wrong_is_named(resource, told):
    """The resource and the element, and nothing of what stands there."""
    with pytest.raises(UsageError, match=rf"^here: {told}") as caught:
        read(resource)
    assert "p-secret" not in str(caught.value)


def test_other_resources_are_passed_over():
    """What a search includes beside is nothing to it."""
    assert read({"resourceType": "Practitioner", "id": "x"}) == ([], {})
