"""What others have seen of a log, held against what it is now: anchors and witnesses.

An anchor's checkpoints are read before the log's own (`read_anchors`): whatever was put there had
been stored before, so a log that is at work is never behind. What is kept there and is no
checkpoint signed by the log tells nothing, and is passed over: who could put it there could as
well have put nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from authz.anchors import notes_in
from authz.ledger import Checkpoint, NoteError, Verifier, open_note
from authz.trust import TrustedLog
from authz.verify.report import Finding

_MOST_SEEN = 10_000  # sizes that too few have cosigned

RootAt = Callable[[int], bytes | None]
"""The root over the log's first records, as they are now; None if that cannot be computed."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What one directory holds of a log; `fault` is why it could not be read."""

    directory: Path
    notes: Sequence[str] = ()
    fault: str = ""


def read_anchors(log: TrustedLog) -> list[Anchor]:
    """The anchors that the trust file demands for `log`."""
    found = []
    for directory in log.anchors:
        try:
            found.append(Anchor(directory, list(notes_in(directory, log.origin))))
        except OSError as error:
            found.append(Anchor(directory, fault=error.strerror or type(error).__name__))
    return found


@dataclass(slots=True)
class Witnessed:
    """One log's. `add` each of its checkpoints, then `findings`; then `anchored` and `witnessed`
    are the sizes up to which an anchor, and the quorum of the witnesses, has seen it as it is.

    What was seen up to `since` has been checked before, and `witnessed` is how far it was then. Of
    a check of a `part`, only the checkpoints within are added: others are not missed, and of them
    the newest stands for all.
    """

    log: TrustedLog
    anchors: Sequence[Anchor] = ()
    since: int = 0
    anchored: int = 0
    witnessed: int = 0
    part: tuple[int, int] | None = None
    _held: list[tuple[Anchor, dict[int, bytes]]] = field(default_factory=list)
    _forked: dict[Path, int] = field(default_factory=dict)
    _wanted: set[int] = field(default_factory=set)
    _met: dict[int, bytes] = field(default_factory=dict)  # of the wanted
    _seen: dict[tuple[int, bytes], set[Verifier]] = field(default_factory=dict)
    _best: Checkpoint | None = None

    def __post_init__(self) -> None:
        for anchor in self.anchors:
            roots: dict[int, bytes] = {}
            for note in anchor.notes:
                checkpoint = self._opened(note)
                if checkpoint is None:
                    continue
                if roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
                    self._forked.setdefault(anchor.directory, checkpoint.size)
                self._cosigned(checkpoint.size, note)
            self._held.append((anchor, roots))
            self._wanted |= roots.keys()

    def add(self, checkpoint: Checkpoint, note: str) -> None:
        """A checkpoint of the log, and its note, which bears the log's signature. Several may have
        one size."""
        if checkpoint.size in self._wanted:
            self._met[checkpoint.size] = checkpoint.root
        self._cosigned(checkpoint.size, note)
        if self._best and self._best.size == checkpoint.size:
            self._met[checkpoint.size] = checkpoint.root

    def sizes(self, size: int) -> list[int]:
        """Those up to `size` of which the log has no checkpoint, and whose roots `findings` will
        ask for: few, unless checkpoints were removed."""
        wanted = self._wanted | ({self._best.size} if self._best else set())
        return sorted(one for one in wanted if self.since < one <= size and one not in self._met)

    def findings(self, size: int, root_at: RootAt) -> Iterator[Finding]:
        """What does not fit the log, whose newest checkpoint is over `size` records. `root_at` is
        asked for `sizes` only."""
        for anchor, roots in self._held:
            yield from self._anchor(anchor, roots, size, root_at)
        if self.log.quorum:
            yield from self._witnesses(size, root_at)

    def _anchor(
        self, anchor: Anchor, roots: dict[int, bytes], size: int, root_at: RootAt
    ) -> Iterator[Finding]:
        where = f"anchor {anchor.directory}"
        if not roots:
            why = anchor.fault or "it holds no checkpoint that this log has signed"
            yield self._finding("anchor", -1, -1, f"{where}: {why}")
            return
        if anchor.directory in self._forked:
            text = f"{where} holds two roots for size {self._forked[anchor.directory]}"
            yield self._finding("anchor_fork", -1, -1, text)
        newest = max(roots)
        if newest > size:
            text = f"{where} has seen {newest} records; the newest checkpoint has {size}"
            yield self._finding("anchor_rollback", size, newest - 1, text)
        same, missing = max((one for one in roots if one <= self.since), default=0), 0
        for held in self._to_be_met(roots, size):
            root = self._root(held, root_at)
            if root is None:
                text = f"{where} has seen {held} records, whose root can no longer be computed"
                yield self._finding("anchor_rollback", same, held - 1, text)
                break
            if root != roots[held]:
                text = f"{where} has seen {held} records with another root"
                yield self._finding("anchor_fork", same, held - 1, text)
                break
            same = held
            missing += held not in self._met and self._is_of_the_part(held)
        self.anchored = max(self.anchored, same)
        if missing:
            text = f"{where} holds {missing} checkpoints of this log that are no longer there"
            yield self._finding("missing_checkpoint", -1, -1, text)

    def _to_be_met(self, roots: Mapping[int, bytes], size: int) -> list[int]:
        held = sorted(one for one in roots if self.since < one <= size)
        return [one for one in held if one == held[-1] or self._is_of_the_part(one)]

    def _is_of_the_part(self, size: int) -> bool:
        return self.part is None or self.part[0] < size <= self.part[1]

    def _cosigned(self, size: int, note: str) -> None:
        if not self.log.quorum or note.count("\n\N{EM DASH} ") < 2:
            return
        if self._best and size <= self._best.size:
            return
        try:
            text, signed = open_note(note, self.log.witnesses)
            checkpoint = Checkpoint.parse(text)
        except NoteError:
            return  # nobody's signature, or a wrong one: it is not cosigned
        if (checkpoint.origin, checkpoint.size) != (self.log.origin, size):
            return
        if len(self._seen) == _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        seen = self._seen.setdefault((size, checkpoint.root), set())
        seen.update(signed)
        if len(seen) >= self.log.quorum:
            self._best = checkpoint
            self._seen = {key: kept for key, kept in self._seen.items() if key[0] > size}

    def _witnesses(self, size: int, root_at: RootAt) -> Iterator[Finding]:
        best, quorum = self._best, self.log.quorum
        if best is None:
            if not self.witnessed and not self.part:
                text = f"no checkpoint bears the cosignatures of {quorum} of the trusted witnesses"
                yield self._finding("unwitnessed", -1, -1, text)
        elif best.size > size:
            text = f"witnesses have seen {best.size} records; the newest checkpoint has {size}"
            yield self._finding("rollback", size, best.size - 1, text)
        elif best.size > self.since and self._root(best.size, root_at) != best.root:
            text = f"witnesses have seen {best.size} records with another root"
            yield self._finding("fork", -1, -1, text)
        else:
            self.witnessed = max(self.witnessed, best.size)

    def _root(self, size: int, root_at: RootAt) -> bytes | None:
        return self._met.get(size) or root_at(size)

    def _opened(self, note: str) -> Checkpoint | None:
        try:
            checkpoint = Checkpoint.parse(open_note(note, self.log.keys)[0])
        except NoteError:
            return None
        return checkpoint if checkpoint.origin == self.log.origin else None

    def _finding(self, kind: str, first: int, last: int, text: str) -> Finding:
        return Finding(kind, self.log.origin, first, last, text)
