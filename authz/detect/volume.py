"""Rules about how much: more than is usual for this person, on this day or for weeks."""

import math
from collections.abc import Iterator

from authz.detect.suspicion import Sight, Suspicion, told
from authz.detect.usual import (
    BREAKS,
    DENIALS,
    PATIENTS,
    PEAK,
    REQUESTS,
    SWITCHES,
    UNEXPLAINED,
    Usual,
    tail,
)

# Rule, what is counted in words, and the count below which nobody is interested.
_DAILY = {
    REQUESTS: ("bulk_requests", "requests", 40),
    PATIENTS: ("bulk_read", "different patients", 12),
    PEAK: ("fast_read", "different patients within an hour", 10),
    UNEXPLAINED: ("unexplained", "patients without a known reason", 3),
    DENIALS: ("denials", "denied requests", 6),
    SWITCHES: ("shared_credential", "changes of place or program within minutes", 3),
    BREAKS: ("break_glass", "uses of break-glass", 1),
}
_SURGING = (REQUESTS, PATIENTS, PEAK)
_SLOW = {
    PATIENTS: ("slow_read", "different patients"),
    UNEXPLAINED: ("slow_unexplained", "patients without a known reason"),
}
_SLACK = 0.5  # in deviations: what a day may be above the mean without adding up
_DRAWN_IN = 4.0
_LEAST_SLOW = 2.5


def today(sight: Sight) -> Iterator[Suspicion]:
    """More on this day than on others: a negative binomial tail, for each thing counted."""
    day = sight.day
    for measure, (rule, what, least) in _DAILY.items():
        count = day.counts[measure]
        if count < least or count < day.steps[measure]:
            continue
        usual = day.usual[measure]
        day.steps[measure] = count + 1 + count // 20
        if count <= usual.mean + usual.deviation:
            continue
        surge = 1.0
        if measure in _SURGING:
            surge = sight.group.surge(measure, count, usual.mean)
        score = tail(count, usual.mean * surge, usual.variance * surge * surge)
        if score < 1:
            continue
        shown = day.unexplained.values() if measure == UNEXPLAINED else day.recent
        yield Suspicion(
            rule, score, f"{told(count)} {what} on this day", _own(usual), _peers(sight, measure),
            tuple(shown),
        )  # fmt: skip


def slowly(sight: Sight) -> Iterator[Suspicion]:
    """More than usual day after day: a cumulative sum (CUSUM) over days, with what this one has
    brought so far."""
    day, person = sight.day, sight.person
    for measure, (rule, what) in _SLOW.items():
        before = person.slow.get(measure, 0.0)
        if before <= 0 or person.seen_days < 14:
            continue
        usual = day.usual[measure]
        count = day.counts[measure]
        if count < usual.mean:
            continue
        score = before + excess(count, usual)
        if score < _LEAST_SLOW or count < day.steps[measure] - 1 - count // 20:
            continue
        newest = [counts[measure] for _, counts, _, _ in person.days[-7:]]
        lately = (sum(newest) + count) / (len(newest) + 1)
        if lately < 1.15 * usual.mean:
            continue
        yield Suspicion(
            rule, score * 0.4343,
            f"{told(lately)} {what} a day over the last {len(newest) + 1} days there",
            f"{told(usual.mean)} a day before that", _peers(sight, measure),
            tuple(day.recent),
        )  # fmt: skip


def excess(count: int, usual: Usual) -> float:
    """What a day adds to the cumulative sum; may be below 0."""
    # Square roots make the spread of counts alike, small or large.
    root = math.sqrt(max(usual.mean, 0.25))
    spread = max(usual.deviation / (2 * root), 0.5)
    z = (math.sqrt(count) - root) / spread
    return min(z, _DRAWN_IN) - _SLACK


def add_slow(slow: dict[int, float], counts: tuple[int, ...], usual: tuple[Usual, ...]) -> None:
    """Close a day."""
    for measure in _SLOW:
        slow[measure] = min(
            max(0.0, slow.get(measure, 0.0) + excess(counts[measure], usual[measure])), 60.0
        )


def _own(usual: Usual) -> str:
    if not usual.days:
        return "nothing is known yet"
    return f"{told(usual.mean)} a day, at most {told(usual.most)} in {told(usual.days)} days"


def _peers(sight: Sight, measure: int) -> str:
    mean, _ = sight.group.usual(measure)
    return f"{told(mean)} a day"
