"""Verification of logs, wherever they are read from, by these steps for each trusted log:

1. The newest checkpoint is read first; it must bear a trusted signature, and so must every other,
   and no two of one size may differ. With a state, it may not be older than what was accepted
   before.
2. Leaves are read in index order, as the columns make them. Missing and doubled indexes show here.
3. Each leaf hash is held against the log's tiles: that tells which record differs.
4. At each checkpoint's size the root is recomputed and must be the signed one. If it is not, either
   the tiles lie too, or the tiles alone: a second tree, over what the rows say, tells.
5. Each writer's sequence, chain and signed heads are followed; `sealed_at` may never decrease.
6. The tiles above the leaves are compared with those recomputed.
7. Rows beyond the newest checkpoint must be covered by one within 10 s.
8. What the records carried along and is still there must be what they name.
9. Each rotation of the log's key must be signed by both keys, and each checkpoint by the key of its
   time; anchors and witnesses must have seen the log as it is (`authz.verify.witnessed`).
10. The tables and views themselves must be those that the schema made.
11. What the logs' rosters say of each other must still be so (`authz.verify.roster`), and what
   their summaries say of each interval (`authz.verify.accounts`).

Records are streamed; what is held of each log is two chunks and the trees' edges. While that goes
on, decisions and accesses of all logs are held against each other (`authz.reconcile`). They go on
together, by the time their records were sealed, so that a request whose decision is in one log and
whose access is in another is held for as long as the two are apart, and not much longer.

A part of a log is checked from a place where its tree is known: that of an earlier check, or of the
tiles below, which the next signed root after the part confirms.
"""

import base64
import gc
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from authz.ledger import HASH_BYTES, TILE_WIDTH, Verifier
from authz.record import Record
from authz.store.logs import Part
from authz.trust import TrustedLog
from authz.verify.accounts import Accounts
from authz.verify.astray import Astray
from authz.verify.epochs import Epochs
from authz.verify.expiry import Expiries
from authz.verify.log import LogCheck
from authz.verify.partial import Told, after, within
from authz.verify.report import Finding, LogReport, Report
from authz.verify.roster import Rosters
from authz.verify.rotation import Rotations
from authz.verify.source import Logs

_CHUNK = 64 * TILE_WIDTH
_TALLIED = (
    "decisions", "accesses", "matched", "allowed", "denied", "rejected_by_envoy", "unanswered",
    "pending",
)  # fmt: skip

Progress = Callable[[int, int], None]
State = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Window:
    """Records sealed from `since_us` on and before `until_us`."""

    since_us: int = 0
    until_us: int = 2**53 - 1


def verify_logs(
    source: Logs,
    logs: Sequence[TrustedLog],
    state: State | None = None,
    progress: Progress = lambda _done, _all: None,
    *,
    window: Window | None = None,
    incremental: bool = False,
    expiry_writers: Sequence[Verifier] | None = None,
) -> Report:
    """Check `logs`: all of them, or a `window`, or (`incremental`) what is new since `state`.

    `state` maps each origin to what was last accepted, ``size`` and ``root`` (base64) at least; it
    is brought up to date for logs found intact, but for those of a window. `progress` is called
    with records done and all records. With `expiry_writers`, only notices that one of these keys
    signed let records be gone.
    """
    accepted = {} if state is None else state
    begun = time.monotonic()
    run = _Run(source, logs, accepted, window, expiry_writers, incremental=incremental)
    done = 0
    with _ahead() as ahead:
        for check, part in run.parts(ahead):
            run.take(check, part)
            done += part.end - part.first
            progress(done, run.total)
    report = run.finish()
    for name, check in run.checks.items():
        if not check.report.findings and not window:
            accepted[name] = check.to_json()
    report.checked = done
    report.seconds = time.monotonic() - begun
    return report


class _Run:
    """One verification: all that follows the logs' records, and is judged when they have come by.
    `total` is how many there are."""

    def __init__(
        self, source: Logs, logs: Sequence[TrustedLog], accepted: State, window: Window | None,
        expiry_writers: Sequence[Verifier] | None, *, incremental: bool,
    ) -> None:  # fmt: skip
        self._source = source
        self._report = Report(partial=window is not None or incremental)
        self._astray = Astray()
        self._expiries = Expiries(source.expiry_notices(), expiry_writers)
        chunk = max(_CHUNK // len(logs) // TILE_WIDTH, 1) * TILE_WIDTH
        self.checks: dict[str, LogCheck] = {}
        self.total = 0
        for log in logs:
            known = accepted.get(log.origin)
            absent = self._expiries.absent(log.origin)
            check = LogCheck(source, log, chunk, self._astray, accepted=known, absent=absent)
            self.checks[log.origin] = check
            if window:
                self.total += within(check, source, window.since_us, window.until_us)
            else:
                self.total += check.begin(after(known) if incremental and known else None)
        self._epochs = Epochs(source, self.checks)
        self._follow(known=window is None)
        self._wanted = self._beside()
        cuts = {origin: self._expiries.absent(origin).end for origin in self.checks}
        summaries = {name: source.notices(name, "interval_summary") for name in self.checks}
        self._accounts = Told() if self._report.partial else Accounts(summaries, cuts=cuts)
        trusted = {
            name: (check.log.keys, check.checkpoints.root) for name, check in self.checks.items()
        }
        self._rosters = Rosters(trusted)
        self._rotations = Rotations({name: keys for name, (keys, _) in trusted.items()})

    def parts(self, ahead: ThreadPoolExecutor) -> Iterator[tuple[LogCheck, Part]]:
        """Of all logs, by the time that their records were sealed."""

        def timed(check: LogCheck) -> Iterator[tuple[int, LogCheck, Part]]:
            begins = self._epochs.begins(check.origin)
            for part in check.parts(ahead):
                yield max(check.sealed_at, begins), check, part

        for _, check, part in heapq.merge(*map(timed, self.checks.values()), key=itemgetter(0)):
            yield check, part

    def take(self, check: LogCheck, part: Part) -> None:
        """Check a part's records, one by one."""
        origin, account = check.origin, self._accounts.add
        places = self._wanted.get(origin)
        for record in check.records(part):
            if places and record.get("index", 0) in places:
                self._expiries.confirm(record, origin)
            if wrong := account(record, origin):
                self._find(check, "interval", record, wrong)
            if record.get("kind") == "notice":
                self._rosters.add(record, origin)
                self._find(check, "rotation", record, self._rotations.add(record, origin))
        check.checkpoints.signed_by(self._rotations.signs)

    def finish(self) -> Report:
        """No more records come."""
        report, checks, source = self._report, self.checks, self._source
        for check in checks.values():
            check.finish()
            report.logs.append(check.report)
        _others(source, checks, self._astray, report)
        sizes = {log.origin: log.size for log in report.logs}
        for finding in (
            *self._rosters.findings(lambda origin: checks[origin].checkpoints.newest_now()),
            *self._epochs.findings(sizes),
            *self._astray.findings(),
        ):
            report.log(finding.origin).add(finding)
        for kind, origin, index, text in self._expiries.findings(self._root_at):
            report.log(origin).find(kind, index, index, text)
        told = source.definitions()
        report.schema = [Finding("schema", name, -1, -1, text) for name, text in told]
        report.detached = list(source.detached())
        tally = self._accounts.finish()
        for name in _TALLIED:
            setattr(report, name, getattr(tally, name))
        report.matched += tally.matched_late + tally.matched_elsewhere
        report.gaps = tally.kinds
        return report

    def _find(self, check: LogCheck, kind: str, record: Record, texts: Iterable[str]) -> None:
        index: Any = record.get("index", 0)
        for text in texts:
            check.report.find(kind, index, index, text)

    def _beside(self) -> dict[str, frozenset[int]]:
        """The records that the notices of expiry need, by log; those that a check of a part does
        not come by are read beside it, and proved one by one."""
        wanted = self._expiries.wanted()
        for origin, places in wanted.items():
            check = self.checks.get(origin)
            for index in places if check else ():
                if check and not check.covers(index):
                    for record in self._source.records(origin, index, index + 1):
                        if check.tree.includes(record):
                            self._expiries.confirm(record, origin)
        return wanted

    def _root_at(self, origin: str, size: int) -> bytes | None:
        return self.checks[origin].tree.root_at(size) if origin in self.checks else None

    def _follow(self, *, known: bool) -> None:
        """Let writers go on where the log before left them, if that is `known`."""
        for origin, check in self.checks.items():
            if (told := self._epochs.before(origin)) and told.origin in self.checks:
                check.chains.follow(self.checks[told.origin].chains if known else None)


@contextmanager
def _ahead() -> Iterator[ThreadPoolExecutor]:
    """What reads ahead. Records are made and forgotten by the million, and none is part of a ring:
    collections of such rings would only cost."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with ThreadPoolExecutor(1, "reading") as ahead:
            yield ahead
    finally:
        if enabled:
            gc.enable()


def _others(source: Logs, checks: dict[str, LogCheck], astray: Astray, report: Report) -> None:
    """Rows of a log that nobody trusts have no business in the table."""
    for origin, first, last in source.others(list(checks)):
        text = f"rows of log {origin!r}, which the trust file does not name"
        report.logs.append(LogReport(origin))
        report.logs[-1].find("unknown_origin", first, last, text)
        if astray.places:
            for record in source.records(origin, first, min(last + 1, first + 1000)):
                astray.row(origin, record)


def state_of(told: object) -> State:
    """`told` as a state. Raises `KeyError`, `TypeError` or `ValueError` if it is none."""
    if not isinstance(told, dict):
        raise TypeError
    for accepted in told.values():
        size, root = accepted["size"], base64.b64decode(accepted["root"], validate=True)
        if type(size) is not int or size < 0 or len(root) != HASH_BYTES:
            raise ValueError("not a size and a root")
        if type(accepted.get("witnessed", 0)) is not int:
            raise TypeError("how far it was witnessed is no integer")
        after(accepted)
    return told
