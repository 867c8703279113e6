"""The writers' chains, checked as their records come by in the log."""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from authz.journal.chain import chain_hash, head_text
from authz.ledger import NoteError, Verifier
from authz.record import Record

# A head is signed over the newest durable record and then waits for the disk with the rest, so
# records come between: at most a journal's waiting ones and the batch being written.
_KEPT = 1 << 16


@dataclass(slots=True)
class _Writer:
    key: Verifier | None = None
    seq: int = 0
    head: str = ""
    heads: dict[int, str] = field(default_factory=dict)  # by number, since the last one signed
    since: int = 0  # from this number on all is known
    left_out: range = range(0)  # the numbers that did not come when they should
    holes: int = 0  # of its log, when its newest record came by

    def copy(self) -> "_Writer":
        return replace(self, heads=dict(self.heads), holes=0)

    def resume(self, seq: int, prev: str) -> None:
        """Take record `seq` as it comes, and what it says of the one before."""
        self.since = seq - 1
        self.move(seq - 1, prev)

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

    def __init__(self, *, from_beginning: bool = True) -> None:
        """Not `from_beginning`, a writer's first record is taken as it comes, and so is what it
        signed before and with a key that it announced before."""
        self._writers: dict[str, _Writer] = {}
        self._from_beginning = from_beginning
        self._before: Chains | None = None
        self._holes = 0

    def __len__(self) -> int:
        return len(self._writers)

    def follow(self, before: "Chains | None") -> None:
        """This log goes on from the one of `before`, and its writers from where they were there;
        without one, that is not known."""
        self._before = before
        self._from_beginning &= before is not None

    def _begin(self, name: str) -> _Writer:
        known = self._before and self._before._writers.get(name)  # noqa: SLF001 - another of these
        return known.copy() if known else _Writer()

    def skip(self) -> None:
        """Of the record that comes now nothing is known, nor whose it is: it was changed, or is
        gone. That a writer's next record does not fit its last one tells nothing then."""
        self._holes += 1

    def repeats(self, record: Record) -> bool:
        """Whether a record of the same number and writer has been."""
        seq = record.get("writer_seq", 0)
        writer = self._writers.get(str(record.get("writer", "")))
        if writer is None or not isinstance(seq, int) or seq in writer.left_out:
            return False
        return 0 < seq <= writer.seq

    def check(self, record: Record, leaf: bytes) -> Sequence[tuple[str, str]]:
        """`leaf` is the record's canonical form."""
        seq = record.get("writer_seq", 0)
        if not seq or not isinstance(seq, int):
            return ()
        name = str(record.get("writer", ""))
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = self._begin(name)
            if not self._from_beginning:
                writer.resume(seq, str(record.get("prev", "")))
        if seq in writer.left_out:
            text = f"record {seq} of writer {name} comes late, after {writer.seq}"
            return [("sequence", text)]
        if seq <= writer.seq:
            return [("replayed", f"record {seq} of writer {name} comes again, after {writer.seq}")]
        if writer.holes != self._holes:
            writer.holes = self._holes
            if seq != writer.seq + 1 or record.get("prev", "") != writer.head:
                writer.resume(seq, str(record.get("prev", "")))
        wrong: list[tuple[str, str]] = []
        if seq != writer.seq + 1:
            wrong.append(("sequence", f"record {seq} of writer {name} follows {writer.seq}"))
            writer.left_out = range(writer.seq + 1, seq)
        elif record.get("prev", "") != writer.head:
            text = f"record {seq} of writer {name} does not chain to the one before"
            wrong.append(("chain", text))
        if record.get("kind") == "notice":
            wrong += self._notice(name, writer, record)
        writer.move(seq, chain_hash(_writers_form(record, leaf)))
        return wrong

    def to_json(self) -> dict[str, Any]:
        """What `from_json` goes on from."""
        return {
            name: {
                "key": str(writer.key) if writer.key else "",
                "seq": writer.seq,
                "head": writer.head,
                "heads": [[number, head] for number, head in writer.heads.items()],
                "since": writer.since,
            }
            for name, writer in self._writers.items()
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Chains":
        """Raises `KeyError`, `TypeError`, `ValueError` or `NoteError` for what `to_json` did not
        give."""
        chains = cls()
        for name, one in told.items():
            key = Verifier.parse(one["key"]) if one["key"] else None
            heads = {int(number): str(head) for number, head in one["heads"]}
            seq, since = int(one["seq"]), int(one.get("since", 0))
            chains._writers[name] = _Writer(key, seq, str(one["head"]), heads, since)
        return chains

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
            if not writer.since:
                yield "writer_key", f"writer {name} signs without having announced a key"
            return
        try:
            writer.key.verify(head_text(name, seq, head), signature)
        except NoteError:
            yield "chain_head", f"writer {name}'s signature over its record {seq} is wrong"
            return
        known = seq >= writer.since or seq in writer.heads
        if not writer.signed(seq, head) and known:
            yield "chain_head", f"writer {name} signed another record {seq} than the log holds"


def _writers_form(record: Record, leaf: bytes) -> bytes:
    """The canonical form without what the receiver added (`RECEIVERS_FIELDS`): its members are cut
    out, from the last to the first. No other part of canonical JSON reads like a member, and the
    last one is the writer's."""
    left, _, rest = leaf.rpartition(b'"sealed_at":%d,' % record.get("sealed_at", 0))  # type: ignore[str-format]
    left, _, between = left.rpartition(_origin_member(record.get("origin", "")))  # type: ignore[arg-type]
    if index := record.get("index"):
        left, _, before = left.rpartition(b'"index":%d,' % index)  # type: ignore[str-format]
        return left + before + between + rest
    return left + between + rest


@lru_cache(maxsize=64)
def _origin_member(origin: str) -> bytes:
    return b'"origin":%b,' % orjson.dumps(origin)
