"""From an access log entry, as plain values, to the record of an access. Pure."""

from collections.abc import Mapping
from typing import Any

from authz.record import DECIDED, SCHEMA_VERSION, Record, clean
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources

_TOLD = (
    "time",
    "method",
    "host",
    "source_ip",
    "principal",
    "user_agent",
    "status",
    "response_details",
    "bytes_in",
    "bytes_out",
    "duration_us",
    "upstream",
    "request_id",
    "trace_id",
)


def access_record(
    entry: Mapping[str, Any], node: str, resources: Resources, key: PrivacyKey | None
) -> Record:
    """The record of one access told by Envoy `node`.

    What was accessed is the decision's word where there is one; otherwise it is read from the path,
    with patients named only if the receiver holds the privacy `key`.
    """
    values: dict[str, object] = {name: entry[name] for name in _TOLD if name in entry}
    values["kind"] = "access"
    values["schema"] = SCHEMA_VERSION
    values["writer"] = f"envoy:{node}"
    said = entry.get("authz", {})
    if "decision_id" in said:
        values["decision_id"] = said["decision_id"]
        decided = said.get("authz", {})
        values |= {name: decided[name] for name in DECIDED if name in decided}
    elif "raw_path" in entry:
        resource = resources.read(str(entry.get("method", "")), entry["raw_path"])
        values |= {"path": resource.path, "resource_type": resource.type, "action": resource.action}
        if key is not None:
            values["patients"] = [key.token(patient) for patient in resource.patients]
        if resource.type != "Patient":
            values["resource_id"] = resource.id
        elif key is not None and resource.id:
            values["resource_id"] = key.token(resource.id)
    if entry.get("flags"):
        details = [str(values.get("response_details", "")), *entry["flags"]]
        values["response_details"] = " ".join(filter(None, details))
    return clean(values)
