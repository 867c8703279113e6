"""What a request is about, from its path: the template, the resource, the patients. Pure.

Path segments that no template names become ``{}``, and query values are dropped: either may hold
an identifier or a name. FHIR R4 paths are known; other APIs add templates such as
``/api/charts/{patient}/notes/{id}``, matched first.
"""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from authz.record.fhir import OPERATIONS, RESOURCE_TYPES

_ACTIONS = {"GET": "R", "HEAD": "R", "OPTIONS": "R", "POST": "C", "PUT": "U", "PATCH": "U"}
_ACTIONS["DELETE"] = "D"
_PATIENT_PARAMETERS = frozenset(("patient", "subject", "patient:Patient", "subject:Patient"))


class Resource(NamedTuple):
    """`path` is a template; `id` is in clear unless `type` is Patient; `patients` are in clear and
    become tokens before anything is recorded; `action` is C, R, U, D or E (execute, search)."""

    path: str
    type: str = ""
    id: str = ""
    patients: tuple[str, ...] = ()
    action: str = ""


class Resources:
    """Reads paths by FHIR's rules under each of `bases`, after `templates` of the operator's."""

    def __init__(self, bases: Sequence[str] = ("/fhir",), templates: Sequence[str] = ()) -> None:
        self._bases = [
            tuple(base.strip("/").split("/")) if base.strip("/") else () for base in bases
        ]
        self._templates = [tuple(template.strip("/").split("/")) for template in templates]

    def read(self, method: str, raw_path: str) -> Resource:
        """`raw_path` is the request target with its query, as received."""
        target, _, query = raw_path.partition("?")
        segments = [unquote(part, errors="backslashreplace") for part in target.split("/") if part]
        action = _ACTIONS.get(method, "E")
        for template in self._templates:
            if found := _by_template(template, segments, action):
                return found
        for base in self._bases:
            if tuple(segments[: len(base)]) == base:
                return _fhir(base, segments[len(base) :], query, action)
        return Resource("/" + "/".join("{}" for _ in segments), action=action)


def _by_template(template: Sequence[str], segments: Sequence[str], action: str) -> Resource | None:
    if len(template) != len(segments):
        return None
    names = {}
    for wanted, segment in zip(template, segments, strict=True):
        if wanted.startswith("{") and wanted.endswith("}"):
            names[wanted[1:-1]] = segment
        elif wanted != segment:
            return None
    patients = (names["patient"],) if "patient" in names else ()
    return Resource(
        "/" + "/".join(template), names.get("type", ""), names.get("id", ""), patients, action
    )


def _fhir(base: Sequence[str], segments: Sequence[str], query: str, action: str) -> Resource:
    """The interactions of FHIR R4's RESTful API (hl7.org/fhir/R4/http.html)."""
    shown = [*base, *(_shown(segments, place) for place in range(len(segments)))]
    path = "/" + "/".join(shown)
    kind = segments[0] if segments and segments[0] in RESOURCE_TYPES else ""
    searches = bool(kind) and (len(segments) == 1 or segments[1] == "_search")
    executes = any(segment.startswith("$") for segment in segments)
    if executes or (searches and (action == "R" or len(segments) > 1)):
        action = "E"
    identifier = ""
    if kind and len(segments) > 1 and segments[1][:1] not in ("$", "_"):
        identifier = segments[1]
    patients = [identifier] if kind == "Patient" and identifier else []
    patients += _patients_asked_for(kind, query)
    return Resource(path, kind, identifier, tuple(dict.fromkeys(patients)), action)


def _shown(segments: Sequence[str], place: int) -> str:
    segment = segments[place]
    if segment in ("metadata", "_history", "_search") or segment in OPERATIONS:
        return segment
    after_id = place == 2 and segments[0] in RESOURCE_TYPES
    if (place == 0 or after_id) and segment in RESOURCE_TYPES:
        return segment
    if place == 1 and segments[0] in RESOURCE_TYPES:
        return "{id}"
    return "{}"


def _patients_asked_for(kind: str, query: str) -> list[str]:
    found = []
    for name, value in parse_qsl(query, errors="backslashreplace", max_num_fields=None):
        if name in _PATIENT_PARAMETERS or (kind == "Patient" and name == "_id"):
            for reference in value.split(","):
                prefix, _, identifier = reference.rpartition("/")
                if identifier and (not prefix or prefix.split("/")[-1] == "Patient"):
                    found.append(identifier)
    return found
