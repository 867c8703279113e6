"""A log's own account of itself: gaps, and the summary of each interval, as notices in the log.

The log's records are counted as they are stored, in intervals one after another. An interval is
closed when the grace time after it is over: what is unmatched is looked for in the whole database,
and what is not there is a gap. All notices of an interval enter the log as one group, the summary
last, so a restart finds an interval told or not told. It counts rows again, from so far back that
what it holds then is what was held before: those of the last interval that was told, and of each
that was closed after that one had ended.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from authz.reconcile import (
    COUNTS,
    MOST_NAMED,
    RECONCILED,
    REPEATED_US,
    SECOND,
    Gap,
    Half,
    Halves,
    Left,
    Reconciler,
    Tally,
    Writers,
    half_of,
    judge,
    undisclosed,
)
from authz.record import Record, notice

SUMMARY = "interval_summary"
_MOST_OPEN = 10_000  # decisions under way that are carried on; beyond, they are told as gaps
_MOST_HELD = 300_000  # unmatched; beyond, an interval is closed before its time
_UNEXPLAINED = ("bypass", "no_decision", "writer_away", "writer_lost", "repeated")


class Database(Protocol):
    """What the database of all logs is asked."""

    def search(self, decision_ids: Sequence[str], since_us: int) -> Iterable[Record]:
        """Decisions, accesses and disclosures with one of the ids; the oldest half known was sealed
        then."""

    def newest(self, writers: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """The told time of each writer's newest record, and its number."""


@dataclass(slots=True)
class Interval:
    """Records `first` up to `end` of the log; `begun` and `until` is when its first and its last
    decision or access were sealed. What is 0 is not yet known."""

    first: int
    tally: Tally = field(default_factory=Tally)
    begun: int = 0
    end: int = 0
    until: int = 0


@dataclass(slots=True)
class Closing:
    """What there is to tell of an interval."""

    interval: Interval
    missing: int = 0  # allowed, and no access
    unseen: int = 0  # denied, and no access: nobody got at anything
    open: list[str] = field(default_factory=list)  # decisions under way
    late: dict[str, list[str]] = field(default_factory=dict)  # gaps told before, closed now
    lost: dict[str, tuple[int, int]] = field(default_factory=dict)  # writers: accesses, last seq


class Accounts:
    """Follows the log of `origin`. For one thread, but for `under_way`, which any may fill.

    `under_way` says when each decision's request was last told to be running (microseconds);
    `caught_up` are the writers that have nothing more to send. Nothing is closed before the grace
    time has passed since `started_us`: until then Envoys have not told again what is under way.
    """

    def __init__(
        self, origin: str, accounted: int, *, interval_seconds: float, grace_seconds: float,
        patience_seconds: float, caught_up: Callable[[], AbstractSet[str]] = frozenset,
        under_way: "dict[str, int] | None" = None, started_us: int = 0,
    ) -> None:  # fmt: skip
        self.under_way: dict[str, int] = {} if under_way is None else under_way
        self.next = accounted  # the index of the record to be added next
        self._origin = origin
        self._interval = int(interval_seconds * SECOND)
        self._grace = int(grace_seconds * SECOND)
        self._patience = int(patience_seconds * SECOND)
        self._caught_up = caught_up
        self._not_before = started_us + self._grace
        self._accounted = accounted
        self._told: deque[tuple[int, int, Tally]] = deque()
        self._intervals = deque([Interval(accounted)])
        self._reconciler = Reconciler(self._intervals[0].tally)
        self._writers = Writers()
        self._open: Halves = {}  # of closed intervals, and under way when last seen
        self._away: dict[str, int] = {}  # writers: since when decisions of theirs are missing

    def restore(
        self, told: Sequence[tuple[int, int, int, int]], open_: Iterable[Record],
        away: Mapping[str, int], lost: Iterable[str],
    ) -> None:  # fmt: skip
        """What earlier intervals left: the last of them, each with its first index, its end, when
        its last record was sealed and how far the log had been counted when it was closed; the
        decisions that were under way; writers that were away since then; and writers that were told
        as lost. `next` is set back to where counting is to begin."""
        _, accounted, last, _ = told[-1] if told else (0, 0, 0, 0)
        if accounted > self._accounted:  # told after the state was written
            self._accounted = self.next = accounted
            self._intervals = deque([Interval(accounted)])
            self._reconciler.tally = self._intervals[0].tally
        for first, end, until, as_of in told:
            if as_of > self._accounted or until >= last - REPEATED_US:
                self._told.append((end, as_of, Tally()))
                self.next = min(self.next, first)
        self._open = {str(one["decision_id"]): half_of(one, _CLOSED) for one in open_}
        self._reconciler.carry(self._open)
        self._writers.lost.update(lost)
        self._away = {name: since for name, since in away.items() if name not in self._writers.lost}

    def add(self, records: Iterable[Record]) -> None:
        """Count `records`, which follow those before and are in the database."""
        for record in records:
            if self._told:
                self._retell()
            kind = record.get("kind")
            if kind in RECONCILED:
                if self.next >= self._accounted:
                    self._advance(record["sealed_at"])  # type: ignore[arg-type]
                self._reconciler.add(record)
            if kind != "access":
                self._writers.add(record)
            self.next += 1

    def _retell(self) -> None:
        """Count, and forget, as was done before a restart."""
        counting = (tally for end, _, tally in self._told if self.next < end)
        self._reconciler.tally = next(counting, self._intervals[-1].tally)
        while self._told and self.next >= self._told[0][1]:
            _, _, tally = self._told.popleft()
            left = self._reconciler.close(tally)
            unmet = {**left.decided, **left.accessed}
            self._reconciler.drop(one for one in unmet if one not in self._open)
            self._reconciler.drop_disclosures(left)

    def _advance(self, sealed_at: int) -> None:
        """Begin the interval that a decision or access sealed now belongs to."""
        interval = self._intervals[-1]
        if interval.begun and sealed_at >= interval.begun + self._interval:
            self._end(interval)
            interval = self._intervals[-1]
        if not interval.begun:
            interval.begun = sealed_at

    def _end(self, interval: Interval) -> None:
        interval.end, interval.until = self.next, self._reconciler.newest
        self._intervals.append(Interval(self.next))
        self._reconciler.tally = self._intervals[-1].tally

    @property
    def newest(self) -> int:
        """When the newest record was sealed that has been added."""
        return self._reconciler.newest

    def close(self, now_us: int, database: Database) -> list[Record]:
        """The notices of the oldest interval if its grace time is over at `now_us`; empty if not.

        What `database` raises leaves everything as it was. Call it again until it is empty.
        """
        interval = self._intervals[0]
        over = interval.begun + self._interval
        if not interval.begun or now_us < self._not_before:
            return []
        if now_us < over + self._grace and self._reconciler.unmatched_count < _MOST_HELD:
            return []
        if not interval.end:
            self._end(interval)
        left = self._reconciler.unmatched(interval.tally)
        self._open = {one: half for one, half in self._open.items() if self._reconciler.holds(one)}
        wanted = list(dict.fromkeys([*left.ids, *self._open]))
        held = chain(*(part.values() for part in (*left.parts, self._open)))
        since = min((half.sealed_at for half in held), default=0)
        found = _by_id(database.search(wanted, since) if wanted else ())
        writers = {half.decided_by for half in left.accessed.values()} | self._away.keys()
        heard = database.newest(sorted(writers - {""}))
        closing = Closing(interval)
        self._reconciler.close(interval.tally)
        self._decisions(closing, left.decided, found, now_us)
        self._accesses(closing, left.accessed, found, heard, now_us)
        self._disclosures(closing, left, found)
        self._carried(closing, found, now_us)
        self._intervals.popleft()
        old = now_us - self._grace
        for decision_id, at in list(self.under_way.items()):
            if at < old:
                del self.under_way[decision_id]
        return [*_notices(closing, self._origin, self.next, now_us)]

    def _decisions(
        self, closing: Closing, decided: Halves, found: "dict[str, _Found]", now_us: int
    ) -> None:
        tally = closing.interval.tally
        for decision_id, half in decided.items():
            access = next(iter(found.get(decision_id, _NOTHING).accesses), None)
            if access is not None:
                self._meet(closing, decision_id, half, access, mine=half)
            elif not half.allowed:
                closing.unseen += 1
            elif self._runs(decision_id, now_us) and len(self._open) < _MOST_OPEN:
                self._open[decision_id] = half
                closing.open.append(decision_id)
                continue  # it stays with the reconciler
            else:
                closing.missing += 1
                tally.find(Gap("no_access", half.origin, half.index, half.source, decision_id))
            self._reconciler.drop([decision_id])

    def _accesses(
        self, closing: Closing, accessed: Halves, found: "dict[str, _Found]",
        heard: Mapping[str, tuple[int, int]], now_us: int,
    ) -> None:  # fmt: skip
        tally = closing.interval.tally
        alone: Halves = {}
        for decision_id, half in accessed.items():
            there = found.get(decision_id, _NOTHING)
            others = [one for one in there.accesses if not _same(one, half)]
            if not there.decisions:
                alone[decision_id] = half
            elif others:
                tally.find(Gap("repeated", half.origin, half.index, half.source, decision_id))
            else:
                self._meet(closing, decision_id, there.decisions[-1], half, mine=half)
        self._alone(closing, alone, heard, now_us)
        self._reconciler.drop(accessed)

    def _disclosures(self, closing: Closing, left: Left, found: "dict[str, _Found]") -> None:
        """Accesses whose disclosures have not come, and those of accesses closed before."""
        tally = closing.interval.tally
        for decision_id, access in left.undisclosed.items():
            others = found.get(decision_id, _NOTHING).disclosures
            if not others:
                tally.find(undisclosed(decision_id, access))
            elif others[0].origin == self._origin:
                tally.disclosed_late += 1
            else:
                tally.disclosed_elsewhere += 1
        for decision_id, half in left.disclosed.items():
            for access in found.get(decision_id, _NOTHING).accesses:
                # Of this log's own accesses, one that came before was told when it was closed.
                told = access.origin == self._origin and access.index < half.index
                if access.shown and (told or half.sealed_at - access.sealed_at > self._told_after):
                    closing.late.setdefault("no_disclosure", []).append(decision_id)
        self._reconciler.drop_disclosures(left)

    def _alone(
        self, closing: Closing, alone: Halves, heard: Mapping[str, tuple[int, int]], now_us: int
    ) -> None:
        """Accesses whose decisions nobody has: is the writer away, lost, or was there none?"""
        caught_up = self._caught_up()
        for writer, (time, _) in heard.items():
            self._writers.hear(writer, time)
        gaps = {one: self._writers.gap(one, half) for one, half in alone.items()}
        for decision_id, gap in gaps.items():
            if gap.kind == "writer_away" and gap.source not in caught_up:
                self._away.setdefault(gap.source, alone[decision_id].sealed_at)
        for writer, since in list(self._away.items()):
            if writer in caught_up or self._writers.newest.get(writer, 0) > since:
                del self._away[writer]
            elif now_us - since >= self._patience:
                count = sum(gap.source == writer for gap in gaps.values())
                closing.lost[writer] = count, heard.get(writer, (0, 0))[1]
                self._writers.lost.add(writer)
                del self._away[writer]
        for decision_id, half in alone.items():
            gap = self._writers.gap(decision_id, half)
            if gap.kind == "writer_away" and gap.source in caught_up:
                gap = Gap("no_decision", half.origin, half.index, half.source, decision_id)
            closing.interval.tally.find(gap)

    def _carried(self, closing: Closing, found: "dict[str, _Found]", now_us: int) -> None:
        """Decisions of earlier intervals that were under way."""
        for decision_id, half in list(self._open.items()):
            if decision_id in closing.open:
                continue
            access = next(iter(found.get(decision_id, _NOTHING).accesses), None)
            if access is None:
                if self._runs(decision_id, now_us):
                    continue
                gap = Gap("no_access", half.origin, half.index, half.source, decision_id)
                closing.interval.tally.find(gap)
            del self._open[decision_id]
            self._reconciler.drop([decision_id])

    def _runs(self, decision_id: str, now_us: int) -> bool:
        return self.under_way.get(decision_id, 0) > now_us - self._grace

    def _meet(
        self, closing: Closing, decision_id: str, decided: Half, access: Half, *, mine: Half
    ) -> None:
        """One of the two is of the interval; the other was found in the database."""
        tally = closing.interval.tally
        other = access if mine is decided else decided
        here = other.origin == self._origin
        if mine is decided:
            tally.matched_late += here
            tally.matched_elsewhere += not here
        else:
            tally.explained_late += here
            tally.explained_elsewhere += not here
        # Whoever has the access judges it, once: here, or where it is.
        if (mine is access or here) and (gap := judge(decision_id, decided, access)):
            tally.find(gap)
        if decided.allowed and (here or mine.sealed_at - other.sealed_at > self._told_after):
            kind = "no_decision" if mine is decided else "no_access"
            closing.late.setdefault(kind, []).append(decision_id)

    @property
    def _told_after(self) -> int:
        return self._interval + self._grace


@dataclass(slots=True)
class _Found:
    decisions: list[Half] = field(default_factory=list)
    accesses: list[Half] = field(default_factory=list)
    disclosures: list[Half] = field(default_factory=list)


_NOTHING = _Found()
_CLOSED = Tally(closed=True)


def _by_id(records: Iterable[Record]) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for record in records:
        one = found.setdefault(str(record["decision_id"]), _Found())
        half = half_of(record, _CLOSED)
        if record["kind"] == "decision":
            half.revised = bool(one.decisions)
            one.decisions.append(half)
        elif record["kind"] == "access":
            one.accesses.append(half)
        else:
            one.disclosures.append(half)
    return found


def _same(one: Half, other: Half) -> bool:
    return (one.origin, one.index) == (other.origin, other.index)


def _notices(closing: Closing, origin: str, as_of: int, now_us: int) -> Iterator[Record]:
    """In the order in which they enter the log; the summary last."""
    interval = closing.interval
    where = {"first": interval.first, "end": interval.end}
    for (kind, source), gaps in sorted(interval.tally.gaps.items()):
        ids = [gap.decision_id or f"{origin}/{gap.index}" for gap in gaps.some]
        told = {"kind": kind, "source": source, "count": gaps.count, **where}
        yield notice("gap", now_us, told, rule=kind, records=ids)
    for kind, late in sorted(closing.late.items()):
        told = {"kind": kind, "count": len(late), **where}
        yield notice("gap_closed", now_us, told, rule=kind, records=late[:MOST_NAMED])
    for writer, (count, last_seq) in sorted(closing.lost.items()):
        told = {"writer": writer, "last_seq": last_seq, "accesses": count, **where}
        yield notice("writer_lost", now_us, told)
    for begin in range(MOST_NAMED, len(closing.open), MOST_NAMED):
        more = closing.open[begin : begin + MOST_NAMED]
        yield notice("under_way", now_us, {"count": len(more), **where}, records=more)
    kinds = interval.tally.kinds
    told = {**where, "as_of": as_of, "from": interval.begun, "until": interval.until}
    told |= {name: getattr(interval.tally, name) for name in COUNTS if name != "pending"}
    told |= {
        "missing": closing.missing,
        "open": len(closing.open),
        "unseen": closing.unseen,
        "unexplained": sum(kinds.get(kind, 0) for kind in _UNEXPLAINED),
        "gaps": kinds,
    }
    yield notice(SUMMARY, now_us, told, records=closing.open[:MOST_NAMED])
