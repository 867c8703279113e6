"""The shipped policy with more of its tables filled: both engines decide alike, and each module has
the effect that docs/policy-library.md tells."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from deciding import POLICY, Embedded, decide_with_opa, input_document, run

from authz.demo.people import Request
from authz.errors import UsageError

CLOCK = POLICY.parent / "opa-clock"
JWT = "envoy.filters.http.jwt_authn"

pytestmark = pytest.mark.opa

PLAIN = [
    Request("alder", "GET", "/fhir/Patient/p-0001"),
    Request("cedar", "GET", "/fhir/Observation?patient=p-0001"),
    Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": "unconscious"}),
    Request("dogwood", "GET", "/fhir/Patient/p-0003"),
    Request("dogwood", "GET", "/fhir/Claim/clm-00001"),
    Request("maple", "GET", "/fhir/Patient/p-0042"),
    Request("elm", "GET", "/fhir/Observation"),
    Request("oak", "GET", "/fhir/Patient/p-0001"),
    Request("linden", "GET", "/fhir/metadata"),
    Request(None, "GET", "/fhir/Patient/p-0001"),
]


def asked(request, *, host="fhir.example", peer="", seconds=None, headers=(), **claims):
    """What the policy sees of a request from `peer`, at a time, with more headers and claims."""
    document = input_document(request)
    attributes = document["attributes"]
    attributes["request"]["http"]["host"] = host
    attributes["request"]["http"]["headers"] |= dict(headers)
    if peer:
        attributes["source"] = {"address": {"socketAddress": {"address": peer, "portValue": 7}}}
    if seconds is not None:
        attributes["request"]["time"] = {"seconds": seconds}
    if request.person:
        attributes["metadataContext"]["filterMetadata"][JWT]["verified_jwt"] |= claims
    return document


# Each of these fills tables, and returns what is then asked.


def with_tenants(data):
    hosts = {"lakeside": "lake.example", "hillside": "hill.example"}
    data["tenants"] = {tenant: {"hosts": [host]} for tenant, host in hosts.items()}
    data["care_teams"] = {"lakeside": {"p-0001": ["dr.alder"]}, "hillside": {"p-0001": ["dr.oak"]}}
    data["own_records"] = {"lakeside": {"portal.maple": "p-0042"}}
    others = ("LAKE.example", "lake.example:443", "")
    return [asked(request, host=host) for request in PLAIN for host in (*hosts.values(), *others)]


def with_denied(data):
    from_patients = {"p-0001": ["n.cedar"], "p-0100": ["dr.fir"], "p-0003": "b.dogwood"}
    data["denied"] = {"people": ["a.elm"], "apps": ["old"], "from_patients": from_patients}
    apps = ({}, {"azp": "old"}, {"client_id": "old"}, {"azp": ["old"]})
    return [asked(request, **app) for request in PLAIN for app in apps]


def with_denied_that_is_no_list(data):
    data["denied"] = {"people": "dr.alder", "apps": [], "from_patients": {}}
    return [asked(request) for request in PLAIN]


def with_fields(data):
    roles = data["roles"]
    roles["billing"]["fields"] = {"Patient": ["name", "id"], "Claim": []}
    roles["emergency_physician"]["fields"] = {"Patient": ["id"]}
    roles["analyst"]["fields"] = {"Observation": ["code"]}
    roles["nurse"]["form"] = ["ward"]
    queries = (
        "", "?_elements=id", "?_elements=id,name", "?_elements=id,photo", "?_elements=code",
        "?_elements=id&_elements=x", "?_elements=", "?%5Felements=photo", "?_summary=count",
        "?_summary=true", '?_elements=a"]},"allowed":true,"z":{"y":["',
    )  # fmt: skip
    paths = {
        "dogwood": "/fhir/Patient/p-0003",
        "elm": "/fhir/Observation",
        "fir": "/fhir/Patient/p-0071",
        "alder": "/fhir/Patient/p-0001",
    }
    made = [Request(who, "GET", path + query) for who, path in paths.items() for query in queries]
    return [asked(request) for request in [*made, *PLAIN]]


def with_places(data):
    data["roles"]["billing"]["from"] = ["office"]
    data["roles"]["physician"]["from"] = ["home", "nowhere"]
    data["places"] = {
        "office": {"networks": ["10.20.0.0/15", "2001:db8:7::/48", "10.9.0.0/33", "office"]},
        "home": {"countries": ["US"], "networks": ["192.0.2.128/25"]},
    }
    peers = (
        "10.20.0.1", "10.22.0.1", "192.0.2.129", "192.0.2.1", "2001:db8:7:1::9", "::1",
        "10.020.0.1", "10.20.0.1.", "office", "",
    )  # fmt: skip
    client, country = "x-envoy-external-address", "x-geo-country"
    headers = ({}, {country: "US"}, {country: "CA"}, {client: "10.21.0.9"}, {client: 'a"b'})
    ours = [request for request in PLAIN if request.person in ("alder", "dogwood", "elm")]
    asking = [*((peer, {}) for peer in peers), *(("192.0.2.1", more) for more in headers)]
    every = ((request, *each) for request in ours for each in asking)
    return [asked(request, peer=peer, headers=more) for request, peer, more in every]


def with_trusted_envoy(data):
    documents = with_places(data)
    data["trust_envoy_address"] = True
    return documents


def with_smart(data):
    data["smart"] = {"scope_claim": "scope", "patient_claim": "patient"}
    data["resources"]["Observation"]["narrowed_by"].append("category")
    scopes = (
        "openid", "user/*.read", "user/Patient.r user/Observation.s", "patient/*.rs",
        "user/Patient.write", "user/Observation.rs?category=laboratory", "user/*.cruds",
        "user/Observation.rs?category=a.b/c|laboratory", "user/Observation.sr", "user/Patient.r?x",
        "user/*.*", "", "?", "/", ".", "patient/", ["openid", "user/*.read"], [7, "user/*.read"],
        [], 7, None, {}, 'user/"', "user/\\*.read",
    )  # fmt: skip
    more = [
        Request("cedar", "GET", "/fhir/Observation?patient=p-0001&category=laboratory"),
        Request("cedar", "GET", "/fhir/Observation?patient=p-0001&category=a.b/c%7Claboratory"),
        Request("alder", "PUT", "/fhir/Patient/p-0001"),
    ]
    launches = ({}, {"patient": "p-0001"}, {"patient": "p-0042"}, {"patient": ["p-0001"]})
    every = [
        *itertools.product([*PLAIN, *more], scopes, launches[:1]),
        *itertools.product(PLAIN, ("patient/*.rs", "user/*.read"), launches[1:]),
    ]
    return [asked(request, scope=scope, **launch) for request, scope, launch in every]


MONDAY, JULY = 1_772_456_400, 1_783_339_200  # 7:00 in Chicago, in winter and in summer
SATURDAY = 1_772_920_800  # 22:00 UTC


def with_hours(data):
    data["roles"]["billing"]["hours"] = ["office", "night"]
    data["roles"]["physician"]["hours"] = ["never", "in no table"]
    weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    data["hours"] = {
        name: [{"zone": zone, "days": days, "from": begin, "until": end}]
        for name, zone, days, begin, end in (
            ("office", "America/Chicago", weekdays, "07:00", "19:00"),
            ("night", "UTC", ["Saturday"], "22:00", "24:00"),
            ("never", "UTC", [], "00:00", "24:00"),
        )
    }
    times = (
        None, MONDAY - 1, MONDAY, MONDAY + 43_199, MONDAY + 43_200, SATURDAY - 1, SATURDAY,
        SATURDAY + 7199, SATURDAY + 7200, JULY - 1, JULY,
    )  # fmt: skip
    return [asked(request, seconds=seconds) for request in PLAIN for seconds in times]


def with_everything(data):
    for switch in (with_tenants, with_denied, with_fields, with_trusted_envoy, with_smart):
        switch(data)
    hosts, addresses = ("lake.example", "hill.example"), ("10.20.0.1", "192.0.2.129")
    every = itertools.product(PLAIN, hosts, addresses, ("user/*.*", "user/Claim.r"))
    return [
        asked(request, host=host, headers={"x-envoy-external-address": address}, scope=scope)
        for request, host, address, scope in every
    ]


# Reasons that must come up, or how they begin: what the module is there for happens.
SWITCHES = {
    with_tenants: {"not of this tenant", "physician on the care team", "not on the care team"},
    with_denied: {
        "on the deny list", "the app is on the deny list", "the deny list cannot be read",
        "kept from this patient's record", "break-glass by",
    },
    with_denied_that_is_no_list: {"the deny list cannot be read"},
    with_fields: {
        "asks for fields that are not needed", "no field is needed", "no role",
        "billing may read Patient", "analyst may search Observation", "break-glass by",
    },
    with_places: {
        "billing not from here", "billing may read", "physician not from here",
        "physician on the care team",
    },
    with_trusted_envoy: {"billing not from here", "billing may read"},
    with_smart: {
        "no scope to read Patient", "no scope to search Observation", "no scope to update Patient",
        "nurse on the care team", "patient on their own record",
    },
    with_everything: {
        "no scope to read Patient", "no field is needed", "not of this tenant", "on the deny list",
        "break-glass by",
    },
}  # fmt: skip


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def fill(policy: Path, switch) -> list[dict]:
    """Fill the tables as `switch` says; returns what is then asked."""
    data = json.loads((policy / "data.json").read_text())
    documents = switch(data)
    (policy / "data.json").write_text(json.dumps(data))
    return documents


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.__name__)
def test_both_engines_decide_alike(opa: str, policy: Path, switch) -> None:
    """With a module switched on by data alone, OPA and the embedded engine agree on every decision,
    and what the module is there for happens."""
    documents = fill(policy, switch)
    theirs = decide_with_opa(opa, policy, documents)
    assert len(theirs) == len(documents)
    embedded = Embedded(policy)
    for document, decision in zip(documents, theirs, strict=True):
        assert embedded.decide(document) == decision, document
    said = Counter(decision["audit"]["reason"] for decision in theirs)
    for reason in SWITCHES[switch]:
        assert any(text.startswith(reason) for text in said), (reason, said)
    assert not any("p-0" in text for text in said), "a reason names a patient"


def test_hours_want_a_clock(opa: str, policy: Path) -> None:
    """A role with hours gives nothing without the clock, on both engines. With it, it counts when
    the hours say so, by the time of its zone; the embedded engine refuses the clock."""
    documents = fill(policy, with_hours)
    embedded = Embedded(policy)
    for decision in (decide_with_opa(opa, policy, documents), map(embedded.decide, documents)):
        said = {each["audit"]["reason"] for each in decision}
        assert {"billing not at this hour", "physician not at this hour"} <= said
        assert not any(reason.startswith("billing may") for reason in said)
    shutil.copy(CLOCK / "clock.rego", policy)
    ours = [document for document in documents if "Claim" in str(document["parsed_path"])]
    open_at = {
        document["attributes"]["request"].get("time", {}).get("seconds")
        for document, decision in zip(ours, decide_with_opa(opa, policy, ours), strict=True)
        if decision["allowed"]
    }
    assert open_at == {MONDAY, MONDAY + 43_199, SATURDAY, SATURDAY + 7199, JULY}
    with pytest.raises(UsageError, match=r"clock\.rego: time\.\w+ can end the process"):
        Embedded(policy)


@pytest.mark.parametrize("directories", [[POLICY], [POLICY, CLOCK]], ids=["alone", "with a clock"])
def test_every_line_is_reached_by_its_own_tests(opa: str, directories: list[Path]) -> None:
    """The library's own tests pass and reach all of it, with the clock and without."""
    told = run(opa, "test", "--coverage", "--format", "json", *map(str, directories))
    report = json.loads(told)
    assert [file for file, found in report["files"].items() if "not_covered" in found] == []
    assert report["coverage"] == 100


def test_the_clock_is_strict_and_formatted(opa: str) -> None:
    """`opa check --strict` finds nothing in the clock's files, nor would `opa fmt` change them."""
    run(opa, "check", "--strict", str(POLICY), str(CLOCK))
    assert run(opa, "fmt", "--list", str(CLOCK)) == ""
