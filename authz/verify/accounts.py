"""The count of all logs, and each log's own account of it, recomputed.

A log's summaries say where its intervals end, and how far its receiver had come when it closed
each. They are read ahead of its records, so that the same count is made here over the same records;
whether they are the log's is seen when they come by as its records.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from authz.reconcile import RECONCILED, REPEATED_US, Left, Reconciler, Rest, Tally, Writers
from authz.record import Record, details_of

_NEVER = 2**63
_EXACT = (
    "decisions", "allowed", "denied", "matched", "accesses", "explained", "disclosed", "unresolved"
)  # fmt: skip

Summary = tuple[int, str]  # where it is in its log, and its details


@dataclass(slots=True)
class _Interval:
    """As a summary tells it (if one does), and as it is counted here."""

    first: int
    end: int
    as_of: int
    told: dict[str, Any]
    tally: Tally = field(default_factory=Tally)
    counted: dict[str, int] | None = None
    newest: int = 0  # when it was counted: the time that its log had come to


class _Log:
    """One log on its way. Held are the interval that is being counted, those that have ended and
    are not told yet, and the last of those before."""

    def __init__(self, summaries: Iterable[Summary]) -> None:
        self._ahead = _intervals(summaries)
        self._counting = next(self._ahead, None)
        self._ended: deque[_Interval] = deque()  # and not closed
        self._closed: deque[_Interval] = deque()  # and not told
        self._told: deque[_Interval] = deque()  # not in `total` yet, as they may change still
        self.told_end: int | None = None
        self.total = Tally()
        self.open: set[str] = set()
        self.reconciler = Reconciler()
        self.stop = 0
        """The index at which there is something to do."""
        self._count_next()
        self._look_ahead()

    def _count_next(self) -> None:
        self.reconciler.tally = self._counting.tally if self._counting else self.total

    def reach(self, index: int) -> Iterator[Left]:
        """Everything before record `index` is counted; yields what closed intervals left."""
        while self._counting and index >= self._counting.end:
            self._ended.append(self._counting)
            self._counting = next(self._ahead, None)
            self._count_next()
        while self._ended and index >= self._ended[0].as_of:
            yield self._close(self._ended.popleft())
        self._look_ahead()

    def _look_ahead(self) -> None:
        ends = [self._counting.end] if self._counting else []
        ends += [self._ended[0].as_of] if self._ended else []
        self.stop = min(ends, default=_NEVER)

    def _close(self, interval: _Interval) -> Left:
        left = self.reconciler.close(interval.tally)
        self.reconciler.drop([*left.decided, *left.accessed])
        self.reconciler.drop_disclosures(left)
        tally = interval.tally
        interval.newest = self.reconciler.newest
        interval.counted = {name: getattr(tally, name) for name in _EXACT}
        interval.counted["turned_away"] = tally.ended + tally.rejected_by_envoy
        (self._closed if interval.told else self._told).append(interval)
        while self._told and self._told[0].newest < interval.newest - 3 * REPEATED_US:
            self.total.add(self._told.popleft().tally)
        return left

    def tell(self, told: dict[str, Any]) -> _Interval | None:
        """The interval of which this is `told`, if it is closed and was not told before."""
        for interval in self._closed:
            if interval.told == told:
                while self._closed[0] is not interval:
                    self._told.append(self._closed.popleft())  # its summary is another, or gone
                self._told.append(self._closed.popleft())
                return interval
        return None

    def finish(self) -> Tally:
        """No more records come: the count of all."""
        self.reconciler.finish()
        counting = [self._counting] if self._counting else []
        for interval in [*self._told, *self._closed, *self._ended, *counting]:
            self.total.add(interval.tally)
        return self.total


class Accounts:
    """`add` the records of all logs, each log's in order; then `finish`."""

    def __init__(
        self,
        summaries: Mapping[str, Iterable[Summary]],
        grace_seconds: float = 60,
        cuts: Mapping[str, int] | None = None,
    ) -> None:
        """`summaries` are each log's, in order. Records before a log's cut may be gone: what was
        told of them cannot be counted again."""
        self._cuts = cuts or {}
        self._logs = {origin: _Log(told) for origin, told in summaries.items()}
        self._rest = Rest(grace_seconds)
        self._newest = 0  # when the newest record of all was sealed
        self._writers = Writers()

    def __len__(self) -> int:
        """How many unmatched decisions and accesses are held."""
        logs = self._logs.values()
        return len(self._rest) + sum(log.reconciler.unmatched_count for log in logs)

    def add(self, record: Record, origin: str) -> Sequence[str]:
        """What is wrong with `record`, if it is a summary and does not fit."""
        log = self._logs[origin]
        index: Any = record.get("index", 0)
        if index >= log.stop:
            for left in log.reach(index):
                self._rest.add(left)
        sealed_at: Any = record.get("sealed_at", 0)
        self._newest = max(self._newest, sealed_at)
        kind = record.get("kind")
        if kind in RECONCILED:
            log.reconciler.add(record)
        if kind == "access":
            if log.open:
                log.open.discard(str(record.get("decision_id", "")))
            return ()
        self._writers.add(record)
        if kind == "notice" and "writer_seq" not in record:
            return list(self._notice(log, record))
        return ()

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
        interval = log.tell(details_of(record))
        if interval is None:
            yield "an interval's summary is malformed, or comes before the interval has ended"
            return
        before, log.told_end = log.told_end, interval.end
        if interval.first < self._cuts.get(str(record.get("origin", "")), 0):
            return
        if before is not None and interval.first != before:
            yield f"the interval begins at {interval.first}; the one before it ended at {before}"
        yield from _differences(interval)

    def finish(self) -> Tally:
        """Of all logs together."""
        total = Tally()
        still_open: set[str] = set()
        for log in self._logs.values():
            total.add(log.finish())
            self._rest.add(log.reconciler.unmatched())
            still_open |= log.open
        total.add(self._rest.finish(self._newest, self._writers, still_open))
        return total


def _differences(interval: _Interval) -> Iterator[str]:
    assert interval.counted is not None
    told = {name: value for name, value in interval.told.items() if isinstance(value, int)}
    told["turned_away"] = told.get("ended", 0) + told.get("rejected_by_envoy", 0)
    for name, count in interval.counted.items():
        if told.get(name) != count:
            yield f"the interval's summary tells {told.get(name)} {name}, the records {count}"
    left = interval.counted["decisions"] - interval.counted["matched"]
    parts = ("unanswered", "matched_late", "matched_elsewhere", "missing", "open", "unseen")
    if left != sum(told.get(part, 0) for part in parts):
        yield f"the interval's summary does not say what became of {left} decisions"


def _intervals(summaries: Iterable[Summary]) -> Iterator[_Interval]:
    """As the summaries tell them, and what lies between two: records older than the first, or a
    summary that is malformed or gone, which is found later."""
    reached = 0
    for index, details in summaries:
        told = details_of({"details": details})
        first, end, as_of = (told.get(name) for name in ("first", "end", "as_of"))
        if not (type(first) is type(end) is type(as_of) is int):
            continue
        if 0 <= first < end <= as_of <= index and end > reached:
            if first > reached:
                yield _Interval(reached, first, first, {})
            reached = end
            yield _Interval(first, end, as_of, told)
