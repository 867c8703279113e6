"""Records as FHIR R4 AuditEvents: requests by IHE's Basic Audit Log Patterns (BALP). Pure.

A record becomes an event for each patient whom it names, as BALP has it, and one if it names none.
`meta.profile` claims a pattern only for a request that succeeded, since BALP's are of these, and
that is one of FHIR's interactions. What stands for people, patients and records is an identifier of
one of the systems below; no reference leads to a resource.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from authz.report.exports import balp
from authz.report.exports.balp import Json, coding, concept
from authz.report.exports.cells import time_text
from authz.report.purposes import LEFT_OUT, WORDS

SYSTEM = "urn:authz:"
"""Of identifiers and codes of ours; then subject, patient-token, resource, record, decision,
writer, policy, rule or event."""

_SUCCESS, _MINOR, _SERIOUS = "0", "4", "8"
_UNKNOWN: Json = {
    "extension": [
        {
            "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
            "valueCode": "unknown",
        }
    ]
}

Record = Mapping[str, Any]


def audit_events(record: Record) -> Iterator[Json]:
    """The AuditEvents of one record."""
    kind, event = record.get("kind", ""), record.get("event", "")
    if kind in ("access", "disclosure"):
        common = _request(record)
    elif kind == "decision":
        common = _decision(record)
    elif kind == "notice" and event == "look":
        common = _look(record)
    else:
        common = _told(record)
    patients = _patients(record) or [""]
    name = f"{_short(record.get('origin', ''))}-{record.get('index', 0)}"
    for number, patient in enumerate(patients, 1):
        several = f"-{number}" if len(patients) > 1 else ""
        told = {"resourceType": "AuditEvent", "id": name + several, **common}
        if patient:
            told["entity"] = [*told["entity"], _patient(patient)]
        yield told


def outcome(record: Record) -> str:
    """What became of it, by AuditEvent's codes (DICOM's): a denial ended the action, and is 8, as
    in BALP's own example of one; 4 is what the service or Envoy refused (HTTP 4xx); 8 is also an
    answer of 5xx, none, and one that was held back."""
    kind, status = record.get("kind"), record.get("status", 0)
    if not record.get("allowed") and (record.get("enforced") or kind == "decision"):
        return _SERIOUS
    if kind == "disclosure" and record.get("reason_code") == "held_back":
        return _SERIOUS
    if kind == "decision" or 100 <= status < 400:
        return _SUCCESS
    return _MINOR if 400 <= status < 500 else _SERIOUS


def _request(record: Record) -> Json:
    """A request, as Envoy told it (an access), or as its answer was seen (a disclosure)."""
    interacted = balp.interaction(record)
    action = record.get("action", "")
    if interacted in balp.SEARCHES or action not in balp.PATTERNS:
        action = "E"
    pattern = balp.PATTERNS[action]
    told = _common(record, balp.REST, balp.APPLICATION_SERVER)
    if interacted:
        told["subtype"] = [coding(balp.INTERACTION, interacted)]
    told["action"] = action
    told["agent"] = [
        *_user(record, pattern.user), _client(record, pattern.client),
        _server(record, pattern.server),
    ]  # fmt: skip
    told["entity"] = [_object(record, interacted), *_links(record)]
    if told["outcome"] == _SUCCESS and balp.has_pattern(interacted, record.get("status")):
        profile = pattern.profile(patient=bool(_patients(record)))
        told = {"meta": {"profile": [profile]}, **told}
    return told


def _decision(record: Record) -> Json:
    """An authorization decision by roles. BALP's pattern of one (AuthZconsent) is about a patient's
    consent, which this is not: it is not claimed."""
    told = _common(record, balp.SECURITY_ALERT, balp.SECURITY_SERVER)
    told["subtype"] = [balp.BY_ROLE]
    told["action"] = "E"
    authorizer = {"type": balp.AUTHORIZER, "who": _writer(record), "requestor": False}
    client = _client(record, balp.APPLICATION)
    told["agent"] = [*_user(record, balp.RECIPIENT), client, authorizer]
    told["entity"] = [_object(record, balp.interaction(record)), *_links(record)]
    return told


def _look(record: Record) -> Json:
    """Somebody looked at the log."""
    told = _common(record, balp.LOG_USED, balp.SECURITY_SERVER)
    told["action"] = "R"
    told["outcome"] = _SUCCESS
    told["agent"] = _user(record, balp.RECIPIENT) or [_self(record)]
    log = {"identifier": _identifier("log", record.get("origin", ""))}
    told["entity"] = [
        {"type": balp.SYSTEM_OBJECT, "role": balp.SECURITY_RESOURCE, "what": log},
        *_links(record),
    ]
    return told


def _told(record: Record) -> Json:
    """A finding, or what a process said of itself or of the log."""
    found = record.get("kind") == "finding"
    told = _common(record, balp.SECURITY_ALERT if found else balp.ACTIVITY, balp.SECURITY_SERVER)
    system, name = ("rule", record.get("rule")) if found else ("event", record.get("event"))
    if name:
        told["subtype"] = [coding(SYSTEM + system, _code(name))]
    told["action"] = "E"
    told["outcome"] = _SUCCESS
    if evidence := record.get("evidence"):
        told["outcomeDesc"] = _text(evidence)
    told["agent"] = [_self(record)]
    told["entity"] = _links(record)
    if subject := record.get("subject"):
        who = {"identifier": _identifier("subject", subject)}
        told["entity"] += [{"type": balp.PERSON, "role": balp.SECURITY_USER, "what": who}]
    return told


def _common(record: Record, kind: Json, source: Json) -> Json:
    """Of all events. What happened when is `period`; `recorded` is when the receiver sealed it."""
    told: Json = {"type": kind}
    if begun := record.get("time"):
        told["period"] = {"start": time_text(begun)}
        if took := record.get("duration_us"):
            told["period"]["end"] = time_text(begun + took)
    told["recorded"] = time_text(record.get("sealed_at", 0))
    told["outcome"] = outcome(record)
    if why := ": ".join(filter(None, (record.get("reason_code"), record.get("reason")))):
        told["outcomeDesc"] = _text(why)
    if purposes := _purposes(record):
        told["purposeOfEvent"] = purposes
    told["source"] = {
        "site": _text(record.get("origin", "") or "unknown"), "observer": _writer(record),
        "type": [source],
    }  # fmt: skip
    return told


def _purposes(record: Record) -> list[Json]:
    """Codes of v3-ActReason, and as text what is none of them."""
    codes = [record["purpose"]] if record.get("purpose") else []
    if record.get("break_glass"):
        codes.append("BTG")  # break the glass
    found = []
    for told in codes:
        code = told.strip().upper()
        known = code in WORDS or code in LEFT_OUT
        found.append(concept(coding(balp.ACT_REASON, code)) if known else {"text": _text(told)})
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _user(record: Record, kind: Json) -> list[Json]:
    """The person, in the roles that the decision went by; nothing if nobody was identified."""
    subject = record.get("subject")
    if not subject:
        return []
    identifier = _identifier("subject", subject)
    if tenant := record.get("tenant"):
        identifier["assigner"] = {"display": _text(tenant)}
    agent: Json = {"type": kind, "who": {"identifier": identifier}, "requestor": True}
    if roles := [role for role in record.get("roles", ()) if role]:
        agent["role"] = [{"text": _text(role)} for role in roles]
    if revision := record.get("policy_revision"):
        agent["policy"] = [f"{SYSTEM}policy:{quote(revision, safe='')}"]
    if purposes := _purposes(record):
        agent["purposeOfUse"] = purposes
    return [agent]


def _client(record: Record, kind: Json) -> Json:
    """The program that asked, and from where."""
    address, principal = record.get("source_ip", ""), record.get("principal", "")
    who = {"display": _text(principal or address)} if principal or address else _UNKNOWN
    network = {"address": _text(address), "type": "2"} if address else _UNKNOWN
    asks = not record.get("subject")
    agent: Json = {"type": kind, "who": who, "requestor": asks, "network": network}
    if name := record.get("user_agent"):
        agent["name"] = _text(name)
    return agent


def _server(record: Record, kind: Json) -> Json:
    """The service, as the request named it."""
    host = record.get("host")
    who = {"display": _text(host)} if host else _UNKNOWN
    network = {"address": _text(host), "type": "1"} if host else _UNKNOWN
    return {"type": kind, "who": who, "requestor": False, "network": network}


def _self(record: Record) -> Json:
    return {"type": balp.APPLICATION, "who": _writer(record), "requestor": True}


def _writer(record: Record) -> Json:
    """Who told the record: a writer, or else the receiver of the log itself."""
    return {"identifier": _identifier("writer", record.get("writer") or record.get("origin", ""))}


def _object(record: Record, interacted: str) -> Json:
    """What was asked for: a question, without the values that are not recorded, or a resource."""
    asked = f"{record.get('method', '')} {record.get('path', '')}".strip()
    if interacted in balp.SEARCHES:
        query = base64.b64encode(asked.encode()).decode()
        return {"type": balp.SYSTEM_OBJECT, "role": balp.QUERY, "query": query}
    what: Json = {}
    kind = balp.resource_type(record)
    if kind:
        what["type"] = kind
    if identifier := record.get("resource_id"):
        system = "patient-token" if kind == "Patient" else "resource"
        what["identifier"] = _identifier(system, identifier)
    if asked:
        what["display"] = _text(asked)
    if not what.keys() & {"identifier", "display"}:
        what |= _UNKNOWN
    return {"type": balp.SYSTEM_OBJECT, "role": balp.DOMAIN_RESOURCE, "what": what}


def _patients(record: Record) -> list[str]:
    return [one for one in record.get("patients", ()) if one]


def _patient(token: str) -> Json:
    what = {"type": "Patient", "identifier": _identifier("patient-token", token)}
    return {"type": balp.PERSON, "role": balp.PATIENT, "what": what}


def _links(record: Record) -> list[Json]:
    """What leads from an event to others: its record, its decision, the request's own id, and the
    records that a finding is about."""
    place = f"{record.get('origin', '')}@{record.get('index', 0)}"
    own: Json = {"type": balp.OTHER, "what": {"identifier": _identifier("record", place)}}
    if details := record.get("details"):
        own["detail"] = [{"type": "details", "valueString": _text(details)}]
    found = [own]
    if decision := record.get("decision_id"):
        what = {"identifier": _identifier("decision", decision)}
        found.append({"type": balp.OTHER, "what": what})
    if request := record.get("request_id"):
        what = {"identifier": {"value": _text(request)}}
        found.append({"type": balp.REQUEST_ID, "what": what})
    named: Sequence[str] = [name for name in record.get("records", ()) if name]
    found += [{"type": balp.OTHER, "what": {"identifier": _identifier("record", name)}}
              for name in named]  # fmt: skip
    return found


def _identifier(system: str, value: str) -> Json:
    return {"system": SYSTEM + system, "value": _text(value or "unknown")}


def _text(text: str) -> str:
    r"""`text` as a FHIR string can hold it: what that must not have is escaped (``\x1b``), and so
    is what is nothing but spaces."""
    if text.isascii() and text.isprintable() and not text.isspace():
        return text
    if not text.strip():
        return "".join(f"\\x{ord(c):02x}" for c in text)
    return "".join(
        c if c.isprintable() or c in "\t\r\n" else c.encode("unicode_escape").decode() for c in text
    )


def _code(text: str) -> str:
    """The same as a code can be, which has no spaces at its ends, and single ones."""
    return " ".join(_text(text).split())


@lru_cache(1024)
def _short(origin: str) -> str:
    """What stands for a log in an event's id, which has 64 characters and few kinds of them."""
    return hashlib.sha256(origin.encode()).hexdigest()[:16]
