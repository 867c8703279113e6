"""What a policy decided on, sealed: only who holds the key can open it, and only for its decision.

``key id (8 hexadecimal digits) || "." || 0x01 || nonce (12 bytes) || AES-256-GCM(...)``, with the
first ten bytes and the decision's id as associated data. Inside is the input document without
credentials, and where some were taken away, as JSON. It is not compressed: that would halve it,
and cost as much again as all the rest.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from authz.errors import AuthzError, UnavailableError
from authz.record.credentials import Path, without_credentials
from authz.record.privacy import load_secret

_VERSION: Final = b".\x01"
_ID_END: Final = 8
_HEAD_END: Final = 10
_NONCE_END: Final = 22


class SealError(AuthzError):
    """A sealed document does not open: another key, another decision, or changed bytes."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """`id` is public: 8 hexadecimal digits."""

    id: str
    cipher: AESGCM

    @classmethod
    def of(cls, secret: bytes) -> "SealingKey":
        key = HKDF(SHA256(), 32, salt=None, info=b"authz sealing 1").derive(secret)
        identity = hashlib.sha256(b"authz sealing key\n" + secret).hexdigest()[:8]
        return cls(identity, AESGCM(key))


@dataclass(frozen=True, slots=True)
class Unsealed:
    """An input document, and the places in it that held a credential or a body."""

    document: dict[str, Any]
    removed: tuple[Path, ...]


def load_sealing_key(path: FilePath, *, create: bool = True) -> SealingKey:
    """The key in `path`, 64 hexadecimal digits, made there at first use (mode 0600) unless
    `create` is false. Raises `UsageError` when others may read the file or it holds something else.
    """
    if not create and not path.exists():
        raise UnavailableError(f"{path}: no sealing key there; it is made by `authz serve`")
    return SealingKey.of(load_secret(path, "sealing"))


def seal(
    key: SealingKey, document: Mapping[str, Any], decision_id: str, *, bodies: bool = False
) -> bytes:
    """`document` (an input document) as only the key's holder can read it, without credentials."""
    shown, removed = without_credentials(document, bodies=bodies)
    content = b'{"input":%b,"removed":%b}' % (shown, orjson.dumps(removed))
    head = key.id.encode() + _VERSION
    nonce = os.urandom(12)
    return head + nonce + key.cipher.encrypt(nonce, content, head + decision_id.encode())


def unseal(key: SealingKey, sealed: bytes, decision_id: str) -> Unsealed:
    """What `seal` put in. Raises `SealError`."""
    head = sealed[:_HEAD_END]
    if head[_ID_END:] != _VERSION:
        raise SealError(f"{decision_id}: not sealed in a form that this version of authz knows")
    if head[:_ID_END] != key.id.encode():
        raise SealError(f"{decision_id}: sealed with another key, {key_id_of(sealed)}")
    try:
        content = key.cipher.decrypt(
            sealed[_HEAD_END:_NONCE_END], sealed[_NONCE_END:], head + decision_id.encode()
        )
    except (InvalidTag, ValueError):
        raise SealError(f"{decision_id}: the sealed document was changed") from None
    value = orjson.loads(content)
    return Unsealed(value["input"], tuple(tuple(place) for place in value["removed"]))


def key_id_of(sealed: bytes) -> str:
    """The id of the key a document was sealed with."""
    return sealed[:_ID_END].decode("ascii", "backslashreplace")
