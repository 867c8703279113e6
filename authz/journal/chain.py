"""A writer's chain: numbered records, each holding the hash of the one before, signed now and then.

``prev`` is SHA-256(0x00 || canonical form of the record before), hexadecimal; the first record has
none. The form hashed is the writer's own: without ``origin``, ``index`` and ``sealed_at``, which
the receiver adds. So a lost, reordered or invented record shows, whoever did it.

In a journal and on the wire a payload is the record's canonical form, and after a line feed (which
canonical JSON never holds) its attachment, if it has one. What is hashed and chained is the record
alone; the record in turn holds the attachment's hash (`authz.record.attachment`).
"""

import base64
import hashlib
import os
import platform
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from authz.errors import UsageError
from authz.files import is_open, replace_file
from authz.journal.segments import Journal
from authz.ledger import NoteError, Signer, leaf_hash
from authz.record import (
    SCHEMA_VERSION,
    WRITERS_BYTES,
    Entry,
    Record,
    attachment_hash,
    canonical,
    misfit,
    notice,
    shorten,
)

RECEIVERS_FIELDS = ("origin", "index", "sealed_at")


def join(record: bytes, attachment: bytes) -> bytes:
    """The payload of a record in canonical form and its attachment."""
    return record + b"\n" + attachment if attachment else record


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The inverse of `join`."""
    record, _, attachment = payload.partition(b"\n")
    return record, attachment


def chain_hash(payload: bytes) -> str:
    """The ``prev`` of the record that follows the one whose writer's form is `payload`, which has
    no attachment (`split`)."""
    return leaf_hash(payload).hex()


def head_text(writer: str, seq: int, head: str) -> bytes:
    """What a writer signs: that its record `seq` hashes to `head`, and so all before it."""
    return f"authz chain head\n{writer}\n{seq}\n{head}\n".encode()


class Chain:
    """Numbers and links one writer's records, going on from the journal's newest."""

    def __init__(self, writer: str, journal: Journal) -> None:
        self.writer = writer
        seq, head = journal.next - 1, ""
        if seq:
            reader = journal.reader(seq)
            head = chain_hash(split(reader.take(1)[0])[0])
            reader.close()
        self.place = (seq, head)  # the newest durable record and its hash; replaced as a whole
        self._framed = self.place

    def frame(self, items: Sequence[Entry], first: int) -> list[bytes]:
        seq, head = first - 1, self.place[1]
        payloads = []
        for record, attachment in items:
            seq += 1
            record["writer"] = self.writer
            record["writer_seq"] = seq
            record["prev"] = head
            record["schema"] = SCHEMA_VERSION
            form = canonical(record)
            if len(form) > WRITERS_BYTES:
                shorten(record, WRITERS_BYTES)
                form = canonical(record)
            head = chain_hash(form)
            payloads.append(join(form, attachment))
        self._framed = (seq, head)
        return payloads

    def committed(self) -> None:
        self.place = self._framed


@dataclass(slots=True)
class Identity:
    """Who a writer is: its id and key, and the log it is bound to, kept in its data directory."""

    path: Path
    signer: Signer
    origin: str = ""

    @property
    def writer(self) -> str:
        return self.signer.name

    def bind(self, origin: str) -> None:
        """Remember the log this writer belongs to, for good."""
        self.origin = origin
        self.save()

    def save(self) -> None:
        content = {"key": self.signer.private_text(), "origin": self.origin}
        replace_file(self.path, orjson.dumps(content, option=orjson.OPT_INDENT_2))

    def start_notice(self, time_us: int, version: str) -> Record:
        """Announces the key that signs this writer's chain heads."""
        details = {"public_key": base64.b64encode(self.signer.verifier.public_key).decode()}
        details |= {
            "version": version,
            "host": socket.gethostname(),
            "python": platform.python_version(),
        }
        return notice("writer_started", time_us, details)

    def head_notice(self, time_us: int, seq: int, head: str) -> Record:
        """Vouches for every record up to `seq` with the writer's signature."""
        signature = self.signer.sign(head_text(self.writer, seq, head))
        details = {"seq": seq, "head": head, "signature": base64.b64encode(signature).decode()}
        return notice("chain_head", time_us, details)


def load_identity(path: Path) -> Identity:
    """The identity in `path`, made at the first start. Raises `UsageError`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}".replace("+", "-").replace(" ", "-")
        identity = Identity(path, Signer(name, os.urandom(32)))
        identity.save()
        return identity
    if is_open(path):
        raise UsageError(f"{path}: others may read the writer's key; run: chmod 600 {path}")
    try:
        content = orjson.loads(path.read_bytes())
        return Identity(path, Signer.parse(content["key"]), content["origin"])
    except (AttributeError, KeyError, TypeError, ValueError, NoteError):
        raise UsageError(f"{path}: not a writer's identity; restore it from backup") from None


def policy_notice(time_us: int, revision: str, archive: bytes = b"") -> Entry:
    """Tells that the policy `revision` came into force, with its archive if that is at hand."""
    record = notice("policy_loaded", time_us, {"revision": revision})
    return record | {"policy_revision": revision}, archive


def check_link(payload: bytes, writer: str, seq: int, prev: str) -> Record:
    """The record in `payload` (without attachment), if it is `writer`'s number `seq` after the one
    hashing to `prev`.

    Raises `ChainError` otherwise. For the receiver, and for whoever verifies the log.
    """
    try:
        record: Record = orjson.loads(payload)
        form = canonical(record)
    except (TypeError, ValueError, AttributeError):
        raise ChainError(f"{writer} {seq}: not a record") from None
    if form != payload:
        raise ChainError(f"{writer} {seq}: not in canonical form")
    if record.get("writer") != writer or record.get("writer_seq") != seq:
        raise ChainError(
            f"{writer} {seq}: claims to be {record.get('writer')} {record.get('writer_seq')}"
        )
    if record.get("prev", "") != prev:
        raise ChainError(f"{writer} {seq}: does not follow the record before it")
    if wrong := misfit(record):
        raise ChainError(f"{writer} {seq}: {wrong}")
    if len(payload) > WRITERS_BYTES:
        raise ChainError(f"{writer} {seq}: takes {len(payload)} bytes, more than {WRITERS_BYTES}")
    if any(name in record for name in RECEIVERS_FIELDS):
        raise ChainError(f"{writer} {seq}: carries values that are the receiver's to give")
    return record


def check_attachment(record: Record, attachment: bytes) -> None:
    """Raises `ChainError` unless `attachment` is the one that `record` names.

    A policy may come without its archive. A sealed input may not: the record would vouch for
    something that nobody has.
    """
    named = attachment_hash(record)
    who = f"{record.get('writer')} {record.get('writer_seq')}"
    if attachment and hashlib.sha256(attachment).hexdigest() != named:
        raise ChainError(f"{who}: its attachment is not the one that it names")
    if record.get("sealed") and not attachment:
        raise ChainError(f"{who}: names a sealed input that it does not bring")


class ChainError(Exception):
    """A writer's record is out of its sequence or does not fit its chain."""
