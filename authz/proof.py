"""One record's proof: made out of tiles, and checked against a trust file. Pure."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from authz.ledger import (
    Checkpoint,
    NoteError,
    ProofError,
    TlogProof,
    Verifier,
    leaf_hash,
    open_note,
    verify_inclusion,
)
from authz.ledger.proofs import Reader, prove_inclusion
from authz.record import Record, canonical
from authz.trust import TrustedLog


@dataclass(frozen=True, slots=True)
class Proven:
    """`record` is in the log of `checkpoint`, which these of its keys signed."""

    record: Record
    proof: TlogProof
    checkpoint: Checkpoint
    signed: tuple[Verifier, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "proven": True,
            "origin": self.checkpoint.origin,
            "index": self.proof.index,
            "size": self.checkpoint.size,
            "root": base64.b64encode(self.checkpoint.root).decode(),
            "signed_by": [str(key) for key in self.signed],
            "record": self.record,
        }


def make_proof(leaf: bytes, index: int, note: str, read: Reader) -> TlogProof:
    """The proof that `leaf` is at `index` of the log whose tiles `read` gives, under the checkpoint
    `note`. Raises `ProofError` if it is not, or a tile is missing, `NoteError` for another note."""
    checkpoint = TlogProof(index, (), note).claimed
    if index >= checkpoint.size:
        raise ProofError(f"the checkpoint is over {checkpoint.size} records only")
    hashes = prove_inclusion(index, checkpoint.size, read)
    verify_inclusion(leaf_hash(leaf), index, checkpoint.size, hashes, checkpoint.root)
    return TlogProof(index, tuple(hashes), note, leaf)


def check_proof(text: str, logs: Sequence[TrustedLog]) -> Proven:
    """What the file with `text` shows, by these steps:

    1. It has a proof's form, and a record in it.
    2. The checkpoint is of a log that is trusted, and signed by one of that log's keys.
    3. The hashes lead from the record to the checkpoint's root.
    4. The record is in canonical form, and says itself that it stands there.
    5. As many witnesses cosigned the checkpoint as the trust file asks for.

    Raises `ProofError` or `NoteError`, which say what is wrong.
    """
    proof = TlogProof.parse(text)
    if proof.leaf is None:
        raise ProofError("the file holds no record (the proof's extra data)")
    log = _log(proof.claimed.origin, logs)
    checkpoint, signed = proof.verify(proof.leaf, log.keys)
    record = _record(proof.leaf)
    if (record.get("origin", ""), record.get("index", 0)) != (log.origin, proof.index):
        raise ProofError("the record says that it stands elsewhere")
    signed += _witnesses(proof.checkpoint, log)
    return Proven(record, proof, checkpoint, tuple(signed))


def check_checkpoint(
    note: str, logs: Sequence[TrustedLog]
) -> tuple[Checkpoint, tuple[Verifier, ...]]:
    """The checkpoint in `note`, and who of the trusted signed it, by step 2 and 5 of `check_proof`.
    Raises `ProofError` or `NoteError`."""
    log = _log(TlogProof(0, (), note).claimed.origin, logs)
    text, signed = open_note(note, log.keys)
    return Checkpoint.parse(text), (*signed, *_witnesses(note, log))


def _log(origin: str, logs: Sequence[TrustedLog]) -> TrustedLog:
    for log in logs:
        if log.origin == origin:
            return log
    raise ProofError("it is of a log that the trust file does not name")


def _witnesses(note: str, log: TrustedLog) -> list[Verifier]:
    """Those of the log's that cosigned the checkpoint. Raises `ProofError` for too few."""
    try:
        cosigned = open_note(note, log.witnesses)[1] if log.witnesses else []
    except NoteError:
        cosigned = []
    if len(set(cosigned)) < log.quorum:
        raise ProofError(
            f"{len(set(cosigned))} of the trusted witnesses cosigned the checkpoint; the trust file"
            f" asks for {log.quorum}: make it again, by `authz prove` or `authz export`, once they"
            " have"
        )
    return cosigned


def _record(leaf: bytes) -> Record:
    try:
        record: Record = orjson.loads(leaf)
        if canonical(record) == leaf:
            return record
    except (ValueError, TypeError, AttributeError):
        pass
    raise ProofError("what the log has there is no record in canonical form")
