"""AuditEvents: by FHIR's own model, and by IHE's profiles."""

import base64
import json
import re
from pathlib import Path

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from hostile import RECORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.record import FIELD
from authz.report.exports.events import audit_events, outcome

PROFILES = json.loads(
    (Path(__file__).parents[1] / "vectors" / "balp" / "profiles.json").read_text()
)
BALP = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
TOKENS = ["0a1b2c3d.first", "0a1b2c3d.second"]
ACCESS = {
    "kind": "access", "origin": "site/receiver", "index": 17, "sealed_at": 1_700_000_001_000_000,
    "time": 1_700_000_000_000_001, "duration_us": 25_000, "writer": "envoy:sidecar-1",
    "subject": "dr.alder", "roles": ["physician"], "tenant": "lakeside", "purpose": "TREAT",
    "reason": "physician on the care team", "reason_code": "allowed", "decision_id": "d1",
    "allowed": True, "enforced": True, "policy_revision": "ab" * 32, "method": "GET",
    "host": "ehr.example", "path": "/fhir/Patient/{id}", "resource_type": "Patient",
    "resource_id": TOKENS[0], "patients": TOKENS[:1], "action": "R", "source_ip": "192.0.2.7",
    "user_agent": "curl/8", "status": 200, "request_id": "r-1", "principal": "spiffe://site/portal",
}  # fmt: skip
REQUESTS = {
    "Read": ("GET", "/fhir/Observation/{id}", "R", "read"),
    "Query": ("GET", "/fhir/Observation", "E", "search"),
    "Create": ("POST", "/fhir/Observation", "C", "create"),
    "Update": ("PUT", "/fhir/Observation/{id}", "U", "update"),
    "Delete": ("DELETE", "/fhir/Observation/{id}", "D", "delete"),
}


def access(**values):
    """One with other values; those that are None are left out."""
    told = {**ACCESS, **values}
    return {name: value for name, value in told.items() if value is not None}


def checked(record):
    """The record's events, each held against FHIR's model, and the profiles that it claims."""
    events = [json.loads(json.dumps(event)) for event in audit_events(record)]
    for event in events:
        AuditEvent.model_validate(event)
        assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", event["id"])
        for profile in event.get("meta", {}).get("profile", ()):
            assert list(misses(event, profile)) == []
    return events


def misses(event, profile):
    """What `event` has not that the profile wants, by the table of these."""
    wanted = PROFILES[profile]
    if "with" in wanted:
        yield from misses(event, wanted["with"])
    yield from _values(event, wanted, "event")
    if subtypes := wanted.get("subtype"):
        found = [one for one in event.get("subtype", ()) if _code(one) in subtypes]
        if len(found) != 1:
            yield "subtype"
    for part, codes in (("agent", _type_of_agent), ("entity", lambda one: _code(one["type"]))):
        slices = wanted.get({"agent": "agents", "entity": "entities"}[part], {})
        there = event.get(part, [])
        if len(there) < wanted.get({"agent": "agents_min", "entity": "entities_min"}[part], 0):
            yield f"too few of {part}"
        for name, slice_ in slices.items():
            found = [one for one in there if codes(one) in slice_["type"]]
            if not slice_["min"] <= len(found) <= slice_["max"]:
                yield f"{len(found)} of {part}:{name}"
            for one in found:
                yield from _values(one, slice_, f"{part}:{name}")
                roles = slice_.get("role")
                if roles and "role" in one and _code(one["role"]) not in roles:
                    yield f"{part}:{name}.role"


def _values(one, wanted, where):
    for path in wanted.get("must", ()):
        if _at(one, path) in (None, "", [], {}):
            yield f"{where}.{path}"
    for path in wanted.get("never", ()):
        if _at(one, path) is not None:
            yield f"{where}.{path} is there"
    for path, value in wanted.get("fixed", {}).items():
        if _at(one, path) != value:
            yield f"{where}.{path} is not {value}"
    for path, codes in wanted.get("coding", {}).items():
        if _code(_at(one, path)) not in codes:
            yield f"{where}.{path}"


def _at(one, path):
    for name in path.split("."):
        one = (one or {}).get(name)
    return one


def _code(coding):
    return [coding.get("system"), coding.get("code")]


def _type_of_agent(agent):
    return _code(agent["type"]["coding"][0])


@pytest.mark.parametrize("patients", [[], TOKENS[:1], TOKENS])
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_follow_their_profile(name, patients):
    """A request that succeeded has all that IHE's profile of it demands and claims that one; each
    patient has an event."""
    method, path, action, interaction = REQUESTS[name]
    told = {"method": method, "path": path, "action": action, "resource_type": "Observation"}
    has_id = {"resource_id": "o-1"} if "{id}" in path else {"resource_id": None}
    events = checked(access(**told, **has_id, patients=patients or None))
    whose = "Patient" if patients else ""
    assert [event["meta"]["profile"] for event in events] == [[f"{BALP}{whose}{name}"]] * max(
        len(patients), 1
    )
    for event, patient in zip(events, patients, strict=False):
        [what] = [
            one["what"]["identifier"] for one in event["entity"] if one["type"]["code"] == "1"
        ]
        assert what == {"system": "urn:authz:patient-token", "value": patient}
        assert event["subtype"][0]["code"] == interaction
    assert len({event["id"] for event in events}) == len(events)


def test_the_role_decision_is_in_the_event():
    """Roles, purpose, the policy and its words are those of the decision; broken glass is told as
    a purpose too."""
    [event] = checked(access(break_glass=True, purpose="ETREAT"))
    [user] = [agent for agent in event["agent"] if agent["requestor"]]
    assert user["role"] == [{"text": "physician"}]
    assert user["purposeOfUse"] == event["purposeOfEvent"]
    assert user["policy"] == [f"urn:authz:policy:{'ab' * 32}"]
    assert [one["coding"][0]["code"] for one in event["purposeOfEvent"]] == ["ETREAT", "BTG"]
    assert event["outcomeDesc"] == "allowed: physician on the care team"
    assert event["period"] == {
        "start": "2023-11-14T22:13:20.000001Z", "end": "2023-11-14T22:13:20.025001Z"
    }  # fmt: skip
    assert event["recorded"] == "2023-11-14T22:13:21.000000Z"


def test_decisions_claim_no_consent():
    """A decision is an authorization by roles, of no profile: BALP's is about consents."""
    decision = {**ACCESS, "kind": "decision", "writer": "ext-authz-1", "status": 0}
    [event] = checked(decision)
    assert "meta" not in event
    assert event["subtype"] == [
        {
            "system": "https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType",
            "code": "AuthZ-Role",
        }
    ]
    assert event["outcome"] == "0"
    denial = {**decision, "allowed": False, "status": 403, "reason_code": "denied"}
    for enforced in (True, False):
        [denied] = checked({**denial, "enforced": enforced})
        assert denied["outcome"] == "8"


@pytest.mark.parametrize(
    ("values", "code"),
    [({}, "0"), ({"status": 304}, "0"), ({"status": 404}, "4"), ({"status": 500}, "8"),
     ({"status": None}, "8"), ({"allowed": None, "status": 403}, "8"),
     ({"allowed": None, "enforced": None, "status": 200}, "0"),  # a dry run: it was let through
     ({"allowed": None, "enforced": None, "status": 401, "decision_id": None}, "4"),
     ({"kind": "disclosure", "allowed": None, "enforced": None}, "0"),
     ({"kind": "disclosure", "allowed": None, "enforced": None, "reason_code": "held_back"}, "8")],
)  # fmt: skip
def test_outcomes(values, code):
    """What became of a request, by the decision and the answer; only success claims a profile."""
    record = access(**values)
    assert outcome(record) == code
    assert all(("meta" in event) == (code == "0") for event in checked(record))


def test_led_elsewhere():
    """An answer that leads elsewhere is no read."""
    [event] = checked(access(status=302))
    assert event["outcome"] == "0"
    assert "meta" not in event


def test_a_purpose_that_is_none_of_the_codes():
    """A code is told as one, however it is written, and other words as text."""
    [event] = checked(access(purpose=" treat"))
    assert [one["coding"][0]["code"] for one in event["purposeOfEvent"]] == ["TREAT"]
    [event] = checked(access(purpose="patient care", break_glass=True))
    assert event["purposeOfEvent"][0] == {"text": "patient care"}
    assert event["purposeOfEvent"][1]["coding"][0]["code"] == "BTG"


OF_NONE = [
    {"path": "/api/notes/{id}", "resource_type": "DocumentReference"},  # a policy says so
    {"method": "PUT", "path": "/{}/{}", "action": "U"},
    {"method": "OPTIONS"},
    {"method": "POST", "action": "C"},
    {"method": "POST", "path": "/fhir/Patient/{id}/Observation", "action": "C"},
    {"method": "DELETE", "path": "/fhir/Patient/{id}/_history/{}", "action": "D"},
    {"path": None, "method": None, "action": "E"},
    {"path": None, "method": None, "action": "C"},
]


@pytest.mark.parametrize("values", OF_NONE)
def test_what_only_looks_like_an_interaction(values):
    """By its type or its action alone a request is none of FHIR's."""
    for kind in ("access", "disclosure"):
        for event in checked(access(**values, kind=kind, status=200)):
            assert "meta" not in event


@pytest.mark.parametrize(
    ("values", "subtype"),
    [({"method": "PATCH", "action": "U"}, "patch"),
     ({"path": "/fhir/Patient/{id}/_history/{}"}, "vread"),
     ({"path": "/fhir/Patient/{id}/Observation"}, "search-type"),
     ({"method": "POST", "path": "/fhir/Patient/_search", "action": "E"}, "search"),
     ({"method": "PUT", "path": "/fhir/Patient", "action": "U"}, "update"),
     ({"method": "PURGE", "path": "/fhir/Patient", "action": "E"}, ""),
     ({"path": "/fhir/Patient/{id}/_history"}, "history"),
     ({"path": "/fhir/Patient/{id}/$everything", "action": "E"}, "operation"),
     ({"path": "/fhir/metadata", "resource_type": None}, "capabilities"),
     ({"path": "/api/charts/{patient}", "resource_type": None}, "")],
)  # fmt: skip
def test_interactions(values, subtype):
    """FHIR's interactions are told by their names, and what BALP has no pattern for claims none."""
    [event] = checked(access(**values))
    assert event.get("subtype", [{"code": ""}])[0]["code"] == subtype
    patterned = ("patch", "vread", "search-type", "search", "update")
    assert ("meta" in event) == (subtype in patterned)
    if subtype in ("search", "search-type"):
        assert event["action"] == "E"
        assert [one["role"]["code"] for one in event["entity"] if "query" in one] == ["24"]


def test_a_question_without_its_values():
    """A search tells what was asked for, as it is recorded."""
    told = {"method": "GET", "path": "/fhir/Observation", "action": "E", "resource_id": None}
    [event] = checked(access(**told, resource_type="Observation", patients=None))
    [query] = [one["query"] for one in event["entity"] if "query" in one]
    assert base64.b64decode(query) == b"GET /fhir/Observation"


def test_an_answer():
    """A disclosure, which knows neither address nor method, has an event for each patient whose
    data the answer held."""
    told = {
        "kind": "disclosure", "origin": "site/receiver", "index": 18, "sealed_at": 5, "time": 4,
        "decision_id": "d1", "subject": "dr.alder", "roles": ["physician"], "status": 200,
        "path": "/fhir/Observation", "action": "E", "patients": TOKENS, "complete": True,
        "details": '{"part":1}', "writer": "ext-authz-1",
    }  # fmt: skip
    events = checked(told)
    assert [event["meta"]["profile"] for event in events] == [[f"{BALP}PatientQuery"]] * 2


def test_findings_looks_and_notices():
    """What is no request is told too, of no profile: a finding with whom it is about, a look with
    who looked, a notice with what it says."""
    about = {"origin": "site/receiver", "index": 3, "sealed_at": 9, "time": 8}
    [finding] = checked({
        **about, "kind": "finding", "event": "raised", "rule": "denials", "subject": "n.hazel",
        "evidence": "12 denials", "records": ["site/receiver@1"], "writer": "watch-1",
    })  # fmt: skip
    assert finding["type"]["code"] == "110113"
    assert finding["outcomeDesc"] == "12 denials"
    looked = {**about, "kind": "notice", "event": "look", "subject": "officer", "patients": TOKENS}
    assert [event["type"]["code"] for event in checked(looked)] == ["110101"] * 2
    [gap] = checked({**about, "kind": "notice", "event": "gap", "details": '{"count":1}'})
    assert (gap["type"]["code"], gap["subtype"][0]["code"]) == ("110100", "gap")


_PATHS = st.lists(
    st.sampled_from(["fhir", "Patient", "Observation", "{id}", "{}", "_history", "_search", "x"]),
    max_size=4,
).map(lambda segments: "/" + "/".join(segments))
ASKED = st.fixed_dictionaries({
    "path": _PATHS, "action": st.sampled_from([*"CRUDE", ""]),
    "method": st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", ""]),
    "status": st.sampled_from([200, 201, 204, 302, 304, 404, 500, 0]),
    "resource_type": st.sampled_from(["Patient", "Observation", "chart", ""]),
})  # fmt: skip


@settings(max_examples=150)
@given(RECORDS, st.one_of(st.just({}), ASKED))
def test_any_record(record, asked):
    """Whatever a record holds, its events are FHIR, and have what the profiles that they claim
    demand."""
    record = {**record, **asked, "patients": record.get("patients", [])[:3]}
    for kind in ("access", "decision", "disclosure", "finding", "notice"):
        for event in checked({**record, "kind": kind}):
            assert event["entity"]
    assert FIELD  # every field may be there
