"""The roster: which logs there are, told in each log, so that logs witness each other. Pure.

A notice `roster` holds in `details` ``{"logs": [{"origin", "size", "note"}, ...]}``: of every log
in the database, its own among them, the newest checkpoint as its receiver signed it. Whoever
removes or rewrites a log would have to rewrite all the others too. Since the notes are signed, a
receiver cannot make one up, nor can a row that somebody slipped into the table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from authz.ledger import Checkpoint, NoteError
from authz.record import Record, notice

EVERY_SECONDS = 600
_MOST_LOGS = 1000
_MOST_BYTES = 60_000  # of what a notice tells, in the record's own form
_MOST_NOTE = 4096  # a checkpoint with a dozen signatures; a longer one is none of ours


@dataclass(frozen=True, slots=True)
class Roster:
    """The newest checkpoints by origin: size and note."""

    logs: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, str]]) -> "Roster":
        """From rows of the table `checkpoints`, each log's newest; what is no checkpoint is left
        out."""
        return cls({origin: (size, note) for origin, size, note in rows if _is_checkpoint(
            origin, size, note)})  # fmt: skip

    def differs(self, told: "Roster") -> bool:
        """Whether there are other logs than when `told` was told."""
        return self.logs.keys() != told.logs.keys()

    def records(self, time_us: int) -> list[Record]:
        """The notices that tell it: one, unless there are very many logs."""
        parts: list[list[dict[str, object]]] = [[]]
        room = _MOST_BYTES
        for origin, (size, note) in sorted(self.logs.items()):
            entry: dict[str, object] = {"origin": origin, "size": size, "note": note}
            length = len(orjson.dumps(orjson.dumps(entry).decode())) + 1
            if parts[-1] and (length > room or len(parts[-1]) == _MOST_LOGS):
                parts.append([])
                room = _MOST_BYTES
            parts[-1].append(entry)
            room -= length
        return [notice("roster", time_us, {"logs": part}) for part in parts if part]


def _is_checkpoint(origin: str, size: int, note: str) -> bool:
    if len(note) > _MOST_NOTE:
        return False
    try:
        checkpoint = Checkpoint.parse(note.partition("\n\n")[0] + "\n")
    except NoteError:
        return False
    return (checkpoint.origin, checkpoint.size) == (origin, size)
