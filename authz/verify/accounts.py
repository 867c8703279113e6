"""The count of all logs, and each log's own account of it, recomputed.

A log's summaries say where its intervals end, and how far its receiver had come when it closed
each. They are read first, so that the same count is made here over the same records; whether they
are the log's is seen when they come by as its records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from clickhouse_driver import Client

from authz.reconcile import Reconciler, Rest, Tally, Writers
from authz.record import Record
from authz.record import text as as_text

_SUMMARIES = (
    "SELECT details FROM audit_log WHERE origin = %(origin)s AND kind = 'notice'"
    " AND event = 'interval_summary' AND writer_seq = 0 ORDER BY index"
)
_EXACT = ("decisions", "allowed", "denied", "matched", "accesses", "explained")


@dataclass(slots=True)
class _Interval:
    """As a summary tells it, and as it is counted here."""

    first: int
    end: int
    as_of: int
    told: dict[str, Any]
    tally: Tally = field(default_factory=Tally)
    counted: dict[str, int] | None = None


@dataclass(slots=True)
class _Log:
    """One log on its way."""

    intervals: list[_Interval]
    reconciler: Reconciler = field(default_factory=Reconciler)
    total: Tally = field(default_factory=Tally)
    begun: int = 0  # how many intervals have been counted to their ends
    closed: int = 0
    told: int = 0
    open: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reconciler.tally = self._next_tally()

    def _next_tally(self) -> Tally:
        return self.intervals[self.begun].tally if self.begun < len(self.intervals) else self.total

    def reach(self, index: int) -> Iterator[tuple[Any, Any]]:
        """Everything before record `index` is counted; yields what closed intervals left."""
        while self.begun < len(self.intervals) and index >= self.intervals[self.begun].end:
            self.begun += 1
            self.reconciler.tally = self._next_tally()
        while self.closed < self.begun and index >= self.intervals[self.closed].as_of:
            yield self.close()

    def close(self) -> tuple[Any, Any]:
        interval = self.intervals[self.closed]
        self.closed += 1
        left = self.reconciler.close(interval.tally)
        self.reconciler.drop([*left[0], *left[1]])
        tally = interval.tally
        interval.counted = {name: getattr(tally, name) for name in _EXACT}
        interval.counted["turned_away"] = tally.ended + tally.rejected_by_envoy
        return left


class Accounts:
    """`add` the records of all logs, each log's in order; then `finish`."""

    def __init__(self, summaries: Mapping[str, Sequence[str]], grace_seconds: float = 60) -> None:
        """`summaries` are the details of each log's, in order (`read_summaries`)."""
        self._logs = {origin: _Log(_intervals(told)) for origin, told in summaries.items()}
        self._rest = Rest(grace_seconds)
        self._newest = 0  # when the newest record of all was sealed
        self._writers = Writers()

    def __len__(self) -> int:
        """How many unmatched decisions and accesses are held."""
        logs = self._logs.values()
        return len(self._rest) + sum(log.reconciler.unmatched_count for log in logs)

    def add(self, record: Record, origin: str) -> Iterator[str]:
        """Yields what is wrong with `record`, if it is a summary and does not fit."""
        log = self._logs[origin]
        index = record.get("index", 0)
        assert isinstance(index, int)
        for left in log.reach(index):
            self._rest.add(*left)
        sealed_at = record.get("sealed_at", 0)
        assert isinstance(sealed_at, int)
        self._newest = max(self._newest, sealed_at)
        kind = record.get("kind")
        if kind in ("decision", "access"):
            log.reconciler.add(record)
        if kind != "access":
            self._writers.add(record)
        if kind == "notice" and "writer_seq" not in record:
            yield from self._notice(log, record)

    def _notice(self, log: _Log, record: Record) -> Iterator[str]:
        named = record.get("records", [])
        assert isinstance(named, list | tuple)
        event = record.get("event")
        if event in ("interval_summary", "under_way"):
            log.open.update(named)
        elif event == "gap" and record.get("rule") == "no_access":
            log.open.difference_update(named)
        if event != "interval_summary":
            return
        told = _details(record)
        before = log.intervals[log.told - 1].end if log.told else None
        interval = log.intervals[log.told] if log.told < len(log.intervals) else None
        log.told += 1
        if interval is None or told != interval.told or interval.counted is None:
            yield "an interval's summary is malformed, or comes before the interval has ended"
            return
        if before is not None and interval.first != before:
            yield f"the interval begins at {interval.first}; the one before it ended at {before}"
        yield from _differences(interval)

    def finish(self) -> Tally:
        """Of all logs together."""
        total = Tally()
        still_open: set[str] = set()
        for log in self._logs.values():
            log.reconciler.finish()
            self._rest.add(*log.reconciler.unmatched())
            for interval in log.intervals:
                total.add(interval.tally)
            total.add(log.total)
            still_open |= log.open
        total.add(self._rest.finish(self._newest, self._writers, still_open))
        return total


def _differences(interval: _Interval) -> Iterator[str]:
    assert interval.counted is not None
    told = dict(interval.told)
    told["turned_away"] = told.get("ended", 0) + told.get("rejected_by_envoy", 0)
    for name, count in interval.counted.items():
        if told.get(name) != count:
            yield f"the interval's summary tells {told.get(name)} {name}, the records {count}"
    left = interval.counted["decisions"] - interval.counted["matched"]
    parts = ("unanswered", "matched_late", "matched_elsewhere", "missing", "open", "unseen")
    if left != sum(told.get(part, 0) for part in parts):
        yield f"the interval's summary does not say what became of {left} decisions"


def read_summaries(client: Client, origin: str) -> list[str]:
    """The details of a log's summaries."""
    found = client.execute(_SUMMARIES, {"origin": origin})
    return [as_text(details, 65_536) for (details,) in found]


def _intervals(summaries: Sequence[str]) -> list[_Interval]:
    """As the summaries tell them; those that cannot be are left out, and found later."""
    found: list[_Interval] = []
    for details in summaries:
        told = _details({"details": details})
        numbers = [told.get(name) for name in ("first", "end", "as_of")]
        if all(type(number) is int for number in numbers):
            first, end, as_of = numbers
            fits = 0 <= first <= end <= as_of  # type: ignore[operator]
            if fits and (not found or end >= found[-1].end):  # type: ignore[operator]
                found.append(_Interval(first, end, as_of, told))  # type: ignore[arg-type]
    return found


def _details(record: Record) -> dict[str, Any]:
    try:
        told = orjson.loads(str(record.get("details", "")))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
