"""The record: its fields, its canonical form, and what keeps patients out of it in clear."""

from authz.record.attachment import attachment_hash, is_policy, sealing_key_id
from authz.record.bounds import MOST_BYTES, WRITERS_BYTES, shorten
from authz.record.canonical import canonical, clean, fit, form, misfit, text
from authz.record.notices import details_of, notice
from authz.record.place import place_of, read_place
from authz.record.schema import (
    DECIDED,
    FIELD,
    FIELDS,
    MAX_INT,
    SCHEMA_VERSION,
    Entry,
    Field,
    Record,
    Value,
)

__all__ = [
    "DECIDED",
    "FIELD",
    "FIELDS",
    "MAX_INT",
    "MOST_BYTES",
    "SCHEMA_VERSION",
    "WRITERS_BYTES",
    "Entry",
    "Field",
    "Record",
    "Value",
    "attachment_hash",
    "canonical",
    "clean",
    "details_of",
    "fit",
    "form",
    "is_policy",
    "misfit",
    "notice",
    "place_of",
    "read_place",
    "sealing_key_id",
    "shorten",
    "text",
]
