"""Tokens in place of patients' identifiers.

A token is ``<key id>.<HMAC-SHA-256(key, identifier), first 16 bytes, base64url>``: whoever holds
the key finds a patient's records by computing the token; the database never sees the key.
"""

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from authz.errors import UsageError
from authz.files import create_file, is_open

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class PrivacyKey:
    """The deployment's key for patient tokens. `id` is public: 8 hexadecimal digits."""

    secret: bytes
    id: str

    def token(self, identifier: str) -> str:
        digest = hmac.digest(self.secret, identifier.encode("utf-8", "backslashreplace"), "sha256")
        return f"{self.id}.{base64.urlsafe_b64encode(digest[:16]).decode().rstrip('=')}"

    @classmethod
    def of(cls, secret: bytes) -> "PrivacyKey":
        return cls(secret, hashlib.sha256(b"authz privacy key\n" + secret).hexdigest()[:8])


def load_key(path: Path) -> PrivacyKey:
    """The key in `path`, 64 hexadecimal digits, made there at first use (mode 0600).

    Raises `UsageError` when others may read the file or it holds something else.
    """
    return PrivacyKey.of(load_secret(path, "privacy"))


def load_secret(path: Path, kind: str) -> bytes:
    """The secret of a key file: a `kind` key, as `load_key` describes."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # two that start together agree on one key
            create_file(path, (secrets.token_hex(KEY_BYTES) + "\n").encode())
    if is_open(path):
        raise UsageError(f"{path}: others may read the {kind} key; run: chmod 600 {path}")
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise UsageError(
            f"{path}: not a {kind} key (64 hexadecimal digits); restore it from backup"
        )
    return secret
