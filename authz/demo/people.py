"""The people of the demo, their tokens, and the traffic they make.

Everybody here is invented. What `plan` expects of a request is what the sample policy in
deploy/opa answers; tests/unit/test_demo_policy.py holds the two together.
"""

import base64
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER: Final = "https://idp.example"
AUDIENCE: Final = "fhir"
KEY_ID: Final = "demo-1"

FHIR_JSON: Final = "application/fhir+json"


@dataclass(frozen=True)
class Person:
    """Somebody with a token. `name` is what the demo calls them, `sub` what the record says."""

    name: str
    sub: str
    roles: tuple[str, ...]
    tenant: str
    purpose: str


PEOPLE: Final[Mapping[str, Person]] = {
    person.name: person
    for person in (
        Person("alder", "dr.alder", ("physician",), "lakeside", "TREAT"),
        Person("birch", "dr.birch", ("physician",), "lakeside", "TREAT"),
        Person("cedar", "n.cedar", ("nurse",), "lakeside", "TREAT"),
        Person("hazel", "n.hazel", ("nurse",), "lakeside", "TREAT"),  # curious about others' charts
        Person("fir", "dr.fir", ("emergency_physician",), "lakeside", "TREAT"),
        Person("dogwood", "b.dogwood", ("billing",), "lakeside", "HPAYMT"),
        Person("elm", "a.elm", ("analyst",), "lakeside", "HRESCH"),  # reads in bulk
        Person("maple", "portal.maple", ("patient",), "lakeside", "PATRQT"),
        Person("ginkgo", "f.ginkgo", (), "lakeside", "HOPERAT"),  # front desk, no role
        Person("linden", "svc.linden", ("lab_feed", "probe"), "lakeside", "TREAT"),  # a service
        Person("oak", "dr.oak", ("physician",), "hillside", "TREAT"),  # of another tenant
    )
}


def patient_id(number: int) -> str:
    return f"p-{number:04d}"


# The first and last patient each person cares for: the care team table of deploy/opa/data.json.
WARDS: Final[Mapping[str, tuple[int, int]]] = {
    "alder": (1, 40),
    "birch": (41, 70),
    "cedar": (1, 60),
    "hazel": (61, 70),
    "fir": (71, 72),
}
OWN_RECORD: Final[Mapping[str, int]] = {"maple": 42}
PATIENTS: Final = 200  # the sample service's default; nobody's ward goes beyond 72


def care_team() -> dict[str, list[str]]:
    """The subjects on each patient's care team, by patient."""
    team: dict[str, list[str]] = {}
    for name, (first, last) in WARDS.items():
        for number in range(first, last + 1):
            team.setdefault(patient_id(number), []).append(PEOPLE[name].sub)
    return {patient: sorted(team[patient]) for patient in sorted(team)}


class Keys:
    """The identity provider's signing key (ES256), made anew for each demo."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        """The public half as a JSON Web Key Set (RFC 7517), for Envoy's jwt_authn."""
        key = ECAlgorithm.to_jwk(self._private.public_key(), as_dict=True)
        return {"keys": [key | {"kid": KEY_ID, "alg": "ES256", "use": "sig"}]}

    def token(self, person: Person, lifetime_s: int = 3600) -> str:
        """A signed token for `person`; one with a negative lifetime has expired."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + lifetime_s,
            "sub": person.sub,
            "roles": list(person.roles),
            "tenant": person.tenant,
            "purpose": person.purpose,
        }
        return jwt.encode(claims, self._private, algorithm="ES256", headers={"kid": KEY_ID})


@dataclass(frozen=True)
class Request:
    """One request of the plan.

    `person` names whose token to send; with None send no token but what `headers` holds (an
    `authorization` there is a bad one). `path` includes the query. `expect` is who answers and
    how: the policy (`allow`, `deny`), or Envoy by itself (`rejected`: 400 or 401).
    """

    person: str | None
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    expect: Literal["allow", "deny", "rejected"] = "allow"


def plan(total: int, seed: int = 1) -> Iterator[Request]:
    """`total` requests that the policy decides and, spread among them, some that Envoy rejects.

    The same arguments give the same requests. One of every habit comes first, so a short plan
    shows them all; the analyst's burst comes in one piece half-way. About 2 % more, and at least
    6, are `rejected`; they do not count towards `total`.
    """
    random = Random(seed)
    rejections = max(6, round(total * 0.02))
    rejected = itertools.cycle(REJECTED)
    sent = 0
    for number, request in enumerate(itertools.islice(_decided(total, random), total)):
        while sent < rejections and sent * total <= number * rejections:
            yield next(rejected)(random)
            sent += 1
        yield request
    for _ in range(sent, rejections):
        yield next(rejected)(random)


def _decided(total: int, random: Random) -> Iterator[Request]:
    habits = [habit for habit, _ in HABITS]
    weights = [weight for _, weight in HABITS]
    opening = random.sample(habits, len(habits))
    burst = total // 12
    for habit in opening:
        yield habit(random)
    for _ in range(total // 2 - len(opening)):
        yield random.choices(habits, weights)[0](random)
    for page in range(burst):
        yield _bulk_page(page)
    while True:
        yield random.choices(habits, weights)[0](random)


def _own(random: Random, *names: str) -> tuple[str, str]:
    """One of `names`, and a patient they care for."""
    name = random.choice(names)
    return name, patient_id(random.randint(*WARDS[name]))


def _any(random: Random, first: int = 1) -> str:
    return patient_id(random.randint(first, PATIENTS))


def _get(
    person: str, path: str, expect: Literal["allow", "deny"] = "allow", **header: str
) -> Request:
    headers = {name.replace("_", "-"): value for name, value in header.items()}
    return Request(person, "GET", path, headers, expect=expect)


def _send(person: str, method: str, path: str, record: Mapping[str, object]) -> Request:
    return Request(person, method, path, {"content-type": FHIR_JSON}, json.dumps(record).encode())


def _observation(patient: str, **more: object) -> dict[str, object]:
    code = {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]}
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": code,
        "subject": {"reference": f"Patient/{patient}"},
        **more,
    }


def _read_chart(random: Random) -> Request:
    name, patient = _own(random, "alder", "birch", "cedar", "hazel")
    return _get(name, f"/fhir/Patient/{patient}")


def _search_chart(random: Random) -> Request:
    name, patient = _own(random, "alder", "birch", "cedar")
    kind = random.choice(("Observation", "Encounter"))
    query = random.choice((f"patient={patient}", f"subject=Patient/{patient}&_count=10"))
    return _get(name, f"/fhir/{kind}?{query}")


def _update_chart(random: Random) -> Request:
    name, patient = _own(random, "alder", "birch")
    record = {"resourceType": "Patient", "id": patient, "active": True}
    return _send(name, "PUT", f"/fhir/Patient/{patient}", record)


def _bill(random: Random) -> Request:
    number = random.randint(1, PATIENTS)
    claims = (f"/fhir/Claim?patient={patient_id(number)}", f"/fhir/Claim/clm-{number:05d}")
    return _get("dogwood", random.choice(claims))


def _feed_result(random: Random) -> Request:
    value = {"value": random.randint(50, 110), "unit": "/min"}
    record = _observation(_any(random), valueQuantity=value)
    return _send("linden", "POST", "/fhir/Observation", record)


def _amend_result(random: Random) -> Request:
    number = random.randint(1, PATIENTS)
    name = f"obs-{number * 4:05d}"  # four each, in the order of the patients
    record = _observation(patient_id(number), id=name, status="amended")
    return _send("linden", "PUT", f"/fhir/Observation/{name}", record)


def _own_portal(random: Random) -> Request:
    mine = patient_id(OWN_RECORD["maple"])
    return _get("maple", random.choice((f"/fhir/Patient/{mine}", f"/fhir/Claim?patient={mine}")))


def _break_glass(random: Random) -> Request:
    reason = random.choice(("unconscious on arrival", "anaphylaxis, allergies unknown"))
    return _get("fir", f"/fhir/Patient/{_any(random, 73)}", x_break_glass=reason)


def _describe(random: Random) -> Request:
    return _get(random.choice(("linden", "alder")), "/fhir/metadata")


def _bulk_page(page: int) -> Request:
    return _get("elm", f"/fhir/Observation?_count=50&_offset={page * 50 % (PATIENTS * 4)}")


def _bulk(random: Random) -> Request:
    return _bulk_page(random.randrange(PATIENTS * 4 // 50))


def _read_result(random: Random) -> Request:
    """By its id alone: only the answer says whose it is."""
    return _get("elm", f"/fhir/Observation/obs-{random.randint(1, PATIENTS * 4):05d}")


def _snoop(random: Random) -> Request:
    patient = _any(random, 71)
    paths = (f"/fhir/Patient/{patient}", f"/fhir/Observation?patient={patient}")
    return _get("hazel", random.choice(paths), "deny")


def _wrong_ward(random: Random) -> Request:
    return _get("alder", f"/fhir/Encounter?patient={_any(random, 41)}", "deny")


def _billing_pries(random: Random) -> Request:
    return _get("dogwood", f"/fhir/Observation?patient={_any(random)}", "deny")


def _no_role(random: Random) -> Request:
    return _get("ginkgo", f"/fhir/Patient/{_any(random)}", "deny")


def _name_search(random: Random) -> Request:
    return _get("birch", f"/fhir/Patient?name={random.choice('ABCDE')}", "deny")


def _wrong_purpose(random: Random) -> Request:
    name, patient = _own(random, "cedar")
    return _get(name, f"/fhir/Patient/{patient}", "deny", x_purpose_of_use="HRESCH")


def _glass_refused(random: Random) -> Request:
    path = f"/fhir/Patient/{_any(random, 73)}"
    return _get("hazel", path, "deny", x_break_glass="just looking")


def _other_tenant(random: Random) -> Request:
    return _get("oak", f"/fhir/Patient/{_any(random)}", "deny")


def _delete(random: Random) -> Request:
    name, patient = _own(random, "alder")
    return Request(name, "DELETE", f"/fhir/Patient/{patient}", expect="deny")


HABITS: Final[tuple[tuple[Callable[[Random], Request], int], ...]] = (
    (_read_chart, 30),
    (_search_chart, 22),
    (_update_chart, 3),
    (_bill, 10),
    (_feed_result, 6),
    (_amend_result, 2),
    (_own_portal, 3),
    (_break_glass, 1),
    (_describe, 2),
    (_bulk, 1),
    (_read_result, 2),
    (_snoop, 4),
    (_wrong_ward, 3),
    (_billing_pries, 2),
    (_no_role, 2),
    (_name_search, 2),
    (_wrong_purpose, 1),
    (_glass_refused, 1),
    (_other_tenant, 1),
    (_delete, 1),
)


def _escaped_slash(random: Random) -> Request:
    return Request("alder", "GET", f"/fhir/Patient%2F{_any(random)}", expect="rejected")


def _no_token(random: Random) -> Request:
    return Request(None, "GET", f"/fhir/Patient/{_any(random)}", expect="rejected")


def _bad_signature(random: Random) -> Request:
    headers = {"authorization": f"Bearer {_forged(expires=4102444800)}"}  # in the year 2100
    return Request(None, "GET", f"/fhir/Patient/{_any(random)}", headers, expect="rejected")


def _expired(random: Random) -> Request:
    headers = {"authorization": f"Bearer {_forged(expires=1577836800)}"}  # in the year 2020
    return Request(None, "GET", f"/fhir/Patient/{_any(random)}", headers, expect="rejected")


REJECTED: Final = (_escaped_slash, _no_token, _bad_signature, _expired)


def _forged(expires: int) -> str:
    """A token that claims to be a physician's, signed with nothing but zeros."""
    header = {"alg": "ES256", "kid": KEY_ID, "typ": "JWT"}
    person = PEOPLE["alder"]
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": expires,
        "sub": person.sub,
        "roles": person.roles,
    }
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), bytes(64))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
