"""A sample FHIR R4 service with invented records: what stands behind Envoy in the demo.

It trusts whoever reaches it; who may do that is decided in front of it. The records are made in
code from a fixed seed, so ids and contents are the same in every run: patients `p-0001` and on,
each with four observations (`obs-00001`...), two encounters (`enc-00001`...) and one claim
(`clm-00001`...), numbered in the order of the patients. A search parameter it does not know is
an error and not ignored: a filter that is ignored answers with too much.

    python -m authz.demo.fhir --listen 127.0.0.1:8080
"""

import argparse
import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

Resource = dict[str, Any]

FHIR_JSON: Final = "application/fhir+json"
MAX_PAGE: Final = 200

GIVEN: Final = ("Amber", "Basil", "Clover", "Daisy", "Ember", "Fern", "Ivory", "Juniper")
FAMILY: Final = ("Testwell", "Sampleton", "Mockridge", "Fakenham", "Specimen", "Placeholder")
VITALS: Final = (
    ("8867-4", "Heart rate", "/min", 55, 110),
    ("8310-5", "Body temperature", "Cel", 36, 39),
    ("29463-7", "Body weight", "kg", 48, 110),
    ("8480-6", "Systolic blood pressure", "mm[Hg]", 95, 160),
)
CODES: Final = "http://terminology.hl7.org/CodeSystem"
# FHIR's own mark for records that are no real person's.
TEST_DATA: Final = {"security": [{"system": f"{CODES}/v3-ActReason", "code": "HTEST"}]}


@dataclass(frozen=True)
class Kind:
    """A type of resource: how its ids look, which field names its patient, how it is searched."""

    id_format: str
    patient_field: str
    parameters: frozenset[str]


KINDS: Final[Mapping[str, Kind]] = {
    "Patient": Kind("p-{:04d}", "", frozenset({"_id", "name"})),
    "Observation": Kind("obs-{:05d}", "subject", frozenset({"_id", "patient", "subject"})),
    "Encounter": Kind("enc-{:05d}", "subject", frozenset({"_id", "patient", "subject"})),
    "Claim": Kind("clm-{:05d}", "patient", frozenset({"_id", "patient"})),
}


class FhirError(Exception):
    """Becomes an OperationOutcome: an HTTP status and an issue code of FHIR's IssueType."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


@dataclass
class Store:
    """All resources by type and id, and the highest number given to an id of each type."""

    resources: dict[str, dict[str, Resource]]
    numbers: dict[str, int]

    def add(self, resource: Resource) -> Resource:
        kind = resource["resourceType"]
        self.numbers[kind] += 1
        stored = {**resource, "id": KINDS[kind].id_format.format(self.numbers[kind])}
        self.resources[kind][stored["id"]] = stored
        return stored

    def get(self, kind: str, name: str) -> Resource:
        try:
            return self.resources[kind][name]
        except KeyError:
            raise FhirError(404, "not-found", f"no {kind} of this id") from None


def synthetic(patients: int) -> Store:
    """The invented records of `patients` patients."""
    random = Random(4)
    store = Store({kind: {} for kind in KINDS}, dict.fromkeys(KINDS, 0))
    for _ in range(patients):
        patient = store.add(_patient(random))
        for resource in _chart(random, {"reference": f"Patient/{patient['id']}"}):
            store.add(resource)
    return store


def _day(random: Random, year: int) -> str:
    return f"{year}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}"


def _patient(random: Random) -> Resource:
    return {
        "resourceType": "Patient",
        "meta": TEST_DATA,
        "active": True,
        "name": [{"family": random.choice(FAMILY), "given": [random.choice(GIVEN)]}],
        "gender": random.choice(("female", "male", "other")),
        "birthDate": _day(random, random.randint(1935, 2015)),
    }


def _chart(random: Random, reference: Resource) -> Iterator[Resource]:
    """One patient's observations, encounters and claim."""
    for code, display, unit, low, high in VITALS:
        yield {
            "resourceType": "Observation",
            "meta": TEST_DATA,
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": display}]},
            "subject": reference,
            "effectiveDateTime": _day(random, 2025),
            "valueQuantity": {"value": random.randint(low, high), "unit": unit},
        }
    for year in (2024, 2025):
        day = _day(random, year)
        yield {
            "resourceType": "Encounter",
            "meta": TEST_DATA,
            "status": "finished",
            "class": {"system": f"{CODES}/v3-ActCode", "code": "AMB"},
            "subject": reference,
            "period": {"start": day, "end": day},
        }
    yield {
        "resourceType": "Claim",
        "meta": TEST_DATA,
        "status": "active",
        "use": "claim",
        "type": {"coding": [{"code": "professional"}]},
        "patient": reference,
        "created": _day(random, 2025),
        "provider": {"display": "Lakeside Sample Clinic"},
        "priority": {"coding": [{"code": "normal"}]},
        "insurance": [{"sequence": 1, "focal": True, "coverage": {"display": "Sample Mutual"}}],
        "total": {"value": random.randint(40, 900), "currency": "USD"},
    }


STORE: Final = web.AppKey("STORE", Store)
SEEN: Final = web.AppKey("SEEN", set[str])

routes = web.RouteTableDef()


def make_app(patients: int = 200) -> web.Application:
    """The service with the records of `patients` patients, held in memory."""
    app = web.Application(middlewares=[outcomes])
    app[STORE] = synthetic(patients)
    app[SEEN] = set()
    app.add_routes(routes)
    return app


@web.middleware
async def outcomes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error a client sees is an OperationOutcome, also those of the router."""
    try:
        return await handler(request)
    except FhirError as error:
        return _outcome(error.status, error.code, str(error))
    except web.HTTPNotFound:
        return _outcome(404, "not-found", "nothing here")
    except web.HTTPMethodNotAllowed as error:
        return _outcome(405, "not-supported", error.reason)


def _reply(resource: Resource, status: int = 200, **headers: str) -> web.Response:
    body = json.dumps(resource).encode()
    return web.Response(body=body, status=status, content_type=FHIR_JSON, headers=headers)


def _outcome(status: int, code: str, text: str) -> web.Response:
    issue = {"severity": "error", "code": code, "diagnostics": text}
    return _reply({"resourceType": "OperationOutcome", "issue": [issue]}, status)


@routes.get("/fhir/metadata")
async def metadata(_: web.Request) -> web.Response:
    interactions = [
        {"code": code} for code in ("read", "search-type", "create", "update", "delete")
    ]
    described = [{"type": kind, "interaction": interactions} for kind in KINDS]
    return _reply(
        {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "capability",
            "fhirVersion": "4.0.1",
            "format": ["json"],
            "rest": [{"mode": "server", "resource": described}],
        }
    )


@routes.get("/fhir/_fault/{what}")
async def fault(request: web.Request) -> web.StreamResponse:
    """Odd upstream behaviour on demand, for tests of what Envoy and the log make of it."""
    what = request.match_info["what"]
    if what in FAULTS:
        status, code, headers = FAULTS[what]
        response = _outcome(status, code, what)
        response.headers.update(headers)
        return response
    if what == "stream":
        return await _stream(request, _seconds(request))
    if what == "reset" and request.transport is not None:
        request.transport.abort()
        return web.Response()  # goes nowhere: the connection is gone
    if what == "flaky" and (key := request.query.get("k", "")) not in request.app[SEEN]:
        request.app[SEEN].add(key)
        return _outcome(503, "transient", "try again")
    if what == "slow":
        await asyncio.sleep(_seconds(request))
    if what in ("slow", "flaky"):
        return _reply({"resourceType": "Basic"})
    raise FhirError(404, "not-found", "no such fault")


FAULTS: Final[Mapping[str, tuple[int, str, Mapping[str, str]]]] = {
    "redirect": (302, "informational", {"Location": "/fhir/metadata"}),
    "unauthorized": (401, "login", {"WWW-Authenticate": "Bearer"}),
    "busy": (429, "throttled", {"Retry-After": "1"}),
    "unavailable": (503, "transient", {"Retry-After": "1"}),
}


def _seconds(request: web.Request) -> float:
    text = request.query.get("s", "1")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", text):
        raise FhirError(400, "invalid", "s is not a number of seconds")
    return float(text)


async def _stream(request: web.Request, seconds: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": FHIR_JSON})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"[")
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        await response.write(b"0,")
    await response.write(b"0]")
    await response.write_eof()
    return response


def _kind(request: web.Request) -> str:
    kind = request.match_info["kind"]
    if kind not in KINDS:
        raise FhirError(404, "not-supported", "no such type of resource")
    return kind


@routes.get("/fhir/{kind}")
async def search(request: web.Request) -> web.Response:
    kind = _kind(request)
    count = min(_number(request, "_count", 20), MAX_PAGE)
    offset = _number(request, "_offset", 0)
    wanted = _wanted(request, kind)
    found = [
        resource
        for resource in request.app[STORE].resources[kind].values()
        if all(_matches(kind, resource, parameter, values) for parameter, values in wanted)
    ]
    starts = {"self": offset}
    if count and offset + count < len(found):
        starts["next"] = offset + count
    if offset > 0:
        starts["previous"] = max(0, offset - count)
    link = [
        {
            "relation": relation,
            "url": str(request.rel_url.update_query({"_count": count, "_offset": start})),
        }
        for relation, start in starts.items()
    ]
    entries = [
        {
            "fullUrl": f"{kind}/{resource['id']}",
            "resource": _cut(resource, request),
            "search": {"mode": "match"},
        }
        for resource in found[offset : offset + count]
    ]
    return _reply(
        {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(found),
            "link": link,
            "entry": entries,
        }
    )


def _number(request: web.Request, parameter: str, default: int) -> int:
    text = request.query.get(parameter, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise FhirError(400, "invalid", f"{parameter} is not a number")
    return int(text)


def _wanted(request: web.Request, kind: str) -> list[tuple[str, list[str]]]:
    """The search parameters; commas within a value mean "or", repetition means "and"."""
    wanted = []
    for parameter, text in request.query.items():
        if parameter in KINDS[kind].parameters:
            wanted.append((parameter, [part for part in text.split(",") if part]))
        elif parameter not in ("_count", "_offset", "_elements"):
            raise FhirError(400, "not-supported", "unknown search parameter")
    return wanted


def _matches(kind: str, resource: Resource, parameter: str, values: list[str]) -> bool:
    if parameter == "_id":
        return resource["id"] in values
    if parameter == "name":
        return any(_named(resource, start) for start in values)
    return _patient_of(kind, resource) in (value.removeprefix("Patient/") for value in values)


def _patient_of(kind: str, resource: Resource) -> str:
    reference: str = resource[KINDS[kind].patient_field]["reference"]
    return reference.removeprefix("Patient/")


def _named(patient: Resource, start: str) -> bool:
    names = patient.get("name", [])
    parts = [part for name in names for part in (name.get("family", ""), *name.get("given", []))]
    return any(part.lower().startswith(start.lower()) for part in parts)


def _cut(resource: Resource, request: web.Request) -> Resource:
    """The resource with no more fields than `_elements` asks for, and those that FHIR wants."""
    if "_elements" not in request.query:
        return resource
    wanted = {"resourceType", "id", "meta", *request.query["_elements"].split(",")}
    return {name: value for name, value in resource.items() if name in wanted}


async def _body(request: web.Request, kind: str) -> Resource:
    """The resource in the body. Raises `FhirError` unless it is a `kind` of a patient here."""
    patients = request.app[STORE].resources["Patient"]
    try:
        resource: Resource = json.loads(await request.read())
        fits = resource["resourceType"] == kind
        known = kind == "Patient" or _patient_of(kind, resource) in patients
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = known = False
    if not (fits and known):
        raise FhirError(400, "structure", f"the body is not a {kind} of a patient here")
    return resource


@routes.post("/fhir/{kind}")
async def create(request: web.Request) -> web.Response:
    kind = _kind(request)
    stored = request.app[STORE].add(await _body(request, kind))
    return _reply(stored, 201, Location=f"/fhir/{kind}/{stored['id']}")


@routes.get("/fhir/{kind}/{id}")
async def read(request: web.Request) -> web.Response:
    resource = request.app[STORE].get(_kind(request), request.match_info["id"])
    return _reply(_cut(resource, request))


@routes.put("/fhir/{kind}/{id}")
async def update(request: web.Request) -> web.Response:
    kind, name = _kind(request), request.match_info["id"]
    request.app[STORE].get(kind, name)
    resource = await _body(request, kind)
    if resource.get("id") != name:
        raise FhirError(400, "invalid", "the body's id is not the one in the path")
    request.app[STORE].resources[kind][name] = resource
    return _reply(resource)


@routes.delete("/fhir/{kind}/{id}")
async def delete(request: web.Request) -> web.Response:
    kind, name = _kind(request), request.match_info["id"]
    request.app[STORE].get(kind, name)
    del request.app[STORE].resources[kind][name]
    return web.Response(status=204)


def main() -> None:
    parser = argparse.ArgumentParser(prog="authz.demo.fhir", description="sample FHIR R4 service")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--patients", type=int, default=200)
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    # No access log: paths hold patients' identifiers.
    web.run_app(make_app(options.patients), host=host, port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()
