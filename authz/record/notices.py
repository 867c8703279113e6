"""Records of kind ``notice``: what a process of ours says of itself, of a log, or of a writer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from authz.record.canonical import clean
from authz.record.schema import SCHEMA_VERSION, Record


def notice(
    event: str, time_us: int, details: Mapping[str, object], *, rule: str = "",
    records: Sequence[str] = (),
) -> Record:  # fmt: skip
    """A notice of `event`, with `details` as canonical JSON."""
    text = json.dumps(details, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return clean(
        {
            "kind": "notice", "schema": SCHEMA_VERSION, "event": event, "time": time_us,
            "rule": rule, "records": list(records), "details": text,
        }
    )  # fmt: skip


def details_of(record: Mapping[str, object]) -> dict[str, Any]:
    """What a notice tells; empty where that is no JSON object, as somebody may have made it."""
    try:
        told = orjson.loads(str(record.get("details", "")))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
