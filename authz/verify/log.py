"""One log on its way through the steps of `authz.verify.logs`."""

import base64
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import orjson

from authz.ledger import (
    TILE_WIDTH,
    Checkpoint,
    NoteError,
    Place,
    ProofError,
    Tile,
    Tree,
    Verifier,
    leaf_hash,
    leaf_hashes,
    open_note,
    prove_consistency,
    prove_inclusion,
    root_at,
    signers,
    verify_consistency,
    verify_inclusion,
)
from authz.record import Record, canonical
from authz.retention.spans import Spans
from authz.store.logs import Part
from authz.trust import TrustedLog
from authz.verify.astray import MOST_ASTRAY, Astray
from authz.verify.attachments import Attachments
from authz.verify.chains import Chains
from authz.verify.dates import Dates
from authz.verify.report import Finding, LogReport
from authz.verify.source import Logs
from authz.verify.witnessed import Witnessed, read_anchors

UNSEALED_SECONDS = 10
_NO_LEAF = bytes(32)  # stands for a row that no record could have left
_NONE = Spans()


@dataclass(slots=True)
class Start:
    """Where a log's check begins: at its beginning, or behind leaves whose tree is known."""

    tree: Tree = field(default_factory=Tree)
    sealed_at: int = 0
    chains: Chains = field(default_factory=Chains)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that claims a place in the log; no leaf if no record could have left it."""

    record: Record
    leaf: bytes
    value: bytes

    @classmethod
    def of(cls, record: Record) -> "_Row":
        try:
            leaf = canonical(record)
        except (TypeError, ValueError):
            return cls(record, b"", _NO_LEAF)
        return cls(record, leaf, leaf_hash(leaf))


class LogCheck:
    """`begin`, then all `parts`, the `records` of each taken to the end, then `finish`."""

    def __init__(
        self, source: Logs, log: TrustedLog, chunk: int, astray: Astray, *,
        accepted: dict[str, Any] | None = None, absent: Spans = _NONE,
    ) -> None:  # fmt: skip
        """`chunk` is a multiple of 256. The records `absent` may be gone: they have expired."""
        self.origin = log.origin
        self.log = log
        self.report = LogReport(log.origin)
        self.sealed_at = 0
        self.chains = Chains()
        self.tree = Tree()  # as the tiles have it
        self._source = source
        self._chunk = chunk
        self._astray = astray
        self._accepted = accepted
        self._absent = absent
        self._attachments = Attachments()
        self._roots: dict[int, bytes] = {}  # to be met, by size
        self._accepted_alone = 0  # the size of a root that was accepted, and is signed no more
        self._unmet: list[Finding] = []  # roots that were not met, since the last one that was
        self._lacked: tuple[int, int] | None = None  # rows just before that are not there
        self._dates = Dates()
        self._told: Tree | None = None  # as the rows have it, from the first record that differs
        self._differing: list[int] = []  # where rows and tiles do, no root judged it
        self._intact_up_to = 0
        self._first, self._end = 0, 0
        self._top: Checkpoint | None = None
        self._signed: list[tuple[int, list[Verifier]]] = []
        self.witnessed = Witnessed(log, read_anchors(log))  # before the log's own

    def begin(self, start: Start | None = None) -> int:
        """The newest checkpoint, which may not be older than what was accepted. Returns how many
        records there are to check."""
        newest = self._top = self._newest()
        if newest:
            self._roots[newest.size] = newest.root
            self.report.size = newest.size
            self.report.root = base64.b64encode(newest.root).decode()
        if self._accepted:
            self._expect(self._accepted)
        if start:
            self._begin_at(start)
            self._intact_up_to = self.witnessed.since = self._first
            self.witnessed.witnessed = (self._accepted or {}).get("witnessed", 0)
        self._end = self.report.size
        return max(self._end - self._first, 0)

    def only(self, start: Start, end: int) -> int:
        """After `begin`: check only from `start` on, whose tree nobody has vouched for yet, and up
        to the first root that is signed over `end` records or more, which does. Returns how many
        records that are."""
        self._begin_at(start)
        for size, note in self._source.following(self.origin, end):
            if size >= self._end:
                break
            if opened := self._checkpoint(size, note):
                self._roots[size] = opened[0].root
                self._end = size
                break
        self.witnessed.part = self._first, self._end
        return max(self._end - self._first, 0)

    def _begin_at(self, start: Start) -> None:
        self._first = start.tree.size
        self.tree, self.chains, self.sealed_at = start.tree, start.chains, start.sealed_at

    def parts(self, ahead: Executor) -> Iterator[Part]:
        """Each is read while the one before is checked."""
        following: Future[Part] | None = None
        for first in range(self._first, self._end, self._chunk):
            part = following.result() if following else self._part(first)
            after = first + self._chunk
            following = ahead.submit(self._part, after) if after < self._end else None
            yield part

    def _part(self, first: int) -> Part:
        return self._source.part(self.origin, first, min(first + self._chunk, self._end))

    def records(self, part: Part) -> Iterator[Record]:
        """The records of a part that can be some, as they are found right or wrong."""
        written: dict[int, int] = {}
        for number, (size, note) in enumerate(part.checkpoints):
            if opened := self._checkpoint(size, note):
                self._met(*opened, note)
                for at in part.written[number : number + 1]:
                    written[size] = min(at, written.get(size, at))
        hashes = leaf_hashes(part.leaves)
        told: Sequence[bytes | None]
        if hashes == part.hashes and list(part.indexes) == list(range(part.first, part.end)):
            told = hashes
            self._there()
            yield from self._as_sealed(part)
        else:
            told = [None] * (part.end - part.first)
            yield from self._one_by_one(part, told)
            self._lacking(part, told)
        self._advance(part.first, part.end, told, part.hashes)
        for text in self._dates.check(part, written):
            self._find("backdated", -1, -1, text)
        for index, text in self._attachments.sealed(part.sealed):
            row, sealed = told[index - part.first], part.hashes[index - part.first]
            if row and sealed in (row, None):  # else it is not known what it names
                self._find("sealed_original", index, index, text)

    def finish(self) -> None:
        """Steps 6 to 8: after the records."""
        self._there()
        if self._end < self.report.size:
            self._behind_the_part()
        if self.tree.size == self.report.size:
            self._upper_tiles(self.tree.partial_tiles())
            self._unsealed()
        if self._accepted and self.report.size:
            self._go_on_from(self._accepted)
        for index, text in self._attachments.policies(self._source):
            self._find("policy_text", index, index, text)
        for finding in self.witnessed.findings(self.report.size, self.root_at):
            self.report.add(finding)
        self.report.anchored = self.witnessed.anchored
        self.report.witnessed = self.witnessed.witnessed
        self.report.writers = len(self.chains)

    def to_json(self) -> dict[str, Any]:
        """What was found right, for a later check to go on from (`authz.verify.partial.after`)."""
        edge = [[base64.b64encode(one).decode() for one in level] for level in self.tree.edge]
        return {
            "size": self.report.size, "root": self.report.root, "edge": edge,
            "sealed_at": self.sealed_at, "witnessed": self.witnessed.witnessed,
            "writers": self.chains.to_json(),
        }  # fmt: skip

    def root(self, size: int) -> bytes | None:
        """The root that is signed over `size` records; None if there is none."""
        if size in self._roots:
            return self._roots[size]
        for note in self._source.checkpoints(self.origin, size):
            try:
                return self._opened(size, note)[0].root
            except NoteError:
                continue
        return None

    def newest_now(self) -> Checkpoint | None:
        """The newest checkpoint: a log at work goes on."""
        for size, note in self._source.newest(self.origin):
            try:
                return self._opened(size, note)[0]
            except NoteError:
                continue
        return None

    # Step 1: checkpoints.

    def _newest(self) -> Checkpoint | None:
        """A log whose first rows are only just there gets its first soon."""
        until = time.monotonic() + (UNSEALED_SECONDS if self._source.grows else 0)
        while True:
            said = False
            for size, note in self._source.newest(self.origin):
                said = True
                if opened := self._checkpoint(size, note):
                    return opened[0]
            there = self._source.beyond(self.origin, 0)[2]
            if said or not there or time.monotonic() > until:
                self.report.checkpoints = 0
                kind, text = "no_checkpoint", "the log has no checkpoint"
                if said:
                    text += " that a trusted key signed"
                elif not there:
                    text += ", and no record: all of it is gone"
                self._find(kind, -1, -1, text)
                return None
            time.sleep(0.2)

    def _checkpoint(self, size: int, note: str) -> tuple[Checkpoint, list[Verifier]] | None:
        try:
            return self._opened(size, note)
        except NoteError as error:
            others = [name for name, _ in signers(note) if name == self.origin]
            kind = "other_key" if others and "no signature by" in str(error) else "signature"
            finding = Finding(kind, self.origin, -1, -1, f"the checkpoint of size {size}{error}")
            if finding not in self.report.findings:
                self.report.add(finding)
            return None

    def _opened(self, size: int, note: str) -> tuple[Checkpoint, list[Verifier]]:
        """The checkpoint in a row, and who of the trusted signed it. Raises `NoteError`, worded to
        go on from "size N"."""
        try:
            text, signed = open_note(note, self.log.keys)
            checkpoint = Checkpoint.parse(text)
        except NoteError as error:
            raise NoteError(f": {error}") from None
        if (checkpoint.origin, checkpoint.size) != (self.origin, size):
            raise NoteError(" is another's")
        return checkpoint, signed

    def _met(self, checkpoint: Checkpoint, signed: list[Verifier], note: str) -> None:
        if not self._signed or self._signed[-1][0] != checkpoint.size:
            self.report.checkpoints += 1
        self._signed.append((checkpoint.size, signed))
        self.witnessed.add(checkpoint, note)
        if self._roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
            text = f"two different roots were signed for size {checkpoint.size}"
            self._find("fork", -1, -1, text)

    def signed_by(self, signs: Callable[[str, int], Verifier | None]) -> None:
        """Hold the checkpoints since the last call against the key that `signs` at each size."""
        for size, signed in self._signed:
            key = signs(self.origin, size)
            if key is not None and key not in signed:
                text = f"the checkpoint of size {size} is not signed by the log's key then, {key}"
                self._find("other_key", -1, -1, text)
        self._signed.clear()

    def _expect(self, accepted: dict[str, Any]) -> None:
        """What was accepted before must still be there, at its place."""
        size, root = accepted["size"], base64.b64decode(accepted["root"])
        if size > self.report.size:
            text = f"{size} records were accepted before; the newest checkpoint has"
            self._find("rollback", self.report.size, size - 1, f"{text} {self.report.size}")
            return
        signed = self.root(size)
        if signed is not None and signed != root:
            self._find("fork", -1, -1, f"size {size} was accepted before with another root")
        else:
            self._roots[size] = root
            self._accepted_alone = size if signed is None else 0

    # Steps 2, 3 and 5: records.

    def _as_sealed(self, part: Part) -> Iterator[Record]:
        """Records whose leaves are those that the tiles have."""
        before = self.sealed_at
        check, attach, loads = self.chains.check, self._attachments.add, orjson.loads
        known = ""  # the revision of the record before
        for index, leaf in zip(part.indexes, part.leaves, strict=True):
            try:
                record: Record = loads(leaf)
            except ValueError:
                self._find("changed", index, index, "no text, so nothing that could be sealed")
                continue
            sealed_at: Any = record.get("sealed_at", 0)
            if sealed_at < before:
                self._find("order", index, index, "was sealed before the record in front of it")
            else:
                before = sealed_at
            if "writer_seq" in record:
                for kind, text in check(record, leaf):
                    self._find(kind, index, index, text)
            revision: Any = record.get("policy_revision", known)
            if revision != known or "sealed" in record:
                attach(record, index)
                known = revision
            yield record
        self.sealed_at = before

    def _one_by_one(self, part: Part, told: list[bytes | None]) -> Iterator[Record]:
        """Records of a part that is not as it was sealed, or that the database writes in another
        way than we do. Fills in the leaf hashes that the rows tell."""
        reached = part.first
        found = self._source.records(self.origin, part.first, part.end)
        for index, claims in groupby(found, key=_index):
            sealed = part.hashes[index - part.first]
            rows = [_Row.of(record) for record in claims]
            row = next((row for row in rows if row.value == sealed), rows[0])
            for other in rows:
                if sealed not in (other.value, None):
                    self._astray.row(self.origin, other.record)
            same = sum(other.value == row.value for other in rows)
            self.report.doubles += same - 1
            if same < len(rows):
                text = "two different records claim this place"
                if row.value == sealed:
                    text += ", one of which was sealed"
                self._find("conflict", index, index, text)
            told[index - part.first] = row.value
            if index > reached:
                self.chains.skip()
            reached = index + 1
            if sealed not in (row.value, None):
                self.chains.skip()  # and its time is not the log's
            elif row.leaf:
                self._follow(row, index)
            if row.leaf:
                yield row.record
        if part.end > reached:
            self.chains.skip()

    def _follow(self, row: _Row, index: int) -> None:
        """A record at its place in the log."""
        sealed_at: Any = row.record.get("sealed_at", 0)
        if sealed_at < self.sealed_at:
            self._find("order", index, index, "was sealed before the record in front of it")
        self.sealed_at = max(self.sealed_at, sealed_at)
        for kind, text in self.chains.check(row.record, row.leaf):
            self._find(kind, index, index, text)
        self._attachments.add(row.record, index)

    def _lacking(self, part: Part, told: Sequence[bytes | None]) -> None:
        gone = Spans.of(
            (part.first + n, part.first + n + 1) for n, row in enumerate(told) if not row
        )
        missing = gone - self._absent
        self.report.expired += len(gone) - len(missing)
        for begin, end in missing:
            if self._lacked and self._lacked[1] == begin:
                begin = self._lacked[0]  # noqa: PLW2901 - it began in the part before
            else:
                self._there()
            self._lacked = begin, end
        if told[-1]:
            self._there()
        for begin, last in runs([part.first + n for n, t in enumerate(part.hashes) if t is None]):
            self._find("tiles", begin, last, "the log's tiles lack these leaves")
        for place, (row, tile) in enumerate(zip(told, part.hashes, strict=True)):
            index = part.first + place
            if row != tile and tile is not None and (row or index not in self._absent):
                self._astray.place(tile, self.origin, index)
            if row is not None and tile is not None and row != tile:
                self._differing.append(index)

    def _there(self) -> None:
        """After rows that are not there comes one that is, or nothing more."""
        if self._lacked:
            first, end = self._lacked
            kind = "truncated" if end == self.report.size else "missing"
            self._find(kind, first, end - 1, "not there, though the log was signed over it")
            self._lacked = None

    # Step 4: the tree.

    def _advance(
        self, first: int, end: int, told: Sequence[bytes | None], tiles: Sequence[bytes | None]
    ) -> None:
        """On over the leaves `first` to `end`, to each checkpoint in them, and its root."""
        sealed = [tile or row or _NO_LEAF for tile, row in zip(tiles, told, strict=True)]
        claimed = [row or tile or _NO_LEAF for tile, row in zip(tiles, told, strict=True)]
        place = first
        for stop in sorted({size for size in self._roots if first < size < end} | {end}):
            some = slice(place - first, stop - first)
            if self._told is None and sealed[some] != claimed[some]:
                self._told = self.tree.copy()
            done = self.tree.append(sealed[some])
            if self._told:
                self._told.append(claimed[some])
            self._upper_tiles(done)
            if stop in self._roots:
                self._check_root(stop, self._roots[stop])
                if stop != self.report.size:
                    del self._roots[stop]
            place = stop

    def _check_root(self, size: int, signed: bytes) -> None:
        by_tiles = self.tree.root() == signed
        by_rows = self._told.root() == signed if self._told else by_tiles
        if size == self._accepted_alone and not by_rows and not by_tiles:
            text = f"size {size} was accepted before with another root"
            self._find("fork", self._intact_up_to, size - 1, text)
            return
        differing = [index for index in self._differing if index < size]
        self._differing = self._differing[len(differing) :]
        if by_rows and not by_tiles:
            text = "the tiles differ from what was signed; the records do not"
            span = differing or [self._intact_up_to, size - 1]
            self._find("tiles", span[0], span[-1], text)
            self.tree = self._told or self.tree
        else:
            for index in differing:
                self._find("changed", index, index, "not what was sealed here")
        if not by_rows and not by_tiles:
            text = "records and tiles differ from what was signed: the root is another"
            self._unmet.append(self._find("root", self._intact_up_to, size - 1, text))
        else:
            self._forked(size)
            self._intact_up_to = size
            self._told = None

    def _forked(self, size: int) -> None:
        """The root over `size` records is met, and so is the log's history up to it: what was
        signed before over another one is that of a second log under the same key."""
        for finding in self._unmet:
            text = f"the root that was signed over {finding.last + 1} records"
            text += f" is no part of the one over {size}"
            self.report.replace(finding, replace(finding, kind="fork", text=text))
        self._unmet = []

    def _behind_the_part(self) -> None:
        """Of a log that is not checked to its end: the newest checkpoint must be over what was
        checked, and more. In doubt the rest is checked as well, which tells what is wrong."""
        end, met = self._end, self._intact_up_to == self._end
        if self._lead_on(end, self.tree.root()):
            self._forked(self.report.size)
        elif met:
            self._end = self.report.size
            for first in range(end, self._end, self._chunk):
                deque(self.records(self._part(first)), maxlen=0)
            self._there()
            if self._intact_up_to < self._end:
                text = f"the newest checkpoint does not go on from what was signed at size {end}"
                self._find("fork", -1, -1, text)

    def _go_on_from(self, accepted: dict[str, Any]) -> None:
        """What was accepted before is met on the way, if it lies there. If not, or if a root that
        was met is another, the tiles must lead on from it."""
        size, root = accepted["size"], base64.b64decode(accepted["root"])
        kinds = {finding.kind for finding in self.report.findings}
        met = self._first < size <= self._end and "root" not in kinds
        if met or size > self.report.size or "fork" in kinds or self._lead_on(size, root):
            return
        assert self._top is not None
        if "root" in kinds or self.root_at(self._top.size) == self._top.root:
            text = f"{size} records were accepted before, and the newest checkpoint is over others"
            self._find("fork", -1, -1, text)
        elif "tiles" not in kinds:
            text = f"the tiles do not lead from the {size} records accepted before to the newest"
            self._find("tiles", 0, self.report.size - 1, text)

    def _lead_on(self, size: int, root: bytes) -> bool:
        """Whether the newest checkpoint is over these first records, as the tiles have it."""
        assert self._top is not None
        try:
            proof = prove_consistency(size, self._top.size, self.read_tiles)
            verify_consistency(size, self._top.size, proof, root, self._top.root)
        except ProofError:
            return False
        return True

    def root_at(self, size: int) -> bytes | None:
        """The root over the first records, as the tiles have it (checked, once `finish` is done);
        None if the log has not so many, or a tile is gone."""
        if size > self.report.size:
            return None
        try:
            return root_at(size, self.read_tiles)
        except ProofError:
            return None

    def includes(self, record: Record) -> bool:
        """Whether a record that this check does not come by is one of the log all the same."""
        index, size = record.get("index", 0), self.report.size
        assert isinstance(index, int)
        root = base64.b64decode(self.report.root)
        try:
            leaf = leaf_hash(canonical(record))
            proof = prove_inclusion(index, size, self.read_tiles)
            verify_inclusion(leaf, index, size, proof, root)
        except (ProofError, ValueError, TypeError):
            return False
        return True

    def covers(self, index: int) -> bool:
        """Whether this check comes by the record at `index`."""
        return self._first <= index < self._end

    def read_tiles(self, places: Sequence[Place]) -> list[bytes]:
        """The widest there is of each; no bytes for one that is not there."""
        found = []
        for place in places:
            stored = self._source.tiles(self.origin, place.level, place.index, place.index + 1)
            found.append(stored[-1][1] if stored else b"")
        return found

    # Step 6: the tiles above the leaves.

    def _upper_tiles(self, recomputed: Sequence[Tile]) -> None:
        for tile in recomputed:
            if not tile.level or self.report.findings:
                continue  # leaves are held against rows; what is in doubt already tells nothing
            stored = self._source.tiles(self.origin, tile.level, tile.index, tile.index + 1)
            wide = [data for _, data in stored if data.startswith(tile.data)]
            if wide and all(tile.data.startswith(data) for _, data in stored if data not in wide):
                continue  # wider when a receiver at work is ahead of the checkpoint
            width = TILE_WIDTH ** (tile.level + 1)
            last = min((tile.index + 1) * width, self.report.size) - 1
            text = f"tile {tile.index} of level {tile.level} is another, or gone"
            self._find("tiles", tile.index * width, last, text)

    # Step 7: rows that no checkpoint covers.

    def _unsealed(self) -> None:
        """A receiver at work seals within seconds; what stays uncovered is not its own."""
        until = time.monotonic() + (UNSEALED_SECONDS if self._source.grows else 0)
        while True:
            first, last, count = self._source.beyond(self.origin, self.report.size)
            if not count:
                return
            now = self.newest_now()
            if now and now.size > last:
                return
            if time.monotonic() > until:
                first = max(first, self.report.size)
                self._find("unsealed", first, last, "rows that no checkpoint covers")
                end = min(last + 1, first + MOST_ASTRAY)
                records = self._source.records(self.origin, first, end)
                for record in records:
                    self._astray.row(self.origin, record)
                again = sorted(
                    {_index(record) for record in records if self.chains.repeats(record)}
                )
                for begin, until in runs(again):
                    self._find("replayed", begin, until, "copies of records that the log has")
                return
            time.sleep(0.5)

    def _find(self, kind: str, first: int, last: int, text: str) -> Finding:
        finding = Finding(kind, self.origin, first, last, text)
        self.report.add(finding)
        return finding


def _index(record: Record) -> int:
    index: Any = record.get("index", 0)
    return int(index)


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last)."""
    begin = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[begin], numbers[place - 1]
            begin = place
