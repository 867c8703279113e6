"""The sample policy decides the demo's traffic as planned, the same on both engines."""

import itertools
import json
from collections import Counter

import jwt
import pytest
from deciding import POLICY, Embedded, decide_with_opa, input_document, run

from authz.demo.people import (
    AUDIENCE,
    ISSUER,
    PATIENTS,
    PEOPLE,
    WARDS,
    Keys,
    Request,
    care_team,
    patient_id,
    plan,
)

AUDIT = {"subject", "tenant", "roles", "purpose", "patients", "resource", "break_glass", "reason"}


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    return Embedded(POLICY)


def decided(total: int, seed: int = 1) -> list[Request]:
    return [request for request in plan(total, seed) if request.expect != "rejected"]


ESCAPED = b'{"note":"\\"a\\nb\\"", "subject":{"reference":"Patient\\/p-0001"}}'
# Requests the plan does not hold and where two engines could come to differ.
ODD = [
    Request(
        "alder", "POST", "/fhir/Observation", body=b'{"subject":{"reference":"Patient/p-0001"}}'
    ),
    Request(
        "alder", "POST", "/fhir/Observation", body=b'{"subject":{"reference":"Patient/p-0199"}}'
    ),
    Request("alder", "POST", "/fhir/Observation", body=b'{"subject":["p-0001"]}'),
    Request("alder", "POST", "/fhir/Observation", body=b"[1"),
    Request("alder", "POST", "/fhir/Observation", body=ESCAPED),
    Request("alder", "POST", "/fhir/Observation", body=ESCAPED.replace(b"\\/", b"/")),
    Request("alder", "POST", "/fhir/Observation", body=ESCAPED.replace(b"/p", b"/\\u0070")),
    Request("alder", "POST", "/fhir/Observation", body=b"null"),
    Request("alder", "GET", "/fhir/Observation?patient=p-0001,p-0002"),
    Request("alder", "GET", "/fhir/Observation?patient=p-0001&subject=Patient/p-0199"),
    Request("alder", "GET", "/fhir/Observation?patient=p-0001&_include=*"),
    Request("alder", "GET", "/fhir/Observation?patient="),
    Request("alder", "GET", "/fhir/Observation/obs-00001?patient=p-0001"),
    Request("alder", "GET", "/fhir/Patient/"),
    Request("alder", "GET", "/fhir/Patient/p-0001/Observation"),
    Request("alder", "GET", "/"),
    Request("alder", "BREW", "/fhir/Patient/p-0001"),
    Request("linden", "GET", "/fhir/_fault/slow?s=1"),
    Request("linden", "GET", "/fhir/Patient/p-0001"),
    Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": " bewußtlos \u2713 "}),
    Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": "x" * 500}),
    Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": "  "}),
    *(
        Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": reason})
        for reason in (",", ", -", "\t", "~_`", "7", "\u00e9", "\u610f\u8b58\u4e0d\u660e")
    ),
    Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": 'he said "help" \\ twice'}),
    Request("alder", "GET", '/fhir/Patient/a"]},"allowed":true,"z":{"y":["'),
    Request("alder", "GET", '/fhir/Observation?patient=p-0001,a"]},"allowed":true,"z":{"y":["'),
    Request("alder", "GET", '/fhir/Observation?"=p-0001&patient=p-0001'),
    Request("fir", "GET", "/fhir/Observation", {"x-break-glass": "everybody"}),
    Request("alder", "GET", "/fhir/Patient/p-0001", {"x-purpose-of-use": ""}),
    Request("alder", "GET", "/fhir/Patient/p-0001", {"x-purpose-of-use": "TREAT,HRESCH"}),
    Request(None, "GET", "/fhir/Patient/p-0001", {"x-user": "dr.alder", "x-roles": "physician"}),
]


@pytest.mark.parametrize("with_body", [True, False], ids=["with body", "without body"])
def test_plan_is_decided_as_expected(embedded: Embedded, with_body: bool) -> None:
    """Each request of the plan gets the answer it expects, whether or not Envoy sends bodies."""
    for request in decided(300):
        decision = embedded.decide(input_document(request, with_body=with_body))
        assert decision["allowed"] is (request.expect == "allow"), (request, decision)


def test_every_decision_says_who_and_why(embedded: Embedded) -> None:
    """Allowed or not, the audit object is whole and has a reason, and names the one who asked."""
    for request in decided(300):
        audit = embedded.decide(input_document(request))["audit"]
        assert set(audit) == AUDIT
        assert audit["reason"]
        assert audit["subject"] == PEOPLE[request.person].sub


def test_denials_tell_the_caller_nothing(embedded: Embedded) -> None:
    """All denials look alike to the caller, whatever their reason."""
    denials = [
        (decision["http_status"], decision["headers"], decision["body"])
        for request in decided(300)
        if not (decision := embedded.decide(input_document(request)))["allowed"]
    ]
    alike = (403, {"content-type": "application/json"}, '{"error":"forbidden"}')
    assert denials
    assert all(denial == alike for denial in denials)


def test_reasons_hold_no_patient(embedded: Embedded) -> None:
    """Reasons are recorded as text, so no patient's identifier may get into them."""
    for request in [*decided(300), *ODD]:
        decision = embedded.decide(input_document(request))
        assert "p-0" not in decision["audit"]["reason"]


@pytest.mark.opa
def test_both_engines_give_the_same_decisions(embedded: Embedded, opa: str) -> None:
    """OPA and rego-cpp agree on the whole decision object, also for odd requests."""
    documents = [
        input_document(request, with_body=with_body)
        for request in [*decided(300), *ODD]
        for with_body in (True, False)
    ]
    documents += [{}, {"attributes": {}}, *malformed_claims(), *with_risk()]
    theirs = decide_with_opa(opa, POLICY, documents)
    assert len(theirs) == len(documents)
    for document, decision in zip(documents, theirs, strict=True):
        assert embedded.decide(document) == decision, document


def malformed_claims() -> list[dict]:
    """A nurse's ordinary request with claims of the wrong type, one at a time."""
    documents = []
    wrong: list[tuple[str, object]] = [
        ("sub", 7),
        ("sub", ""),
        ("sub", None),
        ("roles", "nurse"),
        ("roles", {"nurse": True}),
        ("roles", [1, None, "nurse", "nurse"]),
        ("roles", ["nurse", "physician"]),
        ("roles", ["nurse", "chief"]),
        ("tenant", ["lakeside"]),
        ("purpose", 1),
        ("purpose", {}),
    ]
    for claim, value in wrong:
        document = input_document(Request("cedar", "GET", "/fhir/Patient/p-0001"))
        metadata = document["attributes"]["metadataContext"]["filterMetadata"]
        metadata["envoy.filters.http.jwt_authn"]["verified_jwt"][claim] = value
        documents.append(document)
    return documents


def with_risk() -> list[dict]:
    """Requests of people of whom something was found, some of them with a fresh proof."""
    told = {"rules": ["bulk_read", "off_hours"], "score": 6.25, "since": 1_700_000_000,
            "until": 1_700_086_400, "findings": ["lakeside/receiver@7"]}  # fmt: skip
    risks = [told | {"lane": lane} for lane in ("act", "review", "", 1)]
    risks += [told, {"lane": "review"}, {"lane": "act"}, {}, {"lane": "review", "since": "x"}]
    proofs: list[dict] = [
        {},
        {"acr": "phr", "auth_time": 1_700_000_000},
        {"acr": "phr", "auth_time": 1_699_999_999.5},
        {"acr": "pwd", "auth_time": 2**31},
        {"acr": "phrh", "auth_time": "z"},
    ]
    requests = [
        Request("alder", "GET", "/fhir/Patient/p-0001"),
        Request("alder", "GET", "/fhir/Patient/p-0199"),
        Request("dogwood", "GET", "/fhir/Claim/clm-00001"),
        Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": "unconscious"}),
        Request("linden", "GET", "/fhir/metadata"),
        Request(None, "GET", "/fhir/Patient/p-0001"),
    ]
    documents = []
    for request, risk, proof in itertools.product(requests, risks, proofs):
        document = input_document(request)
        for verified in document["attributes"].get("metadataContext", {}).values():
            verified["envoy.filters.http.jwt_authn"]["verified_jwt"] |= proof
        documents.append(document | {"authz": {"risk": risk}})
    return documents


@pytest.mark.opa
def test_policy_passes_its_own_tests(opa: str) -> None:
    """The policy's own tests pass, and there are enough of them to speak for every role."""
    results = json.loads(run(opa, "test", "--format", "json", str(POLICY)))
    assert len(results) >= 20


@pytest.mark.opa
def test_policy_is_strict_and_formatted(opa: str) -> None:
    """`opa check --strict` finds nothing, and `opa fmt` would change nothing."""
    run(opa, "check", "--strict", str(POLICY))
    assert run(opa, "fmt", "--list", str(POLICY)) == ""


def test_data_names_the_demos_people() -> None:
    """The care teams in the policy's data are the demo's, and all patients exist."""
    data = json.loads((POLICY / "data.json").read_text())
    assert data["care_team"] == care_team()
    assert set(care_team()) <= {patient_id(number) for number in range(1, PATIENTS + 1)}
    assert {role for person in PEOPLE.values() for role in person.roles} <= set(data["roles"])
    assert set(WARDS) <= set(PEOPLE)


@pytest.mark.parametrize("total", [1, 10, 19, 60, 300, 1000])
def test_plan_counts_only_what_the_policy_decides(total: int) -> None:
    """A plan holds exactly as many decided requests as asked, and 2 % more, at least 6."""
    count = Counter(request.expect for request in plan(total))
    assert count["allow"] + count["deny"] == total
    assert count["rejected"] == max(6, round(total * 0.02))


def test_plan_is_the_same_every_time() -> None:
    """A plan depends on its arguments only."""
    assert list(plan(200, seed=5)) == list(plan(200, seed=5))
    assert list(plan(200, seed=5)) != list(plan(200, seed=6))


def test_short_plan_shows_everybody() -> None:
    """Even a short plan has every person in it, a break-glass, a burst and all rejections."""
    requests = list(plan(60))
    assert {request.person for request in requests} == {*PEOPLE, None}
    glass = [r for r in requests if "x-break-glass" in r.headers]
    assert {r.expect for r in glass} == {"allow", "deny"}
    assert sum(r.person == "elm" for r in requests) >= 5
    rejected = [r for r in requests if r.expect == "rejected"]
    assert any("%2F" in r.path for r in rejected)
    assert any(r.person is None and not r.headers for r in rejected)
    assert len({r.headers["authorization"] for r in rejected if r.headers}) == 2


def test_rejected_requests_are_spread_over_the_plan() -> None:
    """Requests that Envoy rejects come between the others, not in a heap."""
    places = [at for at, r in enumerate(plan(1000)) if r.expect == "rejected"]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps) <= 60


def test_tokens_verify_against_the_published_keys() -> None:
    """A token's signature, issuer, audience and claims hold up under the published key set."""
    keys = Keys()
    [key] = jwt.PyJWKSet.from_dict(keys.jwks()).keys
    person = PEOPLE["alder"]
    token = keys.token(person)
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER)
    assert (claims["sub"], claims["roles"]) == (person.sub, list(person.roles))
    assert (claims["tenant"], claims["purpose"]) == (person.tenant, person.purpose)
    assert "d" not in keys.jwks()["keys"][0]


def test_bad_tokens_do_not_verify() -> None:
    """An expired token, one of another key and the plan's forgeries are all refused."""
    keys = Keys()
    [key] = jwt.PyJWKSet.from_dict(keys.jwks()).keys
    forged = [
        request.headers["authorization"].removeprefix("Bearer ")
        for request in plan(300)
        if "authorization" in request.headers
    ]
    person = PEOPLE["alder"]
    for token in [keys.token(person, lifetime_s=-60), Keys().token(person), *forged]:
        with pytest.raises(jwt.InvalidTokenError):
            jwt.decode(token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER)
