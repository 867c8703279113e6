"""One log's decisions, accesses and disclosures, held against each other as they come by."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from authz.reconcile.halves import Half, Halves, Left, half_of, judge
from authz.reconcile.tally import Gap, Tally
from authz.record import Record, details_of

SECOND = 1_000_000
# ext-authz may record a decision a second time, right after the first: the last one counts. So what
# has met is judged this long after.
_REVISED_US = 5 * SECOND
# An access that names no decision explains one by its request id, if they are no further apart.
REPEATED_US = 60 * SECOND


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
        # Request id to the ids of its decisions, of `_decided`. Nearly always there is but one.
        self._asked: dict[str, tuple[str, ...]] = {}
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
                asked = self._asked.get(half.request_id)
                self._asked[half.request_id] = (*asked, decision_id) if asked else (decision_id,)

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
        asked = self._asked.get(request_id, ())
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
        asked = self._asked.get(half.request_id, ())
        if len(asked) > 1:
            self._asked[half.request_id] = tuple(one for one in asked if one != decision_id)
        elif asked == (decision_id,):
            del self._asked[half.request_id]
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
