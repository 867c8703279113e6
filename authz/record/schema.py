"""The fields of a record: one table from which the leaf, the row and the schema are made.

A record is a flat mapping of these names to strings, integers, booleans or arrays of
strings. A value equal to its type's default (``""``, ``0``, ``False``, ``[]``) is left out, so
that a leaf and a row of typed columns are the same information. Times are integers of
microseconds since the epoch, UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Value = str | int | bool | list[str]
Record = dict[str, Value]
Entry = tuple[Record, bytes]  # a record and its attachment, b"" for none

SCHEMA_VERSION: Final = 4
MAX_INT: Final = 2**53 - 1  # the integers JSON readers agree on (RFC 8785, section 3.2.2.3)

_LOW = "LowCardinality(String)"
_TEXT = "String CODEC(ZSTD(1))"
_COUNT = "UInt64 CODEC(T64, ZSTD(1))"
_TIME = "DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1))"
_STEADY = "UInt64 CODEC(DoubleDelta, ZSTD(1))"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its Python type, its ClickHouse column and its bounds.

    ``cap`` is the longest text in characters (of each item, for an array), or the largest integer.
    ``items`` is the most an array holds. ``since`` is the first schema version that has the field:
    a field is added at the end, and a migration adds its column.
    """

    name: str
    type: Literal["text", "int", "bool", "texts", "time"]
    column: str
    cap: int
    items: int = 0
    since: int = 1


def _text(name: str, column: str = _LOW, cap: int = 256, since: int = 1) -> Field:
    return Field(name, "text", column, cap, since=since)


def _int(name: str, column: str = _COUNT, cap: int = MAX_INT) -> Field:
    return Field(name, "int", column, cap)


def _time(name: str) -> Field:
    return Field(name, "time", _TIME, MAX_INT)


def _bool(name: str, since: int = 1) -> Field:
    return Field(name, "bool", "Bool", 1, since=since)


def _texts(name: str, items: int, column: str = f"Array({_LOW})", cap: int = 256) -> Field:
    return Field(name, "texts", column, cap, items)


FIELDS: Final = (
    # where the record stands in the log
    _text("origin"),
    _int("index", _STEADY),
    _time("sealed_at"),
    # what it is
    _text("kind"),
    _int("schema", "UInt16", 65535),
    # who told it, and its place in their own chain
    _text("writer"),
    _int("writer_seq", _STEADY),
    _text("prev", _TEXT, 64),
    # when
    _time("time"),
    # who
    _text("subject", _TEXT),
    _text("principal"),
    _texts("roles", 64),
    _text("tenant"),
    # why
    _text("purpose"),
    _text("reason", cap=512),
    _text("decision_id", _TEXT, 64),
    _bool("allowed"),
    _bool("enforced"),
    _text("reason_code"),
    _text("policy_revision"),
    _bool("break_glass"),
    # what
    _text("method"),
    _text("host"),
    _text("path", cap=1024),
    _text("resource_type"),
    _text("resource_id", _TEXT),
    _texts("patients", 1000, "Array(String) CODEC(ZSTD(1))"),
    _text("action"),
    # where from
    _text("source_ip", _TEXT, 64),
    _text("country"),
    _text("user_agent", cap=512),
    # what became of it
    _int("status", "UInt16", 65535),
    _text("response_details", cap=512),
    _int("bytes_in"),
    _int("bytes_out"),
    _int("duration_us"),
    _text("upstream"),
    _text("request_id", _TEXT, 128),
    _text("trace_id", _TEXT, 64),
    # findings and notices
    _text("event"),
    _text("rule"),
    _text("lane"),
    _int("score_milli"),
    _texts("records", 100, "Array(String) CODEC(ZSTD(1))"),
    _text("evidence", _TEXT, 4096),
    _text("details", _TEXT, 65536),
    # what is kept beside the log
    _text("sealed", _TEXT, 64, since=2),
    # whose decision an access repeats: a writer
    _text("decided_by", since=3),
    # whose data the answer held: it is to be told, and it was told in full
    _bool("discloses", since=4),
    _bool("complete", since=4),
)

FIELD: Final[Mapping[str, Field]] = {field.name: field for field in FIELDS}

# The decision's values that an access repeats. They travel in Envoy's dynamic metadata, with the
# writer's name as `decided_by`.
DECIDED: Final = (
    "subject",
    "roles",
    "tenant",
    "purpose",
    "reason",
    "allowed",
    "enforced",
    "reason_code",
    "policy_revision",
    "break_glass",
    "path",
    "resource_type",
    "resource_id",
    "patients",
    "action",
    "discloses",
)
