"""What is counted: how many of each, and what does not add up."""

from collections import Counter
from dataclasses import dataclass, field, fields

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


COUNTS = tuple(one.name for one in fields(Tally) if one.type is int)
