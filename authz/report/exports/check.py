"""Checks an export with nothing but its files and a trust file.

1. The manifest has its form.
2. Each log is one that the trust file names, and its checkpoint is signed by one of that log's keys
   and cosigned by as many witnesses as the trust file asks for.
3. Each file is there, and has the size and the SHA-256 that the manifest says.
4. Where there is a proof (NDJSON, CSV): each record is in canonical form and says itself where it
   stands, these are the places that the manifest says, and together with the proof's hashes they
   give the checkpoint's root.

The manifest itself is signed by nobody: what 4 does not prove, whoever made the export only says.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import orjson

from authz.ledger import Checkpoint, ProofError, Verifier, leaf_hash
from authz.ledger.runs import root_of_runs
from authz.proof import check_checkpoint
from authz.record import Record, canonical
from authz.report.exports.cells import read_csv
from authz.report.exports.manifest import MOST_BYTES, LogPart, Manifest, ManifestError
from authz.trust import TrustedLog

_MOST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """One log's part: the checkpoint and who signed it, and whether its records are `proven` to be
    the log's."""

    part: LogPart
    checkpoint: Checkpoint
    signed: tuple[Verifier, ...]
    proven: bool

    @property
    def whole(self) -> bool:
        """Whether these are proven to be all records of a part of the log, with none left out."""
        return self.proven and self.part.runs == [[self.part.first, self.part.end]]

    def to_json(self) -> dict[str, object]:
        return {
            "origin": self.checkpoint.origin, "size": self.checkpoint.size,
            "root": base64.b64encode(self.checkpoint.root).decode(),
            "signed_by": [str(key) for key in self.signed], "records": self.part.records,
            "first": self.part.first, "end": self.part.end, "records_proven": self.proven,
            "none_left_out": self.whole, "why_not": self.part.no_proof,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckedExport:
    """An export of which nothing was found wrong."""

    manifest: Manifest
    logs: tuple[CheckedLog, ...]

    @property
    def proven(self) -> bool:
        """Whether every record is proven to be the log's."""
        return all(log.proven for log in self.logs)

    def to_json(self) -> dict[str, object]:
        return {
            "proven": True, "format": self.manifest.format, "records": self.manifest.records,
            "records_proven": self.proven, "filters": self.manifest.filters.model_dump(),
            "files": [file.name for file in self.manifest.files],
            "logs": [log.to_json() for log in self.logs],
        }  # fmt: skip


def check_export(path: Path, logs: Sequence[TrustedLog]) -> CheckedExport:
    """What the manifest at `path`, and the files beside it, show. Raises `ManifestError`,
    `ProofError` or `NoteError`, which say what is wrong, and `OSError`."""
    with path.open("rb") as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ManifestError(f"it has more than {MOST_BYTES} bytes")
    manifest = Manifest.parse(data)
    signed = [(part, *check_checkpoint(part.checkpoint, logs)) for part in manifest.logs]
    for part, checkpoint, _ in signed:
        if part.origin != checkpoint.origin:
            raise ManifestError(f"the checkpoint of {part.origin} is another log's")
    for file in manifest.files:
        if _sha256(path.parent / file.name, file.bytes) != file.sha256:
            raise ProofError(f"{file.name} is not the file that the manifest tells of")
    if manifest.format in _READ:
        _prove(manifest, signed, path.parent)
    checked = (
        CheckedLog(part, checkpoint, keys, manifest.format in _READ and _provable(part))
        for part, checkpoint, keys in signed
    )
    return CheckedExport(manifest, tuple(checked))


def _sha256(path: Path, size: int) -> str:
    """Of a plain file of this size; empty for any other."""
    if not path.is_file() or path.stat().st_size != size:
        return ""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _provable(part: LogPart) -> bool:
    return part.runs is not None and part.proof is not None


_Signed = Sequence[tuple[LogPart, Checkpoint, tuple[Verifier, ...]]]


def _prove(manifest: Manifest, signed: _Signed, folder: Path) -> None:
    """Step 4, for all logs: their records stand one log behind the other."""
    read = _READ[manifest.format]
    records = chain.from_iterable(read(folder / file.name) for file in manifest.files)
    by_log = groupby(records, key=lambda record: record.get("origin", ""))
    for part, checkpoint, _ in signed:
        if not part.records:
            continue
        origin, own = next(by_log, ("", iter(())))
        if origin != part.origin:
            raise ProofError(f"the records of {part.origin} are not where they should be")
        if part.runs is None or part.proof is None:
            count = sum(1 for _ in own)
            if count != part.records:
                raise ProofError(f"{part.origin} has {count} records, not {part.records}")
            continue
        runs = [(begin, end) for begin, end in part.runs]
        proof = (base64.b64decode(one) for one in part.proof)
        try:
            root = root_of_runs(runs, checkpoint.size, _hashes(own, part), proof)
        except ValueError as error:
            raise ManifestError(str(error)) from None
        if root != checkpoint.root:
            raise ProofError(f"the records of {part.origin} lead to another root than was signed")
    if next(by_log, None) is not None:
        raise ProofError("there are records that the manifest does not tell of")


def _hashes(records: Iterator[Record], part: LogPart) -> Iterator[bytes]:
    """The leaf hashes of records that stand at the places that `part` says."""
    places = (index for begin, end in part.runs or () for index in range(begin, end))
    for record in records:
        if record.get("index", 0) != next(places, None):
            raise ProofError(f"a record of {part.origin} is not in its place")
        yield leaf_hash(canonical(record))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.readline(_MOST_LINE), b"")


def _ndjson(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        try:
            record = orjson.loads(line)
            if isinstance(record, dict) and canonical(record) + b"\n" == line:
                yield record
                continue
        except (ValueError, TypeError):
            pass
        raise ProofError(f"{path.name}: line {number} is no record in canonical form")


def _csv(path: Path) -> Iterator[Record]:
    read = 0
    try:
        for record in read_csv(line.decode() for line in _lines(path)):
            yield record
            read += 1
    except (ValueError, OverflowError):  # text that is no UTF-8 is a ValueError too
        raise ProofError(f"{path.name}: what follows record {read} is none") from None


_READ: dict[str, Callable[[Path], Iterator[Record]]] = {"ndjson": _ndjson, "csv": _csv}
