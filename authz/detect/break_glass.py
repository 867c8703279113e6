"""Break-glass: an allow by emergency, for a stated reason, that somebody else reviews in time."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from authz.record import Record, Value, clean, details_of, notice, place_of

if TYPE_CHECKING:
    from authz.detect.detector import Finding

REVIEWED = "break_glass_reviewed"
UNREVIEWED, NO_REASON = "break_glass_unreviewed", "break_glass_no_reason"
VERDICTS = ("justified", "not_justified")
_SCORE = 9.0  # certain: no chance is involved
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Use:
    """An allowed decision with ``break_glass``. Times are microseconds since the epoch, UTC."""

    id: str
    """``ORIGIN@INDEX``."""
    time: int
    sealed_at: int
    """By the receiver's clock: the deadline counts from here, whatever a writer told."""
    subject: str
    roles: tuple[str, ...]
    tenant: str
    method: str
    path: str
    patients: tuple[str, ...]
    """Tokens."""
    reason: str

    def due(self, hours: float) -> int:
        """When a review is late."""
        return (self.sealed_at or self.time) + int(hours * _HOUR_US)


@dataclass(frozen=True, slots=True)
class Review:
    """What somebody said of a use."""

    use: str
    by: str
    verdict: str
    reason: str
    time: int


@dataclass(frozen=True, slots=True)
class Uses:
    """All uses of a time, what was said of them, and which were told as late already."""

    uses: tuple[Use, ...]
    reviews: Mapping[str, Review]
    """Of each use that has one, the last. Nobody reviews what they did themselves."""
    told: frozenset[str] = frozenset()

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Uses":
        """From records in the order in which they were sealed; others change nothing."""
        uses: dict[str, Use] = {}
        reviews: list[Review] = []
        told: set[str] = set()
        for record in records:
            if use := use_of(record):
                uses[use.id] = use
            elif record.get("event") == REVIEWED and record.get("kind") == "notice":
                reviews += _reviews(record)
            elif record.get("rule") == UNREVIEWED and record.get("kind") == "finding":
                told.update(_texts(record.get("records")))
        by_use = {
            review.use: review
            for review in reviews
            if review.use in uses and review.by != uses[review.use].subject
        }
        return cls(tuple(uses.values()), by_use, frozenset(told))

    @property
    def waiting(self) -> list[Use]:
        """Those that nobody has reviewed, the oldest first."""
        open_ = [use for use in self.uses if use.id not in self.reviews]
        return sorted(open_, key=lambda use: (use.sealed_at or use.time, use.id))


def use_of(record: Record) -> Use | None:
    """The use that a record is; None if it is none, or was not allowed."""
    get = record.get
    if not (get("kind") == "decision" and get("break_glass") and get("allowed")):
        return None
    return Use(
        place_of(record), _number(get("time")), _number(get("sealed_at")), str(get("subject", "")),
        _texts(get("roles")), str(get("tenant", "")), str(get("method", "")), str(get("path", "")),
        _texts(get("patients")), str(get("reason", "")),
    )  # fmt: skip


def review_notice(use: Use, verdict: str, reason: str, by: str, time_us: int) -> Record:
    """Says what `by` thinks of a use: one of `VERDICTS`, and why."""
    told = notice(REVIEWED, time_us, {"by": by, "verdict": verdict}, records=[use.id])
    return told | clean({"subject": use.subject, "reason": reason})


def late(uses: Uses, now_us: int, hours: float) -> list["Finding"]:
    """What to raise for uses that were not reviewed within `hours`, each once."""
    return [
        _finding(use, UNREVIEWED, now_us, f"Nobody has reviewed it within {hours:g} hours")
        for use in uses.waiting
        if use.due(hours) <= now_us and use.id not in uses.told
    ]


def without_reason(use: Use) -> "Finding | None":
    """What to raise at once for a use with no stated reason: nothing that has a letter or digit,
    after the first colon where there is one (``break-glass by physician: unconscious``)."""
    before, colon, after = f"{use.reason.strip()} ".partition(": ")
    if re.search(r"\w", after if colon else before):
        return None
    return _finding(use, NO_REASON, use.time, "No reason was stated")


def _finding(use: Use, rule: str, time_us: int, what: str) -> "Finding":
    from authz.detect.detector import Finding  # noqa: PLC0415 - scipy is slow to import

    at = datetime.fromtimestamp(use.time / 1e6, UTC)
    who = f"{use.subject} ({', '.join(use.roles)})" if use.roles else use.subject
    saw = f"{who} broke the glass at {at:%Y-%m-%d %H:%M:%S} UTC: {use.method} {use.path}"
    why = f" Stated: {use.reason}." if use.reason else ""
    evidence = f"{saw.strip()}. {what}.{why}"
    return Finding(
        time_us, use.subject, rule, "act", _SCORE, evidence, (use.id,), cause=rule,
        tenant=use.tenant,
    )  # fmt: skip


def _reviews(record: Record) -> list[Review]:
    told = details_of(record)
    by, verdict = told.get("by"), told.get("verdict")
    if not isinstance(by, str) or not by or verdict not in VERDICTS:
        return []
    reason, time = str(record.get("reason", "")), _number(record.get("time"))
    return [Review(use, by, str(verdict), reason, time) for use in _texts(record.get("records"))]


def _number(value: Value | None) -> int:
    return value if isinstance(value, int) else 0


def _texts(value: Value | None) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else ()
