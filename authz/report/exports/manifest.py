"""What stands beside an export: which records it holds, of which logs, and what that rests on."""

import base64
import binascii
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from authz.ledger import HASH_BYTES
from authz.record import MAX_INT

NAME = "manifest.json"
MOST_BYTES = 64 << 20
MOST_RUNS = 10_000
"""Records that lie in more runs than these get no proof of their places: it would be as large as
they are."""

Format = Literal["ndjson", "csv", "fhir"]
FILES: dict[Format, str] = {
    "ndjson": "records.ndjson", "csv": "records.csv", "fhir": "audit-events.ndjson"
}  # fmt: skip


class ManifestError(Exception):
    """It is none, or not one of an export; the text says why."""


def _file_name(name: str) -> str:
    if PurePath(name).name != name or name in ("", "..", NAME) or "\0" in name:
        raise ValueError("want a file's name, without a directory")
    return name


def _hash(text: str) -> str:
    try:
        known = len(base64.b64decode(text, validate=True)) == HASH_BYTES
    except (ValueError, binascii.Error):
        known = False
    if not known:
        raise ValueError(f"want a hash, {HASH_BYTES} bytes in base64")
    return text


_Index = Annotated[int, Field(ge=0, le=MAX_INT)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Filters(_Part):
    """What was asked for; what is empty left nothing out. Times are RFC 3339, by the receiver's
    clock; the rest is as `authz.store.pages.Filters` has it."""

    since: str = ""
    until: str = ""
    kinds: list[str] = []
    subject: str = ""
    patients: list[str] = []
    role: str = ""
    tenant: str = ""
    resource_type: str = ""
    resource_id: str = ""
    reason: str = ""
    reason_code: str = ""
    decision: str = ""
    country: str = ""
    source_ip: str = ""


class File(_Part):
    """A file beside the manifest. `lines` are records, or FHIR resources."""

    name: Annotated[str, AfterValidator(_file_name)]
    bytes: _Index
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    lines: _Index


class LogPart(_Part):
    """The records of one log: `records` of them, from index `first` on and before `end`.

    `checkpoint` is the signed note of the state that they were taken from. `runs` are whole parts
    of the log that they make up, and `proof` the hashes that lead from these to the checkpoint's
    root (`authz.ledger.runs`); where there are none, `no_proof` says why.
    """

    origin: str
    checkpoint: str
    records: _Index
    first: _Index
    end: _Index
    runs: list[Annotated[list[_Index], Field(min_length=2, max_length=2)]] | None = None
    proof: list[Annotated[str, AfterValidator(_hash)]] | None = None
    no_proof: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> "LogPart":
        """What it says of its records in two ways is the same."""
        runs = self.runs or []
        if runs and (self.first, self.end) != (runs[0][0], runs[-1][1]):
            raise ValueError("runs: they do not lie from 'first' to 'end'")
        if self.runs is not None and self.records != sum(end - begin for begin, end in runs):
            raise ValueError("runs: they do not have as many records as it says")
        return self


class Manifest(_Part):
    """`made_at` is by the clock of whoever made it. Nothing of this is signed but the
    checkpoints."""

    authz_export: Literal[1] = 1
    made_at: str
    format: Format
    filters: Filters
    logs: list[LogPart]
    files: list[File]

    @property
    def records(self) -> int:
        return sum(log.records for log in self.logs)

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Raises `ManifestError`."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in found["loc"])
            raise ManifestError(f"not an export's manifest: {place}: {found['msg']}") from None

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1, exclude_defaults=False).encode() + b"\n"
