"""One log on its way through the steps of `authz.verify.logs`."""

import base64
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson

from authz.ledger import Tree, leaf_hash, leaf_hashes
from authz.record import Record, canonical
from authz.retention.spans import Spans
from authz.store.logs import Part
from authz.trust import TrustedLog
from authz.verify.astray import MOST_ASTRAY, Astray
from authz.verify.attachments import Attachments
from authz.verify.chains import Chains
from authz.verify.checkpoints import Checkpoints
from authz.verify.dates import Dates
from authz.verify.report import LogReport
from authz.verify.source import Logs
from authz.verify.tree import NO_LEAF, TreeCheck

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
            return cls(record, b"", NO_LEAF)
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
        self.checkpoints = Checkpoints(source, log, self.report)
        self.tree = TreeCheck(source, self.checkpoints, self.report)
        self._source = source
        self._chunk = chunk
        self._astray = astray
        self._accepted = accepted
        self._absent = absent
        self._attachments = Attachments()
        self._dates = Dates()
        self._lacked: tuple[int, int] | None = None  # rows just before that are not there
        self._first, self._end = 0, 0

    def begin(self, start: Start | None = None) -> int:
        """The newest checkpoint, which may not be older than what was accepted. Returns how many
        records there are to check."""
        newest = self.checkpoints.newest()
        if newest:
            self.checkpoints.roots[newest.size] = newest.root
            self.report.size = newest.size
            self.report.root = base64.b64encode(newest.root).decode()
        if self._accepted:
            self.checkpoints.expect(self._accepted)
        if start:
            self._begin_at(start)
            self.tree.intact_up_to = self.checkpoints.witnessed.since = self._first
            self.checkpoints.witnessed.witnessed = (self._accepted or {}).get("witnessed", 0)
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
            if opened := self.checkpoints.trusted(size, note):
                self.checkpoints.roots[size] = opened[0].root
                self._end = size
                break
        self.checkpoints.witnessed.part = self._first, self._end
        return max(self._end - self._first, 0)

    def _begin_at(self, start: Start) -> None:
        self._first = start.tree.size
        self.tree.sealed, self.chains, self.sealed_at = start.tree, start.chains, start.sealed_at

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
        # Step 1.
        written: dict[int, int] = {}
        for number, (size, note) in enumerate(part.checkpoints):
            if opened := self.checkpoints.trusted(size, note):
                self.checkpoints.met(*opened, note)
                for at in part.written[number : number + 1]:
                    written[size] = min(at, written.get(size, at))
        # Steps 2, 3 and 5.
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
        # Steps 4 and 6: the tree, and its full tiles.
        self.tree.advance(part.first, part.end, told, part.hashes)
        for text in self._dates.check(part, written):
            self.report.find("backdated", -1, -1, text)
        # Step 8.
        for index, text in self._attachments.sealed(part.sealed):
            row, sealed = told[index - part.first], part.hashes[index - part.first]
            if row and sealed in (row, None):  # else it is not known what it names
                self.report.find("sealed_original", index, index, text)

    def finish(self) -> None:
        """No more records come: what can be told of the log by itself."""
        self._there()
        if self._end < self.report.size:
            self._behind_the_part()
        if self.tree.sealed.size == self.report.size:
            self.tree.upper_tiles(self.tree.sealed.partial_tiles())  # step 6
            self._unsealed()  # step 7
        if self._accepted and self.report.size:
            self._go_on_from(self._accepted)
        # Step 8, the rest of it.
        for index, text in self._attachments.policies(self._source):
            self.report.find("policy_text", index, index, text)
        # Step 9, what others have seen.
        witnessed = self.checkpoints.witnessed
        for finding in witnessed.findings(self.report.size, self.tree.root_at):
            self.report.add(finding)
        self.report.anchored = witnessed.anchored
        self.report.witnessed = witnessed.witnessed
        self.report.writers = len(self.chains)
        self.report.notes = self._dates.notes

    def to_json(self) -> dict[str, Any]:
        """What was found right, for a later check to go on from (`authz.verify.partial.after`)."""
        edge = [
            [base64.b64encode(one).decode() for one in level] for level in self.tree.sealed.edge
        ]
        return {
            "size": self.report.size, "root": self.report.root, "edge": edge,
            "sealed_at": self.sealed_at, "witnessed": self.checkpoints.witnessed.witnessed,
            "writers": self.chains.to_json(),
        }  # fmt: skip

    def _as_sealed(self, part: Part) -> Iterator[Record]:
        """Records whose leaves are those that the tiles have."""
        before = self.sealed_at
        check, attach, loads = self.chains.check, self._attachments.add, orjson.loads
        known = ""  # the revision of the record before
        for index, leaf in zip(part.indexes, part.leaves, strict=True):
            try:
                record: Record = loads(leaf)
            except ValueError:
                self.report.find(
                    "changed", index, index, "no text, so nothing that could be sealed"
                )
                continue
            sealed_at: Any = record.get("sealed_at", 0)
            if sealed_at < before:
                self.report.find(
                    "order", index, index, "was sealed before the record in front of it"
                )
            else:
                before = sealed_at
            if "writer_seq" in record:
                for kind, text in check(record, leaf):
                    self.report.find(kind, index, index, text)
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
                self.report.find("conflict", index, index, text)
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
            self.report.find("order", index, index, "was sealed before the record in front of it")
        self.sealed_at = max(self.sealed_at, sealed_at)
        for kind, text in self.chains.check(row.record, row.leaf):
            self.report.find(kind, index, index, text)
        self._attachments.add(row.record, index)

    def _lacking(self, part: Part, told: Sequence[bytes | None]) -> None:
        gone = Spans.of(
            (part.first + n, part.first + n + 1) for n, row in enumerate(told) if not row
        )
        missing = gone - self._absent
        self.report.expired += len(gone) - len(missing)
        for begin, end in missing:
            if self._lacked and self._lacked[1] == begin:
                self._lacked = self._lacked[0], end  # it began in the part before
            else:
                self._there()
                self._lacked = begin, end
        if told[-1]:
            self._there()
        for begin, last in runs([part.first + n for n, t in enumerate(part.hashes) if t is None]):
            self.report.find("tiles", begin, last, "the log's tiles lack these leaves")
        for place, (row, tile) in enumerate(zip(told, part.hashes, strict=True)):
            index = part.first + place
            if row != tile and tile is not None and (row or index not in self._absent):
                self._astray.place(tile, self.origin, index)
            if row is not None and tile is not None and row != tile:
                self.tree.differs(index)

    def _there(self) -> None:
        """After rows that are not there comes one that is, or nothing more."""
        if self._lacked:
            first, end = self._lacked
            kind = "truncated" if end == self.report.size else "missing"
            self.report.find(kind, first, end - 1, "not there, though the log was signed over it")
            self._lacked = None

    def _behind_the_part(self) -> None:
        """Of a log that is not checked to its end: the newest checkpoint must be over what was
        checked, and more. In doubt the rest is checked as well, which tells what is wrong."""
        end, met = self._end, self.tree.intact_up_to == self._end
        if self.tree.leads_on(end, self.tree.sealed.root()):
            self.tree.forked(self.report.size)
        elif met:
            self._end = self.report.size
            for first in range(end, self._end, self._chunk):
                deque(self.records(self._part(first)), maxlen=0)
            self._there()
            if self.tree.intact_up_to < self._end:
                text = f"the newest checkpoint does not go on from what was signed at size {end}"
                self.report.find("fork", -1, -1, text)

    def _go_on_from(self, accepted: dict[str, Any]) -> None:
        """What was accepted before is met on the way, if it lies there. If not, or if a root that
        was met is another, the tiles must lead on from it."""
        size, root = accepted["size"], base64.b64decode(accepted["root"])
        kinds = {finding.kind for finding in self.report.findings}
        met = self._first < size <= self._end and "root" not in kinds
        if met or size > self.report.size or "fork" in kinds or self.tree.leads_on(size, root):
            return
        newest = base64.b64decode(self.report.root)
        if "root" in kinds or self.tree.root_at(self.report.size) == newest:
            text = f"{size} records were accepted before, and the newest checkpoint is over others"
            self.report.find("fork", -1, -1, text)
        elif "tiles" not in kinds:
            text = f"the tiles do not lead from the {size} records accepted before to the newest"
            self.report.find("tiles", 0, self.report.size - 1, text)

    def covers(self, index: int) -> bool:
        """Whether this check comes by the record at `index`."""
        return self._first <= index < self._end

    def _unsealed(self) -> None:
        """A receiver at work seals within seconds; what stays uncovered is not its own."""
        until = self.checkpoints.patience()
        while True:
            first, last, count = self._source.beyond(self.origin, self.report.size)
            if not count:
                return
            now = self.checkpoints.newest_now()
            if now and now.size > last:
                return
            if time.monotonic() > until:
                first = max(first, self.report.size)
                self.report.find("unsealed", first, last, "rows that no checkpoint covers")
                end = min(last + 1, first + MOST_ASTRAY)
                records = self._source.records(self.origin, first, end)
                for record in records:
                    self._astray.row(self.origin, record)
                again = sorted(
                    {_index(record) for record in records if self.chains.repeats(record)}
                )
                for begin, until in runs(again):
                    self.report.find("replayed", begin, until, "copies of records that the log has")
                return
            time.sleep(0.5)


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
