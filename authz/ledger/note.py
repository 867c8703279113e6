"""Signed notes (C2SP signed-note) with Ed25519, and checkpoints (C2SP tlog-checkpoint) in them."""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_DASH = "\N{EM DASH} "


class NoteError(Exception):
    """A note, key or checkpoint is malformed, or its signature is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier key: the name and the Ed25519 public key (32 bytes) behind a signature."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """4 bytes, as signed-note defines them."""
        text = self.name.encode() + b"\n" + _ED25519 + self.public_key
        return hashlib.sha256(text).digest()[:4]

    def __str__(self) -> str:
        key = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """From ``<name>+<key id>+<base64>``, as C2SP writes verifier keys. Raises `NoteError`."""
        name, key_id, key = _key_parts(text)
        verifier = cls(name, key)
        if verifier.key_id != key_id:
            raise NoteError(f"verifier key of {name!r}: its id does not belong to its key")
        return verifier

    def verify(self, text: bytes, signature: bytes) -> None:
        """Raises `NoteError` unless `signature` (64 bytes) is this key's over `text`."""
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
        name, key_id, seed = _key_parts(text.removeprefix("PRIVATE+KEY+"))
        signer = cls(name, seed)
        if signer.verifier.key_id != key_id:
            raise NoteError(f"private key of {name!r}: its id does not belong to its key")
        return signer


def _key_parts(text: str) -> tuple[str, bytes, bytes]:
    parts = text.strip().split("+", 2)
    try:
        name, key_id, encoded = parts
        key = base64.b64decode(encoded, validate=True)
        name.encode()
        if not name or len(key) != 33 or key[:1] != _ED25519:
            raise ValueError
        return name, bytes.fromhex(key_id), key[1:]
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
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise NoteError("not a signed note")
    try:
        signed_text = (text + "\n").encode()
    except UnicodeEncodeError:
        raise NoteError("not text") from None
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signed = []
    for line in lines.splitlines():
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            signature = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise NoteError("malformed signature line") from None
        if not line.startswith(_DASH) or not name or len(signature) < 5:
            raise NoteError("malformed signature line")
        verifier = known.get((name, signature[:4]))
        if verifier:
            verifier.verify(signed_text, signature[4:])
            signed.append(verifier)
    if not signed:
        raise NoteError("no signature by a trusted key")
    return text + "\n", signed


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
