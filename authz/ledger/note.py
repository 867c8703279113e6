"""Signed notes (C2SP signed-note) with Ed25519, and checkpoints (C2SP tlog-checkpoint) in them,
which witnesses may have cosigned (C2SP tlog-cosignature)."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_COSIGNATURE = b"\x04"  # of a checkpoint with a time, by Ed25519
_TIME_BYTES = 8
_DASH = "\N{EM DASH} "


class NoteError(Exception):
    """A note, key or checkpoint is malformed, or its signature is missing or wrong."""


class UnsignedError(NoteError):
    """It bears no signature by a trusted key."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier key: the name and the Ed25519 public key (32 bytes) behind a signature. With
    `cosigns` it is a witness's: what it signs is a checkpoint, and when it saw it."""

    name: str
    public_key: bytes
    cosigns: bool = False

    @property
    def key_id(self) -> bytes:
        """4 bytes, as signed-note defines them."""
        text = self.name.encode() + b"\n" + self._typed
        return hashlib.sha256(text).digest()[:4]

    @property
    def _typed(self) -> bytes:
        return (_COSIGNATURE if self.cosigns else _ED25519) + self.public_key

    def __str__(self) -> str:
        key = base64.b64encode(self._typed).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """From ``<name>+<key id>+<base64>``, as C2SP writes verifier keys. Raises `NoteError`."""
        name, key_id, kind, key = _key_parts(text)
        verifier = cls(name, key, cosigns=kind == _COSIGNATURE)
        if verifier.key_id != key_id:
            raise NoteError(f"verifier key of {name!r}: its id does not belong to its key")
        return verifier

    def verify(self, text: bytes, signature: bytes) -> None:
        """Raises `NoteError` unless `signature` (64 bytes; 8 for the time before them if this key
        cosigns) is this key's over `text`."""
        if self.cosigns:
            when = int.from_bytes(signature[:_TIME_BYTES])
            text = f"cosignature/v1\ntime {when}\n".encode() + text
            signature = signature[_TIME_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text)
        except InvalidSignature:
            raise NoteError(f"the signature of {self.name} is wrong") from None


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with the name it signs under. `seed` is 32 bytes and secret."""

    name: str
    seed: bytes

    @property
    def verifier(self) -> Verifier:
        key = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return Verifier(self.name, key.public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)

    def __repr__(self) -> str:
        return f"Signer({self.name!r}, secret)"

    def private_text(self) -> str:
        """``PRIVATE+KEY+<name>+<key id>+<base64>``, the form golang.org/x/mod/sumdb/note reads."""
        key = base64.b64encode(_ED25519 + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> "Signer":
        """The inverse of `private_text`. Raises `NoteError`, which never shows the key."""
        name, key_id, kind, seed = _key_parts(text.removeprefix("PRIVATE+KEY+"))
        signer = cls(name, seed)
        if kind != _ED25519 or signer.verifier.key_id != key_id:
            raise NoteError(f"private key of {name!r}: its id does not belong to its key")
        return signer


def _key_parts(text: str) -> tuple[str, bytes, bytes, bytes]:
    parts = text.strip().split("+", 2)
    try:
        name, key_id, encoded = parts
        key = base64.b64decode(encoded, validate=True)
        name.encode()
        if not name or len(key) != 33 or key[:1] not in (_ED25519, _COSIGNATURE):
            raise ValueError
        return name, bytes.fromhex(key_id), key[:1], key[1:]
    except (ValueError, binascii.Error):
        raise NoteError("not an Ed25519 key as C2SP writes it: <name>+<key id>+<base64>") from None


def sign_note(text: str, signer: Signer) -> str:
    """A signed note over `text`, which ends with a newline."""
    signature = base64.b64encode(signer.verifier.key_id + signer.sign(text.encode())).decode()
    return f"{text}\n{_DASH}{signer.name} {signature}\n"


def open_note(note: str, verifiers: Iterable[Verifier]) -> tuple[str, list[Verifier]]:
    """The text of `note`, and which of `verifiers` signed it (at least one).

    Signatures by others are ignored; a wrong one by a known key makes the note worthless.
    Raises `NoteError`.
    """
    lines = list(_signatures(note))
    text = note.rpartition("\n\n")[0] + "\n"
    try:
        signed_text = text.encode()
    except UnicodeEncodeError:
        raise NoteError("not text") from None
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signed = []
    for line in lines:
        verifier = known.get((line.name, line.signature[:4]))
        if verifier:
            verifier.verify(signed_text, line.signature[4:])
            signed.append(verifier)
    if not signed:
        raise UnsignedError("no signature by a trusted key")
    return text, signed


@dataclass(frozen=True, slots=True)
class _Line:
    """A note's signature line: `signature` begins with the key's id."""

    text: str
    name: str
    signature: bytes


def _signatures(note: str) -> Iterator[_Line]:
    _, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise NoteError("not a signed note")
    for line in lines.splitlines():
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            signature = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise NoteError("malformed signature line") from None
        if not line.startswith(_DASH) or not name or len(signature) < 5:
            raise NoteError("malformed signature line")
        yield _Line(line, name, signature)


def add_signatures(note: str, others: Iterable[str], verifiers: Iterable[Verifier]) -> str:
    """`note` with the signature lines by `verifiers` out of `others`, each lines over the same text
    (such as a witness's answer); one line for each key. Lines by other keys are left out.

    Raises `NoteError` for lines that are none, and for a wrong signature by one of `verifiers`.
    """
    text, _, _ = note.rpartition("\n\n")
    wanted = list(verifiers)
    there = {(line.name, line.signature[:4]) for line in _signatures(note)}
    for lines in others:
        found = f"{text}\n\n{lines}"
        signed = {(v.name, v.key_id) for v in open_note(found, wanted)[1]}
        for line in _signatures(found):
            key = line.name, line.signature[:4]
            if key in signed - there:
                note += f"{line.text}\n"
                there.add(key)
    return note


def signers(note: str) -> list[tuple[str, bytes]]:
    """Who signed `note`, as it says itself: names and key ids. Nothing is checked."""
    found = []
    for line in note.rpartition("\n\n")[2].splitlines():
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            found.append((name, base64.b64decode(encoded, validate=True)[:4]))
        except (ValueError, binascii.Error):
            continue
    return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's state: `size` leaves with the Merkle tree `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """From a note's text; extension lines are ignored. Raises `NoteError`."""
        try:
            origin, size, root, *_ = text.split("\n")
            number = int(size)
            value = base64.b64decode(root, validate=True)
            if not origin or str(number) != size or number < 0 or len(value) != 32:
                raise ValueError
        except (ValueError, binascii.Error):
            raise NoteError("not a checkpoint") from None
        return cls(origin, number, value)
