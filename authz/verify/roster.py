"""What the logs say of each other, held against what is there now (`authz.receiver.roster`).

Each checkpoint that a roster holds was in the database when the roster was sealed, signed by its
log's key. So it must be among those that are there now. What is no longer there is kept, one thing
per log and kind, and told at the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from authz.ledger import Checkpoint, NoteError, Verifier, open_note
from authz.record import Record, text
from authz.verify.epochs import followed
from authz.verify.report import Finding

_MOST_UNLISTED = 1000

Root = Callable[[int], bytes | None]  # that is signed over so many records, if one is


@dataclass(frozen=True, slots=True)
class _Seen:
    """A checkpoint that a roster holds, and where that roster is."""

    checkpoint: Checkpoint
    witness: str
    index: int

    def __str__(self) -> str:
        return f"log {self.witness!r} saw it with {self.checkpoint.size} records ({self.index})"


class Rosters:
    """Fed every log's rosters. `trusted` has each trusted log's keys, and tells its roots at the
    sizes of its checkpoints."""

    def __init__(self, trusted: Mapping[str, tuple[Sequence[Verifier], Root]]) -> None:
        self._trusted = trusted
        self._newest: dict[str, _Seen] = {}
        self._unknown: dict[str, _Seen] = {}  # of a size that has no checkpoint, the first
        self._forked: dict[str, _Seen] = {}  # of a size that has another root, the first
        self._unlisted: dict[str, tuple[str, int]] = {}

    def add(self, record: Record, origin: str) -> None:
        """Any record of log `origin`: what is no roster tells nothing."""
        named = _named(record)
        index = record.get("index", 0)
        assert isinstance(index, int)
        for name, note in named:
            if name not in self._trusted:
                if len(self._unlisted) < _MOST_UNLISTED:
                    self._unlisted.setdefault(name, (origin, index))
                continue
            keys, root = self._trusted[name]
            try:
                checkpoint = Checkpoint.parse(open_note(note, keys)[0])
            except NoteError:
                continue  # anybody can slip a row into the table; the log itself did not sign it
            if checkpoint.origin == name:
                self._add(_Seen(checkpoint, origin, index), root)

    def _add(self, seen: _Seen, signed: Root) -> None:
        name, size = seen.checkpoint.origin, seen.checkpoint.size
        newest = self._newest.get(name)
        if newest is None or size > newest.checkpoint.size:
            self._newest[name] = seen
        root = signed(size)
        if root is None:
            self._unknown.setdefault(name, seen)
        elif root != seen.checkpoint.root:
            self._forked.setdefault(name, seen)

    def findings(self, now: Callable[[str], Checkpoint | None]) -> Iterator[Finding]:
        """What is wrong, under the log that it is wrong with. `now` gives a trusted log's newest
        checkpoint: a log at work has gone on."""
        for name, (witness, index) in self._unlisted.items():
            said = f"log {text(witness, 1024)!r} names it ({index}); the trust file does not"
            yield Finding("unlisted_log", name, -1, -1, said)
        for name, seen in self._newest.items():
            if name in self._unknown or name in self._forked:
                yield from self._judge(name, seen, now(name))

    def _judge(self, name: str, newest: _Seen, now: Checkpoint | None) -> Iterator[Finding]:
        if now is None:
            yield Finding("missing_log", name, -1, -1, f"the log is gone; {newest}")
            return
        size = now.size
        if newest.checkpoint.size > size:
            last = newest.checkpoint.size - 1
            yield Finding("rollback", name, size, last, f"{size} records are there; {newest}")
        forked, unknown = self._forked.get(name), self._unknown.get(name)
        if unknown and unknown.checkpoint.size <= size:
            root = self._trusted[name][1](unknown.checkpoint.size)
            if root is None:
                said = f"the checkpoint that it then had is gone; {unknown}"
                yield Finding("missing_checkpoint", name, -1, -1, said)
            elif root != unknown.checkpoint.root:
                forked = forked or unknown
        if forked:
            yield Finding("fork", name, -1, -1, f"under another root; {forked}")


def _named(record: Record) -> list[tuple[str, str]]:
    """The logs that a roster names, or that one follows, each with its checkpoint."""
    if before := followed(record):
        return [(before.origin, before.note)]
    if record.get("kind") != "notice" or record.get("event") != "roster":
        return []
    try:
        logs = orjson.loads(str(record.get("details", "")))["logs"]
        return [(str(log["origin"]), str(log["note"])) for log in logs]
    except (KeyError, TypeError, ValueError):
        return []  # whoever could seal this could as well have sealed none
