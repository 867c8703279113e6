"""Verification of the logs in a ClickHouse, by these steps for each trusted log:

1. Its checkpoints are read first; each must bear a trusted signature, and no two of one size may
   differ. The newest is what is verified against. With a state, it may not be older than what was
   accepted before.
2. Rows are read in index order and each leaf is rebuilt from the columns. Missing and doubled
   indexes show here.
3. Each leaf hash is held against the log's tiles: that tells which record differs.
4. At each checkpoint's size the root is recomputed and must be the signed one. If it is not, either
   the tiles lie too, or the tiles alone: a second tree, over what the rows say, tells.
5. Each writer's sequence, chain and signed heads are followed; `sealed_at` may never decrease.
6. The tiles above the leaves are compared with those recomputed.
7. Rows beyond the newest checkpoint must be covered by one within 10 s.
8. What the records carried along and is still there must be what they name.
9. What the logs' rosters say of each other must still be so (`authz.verify.roster`), and what
   their summaries say of each interval (`authz.verify.accounts`).

Rows are streamed; what is held of each log is one chunk and the trees' edges. While that goes on,
decisions and accesses of all logs are held against each other (`authz.reconcile`). They go on
together, by the time their records were sealed, so that a request whose decision is in one log and
whose access is in another is held for as long as the two are apart, and no longer.
"""

import base64
import contextlib
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from clickhouse_driver import Client

from authz.ledger import TILE_WIDTH, Checkpoint, NoteError, Tree, leaf_hash, open_note
from authz.record import Record, canonical
from authz.record import text as as_text
from authz.store import rows
from authz.trust import TrustedLog
from authz.verify.accounts import Accounts, read_summaries
from authz.verify.attachments import Attachments
from authz.verify.chains import Chains
from authz.verify.epochs import Epochs
from authz.verify.report import Finding, LogReport, Report
from authz.verify.roster import Rosters

_CHUNK = 64 * TILE_WIDTH
_UNSEALED_SECONDS = 10
_NO_LEAF = bytes(32)  # stands for a row that no record could have left
_TALLIED = (
    "decisions", "accesses", "matched", "allowed", "denied", "rejected_by_envoy", "unanswered",
    "pending",
)  # fmt: skip

Progress = Callable[[int, int], None]
State = dict[str, dict[str, Any]]


def verify_store(
    client: Client,
    logs: list[TrustedLog],
    state: State | None = None,
    progress: Progress = lambda _done, _all: None,
) -> Report:
    """Check `logs` against `client`'s current database.

    `state` maps each origin to the last accepted ``size`` and ``root`` (base64); it is brought up
    to date for logs found intact. `progress` is called with records done and all records.
    """
    begun = time.monotonic()
    report = Report()
    accounts = Accounts({log.origin: read_summaries(client, log.origin) for log in logs})
    accepted = {} if state is None else state
    chunk = max(_CHUNK // len(logs) // TILE_WIDTH, 1) * TILE_WIDTH
    checks = [_LogCheck(client, log, accepted.get(log.origin), chunk) for log in logs]
    done, total = 0, sum(check.begin() for check in checks)
    known = {check.log.origin: check for check in checks}
    rosters = Rosters({name: (check.log.keys, check.roots) for name, check in known.items()})
    epochs = Epochs()
    running = heapq.merge(*(check.run() for check in checks), key=itemgetter(0))
    for done, (_, origin, record) in enumerate(running, 1):
        for text in accounts.add(record, origin):
            index = int(record.get("index", 0))  # type: ignore[arg-type]
            known[origin].report.add(Finding("interval", origin, index, index, text))
        rosters.add(record, origin)
        before = epochs.add(record, origin)
        if before and before.origin in known:
            known[origin].chains.follow(known[before.origin].chains)
        if done % _CHUNK == 0:
            progress(done, total)
    progress(done, total)
    report.logs += [check.report for check in checks]
    report.logs += _unknown_logs(client, logs)
    for finding in rosters.findings(lambda origin: known[origin].roots_now()):
        report.log(finding.origin).add(finding)
    for finding in epochs.findings({log.origin: log.size for log in report.logs}):
        report.log(finding.origin).add(finding)
    for log in report.logs:
        if not log.findings:
            accepted[log.origin] = {"size": log.size, "root": log.root}
    tally = accounts.finish()
    for name in _TALLIED:
        setattr(report, name, getattr(tally, name))
    report.matched += tally.matched_late + tally.matched_elsewhere
    report.gaps = tally.kinds
    report.seconds = time.monotonic() - begun
    return report


def _unknown_logs(client: Client, logs: list[TrustedLog]) -> Iterator[LogReport]:
    """Rows of a log that nobody trusts have no business in the table."""
    known = [log.origin for log in logs]
    query = "SELECT origin, min(index), max(index) FROM audit_log WHERE origin NOT IN %(known)s"
    for name, first, last in client.execute(query + " GROUP BY origin", {"known": known}):
        origin = as_text(name, 1024)
        text = f"rows of log {origin!r}, which the trust file does not name"
        yield LogReport(origin, findings=[Finding("unknown_origin", origin, first, last, text)])


@dataclass(slots=True)
class _LogCheck:
    """One log on its way through the steps."""

    client: Client
    log: TrustedLog
    accepted: dict[str, Any] | None
    chunk: int
    report: LogReport = field(init=False)
    roots: dict[int, bytes] = field(default_factory=dict)
    chains: Chains = field(default_factory=Chains)
    attachments: Attachments = field(init=False)
    tree: Tree = field(default_factory=Tree)  # as the tiles have it
    told: Tree | None = None  # as the rows have it, from the first record where they differ
    differing: list[int] = field(default_factory=list)  # where rows and tiles do, no root judged it
    upper: dict[tuple[int, int], bytes] = field(default_factory=dict)
    sealed_at: int = 0
    intact_up_to: int = 0

    def __post_init__(self) -> None:
        self.report = LogReport(self.log.origin)
        self.attachments = Attachments(self.client, self.log.origin)

    def begin(self) -> int:
        """Step 1; returns how many records there are to check."""
        for size, note in self._checkpoints():
            try:
                checkpoint = self._opened(size, note)
            except NoteError as error:
                self._find("signature", -1, -1, f"the checkpoint of size {size}{error}")
                continue
            if self.roots.setdefault(size, checkpoint.root) != checkpoint.root:
                self._find("fork", -1, -1, f"two different roots were signed for size {size}")
        self.report.checkpoints = len(self.roots)
        if not self.roots:
            self._find("no_checkpoint", -1, -1, "the log has no checkpoint")
        self.report.size = max(self.roots, default=0)
        root = self.roots.get(self.report.size, b"")
        self.report.root = base64.b64encode(root).decode()
        if self.accepted:
            self._expect(self.accepted)
        return self.report.size

    def roots_now(self) -> dict[int, bytes]:
        """The roots by size, those signed since step 1 as well."""
        query = "SELECT size, note FROM checkpoints WHERE origin = %(origin)s AND size > %(size)s"
        values = {"origin": self.log.origin, "size": self.report.size}
        roots = dict(self.roots)
        for size, note in self.client.execute(query, values):
            with contextlib.suppress(NoteError):
                roots[size] = self._opened(size, note).root
        return roots

    def _opened(self, size: int, note: str | bytes) -> Checkpoint:
        """The checkpoint in a row. Raises `NoteError`, worded to go on from "size N"."""
        try:
            checkpoint = Checkpoint.parse(open_note(as_text(note, 65_536), self.log.keys)[0])
        except NoteError as error:
            raise NoteError(f": {error}") from None
        if (checkpoint.origin, checkpoint.size) != (self.log.origin, size):
            raise NoteError(" is another's")
        return checkpoint

    def _checkpoints(self) -> list[tuple[int, str | bytes]]:
        """All of the log's; a log whose first rows are only just there gets its first soon."""
        query = "SELECT size, note FROM checkpoints WHERE origin = %(origin)s ORDER BY size, note"
        any_row = "SELECT 1 FROM audit_log WHERE origin = %(origin)s LIMIT 1"
        values = {"origin": self.log.origin}
        until = time.monotonic() + _UNSEALED_SECONDS
        while True:
            found: list[tuple[int, str | bytes]] = self.client.execute(query, values)
            if found or time.monotonic() > until or not self.client.execute(any_row, values):
                return found
            time.sleep(0.2)

    def _expect(self, accepted: dict[str, Any]) -> None:
        """What was accepted before must still be there, at its place."""
        size, root = accepted["size"], base64.b64decode(accepted["root"])
        if size > self.report.size:
            text = f"{size} records were accepted before; the newest checkpoint has"
            self._find("rollback", self.report.size, size - 1, f"{text} {self.report.size}")
        elif self.roots.setdefault(size, root) != root:
            self._find("fork", -1, -1, f"size {size} was accepted before with another root")

    def run(self) -> Iterator[tuple[int, str, Record]]:
        """Steps 2 to 8; yields each record that can be one, with the time that the log has come to
        (which does not go back, whatever the record says) and the log's name."""
        size = self.report.size
        for first in range(0, size, self.chunk):
            yield from self._chunk(first, min(first + self.chunk, size))
        self._upper_tiles()
        self._unsealed()
        for index, text in self.attachments.policies():
            self._find("policy_text", index, index, text)
        self.report.writers = len(self.chains)

    def _chunk(self, first: int, end: int) -> Iterator[tuple[int, str, Record]]:
        told: list[bytes | None] = [None] * (end - first)
        for record in rows.read(self.client, "audit_log", self.log.origin, first, end, self.chunk):
            if self._record(record, first, told):
                yield self.sealed_at, self.log.origin, record
        tiles = self._leaf_tiles(first, end)
        missing = [first + place for place, value in enumerate(told) if value is None]
        for begin, last in _runs(missing):
            kind = "truncated" if last == self.report.size - 1 else "missing"
            self._find(kind, begin, last, "not in the table, though the log was signed over it")
        for begin, last in _runs([first + n for n, tile in enumerate(tiles) if tile is None]):
            self._find("tiles", begin, last, "the log's tiles lack these leaves")
        for place, (row, tile) in enumerate(zip(told, tiles, strict=True)):
            if row is not None and tile is not None and row != tile:
                self.differing.append(first + place)
        self._advance(first, end, told, tiles)
        for index, text in self.attachments.sealed(first, end):
            self._find("sealed_original", index, index, text)

    def _record(self, record: Record, first: int, told: list[bytes | None]) -> bool:
        """Whether it can be a record, and is the first at its place."""
        index = record.get("index", 0)
        assert isinstance(index, int)
        try:
            value = leaf_hash(canonical(record))
        except (TypeError, ValueError):
            value = _NO_LEAF
        if told[index - first] is not None:
            self.report.doubles += 1
            if told[index - first] != value:
                self._find("conflict", index, index, "two different records claim this place")
            return False
        told[index - first] = value
        sealed_at = record.get("sealed_at", 0)
        assert isinstance(sealed_at, int)
        if sealed_at < self.sealed_at:
            self._find("order", index, index, "was sealed before the record in front of it")
        self.sealed_at = max(self.sealed_at, sealed_at)
        if value == _NO_LEAF:
            return False
        for kind, text in self.chains.check(record):
            self._find(kind, index, index, text)
        self.attachments.add(record, index)
        return True

    def _leaf_tiles(self, first: int, end: int) -> list[bytes | None]:
        """The leaf hashes in the log's tiles; None where there is no tile."""
        query = (
            "SELECT index, data FROM tiles WHERE origin = %(origin)s AND level = 0"
            " AND index >= %(first)s AND index < %(end)s ORDER BY width"
        )
        bounds = {"first": first // TILE_WIDTH, "end": -(-end // TILE_WIDTH)}
        hashes: list[bytes | None] = [None] * (end - first)
        for index, data in self.client.execute(
            query, {"origin": self.log.origin, **bounds}, settings={"strings_as_bytes": True}
        ):
            for number in range(min(len(data) // 32, TILE_WIDTH)):
                place = index * TILE_WIDTH + number - first
                if place < end - first:
                    hashes[place] = data[32 * number : 32 * number + 32]
        return hashes

    def _advance(
        self, first: int, end: int, told: list[bytes | None], tiles: list[bytes | None]
    ) -> None:
        """Step 4 for the leaves `first` to `end`: on to each checkpoint in them, and its root."""
        sealed = [tile or row or b"\0" * 32 for tile, row in zip(tiles, told, strict=True)]
        claimed = [row or tile or b"\0" * 32 for tile, row in zip(tiles, told, strict=True)]
        place = first
        for stop in sorted({size for size in self.roots if first < size < end} | {end}):
            part = slice(place - first, stop - first)
            if self.told is None and sealed[part] != claimed[part]:
                self.told = self.tree.copy()
            for tile in self.tree.append(sealed[part]):
                if tile.level:
                    self.upper[tile.level, tile.index] = tile.data
            if self.told:
                self.told.append(claimed[part])
            if stop in self.roots:
                self._check_root(stop)
            place = stop

    def _check_root(self, size: int) -> None:
        signed = self.roots[size]
        by_tiles = self.tree.root() == signed
        differing = [index for index in self.differing if index < size]
        self.differing = self.differing[len(differing) :]
        by_rows = self.told.root() == signed if self.told else by_tiles
        if by_rows and not by_tiles:
            text = "the tiles differ from what was signed; the records do not"
            span = differing or [self.intact_up_to, size - 1]
            self._find("tiles", span[0], span[-1], text)
            self.tree = self.told or self.tree
        else:
            for index in differing:
                self._find("changed", index, index, "not what was sealed here")
        if not by_rows and not by_tiles:
            text = "records and tiles differ from what was signed: the root is another"
            self._find("root", self.intact_up_to, size - 1, text)
        else:
            self.intact_up_to = size
            self.told = None

    def _upper_tiles(self) -> None:
        """Step 6: the stored tiles above the leaves, against the recomputed."""
        for tile in self.tree.partial_tiles():
            if tile.level:
                self.upper[tile.level, tile.index] = tile.data
        query = "SELECT level, index, data FROM tiles WHERE origin = %(origin)s AND level > 0"
        wrong, whole = set(), set()
        for level, index, data in self.client.execute(
            query, {"origin": self.log.origin}, settings={"strings_as_bytes": True}
        ):
            known = self.upper.get((level, index), b"")
            if data.startswith(known):  # wider when a receiver at work is ahead of the checkpoint
                whole.add((level, index))
            elif not known.startswith(data):
                wrong.add((level, index))
        if self.report.findings:
            return  # these tiles were recomputed from what is in doubt already
        for level, index in sorted(wrong | (self.upper.keys() - whole)):
            width = TILE_WIDTH ** (level + 1)
            last = min((index + 1) * width, self.report.size) - 1
            text = f"tile {index} of level {level} is another, or gone"
            self._find("tiles", index * width, last, text)

    def _unsealed(self) -> None:
        """Step 7. A receiver at work seals within seconds; what stays uncovered is not its own."""
        until = time.monotonic() + _UNSEALED_SECONDS
        beyond = (
            "SELECT min(index), max(index), count() FROM audit_log"
            " WHERE origin = %(origin)s AND index >= %(size)s"
        )
        newest = "SELECT max(size) FROM checkpoints WHERE origin = %(origin)s"
        values: dict[str, Any] = {"origin": self.log.origin, "size": self.report.size}
        while True:
            [(first, last, count)] = self.client.execute(beyond, values)
            if not count:
                return
            [(size,)] = self.client.execute(newest, {"origin": self.log.origin})
            if size > last:
                return
            if time.monotonic() > until:
                self._find("unsealed", max(first, size), last, "rows that no checkpoint covers")
                return
            time.sleep(0.5)

    def _find(self, kind: str, first: int, last: int, text: str) -> None:
        self.report.add(Finding(kind, self.log.origin, first, last, text))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last)."""
    begin = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[begin], numbers[place - 1]
            begin = place
