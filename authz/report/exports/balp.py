"""Codes of FHIR R4 AuditEvents, and IHE's Basic Audit Log Patterns (BALP): which pattern a request
follows. https://profiles.ihe.net/ITI/BALP"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from authz.record.fhir import RESOURCE_TYPES

Json = dict[str, Any]

_HL7: Final = "http://terminology.hl7.org/CodeSystem/"
_DICOM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_BALP: Final = "https://profiles.ihe.net/ITI/BALP/"
INTERACTION: Final = "http://hl7.org/fhir/restful-interaction"
ACT_REASON: Final = _HL7 + "v3-ActReason"


def coding(system: str, code: str, display: str = "") -> Json:
    told = {"system": system, "code": code}
    return told | {"display": display} if display else told


def concept(one: Json) -> Json:
    return {"coding": [one]}


REST: Final = coding(_HL7 + "audit-event-type", "rest", "Restful Operation")
SECURITY_ALERT: Final = coding(_DICOM, "110113", "Security Alert")
LOG_USED: Final = coding(_DICOM, "110101", "Audit Log Used")
ACTIVITY: Final = coding(_DICOM, "110100", "Application Activity")
BY_ROLE: Final = coding(_BALP + "CodeSystem/AuthZsubType", "AuthZ-Role")

PERSON: Final = coding(_HL7 + "audit-entity-type", "1", "Person")
SYSTEM_OBJECT: Final = coding(_HL7 + "audit-entity-type", "2", "System Object")
OTHER: Final = coding(_HL7 + "audit-entity-type", "4", "Other")
REQUEST_ID: Final = coding(_BALP + "CodeSystem/BasicAuditEntityType", "XrequestId")
PATIENT: Final = coding(_HL7 + "object-role", "1", "Patient")
DOMAIN_RESOURCE: Final = coding(_HL7 + "object-role", "4", "Domain Resource")
SECURITY_USER: Final = coding(_HL7 + "object-role", "11", "Security User Entity")
SECURITY_RESOURCE: Final = coding(_HL7 + "object-role", "13", "Security Resource")
QUERY: Final = coding(_HL7 + "object-role", "24", "Query")

SOURCE: Final = concept(coding(_DICOM, "110153", "Source Role ID"))
DESTINATION: Final = concept(coding(_DICOM, "110152", "Destination Role ID"))
APPLICATION: Final = concept(coding(_DICOM, "110150", "Application"))
CUSTODIAN: Final = concept(coding(_HL7 + "provenance-participant-type", "custodian", "Custodian"))
AUTHORIZER: Final = concept(
    coding(_HL7 + "extra-security-role-type", "authserver", "authorization server")
)
RECIPIENT: Final = concept(coding(_HL7 + "v3-ParticipationType", "IRCP", "information recipient"))
AUTHOR: Final = concept(coding(_HL7 + "v3-ParticipationType", "AUT"))

APPLICATION_SERVER: Final = coding(_HL7 + "security-source-type", "4", "Application Server")
SECURITY_SERVER: Final = coding(_HL7 + "security-source-type", "6", "Security Server")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Of the requests of one kind: BALP's name of it, and what its agents are called."""

    name: str
    client: Json
    server: Json
    user: Json

    def profile(self, *, patient: bool) -> str:
        whose = "Patient" if patient else ""
        return f"{_BALP}StructureDefinition/IHE.BasicAudit.{whose}{self.name}"


# In a read the server is the data's source; in a query the client is, of the question.
PATTERNS: Final[Mapping[str, Pattern]] = {
    "C": Pattern("Create", SOURCE, DESTINATION, AUTHOR),
    "R": Pattern("Read", DESTINATION, SOURCE, RECIPIENT),
    "U": Pattern("Update", SOURCE, DESTINATION, AUTHOR),
    "D": Pattern("Delete", APPLICATION, CUSTODIAN, AUTHOR),
    "E": Pattern("Query", SOURCE, DESTINATION, RECIPIENT),
}
SEARCHES: Final = ("search", "search-type")
_PATTERNED: Final = frozenset(("read", "vread", "create", "update", "patch", "delete", *SEARCHES))
_READS: Final = ("GET", "HEAD", "")  # an answer's record has no method
# By what follows a type in a path: what each method does there, if the record's action is that too.
_SHAPES: Final[Mapping[tuple[str, ...], Mapping[str, Mapping[str, str]]]] = {
    (): {
        "search": dict.fromkeys(_READS, "RE"), "create": {"POST": "C", "": "C"},
        "update": {"PUT": "U", "": "U"}, "patch": {"PATCH": "U"},
        "delete": {"DELETE": "D", "": "D"},
    },
    ("_search",): {"search": dict.fromkeys(("POST", *_READS), "RE")},
    ("{}",): {
        "read": dict.fromkeys(_READS, "R"), "update": {"PUT": "U", "": "U"},
        "patch": {"PATCH": "U"}, "delete": {"DELETE": "D", "": "D"},
    },
    ("{}", "_history", "{}"): {"vread": dict.fromkeys(_READS, "R")},
    ("{}", "_history"): {"history": dict.fromkeys(_READS, "RE")},
    ("_history",): {"history": dict.fromkeys(_READS, "RE")},
    # Within a compartment: the resources of a type that are a patient's.
    ("{}", "Type"): {"search-type": dict.fromkeys(_READS, "RE")},
    ("{}", "Type", "_search"): {"search-type": dict.fromkeys(("POST", *_READS), "RE")},
}  # fmt: skip


def interaction(record: Mapping[str, Any]) -> str:
    """FHIR's name of what a request did (restful-interaction), by method and path template; empty
    for what is none of FHIR's, also where a policy gave the resource a type of FHIR's."""
    segments = str(record.get("path", "")).strip("/").split("/")
    method, action = str(record.get("method", "")), str(record.get("action", ""))
    if any(segment.startswith("$") for segment in segments):
        return "operation"
    types = [at for at, segment in enumerate(segments) if segment in RESOURCE_TYPES]
    if not types:
        return "capabilities" if segments[-1] == "metadata" else ""
    shape = tuple(_form(segment) for segment in segments[types[0] + 1 :])
    for name, methods in _SHAPES.get(shape, {}).items():
        if action and action in methods.get(method, ""):
            return name
    return ""


def _form(segment: str) -> str:
    if segment in RESOURCE_TYPES:
        return "Type"
    return "{}" if segment.startswith("{") else segment


def has_pattern(interacted: str, status: object) -> bool:
    """Whether BALP has one for it: for what was done, and not led elsewhere."""
    done = isinstance(status, int) and (200 <= status < 300 or status == 304)
    return done and interacted in _PATTERNED


def resource_type(record: Mapping[str, Any]) -> str:
    """The FHIR resource type that a request names."""
    told = str(record.get("resource_type", ""))
    if told:
        return told if told in RESOURCE_TYPES else ""
    segments = str(record.get("path", "")).split("/")
    return next((segment for segment in segments if segment in RESOURCE_TYPES), "")
