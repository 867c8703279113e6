"""Decisions against accesses, and accesses against what is told of their answers: the count that
must come out even. Pure, and fed in log order.

Matches are by `decision_id` only. What is held is what is unmatched, or has only just met, so
memory follows requests under way (and gaps), not history.

`Reconciler` follows one log. Its records are counted in tallies, one after another: the receiver
has one for each interval, closes it when the grace time is over and tells it in the log; a verifier
closes them where the log says, and so must count the same. What a closed tally leaves unmatched is
looked for elsewhere: by the receiver in the database, by a verifier in `Rest`.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from authz.record import DECIDED, Record, details_of

RECONCILED = frozenset(("decision", "access", "disclosure"))
"""The kinds of record that are held against each other."""
SECOND = 1_000_000
# ext-authz may record a decision a second time, right after the first: the last one counts. So what
# has met is judged this long after.
_REVISED_US = 5 * SECOND
# An access that names no decision explains one by its request id, if they are no further apart.
REPEATED_US = 60 * SECOND
# How Envoy says that it ended an answer itself, for the service or authz broke off.
_BROKEN = ("upstream_reset_", "ext_proc_error")
_ENVOYS_ERRORS = (500, 502, 503, 504)
MOST_NAMED = 100  # of one kind of gap and one source


@dataclass(frozen=True, slots=True)
class Gap:
    """One thing that does not add up. `kind` is stable; `index` is where in its log it shows;
    `source` is who told the record there: a writer, or ``envoy:`` and its node."""

    kind: str
    origin: str
    index: int
    source: str = ""
    decision_id: str = ""


@dataclass(slots=True)
class Gaps:
    """Those of one kind and source: how many, and the first of them."""

    count: int = 0
    some: list[Gap] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Tally:
    """How the accounts stand, over some of a log's records.

    `decisions` are `allowed` or `denied`. An access that belongs to one is in the same log within
    reach of the tally (`matched`, and the access `explained`), in an earlier part of it that is
    closed (``_late``) or in another log (``_elsewhere``). A decision that Envoy did not wait for is
    `unanswered`, and the access that says so `ended`. `rejected_by_envoy` are accesses that name no
    decision and reached nothing. Accesses whose answers Envoy shows are `disclosed`, in the same
    three ways; `unresolved` are answers of which it is not known whose data they held.
    """

    decisions: int = 0
    allowed: int = 0
    denied: int = 0
    matched: int = 0
    matched_late: int = 0
    matched_elsewhere: int = 0
    unanswered: int = 0
    accesses: int = 0
    explained: int = 0
    explained_late: int = 0
    explained_elsewhere: int = 0
    ended: int = 0
    rejected_by_envoy: int = 0
    disclosed: int = 0
    disclosed_late: int = 0
    disclosed_elsewhere: int = 0
    unresolved: int = 0
    pending: int = 0
    gaps: dict[tuple[str, str], Gaps] = field(default_factory=dict)
    closed: bool = False

    def find(self, gap: Gap) -> None:
        found = self.gaps.setdefault((gap.kind, gap.source), Gaps())
        found.count += 1
        if len(found.some) < MOST_NAMED:
            found.some.append(gap)

    def add(self, other: "Tally") -> None:
        """Count what `other` has counted."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for key, gaps in other.gaps.items():
            mine = self.gaps.setdefault(key, Gaps())
            mine.count += gaps.count
            mine.some += gaps.some[: MOST_NAMED - len(mine.some)]

    @property
    def kinds(self) -> dict[str, int]:
        """How many gaps there are of each kind."""
        found: Counter[str] = Counter()
        for (kind, _), gaps in self.gaps.items():
            found[kind] += gaps.count
        return dict(found)


COUNTS = (
    "decisions", "allowed", "denied", "matched", "matched_late", "matched_elsewhere", "unanswered",
    "accesses", "explained", "explained_late", "explained_elsewhere", "ended", "rejected_by_envoy",
    "disclosed", "disclosed_late", "disclosed_elsewhere", "unresolved", "pending",
)  # fmt: skip


_SAID = tuple(name for name in DECIDED if name not in ("roles", "patients"))
_SAID_NOTHING = hash((*(None for _ in _SAID), None))


@dataclass(slots=True, eq=False)
class Half:
    """A decision, an access or a disclosure, as far as its other half must fit."""

    tally: Tally
    origin: str
    index: int
    sealed_at: int
    source: str
    allowed: bool
    enforced: bool
    reached: bool  # the access: an upstream was contacted
    request_id: str
    decided_by: str  # the access: whose decision it repeats
    said: int  # stands for the decision's values; the access repeats them
    shown: bool  # the access: Envoy showed the answer, so its disclosure comes
    revised: bool = False


Halves = dict[str, Half]  # by decision id


@dataclass(frozen=True, slots=True)
class Left:
    """What has not met: `decided` and `accessed` each other, `undisclosed` (accesses) and
    `disclosed` each other."""

    decided: Halves
    accessed: Halves
    undisclosed: Halves
    disclosed: Halves

    @property
    def parts(self) -> tuple[Halves, Halves, Halves, Halves]:
        return self.decided, self.accessed, self.undisclosed, self.disclosed

    @property
    def ids(self) -> list[str]:
        """The decisions that these are about, each once."""
        return list(dict.fromkeys(chain(*self.parts)))


def half_of(record: Record, tally: Tally) -> Half:
    """Of a record whose values are of their fields' types."""
    get: Any = record.get
    return Half(
        tally,
        get("origin", ""),
        get("index", 0),
        get("sealed_at", 0),
        get("writer", ""),
        get("allowed", False),
        get("enforced", False),
        "upstream" in record,
        get("request_id", ""),
        get("decided_by", ""),
        hash((*map(get, _SAID), *get("roles", ()), None, *get("patients", ()))),
        "discloses" in record and _is_shown(record),
    )


def _is_shown(record: Record) -> bool:
    """Whether it is an access to whose answer a disclosure belongs: the service began to answer, or
    Envoy did for it. An answer that is held and breaks off becomes an error of Envoy's, perhaps
    before authz has seen any of it; the client gets nothing of it."""
    if "upstream" not in record or not record.get("status"):
        return False
    broken = str(record.get("response_details", "")).startswith(_BROKEN)
    return not (broken and record["status"] in _ENVOYS_ERRORS)


def judge(decision_id: str, decided: Half, access: Half) -> Gap | None:
    """What is wrong with an access and its decision, if anything is."""
    # In dry-run a denial is recorded and not enforced: the service is reached all the same.
    if access.reached and decided.enforced and not decided.allowed:
        kind = "denied_but_reached"
    elif decided.allowed != access.allowed or not (
        access.said in (decided.said, _SAID_NOTHING) or decided.revised
    ):
        kind = "disagrees"
    else:
        return None
    return Gap(kind, access.origin, access.index, access.source, decision_id)


def undisclosed(decision_id: str, access: Half) -> Gap:
    """That nobody told whose data the answer to an access held."""
    return Gap("no_disclosure", access.origin, access.index, access.source, decision_id)


class Reconciler:
    """`add` every record of one log, in order; counted in `tally`, which may be changed between.

    Kinds of gap that show here:

    - ``bypass``: an access that reached a service and names no decision.
    - ``denied_but_reached``: denied, yet the service was reached.
    - ``disagrees``: the access repeats the decision's values wrongly.
    - ``repeated``: an access that names a decision which has met its access.

    A client that goes away while the Check runs, or a Check that Envoy gives up, leaves an access
    that names no decision and reached nothing. If its `request_id` is an unmatched decision's, that
    decision was `unanswered`: no gap, since nobody got at anything by it. Since clients can repeat
    a request id, that is taken back when the decision's own access comes.

    ext-authz may record a decision a second time, as a denial: the client left, or the disk took
    too long. The last one counts, also if the access came in between.
    """

    def __init__(self, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()
        self.newest = 0  # when the newest record was sealed
        self._decided: Halves = {}
        self._accessed: Halves = {}
        self._asked: dict[str, dict[str, None]] = {}  # request id to decision ids, of `_decided`
        # Request id to the accesses without decision, and the time the newest was sealed.
        self._ended: OrderedDict[str, tuple[list[Tally], int]] = OrderedDict()
        # Decisions that have met their access, and those without an answer. (Of a plain dict the
        # first is found slowly once many before it are gone.)
        self._settled: OrderedDict[str, tuple[Half, Half]] = OrderedDict()
        self._undisclosed: Halves = {}
        self._disclosed: Halves = {}
        self._unanswered: dict[str, tuple[Half, Tally, int]] = {}

    def add(self, record: Record) -> None:
        kind = record.get("kind")
        sealed_at: Any = record.get("sealed_at", 0)
        self.newest = max(self.newest, sealed_at)
        if kind == "access":
            self._access(record)
        elif kind == "decision":
            self._decision(record)
        elif kind == "disclosure":
            self._disclosure(record)

    @property
    def unmatched_count(self) -> int:
        return sum(map(len, self._unmet))

    @property
    def _unmet(self) -> tuple[Halves, Halves, Halves, Halves]:
        return self._decided, self._accessed, self._undisclosed, self._disclosed

    def unmatched(self, tally: Tally | None = None) -> Left:
        """What has not met, of `tally` or of all."""
        if tally is None:
            return Left(*map(dict, self._unmet))
        return Left(*(
            {one: half for one, half in halves.items() if half.tally is tally}
            for halves in self._unmet
        ))  # fmt: skip

    def close(self, tally: Tally) -> Left:
        """Nothing is counted in `tally` any more; returns what it leaves `unmatched`, which stays
        until it is dropped."""
        for decision_id, (decided, _) in list(self._settled.items()):
            if decided.tally is tally:
                self._judge(decision_id)
        tally.closed = True
        old = self.newest - REPEATED_US
        for decision_id, (decided, _, met) in list(self._unanswered.items()):
            if decided.tally.closed and met < old:
                del self._unanswered[decision_id]
        return self.unmatched(tally)

    def drop(self, decision_ids: Iterable[str]) -> None:
        """Of decisions and accesses that have not met."""
        for decision_id in decision_ids:
            if decision_id in self._decided:
                self._undecided(decision_id)
            self._accessed.pop(decision_id, None)

    def drop_disclosures(self, left: Left) -> None:
        """Of accesses and disclosures that have not met."""
        for decision_id in left.undisclosed:
            self._undisclosed.pop(decision_id, None)
        for decision_id in left.disclosed:
            self._disclosed.pop(decision_id, None)

    def carry(self, decided: Halves) -> None:
        """Wait for the accesses of these, which are of closed tallies."""
        self._decided |= decided

    def holds(self, decision_id: str) -> bool:
        """Whether a decision still waits for its access."""
        return decision_id in self._decided

    def finish(self) -> None:
        """No more records come: what has met is judged."""
        for decision_id in list(self._settled):
            self._judge(decision_id)

    def _decision(self, record: Record) -> None:
        decision_id = str(record.get("decision_id", ""))
        half = half_of(record, self.tally)
        before = self._decided.get(decision_id)
        if before is None and decision_id in self._settled:
            before = self._settled[decision_id][0]
            if before.sealed_at < half.sealed_at - _REVISED_US:
                before = None
        if before is None and decision_id in self._unanswered:
            before = self._unanswered[decision_id][0]
        if before is not None and not before.tally.closed:
            self._count(before, -1)
            before.allowed, before.enforced, before.said = half.allowed, half.enforced, half.said
            before.revised = True
            self._count(before, 1)
            return
        self._count(half, 1)
        access = self._accessed.pop(decision_id, None)
        if access is not None:
            self._match(decision_id, half, access)
        elif ended := self._take_ended(half.request_id):
            self._leave_unanswered(decision_id, half, ended)
        else:
            self._decided[decision_id] = half
            if half.request_id:
                self._asked.setdefault(half.request_id, {})[decision_id] = None

    def _access(self, record: Record) -> None:
        tally = self.tally
        tally.accesses += 1
        half = half_of(record, tally)
        decision_id = str(record.get("decision_id", ""))
        if self._disclosed.pop(decision_id, None):
            tally.disclosed += half.shown
        elif half.shown and decision_id not in self._settled:
            self._undisclosed.setdefault(decision_id, half)
        if not decision_id:
            if half.reached:
                tally.find(Gap("bypass", half.origin, half.index, half.source))
            else:
                tally.rejected_by_envoy += 1
                self._ended_by_envoy(half.request_id, half.sealed_at)
        elif decision_id in self._decided:
            self._match(decision_id, self._undecided(decision_id), half)
        elif decision_id in self._unanswered:
            # It was answered after all: what Envoy ended was another request of the same id.
            decided, ended, met = self._unanswered.pop(decision_id)
            decided.tally.unanswered -= 1
            ended.ended -= 1
            ended.rejected_by_envoy += 1
            self._match(decision_id, decided, half)
            self._ended_by_envoy(decided.request_id, met, ended)
        elif decision_id in self._settled or decision_id in self._accessed:
            tally.find(Gap("repeated", half.origin, half.index, half.source, decision_id))
        else:
            self._accessed[decision_id] = half

    def _disclosure(self, record: Record) -> None:
        told = details_of(record)
        if told.get("part", 1) != 1:
            return  # the same answer has more patients than one record takes
        if "complete" not in record:
            self.tally.unresolved += 1
        decision_id = str(record.get("decision_id", ""))
        access = self._undisclosed.pop(decision_id, None)
        if access is None:
            if decision_id:
                self._disclosed[decision_id] = half_of(record, self.tally)
        elif access.tally.closed:
            access.tally.disclosed_late += 1
        else:
            access.tally.disclosed += 1

    def _ended_by_envoy(self, request_id: str, at: int, tally: Tally | None = None) -> None:
        """Envoy ended a request without a decision: if it asked for one, that is unanswered."""
        tally = tally or self.tally
        asked = self._asked.get(request_id, {})
        if asked:
            allowed = (one for one in asked if self._decided[one].allowed)
            decision_id = next(allowed, next(iter(asked)))
            self._leave_unanswered(decision_id, self._undecided(decision_id), tally)
        elif request_id:
            tallies, newest = self._ended.pop(request_id, ([], 0))
            self._ended[request_id] = [*tallies, tally], max(newest, at)
            while self._ended:
                oldest = next(iter(self._ended))
                if self._ended[oldest][1] >= self.newest - REPEATED_US:
                    break
                del self._ended[oldest]

    def _take_ended(self, request_id: str) -> Tally | None:
        """Where it was counted that Envoy ended a request of this id, which asked for no decision
        we know."""
        if request_id not in self._ended:
            return None
        tallies, newest = self._ended.pop(request_id)
        if newest < self.newest - REPEATED_US:
            return None
        if len(tallies) > 1:
            self._ended[request_id] = tallies[1:], newest
        return tallies[0]

    def _undecided(self, decision_id: str) -> Half:
        """The decision, which is no longer without its other half."""
        half = self._decided.pop(decision_id)
        asked = self._asked.get(half.request_id, {})
        asked.pop(decision_id, None)
        if not asked:
            self._asked.pop(half.request_id, None)
        return half

    def _leave_unanswered(self, decision_id: str, decided: Half, ended: Tally) -> None:
        ended.rejected_by_envoy -= 1
        ended.ended += 1
        decided.tally.unanswered += 1
        self._unanswered[decision_id] = decided, ended, self.newest

    def _match(self, decision_id: str, decided: Half, access: Half) -> None:
        if access.tally.closed:
            decided.tally.matched_late += 1
        else:
            decided.tally.matched += 1
        if decided.tally.closed:
            access.tally.explained_late += 1
        else:
            access.tally.explained += 1
        self._settled[decision_id] = decided, access
        old = self.newest - _REVISED_US
        while self._settled:
            oldest = next(iter(self._settled))
            if self._settled[oldest][0].sealed_at >= old:
                break
            self._judge(oldest)

    def _judge(self, decision_id: str) -> None:
        decided, access = self._settled.pop(decision_id)
        if gap := judge(decision_id, decided, access):
            (self.tally if access.tally.closed else access.tally).find(gap)

    def _count(self, decision: Half, one: int) -> None:
        decision.tally.decisions += one
        if decision.allowed:
            decision.tally.allowed += one
        else:
            decision.tally.denied += one


class Rest:
    """What the logs left unmatched, held against each other.

    Further kinds of gap:

    - ``no_access``: allowed, and no access was seen within the grace time.
    - ``no_decision``: an access that names a decision nobody recorded.
    - ``writer_away``: the same, but the writer it names has not come that far.
    - ``writer_lost``: the same, and the log says that the writer will not come back.
    - ``no_disclosure``: an access whose answer Envoy showed, and nobody told whose data it held.
    """

    def __init__(self, grace_seconds: float = 60) -> None:
        self._grace = int(grace_seconds * SECOND)
        self._decided: Halves = {}
        self._accessed: Halves = {}
        self._undisclosed: Halves = {}
        self._disclosed: Halves = {}
        self.tally = Tally()

    def __len__(self) -> int:
        unmet = self._decided, self._accessed, self._undisclosed, self._disclosed
        return sum(map(len, unmet))

    def add(self, left: Left) -> None:
        for decision_id, half in left.undisclosed.items():
            if disclosed := self._disclosed.pop(decision_id, None):
                self._tell(half, disclosed)
            else:
                self._undisclosed[decision_id] = half
        for decision_id, half in left.disclosed.items():
            if access := self._undisclosed.pop(decision_id, None):
                self._tell(access, half)
            else:
                self._disclosed[decision_id] = half
        for decision_id, half in left.decided.items():
            access = self._accessed.pop(decision_id, None)
            if access is None:
                self._decided[decision_id] = half
            else:
                self._meet(decision_id, half, access)
        for decision_id, half in left.accessed.items():
            known = self._decided.pop(decision_id, None)
            if known is None:
                self._accessed[decision_id] = half
            else:
                self._meet(decision_id, known, half)

    def _tell(self, access: Half, disclosed: Half) -> None:
        if access.origin == disclosed.origin:
            self.tally.disclosed_late += 1
        else:
            self.tally.disclosed_elsewhere += 1

    def _meet(self, decision_id: str, decided: Half, access: Half) -> None:
        if decided.origin == access.origin:
            self.tally.matched_late += 1
            self.tally.explained_late += 1
        else:
            self.tally.matched_elsewhere += 1
            self.tally.explained_elsewhere += 1
        if gap := judge(decision_id, decided, access):
            self.tally.find(gap)

    def finish(self, newest: int, writers: "Writers", open_ids: Iterable[str] = ()) -> Tally:
        """What is unmatched is a gap if its tally is closed, or the grace time before `newest` is
        over; the rest is pending, and so is what is under way still (`open_ids`)."""
        under_way = set(open_ids)
        for decision_id, half in self._decided.items():
            if not half.allowed:
                continue  # denied: that Envoy's entry is missing lets nobody at anything
            if decision_id in under_way or self._may_come(half, newest):
                self.tally.pending += 1
            else:
                self.tally.find(Gap("no_access", half.origin, half.index, half.source, decision_id))
        for decision_id, half in self._accessed.items():
            if self._may_come(half, newest):
                self.tally.pending += 1
            else:
                self.tally.find(writers.gap(decision_id, half))
        for decision_id, half in self._undisclosed.items():
            if self._may_come(half, newest):
                self.tally.pending += 1
            else:
                self.tally.find(undisclosed(decision_id, half))
        return self.tally

    def _may_come(self, half: Half, newest: int) -> bool:
        """Whether its other half is not overdue."""
        return not half.tally.closed and half.sealed_at > newest - self._grace


class Writers:
    """How far each writer has come, and which will not come back."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}  # the told time of each one's newest record
        self.lost: set[str] = set()

    def add(self, record: Record) -> None:
        if "writer_seq" in record:
            time: Any = record.get("time", 0)
            writer: Any = record["writer"]
            if time > self.newest.get(writer, 0):
                self.newest[writer] = time
        elif record.get("event") == "writer_lost":
            self.lost.add(str(details_of(record).get("writer", "")))

    def hear(self, writer: str, time: int) -> None:
        self.newest[writer] = max(time, self.newest.get(writer, 0))

    def gap(self, decision_id: str, access: Half) -> Gap:
        """What it means that nobody recorded the decision that `access` names."""
        writer = access.decided_by
        if writer and writer in self.lost:
            kind, source = "writer_lost", writer
        elif writer in self.newest and self.newest[writer] < decided_at(decision_id):
            kind, source = "writer_away", writer
        else:
            kind, source = "no_decision", access.source
        return Gap(kind, access.origin, access.index, source, decision_id)


def decided_at(decision_id: str) -> int:
    """When the decision was made, by its id (a UUID of version 7): microseconds since the epoch,
    rounded down to a millisecond; 0 if it does not say."""
    try:
        return int(decision_id.replace("-", "")[:12], 16) * 1000
    except ValueError:
        return 0
