"""What is left over, of all logs."""

from collections.abc import Iterable

from authz.reconcile.halves import Half, Halves, Left, judge, undisclosed
from authz.reconcile.reconciler import SECOND
from authz.reconcile.tally import Gap, Tally
from authz.reconcile.writers import Writers


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

    def finish(self, newest: int, writers: Writers, open_ids: Iterable[str] = ()) -> Tally:
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
