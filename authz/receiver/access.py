"""From an access log entry, as plain values, to the record of an access. Pure."""

from collections.abc import Callable
from typing import Any

from authz.places import nowhere
from authz.record import DECIDED, SCHEMA_VERSION, Record, fit
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources

_DECIDED = frozenset((*DECIDED, "decided_by"))


def access_record(
    entry: dict[str, Any], node: str, resources: Resources, key: PrivacyKey | None,
    country: Callable[[str], str] = nowhere,
) -> Record:  # fmt: skip
    """The record of one access told by Envoy `node`; it takes the place of `entry`, which is used
    up.

    What was accessed is the decision's word where there is one; otherwise it is read from the path,
    with patients named only if the receiver holds the privacy `key`.
    """
    record = entry
    said = record.pop("authz", None)
    raw_path = record.pop("raw_path", None)
    flags = record.pop("flags", None)
    record.pop("end_of_stream", None)
    record["kind"] = "access"
    record["schema"] = SCHEMA_VERSION
    record["writer"] = f"envoy:{node}"
    if said and "decision_id" in said:
        record["decision_id"] = said["decision_id"]
        decided = said.get("authz", {})
        if not decided.keys() <= _DECIDED:
            decided = {name: value for name, value in decided.items() if name in _DECIDED}
        record |= decided
    elif raw_path is not None:
        resource = resources.read(str(record.get("method", "")), raw_path)
        record |= {"path": resource.path, "resource_type": resource.type, "action": resource.action}
        if key is not None:
            record["patients"] = [key.token(patient) for patient in resource.patients]
        if resource.type != "Patient":
            record["resource_id"] = resource.id
        elif key is not None and resource.id:
            record["resource_id"] = key.token(resource.id)
    if place := country(record.get("source_ip", "")):
        record["country"] = place
    if flags:
        details = [str(record.get("response_details", "")), *flags]
        record["response_details"] = " ".join(filter(None, details))
    return fit(record)
