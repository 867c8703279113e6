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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from authz.ledger import TILE_WIDTH
from authz.store.logs import Part
from authz.trust import TrustedLog
from authz.verify.accounts import Accounts
from authz.verify.epochs import Epochs
from authz.verify.log import Astray, LogCheck
from authz.verify.partial import Told, after, before
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
) -> Report:
    """Check `logs`: all of them, or a `window`, or (`incremental`) what is new since `state`.

    `state` maps each origin to what was last accepted, ``size`` and ``root`` (base64) at least; it
    is brought up to date for logs found intact, but for those of a window. `progress` is called
    with records done and all records.
    """
    begun = time.monotonic()
    report = Report(partial=window is not None or incremental)
    accepted = {} if state is None else state
    chunk = max(_CHUNK // len(logs) // TILE_WIDTH, 1) * TILE_WIDTH
    astray = Astray()
    checks: dict[str, LogCheck] = {}
    total = 0
    for log in logs:
        known = accepted.get(log.origin)
        check = checks[log.origin] = LogCheck(source, log, chunk, astray, accepted=known)
        if window:
            total += before(check, source, window.since_us, window.until_us)
        else:
            total += check.begin(after(known) if incremental and known else None)
    epochs = Epochs(source, checks)
    _follow(epochs, checks, known=window is None)
    summaries = {log.origin: source.notices(log.origin, "interval_summary") for log in logs}
    accounts = Told() if report.partial else Accounts(summaries)
    rosters = Rosters({name: (check.log.keys, check.root) for name, check in checks.items()})
    rotations = Rotations({name: check.log.keys for name, check in checks.items()})
    done = 0
    with _ahead() as ahead:
        parts = heapq.merge(*(_parts(check, ahead, epochs) for check in checks.values()), key=_time)
        for _, origin, part in parts:
            check = checks[origin]
            for record in check.records(part):
                if wrong := accounts.add(record, origin):
                    index: Any = record.get("index", 0)
                    for text in wrong:
                        check.report.add(Finding("interval", origin, index, index, text))
                if record.get("kind") == "notice":
                    rosters.add(record, origin)
                    for text in rotations.add(record, origin):
                        index = record.get("index", 0)
                        check.report.add(Finding("rotation", origin, index, index, text))
            check.signed_by(rotations.signs)
            done += part.end - part.first
            progress(done, total)
        for check in checks.values():
            check.finish()
    report.logs += [check.report for check in checks.values()]
    _others(source, checks, astray, report)
    for finding in rosters.findings(lambda origin: checks[origin].newest_now()):
        report.log(finding.origin).add(finding)
    sizes = {log.origin: log.size for log in report.logs}
    for finding in [*epochs.findings(sizes), *astray.findings()]:
        report.log(finding.origin).add(finding)
    for name, check in checks.items():
        if not check.report.findings and not window:
            accepted[name] = check.to_json()
    tally = accounts.finish()
    for name in _TALLIED:
        setattr(report, name, getattr(tally, name))
    report.matched += tally.matched_late + tally.matched_elsewhere
    report.gaps = tally.kinds
    report.schema = [Finding("schema", name, -1, -1, text) for name, text in source.definitions()]
    report.checked = done
    report.detached = list(source.detached())
    report.seconds = time.monotonic() - begun
    return report


def _follow(epochs: Epochs, checks: dict[str, LogCheck], *, known: bool) -> None:
    """Let writers go on where the log before left them, if that is `known`."""
    for origin, check in checks.items():
        if (told := epochs.before(origin)) and told.origin in checks:
            check.chains.follow(checks[told.origin].chains if known else None)


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


def _parts(
    check: LogCheck, ahead: ThreadPoolExecutor, epochs: Epochs
) -> Iterator[tuple[int, str, Part]]:
    begins = epochs.begins(check.origin)
    for part in check.parts(ahead):
        yield max(check.sealed_at, begins), check.origin, part


def _time(of: tuple[int, str, Part]) -> int:
    return of[0]


def _others(source: Logs, checks: dict[str, LogCheck], astray: Astray, report: Report) -> None:
    """Rows of a log that nobody trusts have no business in the table."""
    for origin, first, last in source.others(list(checks)):
        text = f"rows of log {origin!r}, which the trust file does not name"
        finding = Finding("unknown_origin", origin, first, last, text)
        report.logs.append(LogReport(origin, findings=[finding]))
        if astray.places:
            for record in source.records(origin, first, min(last + 1, first + 1000)):
                astray.row(origin, record)


def state_of(told: object) -> State:
    """`told` as a state. Raises `KeyError`, `TypeError` or `ValueError` if it is none."""
    if not isinstance(told, dict):
        raise TypeError
    for accepted in told.values():
        int(accepted["size"]), base64.b64decode(accepted["root"], validate=True)
        after(accepted)
    return told
