"""The patients in a FHIR resource: R4's patient compartment, read from JSON.

Whom a resource is about is said by the elements that HL7's CompartmentDefinition/patient names
(`patient_r4.json`, made by tests/vectors/fhir_r4/derive.py), and in any type by `subject` and
`patient`. References: hl7.org/fhir/R4/references.html.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import unquote

import orjson

from authz.disclosure.findings import Findings
from authz.record.fhir import RESOURCE_TYPES

_RESTFUL = re.compile(r"(?:^|/)([A-Z][A-Za-z]{1,63})/([^/?#\s]+)(?:/_history/[^/?#]+)?/?(?:#.*)?$")
_MAX_DEPTH = 8  # bundles in bundles, parameters in parameters
_GENERIC = ("subject",), ("patient",)


class _Elements(NamedTuple):
    about: tuple[tuple[str, ...], ...]
    other: tuple[tuple[str, ...], ...]


@cache
def compartment() -> Mapping[str, _Elements]:
    published = orjson.loads(files("authz.disclosure").joinpath("patient_r4.json").read_bytes())
    about, other = published["about"], published["other"]
    paths = {
        kind: [tuple(tuple(path.split(".")) for path in part[kind]) for part in (about, other)]
        for kind in about
    }
    return {
        kind: _Elements(tuple(dict.fromkeys((*whose, *_GENERIC))), others)
        for kind, (whose, others) in paths.items()
    }


_ANY = _Elements(_GENERIC, ())


def read_resource(
    resource: Any, findings: Findings, *, url: Any = None, contained: bool = False, depth: int = 0
) -> None:
    """Finds whom `resource` is about. `url` is its entry's fullUrl."""
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    if not isinstance(kind, str) or depth > _MAX_DEPTH:
        findings.fail("malformed")
    elif kind == "Bundle":
        for entry in items(resource, "entry", findings):
            read_entry(entry, findings, depth=depth + 1)
    else:
        _read_one(kind, resource, findings, url, contained=contained, depth=depth)


def read_entry(entry: Any, findings: Findings, *, depth: int = 1) -> None:
    """An entry of a Bundle. Without a resource (deleted, created) it may still name a patient."""
    if not isinstance(entry, dict):
        findings.fail("malformed")
        return
    url, resource = entry.get("fullUrl"), entry.get("resource")
    if isinstance(url, str) and not _RESTFUL.search(url):
        findings.link(url)
    if resource is not None:
        read_resource(resource, findings, url=url, depth=depth)
        return
    for part, key in ((entry, "fullUrl"), ("request", "url"), ("response", "location")):
        holder = entry.get(part) if isinstance(part, str) else part
        target = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(target, str) and (identifier := patient_in(target)):
            findings.name(identifier)


def _read_one(
    kind: str,
    resource: dict[str, Any],
    findings: Findings,
    url: Any,
    *,
    contained: bool,
    depth: int,
) -> None:
    known = kind in RESOURCE_TYPES
    if not contained:
        findings.count(kind if known else "other")
    inner = items(resource, "contained", findings)
    ids = {part["id"] for part in inner if isinstance(part, dict) and _is_text(part.get("id"))}
    if kind == "Patient":
        _read_patient(resource, findings, url, contained=contained)
    elements = compartment().get(kind, _ANY)
    said = False
    for path in elements.about:
        for reference in _values(resource, path):
            said = True
            _refer(reference, ids, findings, about=True)
    for path in elements.other:
        for reference in _values(resource, path):
            _refer(reference, ids, findings, about=False)
    if not said and kind != "Patient" and kind in compartment() and _is_subset(resource):
        findings.fail("reference")  # the server left elements out, perhaps the patient
    if kind == "Binary":
        _read_binary(resource, ids, findings)
    elif kind == "Parameters":
        for parameter in items(resource, "parameter", findings):
            _read_parameter(parameter, ids, findings, depth + 1)
    for part in inner:
        read_resource(part, findings, contained=True, depth=depth + 1)


def _read_patient(
    resource: dict[str, Any], findings: Findings, url: Any, *, contained: bool
) -> None:
    identifier = resource.get("id")
    if identifier is None and isinstance(url, str):
        identifier = patient_in(url)
    # A contained resource's id means something inside its container only; as a patient's
    # identifier it would be somebody else's name.
    findings.name(None if contained else identifier)


def _read_binary(resource: dict[str, Any], ids: set[str], findings: Findings) -> None:
    """What is in a Binary is not read; who it is about may be said beside it."""
    holder = resource.get("securityContext")
    if holder is not None:
        _refer(holder, ids, findings, about=True)
    elif resource.get("data"):
        findings.fail("content_type")


def _read_parameter(parameter: Any, ids: set[str], findings: Findings, depth: int) -> None:
    if not isinstance(parameter, dict) or depth > _MAX_DEPTH:
        findings.fail("malformed")
        return
    if parameter.get("resource") is not None:
        read_resource(parameter["resource"], findings, depth=depth)
    for reference in _values(parameter, ("valueReference",)):
        _refer(reference, ids, findings, about=False)
    for part in items(parameter, "part", findings):
        _read_parameter(part, ids, findings, depth + 1)


def items(holder: dict[str, Any], key: str, findings: Findings) -> list[Any]:
    """The list under `key`; one value where a list is due is malformed, and read all the same."""
    found = holder.get(key)
    if found is None:
        return []
    if isinstance(found, list):
        return found
    findings.fail("malformed")
    return [found]


def _values(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """The values at `path`, whichever of its elements repeat; and what stands where only an object
    may, for `_refer` to stumble on."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list):
                yield item
            else:
                yield from _values(item, path)
    elif path and isinstance(value, dict):
        if path[0] in value:
            yield from _values(value[path[0]], path[1:])
    elif value is not None:
        yield value


def _refer(reference: Any, ids: set[str], findings: Findings, *, about: bool) -> None:
    """`about`: the element says whose the resource is, so a target without a type is a patient."""
    if not isinstance(reference, dict):
        findings.fail("reference")
        return
    target, kind = reference.get("reference"), reference.get("type")
    if isinstance(kind, str):
        kind = kind.rpartition("/")[2]  # also http://hl7.org/fhir/StructureDefinition/Patient
    patient = kind == "Patient" or (about and not _is_other(kind))
    if not _is_text(target):
        if patient and (target or reference.get("identifier") or reference.get("display")):
            findings.fail("reference")
    elif target.startswith("#"):
        if target != "#" and target[1:] not in ids and not _is_other(kind):
            findings.fail("reference")
    elif (match := _RESTFUL.search(target)) and match[1] in RESOURCE_TYPES:
        if match[1] == "Patient":
            findings.name(unquote(match[2], errors="backslashreplace"))
    elif not _is_other(kind):
        findings.seek(target)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _is_other(kind: Any) -> bool:
    return isinstance(kind, str) and kind in RESOURCE_TYPES and kind != "Patient"


def patient_in(url: str) -> str | None:
    """The patient's id in a reference or URL such as ``Patient/123/_history/4``."""
    kind, found = target_of(url)
    return found if kind == "Patient" else None


def target_of(url: str) -> tuple[str, str]:
    """The type and the id of what a reference or URL leads to; empty if it is another form."""
    match = _RESTFUL.search(url)
    return (match[1], unquote(match[2], errors="backslashreplace")) if match else ("", "")


def _is_subset(resource: dict[str, Any]) -> bool:
    tags = _values(resource, ("meta", "tag", "code"))
    return any(code == "SUBSETTED" for code in tags)
