"""Codes of FHIR R4 AuditEvents, and IHE's Basic Audit Log Patterns (BALP): which pattern a request
follows. https://profiles.ihe.net/ITI/BALP"""

from collections.abc import Mapping, Sequence
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
_PATTERNED: Final = frozenset("read vread create update patch delete search".split())


def interaction(record: Mapping[str, Any]) -> str:
    """FHIR's name of what a request did (restful-interaction), by method and path template; empty
    for what is none of FHIR's."""
    segments = str(record.get("path", "")).strip("/").split("/")
    method, action = record.get("method", ""), record.get("action", "")
    if any(segment.startswith("$") for segment in segments):
        return "operation"
    if not resource_type(record):
        return "capabilities" if segments[-1] == "metadata" else ""
    if action == "R":
        return _read(segments)
    if action == "U":
        return "patch" if method == "PATCH" else "update"
    if action == "E":
        return "search" if method in ("GET", "HEAD", "POST", "") else ""
    return {"C": "create", "D": "delete"}.get(str(action), "")


def _read(segments: Sequence[str]) -> str:
    if "_history" in segments:
        return "history" if segments[-1] == "_history" else "vread"
    if segments[-1] == "{id}":
        return "read"
    return "search-type" if segments[-1] in RESOURCE_TYPES else ""  # within a compartment


def has_pattern(interacted: str) -> bool:
    """Whether BALP has one for it."""
    return interacted in _PATTERNED


def resource_type(record: Mapping[str, Any]) -> str:
    """The FHIR resource type that a request names."""
    told = str(record.get("resource_type", ""))
    if told:
        return told if told in RESOURCE_TYPES else ""
    segments = str(record.get("path", "")).split("/")
    return next((segment for segment in segments if segment in RESOURCE_TYPES), "")
