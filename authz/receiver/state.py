"""What a log's state is, beyond its records: a fold over them (`authz.receiver.sequence`)."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from authz.blocks import Standing
from authz.journal.chain import RECEIVERS_FIELDS, chain_hash
from authz.keys import rotated
from authz.ledger import Tree, Verifier
from authz.record import Record, canonical, details_of
from authz.store.epochs import Ended


@dataclass(frozen=True, slots=True)
class Place:
    """How far a writer has come: its newest record durably taken, and that record's hash."""

    seq: int = 0
    head: str = ""


@dataclass(slots=True)
class State:
    """What ``state.json`` holds: the log as far as it is stored, and who wrote to it."""

    tree: Tree = field(default_factory=Tree)
    sealed_at: int = 0
    writers: dict[str, Place] = field(default_factory=dict)
    privacy_key_id: str = ""
    blocks: Standing = field(default_factory=Standing)
    accounted: int = 0  # how far the log has told its account of itself
    keys: tuple[str, ...] = ()  # that its rotations name, oldest first; none if there was none
    follows: str = ""  # the log that it goes on from, whose writers it takes

    def to_json(self) -> bytes:
        return orjson.dumps(
            {
                "size": self.tree.size,
                "edge": [[base64.b64encode(h).decode() for h in lv] for lv in self.tree.edge],
                "sealed_at": self.sealed_at,
                "writers": {name: [place.seq, place.head] for name, place in self.writers.items()},
                "privacy_key_id": self.privacy_key_id,
                "blocks": self.blocks.to_json(),
                "findings": self.blocks.findings_json(),
                "accounted": self.accounted,
                "keys": self.keys,
                "follows": self.follows,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "State":
        content = orjson.loads(data)
        edge = [[base64.b64decode(h) for h in level] for level in content["edge"]]
        version, blocks = content.get("blocks", [0, []])  # absent before schema 2
        return cls(
            Tree(content["size"], edge),
            content["sealed_at"],
            {name: Place(*place) for name, place in content["writers"].items()},
            content["privacy_key_id"],
            Standing.from_json(version, blocks, content.get("findings", ())),
            int(content.get("accounted", content["size"])),  # absent before schema 3
            tuple(str(Verifier.parse(key)) for key in content.get("keys", ())),
            str(content.get("follows", "")),
        )


def state_after(ended: Ended) -> State:
    """Of a log that goes on from one that has ended: its writers' places, whom it blocks, what it
    found. Its clock begins after the other's end, so that the order of the two is on record."""
    newest = {str(record["writer"]): place_of(record) for record in ended.newest}
    return State(
        sealed_at=ended.sealed_at + 1,
        writers={writer: place for writer, place in newest.items() if place},
        blocks=Standing().after(ended.blocking),
        follows=ended.checkpoint.origin,
    )


def keys_after(keys: tuple[str, ...], records: Iterable[Record]) -> tuple[str, ...]:
    """As `State.keys`, once `records` have followed."""
    for record in records:
        if rotation := rotated(record):
            keys = (*(keys or rotation[:1]), rotation[1])
    return keys


def accounted_in(record: Record) -> int:
    """The end of the interval that `record` tells the account of; 0 if it tells none."""
    if record.get("event") != "interval_summary" or "writer_seq" in record:
        return 0
    return int(details_of(record)["end"])


def place_of(record: Record) -> Place | None:
    """The writer's place after `record`, if a writer with a chain wrote it."""
    seq = record.get("writer_seq")
    if not isinstance(seq, int) or not seq:
        return None
    told = {name: value for name, value in record.items() if name not in RECEIVERS_FIELDS}
    return Place(seq, chain_hash(canonical(told)))
