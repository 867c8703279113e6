"""What a decision leaves behind: its record, its id, and what the access log brings back of it."""

import os
import time
from collections.abc import Mapping
from itertools import islice

import orjson

from authz.envoy.check import Facts
from authz.identity.values import Identity
from authz.policy.verdict import Verdict
from authz.record import DECIDED, FIELD, Record, clean
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resource

_PATIENTS = FIELD["patients"].items


def decision_record(
    known: Facts, resource: Resource, identity: Identity, verdict: Verdict, key: PrivacyKey, *,
    decision_id: str, revision: str, note: str, enforced: bool, discloses: bool = False,
    country: str = "",
) -> Record:  # fmt: skip
    """The record of one decision. Who and why is the policy's word where it says so; `note` is what
    went wrong where it does not. `discloses`: whose data the answer holds is to be told."""
    audit = verdict.audit
    kind, identifier = resource.type, resource.id
    if not kind:
        kind, _, identifier = audit.resource.partition("/")
    # No more than a record holds: a request may name many thousands.
    patients = islice(dict.fromkeys((*audit.patients, *resource.patients)), _PATIENTS)
    tokens = {patient: key.token(patient) for patient in patients}
    if kind == "Patient" and identifier:
        identifier = tokens.get(identifier) or key.token(identifier)
    return clean(
        {
            "kind": "decision",
            "time": known.time_us or time.time_ns() // 1000,
            "decision_id": decision_id,
            "subject": audit.subject or identity.subject,
            "principal": known.principal,
            "roles": audit.roles or identity.roles,
            "tenant": audit.tenant or identity.tenant,
            "purpose": audit.purpose,
            "reason": audit.reason or note,
            "allowed": verdict.allowed,
            "enforced": enforced,
            "reason_code": verdict.reason_code,
            "break_glass": audit.break_glass,
            "policy_revision": revision,
            "method": known.method,
            "host": known.host,
            "path": resource.path,
            "resource_type": kind,
            "resource_id": identifier,
            "patients": list(tokens.values()),
            "action": resource.action,
            "source_ip": known.source_ip,
            "country": country,
            "user_agent": known.user_agent,
            "status": 0 if verdict.allowed else verdict.http_status,
            "request_id": known.request_id,
            "trace_id": known.trace_id,
            "discloses": discloses,
        }
    )


def metadata(record: Mapping[str, object]) -> dict[str, object]:
    """What Envoy's access log brings back, so that the access says all the decision said. As one
    text: a structure would have to be built here, and taken apart by Envoy and the receiver."""
    brought = {name: record[name] for name in DECIDED if name in record}
    if "writer" in record:
        brought["decided_by"] = record["writer"]
    return {"decision_id": record["decision_id"], "authz": orjson.dumps(brought).decode()}


def new_decision_id() -> str:
    """A UUID, version 7 (RFC 9562): its order is that of time, to the millisecond."""
    stamp = (time.time_ns() // 1_000_000).to_bytes(6).hex()
    random = os.urandom(10).hex()
    variant = "89ab"[int(random[3], 16) & 3]
    return f"{stamp[:8]}-{stamp[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
