"""One file that shows that a log has a record: C2SP tlog-proof, with the record beside the proof.

The record (the leaf's bytes) is the format's extra data, so that one file is all that is needed
beside the log's public key. The format authenticates no extra data; here it is hashed as the leaf,
so a changed record does not verify.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from authz.ledger.merkle import HASH_BYTES, ProofError, leaf_hash, verify_inclusion
from authz.ledger.note import Checkpoint, NoteError, Verifier, open_note

_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)
_MOST_HASHES = 63  # of a tree that 63 bits count


@dataclass(frozen=True, slots=True)
class TlogProof:
    """That the log of `checkpoint`, a signed note, has `leaf` at `index`. `hashes` lead from the
    leaf's sibling up; `leaf` is None where the file does not hold it."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    leaf: bytes | None = None

    def __str__(self) -> str:
        """The file's text."""
        extra = [] if self.leaf is None else [f"extra {_encoded(self.leaf)}"]
        lines = [_HEADER, *extra, f"index {self.index}", *map(_encoded, self.hashes)]
        return "\n".join([*lines, "", self.checkpoint])

    @classmethod
    def parse(cls, text: str) -> "TlogProof":
        """The inverse of `str`: nothing is checked but the form. Raises `ProofError`."""
        head, _, checkpoint = text.partition("\n\n")
        header, *lines = head.split("\n")
        if header != _HEADER:
            raise ProofError(f"not a proof: its first line is not {_HEADER}")
        leaf = None
        if lines and lines[0].startswith("extra "):
            leaf = _decoded(lines.pop(0).removeprefix("extra "))
        index = _INDEX.fullmatch(lines[0]) if lines else None
        if index is None:
            raise ProofError("malformed proof: its index is missing")
        if len(lines) - 1 > _MOST_HASHES:
            raise ProofError("malformed proof: it has too many hashes")
        hashes = tuple(map(_decoded, lines[1:]))
        if any(len(value) != HASH_BYTES for value in hashes):
            raise ProofError(f"malformed proof: a hash in it is not of {HASH_BYTES} bytes")
        if not checkpoint:
            raise ProofError("malformed proof: its checkpoint is missing")
        return cls(int(index[1]), hashes, checkpoint, leaf)

    def verify(self, leaf: bytes, keys: Iterable[Verifier]) -> tuple[Checkpoint, list[Verifier]]:
        """The checkpoint that one of `keys` or several signed, and which did, if it is over a tree
        that has `leaf` at `index`. Raises `ProofError` if not, `NoteError` without a signature.

        Whose log it is, is the caller's to look at: `keys` are those of the checkpoint's origin.
        """
        text, signed = open_note(self.checkpoint, keys)
        checkpoint = Checkpoint.parse(text)
        size, root = checkpoint.size, checkpoint.root
        verify_inclusion(leaf_hash(leaf), self.index, size, self.hashes, root)
        return checkpoint, signed

    @property
    def claimed(self) -> Checkpoint:
        """The checkpoint as it stands there, its signature unseen. Raises `NoteError`."""
        text, separator, _ = self.checkpoint.rpartition("\n\n")
        if not separator:
            raise NoteError("not a signed note")
        return Checkpoint.parse(text + "\n")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    """Raises `ProofError` for what is not base64 in the one form that this has."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if _encoded(data) != text:
        raise ProofError("malformed proof: a line of it is not base64")
    return data
