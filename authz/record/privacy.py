"""Tokens in place of patients' identifiers.

A token is ``<key id>.<HMAC-SHA-256(key, identifier), first 16 bytes, base64url>``: whoever holds
the key finds a patient's records by computing the token; the database never sees the key.
"""

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from authz.errors import UsageError
from authz.files import create_file, is_open

KEY_BYTES = 32
_TOKEN = re.compile(r"[0-9a-f]{8}\.[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class PrivacyKey:
    """The deployment's key for patient tokens. `id` is public: 8 hexadecimal digits."""

    secret: bytes
    id: str

    def token(self, identifier: str) -> str:
        return f"{self.id}.{_digest(self.secret, identifier)}"

    def mark(self, kind: str, text: str) -> str:
        """What stands for `text` where only equality matters; no patient's token, and another for
        each `kind`."""
        return _digest(hmac.digest(self.secret, f"authz {kind}".encode(), "sha256"), text)

    @classmethod
    def of(cls, secret: bytes) -> "PrivacyKey":
        return cls(secret, hashlib.sha256(b"authz privacy key\n" + secret).hexdigest()[:8])


def is_token(text: str) -> bool:
    """Whether `text` has a token's form: what has not may be an identifier."""
    return _TOKEN.fullmatch(text) is not None


def _digest(secret: bytes, text: str) -> str:
    digest = hmac.digest(secret, text.encode("utf-8", "backslashreplace"), "sha256")
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


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
