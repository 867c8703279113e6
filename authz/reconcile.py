"""Decisions against accesses: the count that must come out even. Pure, and fed in log order.

Matches are by `decision_id` only. What is held is what is unmatched, so memory follows requests
under way (and gaps), not history.
"""

from dataclasses import dataclass, field

from authz.record import Record

_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Gap:
    """One thing that does not add up. `kind` is stable; `index` is where in its log it shows."""

    kind: str
    origin: str
    index: int
    decision_id: str = ""


@dataclass(frozen=True, slots=True)
class _Half:
    """A decision or an access that has not met its other half."""

    origin: str
    index: int
    sealed_at: int
    allowed: bool
    enforced: bool
    reached: bool  # the access: an upstream was contacted
    request_id: str


@dataclass(slots=True)
class Tally:
    """How the accounts stand."""

    decisions: int = 0
    allowed: int = 0
    denied: int = 0
    accesses: int = 0
    matched: int = 0
    rejected_by_envoy: int = 0
    unanswered: int = 0
    pending: int = 0
    gaps: list[Gap] = field(default_factory=list)


class Reconciler:
    """`add` every record of every log, then `finish`.

    Kinds of gap:

    - ``no_access``: allowed, and no access was seen within the grace time.
    - ``no_decision``: an access that names a decision nobody recorded.
    - ``bypass``: an access that reached a service and names no decision.
    - ``denied_but_reached``: denied, yet the service was reached.
    - ``disagrees``: the access repeats the decision's verdict wrongly.

    A client that goes away while the Check runs, or a Check that Envoy gives up, leaves an access
    that names no decision and reached nothing. If its `request_id` is an unmatched decision's, that
    decision was `unanswered`: no gap, since nobody got at anything by it. Since clients can repeat
    a request id, that is taken back when the decision's own access comes.

    ext-authz may record a decision a second time, as a denial: the client left, or the disk took
    too long. The last one counts, also if the access came in between. So what has met is judged
    when the grace time is over.
    """

    def __init__(self, grace_seconds: float = 60) -> None:
        self._grace = int(grace_seconds * _SECOND)
        self._decided: dict[str, _Half] = {}
        self._accessed: dict[str, _Half] = {}
        self._asked: dict[str, dict[str, None]] = {}  # request id to decision ids, of `_decided`
        # Request id to how many accesses without decision, and the time the newest was sealed.
        self._ended: dict[str, tuple[int, int]] = {}
        # Decisions with their access (None: unanswered), and `_newest` when they met.
        self._settled: dict[str, tuple[_Half, _Half | None, int]] = {}
        self._newest = 0
        self.tally = Tally()

    def add(self, record: Record) -> None:
        kind = record.get("kind")
        if kind == "decision":
            self._decision(record)
        elif kind == "access":
            self._access(record)

    def finish(self) -> Tally:
        """What is unmatched for longer than the grace time is a gap, the rest is pending."""
        for decision_id, half in self._decided.items():
            if not half.allowed:
                continue  # denied: that Envoy's entry is missing lets nobody at anything
            self._unmatched("no_access", decision_id, half)
        for decision_id, half in self._accessed.items():
            self._unmatched("no_decision", decision_id, half)
        for decision_id, (decided, access, _) in self._settled.items():
            self._judge(decision_id, decided, access)
        return self.tally

    def _decision(self, record: Record) -> None:
        decision_id = str(record.get("decision_id", ""))
        half = self._half(record)
        if decision_id in self._decided:
            self._count(self._decided[decision_id], -1)
            self._decided[decision_id] = half
            self._count(half, 1)
            return
        if decision_id in self._settled:
            before, access, met = self._settled[decision_id]
            self._count(before, -1)
            self._settled[decision_id] = half, access, met
            self._count(half, 1)
            return
        self._count(half, 1)
        access = self._accessed.pop(decision_id, None)
        if access:
            self._match(decision_id, half, access)
        elif self._take_ended(half.request_id):
            self._unanswered(decision_id, half)
        else:
            self._decided[decision_id] = half
            if half.request_id:
                self._asked.setdefault(half.request_id, {})[decision_id] = None

    def _access(self, record: Record) -> None:
        self.tally.accesses += 1
        half = self._half(record)
        decision_id = str(record.get("decision_id", ""))
        if not decision_id:
            if half.reached:
                self.tally.gaps.append(Gap("bypass", half.origin, half.index))
            else:
                self.tally.rejected_by_envoy += 1
                self._ended_by_envoy(half.request_id, half.sealed_at)
        elif decision_id in self._decided:
            self._match(decision_id, self._undecided(decision_id), half)
        elif decision_id in self._settled and self._settled[decision_id][1] is None:
            # It was answered after all: what Envoy ended was another request of the same id.
            decided, _, met = self._settled.pop(decision_id)
            self.tally.unanswered -= 1
            self.tally.rejected_by_envoy += 1
            self._match(decision_id, decided, half)
            self._ended_by_envoy(decided.request_id, met)
        else:
            self._accessed[decision_id] = half

    def _ended_by_envoy(self, request_id: str, at: int) -> None:
        """Envoy ended a request without a decision: if it asked for one, that is unanswered."""
        asked = self._asked.get(request_id, {})
        if asked:
            allowed = (one for one in asked if self._decided[one].allowed)
            decision_id = next(allowed, next(iter(asked)))
            self._unanswered(decision_id, self._undecided(decision_id))
        elif request_id:
            count, newest = self._ended.pop(request_id, (0, 0))
            self._ended[request_id] = count + 1, max(newest, at)
            oldest = next(iter(self._ended))
            while self._ended[oldest][1] < self._newest - self._grace:
                del self._ended[oldest]
                if not self._ended:
                    break
                oldest = next(iter(self._ended))

    def _take_ended(self, request_id: str) -> bool:
        """Whether Envoy ended a request of this id that asked for no decision we know."""
        count, newest = self._ended.pop(request_id, (0, 0))
        if count > 1:
            self._ended[request_id] = count - 1, newest
        return count > 0

    def _undecided(self, decision_id: str) -> _Half:
        """The decision, which is no longer without its other half."""
        half = self._decided.pop(decision_id)
        asked = self._asked.get(half.request_id, {})
        asked.pop(decision_id, None)
        if not asked:
            self._asked.pop(half.request_id, None)
        return half

    def _unanswered(self, decision_id: str, decided: _Half) -> None:
        self.tally.rejected_by_envoy -= 1
        self.tally.unanswered += 1
        self._settle(decision_id, decided, None)

    def _match(self, decision_id: str, decided: _Half, access: _Half) -> None:
        self.tally.matched += 1
        self._settle(decision_id, decided, access)

    def _settle(self, decision_id: str, decided: _Half, access: _Half | None) -> None:
        self._settled[decision_id] = decided, access, self._newest
        oldest = next(iter(self._settled))
        while self._settled[oldest][2] < self._newest - self._grace:
            self._judge(oldest, *self._settled.pop(oldest)[:2])
            oldest = next(iter(self._settled))

    def _judge(self, decision_id: str, decided: _Half, access: _Half | None) -> None:
        if access is None:
            return
        gap = ""
        # In dry-run a denial is recorded and not enforced: the service is reached all the same.
        if access.reached and decided.enforced and not decided.allowed:
            gap = "denied_but_reached"
        elif decided.allowed != access.allowed:
            gap = "disagrees"
        if gap:
            self.tally.gaps.append(Gap(gap, access.origin, access.index, decision_id))

    def _count(self, decision: _Half, one: int) -> None:
        self.tally.decisions += one
        if decision.allowed:
            self.tally.allowed += one
        else:
            self.tally.denied += one

    def _half(self, record: Record) -> _Half:
        sealed_at = record.get("sealed_at", 0)
        index = record.get("index", 0)
        assert isinstance(sealed_at, int)
        assert isinstance(index, int)
        self._newest = max(self._newest, sealed_at)
        return _Half(
            origin=str(record.get("origin", "")),
            index=index,
            sealed_at=sealed_at,
            allowed=bool(record.get("allowed", False)),
            enforced=bool(record.get("enforced", False)),
            reached=bool(record.get("upstream")),
            request_id=str(record.get("request_id", "")),
        )

    def _unmatched(self, kind: str, decision_id: str, half: _Half) -> None:
        if self._newest - half.sealed_at > self._grace:
            self.tally.gaps.append(Gap(kind, half.origin, half.index, decision_id))
        else:
            self.tally.pending += 1
