"""The writers' chains, checked as their records come by in the log."""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from authz.journal.chain import RECEIVERS_FIELDS, chain_hash, head_text
from authz.ledger import NoteError, Verifier
from authz.record import Record, canonical

# A head is signed over the newest durable record and then waits for the disk with the rest, so
# records come between: at most a journal's waiting ones and the batch being written.
_KEPT = 1 << 16


@dataclass(slots=True)
class _Writer:
    key: Verifier | None = None
    seq: int = 0
    head: str = ""
    heads: dict[int, str] = field(default_factory=dict)  # by number, since the last one signed

    def move(self, seq: int, head: str) -> None:
        self.seq, self.head = seq, head
        self.heads[seq] = head
        if len(self.heads) > _KEPT:
            del self.heads[next(iter(self.heads))]

    def signed(self, seq: int, head: str) -> bool:
        """Whether the log holds `head` as number `seq`; what is before need not be kept."""
        same = self.heads.get(seq) == head
        self.heads = {number: kept for number, kept in self.heads.items() if number >= seq}
        return same


class Chains:
    """Follows every writer of one log. `check` yields what is wrong with a record: kind, text."""

    def __init__(self) -> None:
        self._writers: dict[str, _Writer] = {}
        self._before: Chains | None = None

    def __len__(self) -> int:
        return len(self._writers)

    def follow(self, before: "Chains") -> None:
        """This log goes on from the one of `before`: its writers go on from where they were."""
        self._before = before

    def _begin(self, name: str) -> _Writer:
        known = self._before and self._before._writers.get(name)  # noqa: SLF001 - another of these
        return _Writer(known.key, known.seq, known.head) if known else _Writer()

    def check(self, record: Record) -> Iterator[tuple[str, str]]:
        seq = record.get("writer_seq", 0)
        if not seq or not isinstance(seq, int):
            return
        name = str(record.get("writer", ""))
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = self._begin(name)
        told = {key: value for key, value in record.items() if key not in RECEIVERS_FIELDS}
        if seq != writer.seq + 1:
            yield "sequence", f"record {seq} of writer {name} follows {writer.seq}"
        elif record.get("prev", "") != writer.head:
            yield "chain", f"record {seq} of writer {name} does not chain to the one before"
        if record.get("kind") == "notice":
            yield from self._notice(name, writer, record)
        writer.move(seq, chain_hash(canonical(told)))

    def _notice(self, name: str, writer: _Writer, record: Record) -> Iterator[tuple[str, str]]:
        event = record.get("event")
        if event not in ("writer_started", "chain_head"):
            return
        try:
            details = orjson.loads(str(record.get("details", "")))
            if event == "writer_started":
                key = Verifier(name, base64.b64decode(details["public_key"], validate=True))
                if len(key.public_key) != 32:
                    raise ValueError
                if writer.key and key != writer.key:
                    yield "writer_key", f"writer {name} announces another key than before"
                writer.key = writer.key or key
                return
            signature = base64.b64decode(details["signature"], validate=True)
            seq, head = details["seq"], details["head"]
            if not isinstance(seq, int) or not isinstance(head, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, binascii.Error):
            yield "chain_head", f"a notice of writer {name} is malformed"
            return
        if writer.key is None:
            yield "writer_key", f"writer {name} signs without having announced a key"
            return
        try:
            writer.key.verify(head_text(name, seq, head), signature)
        except NoteError:
            yield "chain_head", f"writer {name}'s signature over its record {seq} is wrong"
            return
        if not writer.signed(seq, head):
            yield "chain_head", f"writer {name} signed another record {seq} than the log holds"
