"""Whom FHIR resources are about."""

import json
from pathlib import Path

import pytest
from answers import bundle, observation, seen
from vectors.fhir_r4 import derive

from authz.demo import fhir
from authz.disclosure import Reading
from authz.disclosure.fhir import compartment

PUBLISHED = json.loads((derive.HERE / "search-parameters.json").read_text())
DEFINITION = json.loads((derive.HERE / "compartmentdefinition-patient.json").read_text())
CODES = [(kind, code) for kind, codes in derive.parameters_of(DEFINITION).items() for code in codes]


def holding(kind: str, path: str, reference: object, *, lists: bool) -> dict:
    """The least resource of `kind` with `reference` at `path`."""
    value = [reference] if lists else reference
    first, *others = path.split(".")
    for name in reversed(others):
        value = [{name: value}] if lists else {name: value}
    return {"resourceType": kind, "id": "own", first: value}


def test_data_is_what_hl7_published():
    """The data that is shipped is made from the published definitions, and nothing else."""
    shipped = Path(derive.HERE.parents[2] / "authz/disclosure/patient_r4.json").read_text()
    assert json.loads(shipped) == derive.derive(DEFINITION, PUBLISHED)
    assert len(compartment()) == 67


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(("kind", "code"), CODES)
def test_every_parameter_of_the_compartment(kind, code, lists):
    """A resource that refers to a patient by any parameter of the compartment is about them."""
    parameters = [entry["resource"] for entry in PUBLISHED["entry"]]
    (parameter,) = [p for p in parameters if p["code"] == code and kind in p["base"]]
    paths = [
        part.strip().removesuffix(".where(resolve() is Patient)").removeprefix(kind + ".")
        for part in parameter["expression"].split("|")
        if part.strip().startswith(kind + ".")
    ]
    assert paths
    for path in paths:
        resource = holding(kind, path, {"reference": "Patient/x"}, lists=lists)
        found = seen(resource)
        own = ("own",) if kind == "Patient" else ()
        assert (found.patients, found.types, found.trouble) == ((*own, "x"), {kind: 1}, "")
        other = holding(kind, path, {"reference": "Practitioner/x"}, lists=lists)
        assert seen(other).patients == own


def test_patient_by_its_own_id():
    """A Patient is named by its id, and by its entry's fullUrl where it has none."""
    assert seen({"resourceType": "Patient", "id": "a"}).patients == ("a",)
    entry = {"fullUrl": "https://x/fhir/Patient/b", "resource": {"resourceType": "Patient"}}
    assert seen({"resourceType": "Bundle", "entry": [entry]}).patients == ("b",)
    assert seen({"resourceType": "Patient"}).trouble == "reference"
    assert seen({"resourceType": "Patient", "id": ["a"]}).trouble == "reference"


@pytest.mark.parametrize(
    ("reference", "patient"),
    [
        ("Patient/123", "123"),
        ("https://x.example/fhir/Patient/123", "123"),
        ("Patient/123/_history/4", "123"),
        ("http://x/a/b/Patient/123/_history/4", "123"),
        ("/Patient/123", "123"),
        ("Patient/123/", "123"),
        ("Patient/123#name", "123"),
        ("Patient/a%2Fb", "a/b"),
        ("Patient/%C3%A9", "é"),
        ("Patient/é\u2028", None),
        ("Patient/ä-1.2", "ä-1.2"),
        ("Patient/%FF", "\\xff"),
    ],
)
def test_references(reference, patient):
    """Each form of a reference to a patient gives the id that a request's path would give."""
    found = seen({"resourceType": "Observation", "subject": {"reference": reference}})
    assert found.patients == (() if patient is None else (patient,))
    assert found.complete == (patient is not None)


@pytest.mark.parametrize(
    "reference",
    [
        {"reference": "Group/1"},
        {"reference": "https://x/fhir/Device/Patient"},
        {"reference": "#device"},
        {"type": "Group", "identifier": {"value": "1"}},
        {"type": "http://hl7.org/fhir/StructureDefinition/Group", "identifier": {"value": "1"}},
        {"type": "Device", "reference": "urn:uuid:1"},
        {"extension": [{"url": "x", "valueCode": "unknown"}]},
        {},
        None,
    ],
)
def test_references_to_others(reference):
    """What refers to something else, or to nothing, names no patient and is no trouble."""
    contained = [{"resourceType": "Device", "id": "device"}]
    resource = {"resourceType": "Observation", "subject": reference, "contained": contained}
    found = seen(resource)
    assert (found.patients, found.trouble, found.types) == ((), "", {"Observation": 1})


@pytest.mark.parametrize(
    "reference",
    [
        {"type": "Patient", "identifier": {"value": "1"}},
        {"identifier": {"value": "1"}},
        {"type": "Somebody", "identifier": {"value": "1"}},
        {"display": "who"},
        {"reference": "#nobody"},
        {"reference": "urn:uuid:1"},
        {"reference": "Patient?identifier=1"},
        {"reference": "https://x/who/1"},
        {"reference": "Patient/" + "1" * 300},
        {"reference": "urn:" + "1" * 600},
        {"reference": 5},
        "Patient/1",
        7,
        [[{"reference": "Patient/1"}]],
    ],
)
def test_references_without_an_identifier(reference):
    """A patient who is meant but not named is told as trouble, and nobody is named for them."""
    found = seen({"resourceType": "Observation", "subject": reference})
    assert (found.patients, found.trouble) == ((), "reference")


def test_something_else_on_the_way_to_a_reference():
    """An element that is not the object it should be may have named a patient."""
    for participant in ("Patient/1", ["Patient/1"], [[{"actor": {"reference": "Patient/1"}}]]):
        found = seen({"resourceType": "Appointment", "participant": participant})
        assert (found.patients, found.trouble) == ((), "reference")


def test_somebody_else_by_identifier_only():
    """A performer who is given by an identifier only is a patient only if the reference says so."""
    by = [{"identifier": {"value": "1"}, "display": "who"}]
    assert seen(observation(1, performer=by)).complete
    for kind in ("Patient", "http://hl7.org/fhir/StructureDefinition/Patient"):
        by[0]["type"] = kind
        assert seen(observation(1, performer=by)).trouble == "reference"


@pytest.mark.parametrize("url", ["urn:uuid:5", "urn:oid:1.2", "https://x/odd"])
@pytest.mark.parametrize("later", [False, True])
def test_links_inside_a_bundle(url, later):
    """A reference by fullUrl is resolved whether its entry comes before it or after."""
    resource = {"resourceType": "Observation", "subject": {"reference": url}}
    entries = [
        {"resource": resource},
        {"fullUrl": url, "resource": {"resourceType": "Patient", "id": "7"}},
    ]
    found = seen({"resourceType": "Bundle", "entry": entries if later else entries[::-1]})
    assert (found.patients, found.trouble) == (("7",), "")
    entries[1]["resource"] = {"resourceType": "Group"}
    assert seen({"resourceType": "Bundle", "entry": entries}).complete
    del entries[1]
    assert seen({"resourceType": "Bundle", "entry": entries}).trouble == "reference"


def test_contained():
    """Contained resources are read, but not counted."""
    resource = {"resourceType": "Provenance", "contained": [observation(5, id="o")]}
    found = seen(resource)
    assert (found.patients, found.types, found.trouble) == (("5",), {"Provenance": 1}, "")


def test_contained_patient():
    """A contained Patient's id is no identifier: nobody is named by it, and it is told."""
    contained = [{"resourceType": "Patient", "id": "p"}]
    resource = observation(1, contained=contained)
    resource["subject"] = {"reference": "#p"}
    found = seen(resource)
    assert (found.patients, found.trouble) == ((), "reference")


def test_bundles():
    """Entries are counted and a Bundle is not; bundles in bundles are read; outcomes are not."""
    entry = {"response": {"status": "200", "outcome": observation(9)}, "resource": observation(1)}
    inner = {"resourceType": "Bundle", "entry": [entry]}
    outcome = {"resourceType": "OperationOutcome"}
    found = seen(bundle(inner, {"resourceType": "Patient", "id": "2"}, observation(1), outcome))
    assert found.patients == ("1", "2")
    assert found.types == {"Observation": 2, "Patient": 1, "OperationOutcome": 1}
    assert found.complete
    assert seen({"resourceType": "Bundle", "total": 3}).complete


def test_entries_without_a_resource():
    """What was deleted or created is named by its entry."""
    entries = [
        {"fullUrl": "https://x/Patient/1", "request": {"method": "DELETE", "url": "Patient/1"}},
        {"request": {"method": "DELETE", "url": "Patient/2"}},
        {"response": {"status": "201", "location": "Patient/3/_history/1"}},
        {"response": {"status": "201", "location": "Observation/4/_history/1"}},
    ]
    assert seen({"resourceType": "Bundle", "entry": entries}).patients == ("1", "2", "3")


def test_parameters():
    """Parameters are read for their resources and references, in parts too."""
    parameters = [
        {"name": "a", "resource": observation(1)},
        {"name": "b", "valueReference": {"reference": "Patient/2"}},
        {"name": "c", "part": [{"name": "d", "resource": bundle(observation(3))}]},
        {"name": "e", "valueReference": {"type": "Device", "identifier": {"value": "4"}}},
    ]
    found = seen({"resourceType": "Parameters", "parameter": parameters})
    assert (found.patients, found.trouble) == (("1", "2", "3"), "")
    assert found.types == {"Parameters": 1, "Observation": 2}


def test_types_outside_r4():
    """An unknown type is counted as other, not by its name, and its generic elements are read."""
    found = seen({"resourceType": "Jane Doe", "patient": {"reference": "Patient/1"}})
    assert (found.patients, found.types, found.complete) == (("1",), {"other": 1}, True)
    assert seen({"resourceType": "Device", "patient": {"reference": "Patient/1"}}).patients == (
        "1",
    )
    assert seen({"resourceType": "X", "patient": "1"}).trouble == "reference"


def test_binary():
    """What is in a Binary cannot be told, unless it says itself whose it is."""
    binary = {"resourceType": "Binary", "contentType": "application/pdf", "data": "AAAA"}
    assert seen(binary).trouble == "content_type"
    owned = seen({**binary, "securityContext": {"reference": "Patient/1"}})
    assert (owned.patients, owned.trouble) == (("1",), "")


def test_subsets():
    """A resource from which the server left elements out is complete if its patient is there."""
    meta = {"tag": [{"code": "SUBSETTED"}]}
    assert seen(observation(1, meta=meta)).complete
    assert seen({"resourceType": "Observation", "meta": meta}).trouble == "reference"
    assert seen({"resourceType": "Observation"}).complete
    assert seen({"resourceType": "Patient", "id": "1", "meta": meta}).complete


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        1,
        None,
        {},
        {"resourceType": 5},
        {"resourceType": "Bundle", "entry": [5]},
        {"resourceType": "Bundle", "entry": [{"resource": 5}]},
        {"resourceType": "Bundle", "entry": [[]]},
        {"resourceType": "Bundle", "entry": {"resource": 1}},
        {"resourceType": "Observation", "contained": 5},
        {"resourceType": "Parameters", "parameter": [[]]},
    ],
)
def test_other_shapes(body):
    """What has not the shape of a resource is malformed."""
    assert seen(body).trouble == "malformed"


def test_one_where_a_list_is_due():
    """An entry without its list is malformed, and its patient is named all the same."""
    found = seen({"resourceType": "Bundle", "entry": {"resource": observation(1)}})
    assert (found.patients, found.trouble) == (("1",), "malformed")


def test_the_sample_records():
    """Every record of the demo's service names its patient, alone and all together."""
    store = fhir.synthetic(30)
    together = []
    for kind, resources in store.resources.items():
        for identifier, resource in resources.items():
            whose = resource.get("subject") or resource.get("patient")
            patient = whose["reference"].removeprefix("Patient/") if whose else identifier
            found = seen(resource)
            assert (found.patients, found.types, found.trouble) == ((patient,), {kind: 1}, "")
            together.append(resource)
    found = seen(bundle(*together))
    assert set(found.patients) == set(store.resources["Patient"])
    assert found.complete


def test_bounds():
    """More patients, or more links, than the bound are told; those before are kept."""
    reading = Reading(max_patients=10)
    found = seen(bundle(*(observation(n) for n in range(11))), reading=reading)
    assert (found.patients, found.trouble) == (tuple(map(str, range(10))), "too_many")
    assert seen(bundle(*(observation(n % 10) for n in range(50))), reading=reading).complete
    linked = [{"fullUrl": f"urn:{n}", "resource": observation(1)} for n in range(11)]
    assert seen({"resourceType": "Bundle", "entry": linked}, reading=reading).trouble == "too_many"
