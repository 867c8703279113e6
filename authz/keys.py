"""A log's keys: the files they are in, and how one follows another.

A rotation is a leaf of the log, a notice `key_rotation` of the receiver's own, whose details hold
the verifier keys `old` and `new`, and the signatures of both over `rotation_text`. What the log
signs over it, and later, bears the new key's signature; what is before, the old one's.
"""

import base64
from pathlib import Path

from authz.errors import UsageError
from authz.files import create_file, is_open
from authz.ledger import NoteError, Signer
from authz.record import Record, details_of, notice

ROTATION = "key_rotation"
LOG_KEY = "log.key"
NEXT_KEY = "log.key.next"  # waits beside it until the log has the rotation


def rotation_text(origin: str, old: str, new: str) -> bytes:
    """What both keys sign: that in the log `origin` the verifier key `new` follows `old`."""
    return f"authz key rotation v1\n{origin}\n{old}\n{new}\n".encode()


def rotation_notice(old: Signer, new: Signer, time_us: int) -> Record:
    """The leaf of a rotation. Both keys have the log's origin for their name."""
    keys = str(old.verifier), str(new.verifier)
    text = rotation_text(old.name, *keys)
    details = {"old": keys[0], "new": keys[1]}
    details["old_signature"] = base64.b64encode(old.sign(text)).decode()
    details["new_signature"] = base64.b64encode(new.sign(text)).decode()
    return notice(ROTATION, time_us, details)


def rotated(record: Record) -> tuple[str, str] | None:
    """The old and the new verifier key, as a rotation tells them; None for any other record, and
    for a writer's, who has no say in this."""
    if record.get("event") != ROTATION or record.get("kind") != "notice" or "writer_seq" in record:
        return None
    details = details_of(record)
    return str(details.get("old", "")), str(details.get("new", ""))


def read_key(path: Path) -> Signer:
    """The private key in `path`. Raises `UsageError`, which never shows it, also for one that
    others may read."""
    try:
        if is_open(path):
            raise UsageError(f"{path}: others may read the log's key; run: chmod 600 {path}")
        return Signer.parse(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (NoteError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}; restore it from backup") from None


def write_key(path: Path, signer: Signer) -> None:
    """Put a private key into `path`, whole and durable; only its owner may read it. Raises
    `FileExistsError` if something is there, and other `OSError`."""
    create_file(path, (signer.private_text() + "\n").encode())
