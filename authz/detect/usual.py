"""What is usual: for each person, and for those of the same role while a person's own days are few.

A day is counted in `MEASURES`. A person's usual is the mean and variance of the days on which they
were there, with the odd ones drawn in, shrunk to the role's. The newest week is left out as soon as
there is enough before it, so that who grows slowly does not become their own yardstick; so are days
with an alert.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

from scipy.special import betainc, gammainc

from authz.places import Place

MEASURES = ("requests", "patients", "unexplained", "peak", "denials", "switches", "breaks")
REQUESTS, PATIENTS, UNEXPLAINED, PEAK, DENIALS, SWITCHES, BREAKS = range(len(MEASURES))
DAY_US = 86_400_000_000
KEPT_DAYS = 60
_LAG_DAYS = 7
_ENOUGH_DAYS = 10
_OWN_DAYS = 6  # so many days of a person's weigh as much as their role
_DRAWN_IN = 3.0  # in interquartile ranges above the third quartile
_MOST_SCORE = 30.0
FADING = 0.98  # a day


@dataclass(frozen=True, slots=True)
class Usual:
    """Of one measure: a day's mean and variance, the most so far, and of how many own days."""

    mean: float
    variance: float
    most: int
    days: int

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)


def tail(count: int, mean: float, variance: float) -> float:
    """-log10 of how likely so many or more are: negative binomial, or Poisson where the variance is
    no larger than the mean."""
    mean = max(mean, 0.01)
    if count <= mean:
        return 0.0
    if variance <= mean * 1.01:
        chance = float(gammainc(count, mean))
    else:
        shape = mean * mean / (variance - mean)
        chance = float(betainc(count, shape, mean / (mean + shape)))
    return -math.log10(chance) if chance > 10**-_MOST_SCORE else _MOST_SCORE


@dataclass(slots=True)
class Day:
    """What a person has done on the day that is under way."""

    date: int
    """Days since the epoch."""
    shift: int = 0
    """That in which it began: `shift_of`."""
    counts: list[int] = field(default_factory=lambda: [0] * len(MEASURES))
    patients: set[str] = field(default_factory=set)
    unexplained: dict[str, str] = field(default_factory=dict)
    """By patient, the first record."""
    hours: set[int] = field(default_factory=set)
    hour: int = -1
    in_hour: set[str] = field(default_factory=set)
    recent: list[str] = field(default_factory=list)
    """The newest records, up to twice as many as a finding names."""
    steps: list[int] = field(default_factory=lambda: [0] * len(MEASURES))
    """From which count on each measure is judged again."""
    alerted: bool = False
    new_networks: int = 0
    new_countries: int = 0
    usual: tuple[Usual, ...] = ()


@dataclass(slots=True)
class Person:
    """One subject, over the days."""

    subject: str
    group: str
    """Those it is held against: its role."""
    days: list[tuple[int, tuple[int, ...], int, bool]] = field(default_factory=list)
    """Date, counts, shift, and whether there was an alert; `KEPT_DAYS` of them."""
    day: Day | None = None
    seen_days: int = 0
    first_date: int = 0
    hours: list[float] = field(default_factory=lambda: [0.0] * 24)
    """On how many days it was there in each hour, old days fading."""
    networks: dict[str, int] = field(default_factory=dict)
    """By network, the date it was last seen there."""
    new_networks: float = 0.0
    countries: dict[str, int] = field(default_factory=dict)
    new_countries: float = 0.0
    paths: set[str] = field(default_factory=set)
    path_date: int = 0
    """When its last new path came."""
    slow: dict[int, float] = field(default_factory=dict)
    """By measure, the cumulative sum of what was more than usual."""
    last_time: int = 0
    last_network: str = ""
    last_agent: str = ""
    place: tuple[int, Place, str, str] | None = None
    """When and where it was last, with address and record."""
    gap_us: int = 0
    """How long it had been away before this day."""

    def own(self, day: Day) -> list[tuple[int, ...]]:
        """The counts of the days that say what is usual, by measure; none if there are no days.
        Those of the same shift, where they are enough."""
        days = [(date, counts, shift) for date, counts, shift, alerted in self.days if not alerted]
        older = [one for one in days if one[0] < day.date - _LAG_DAYS]
        alike = [one for one in older if one[2] == day.shift]
        taken = next((some for some in (alike, older) if len(some) >= _ENOUGH_DAYS), days)
        return list(zip(*(counts for _, counts, _ in taken), strict=True))


def _zeros() -> list[float]:
    return [0.0] * len(MEASURES)


@dataclass(slots=True)
class Group:
    """Everybody of one role: what a day of one of them is, and who is there today. Sums over days
    fade: half of what is known is of the last five weeks."""

    weight: float = 0.0
    sums: list[float] = field(default_factory=_zeros)
    squares: list[float] = field(default_factory=_zeros)
    hours: list[float] = field(default_factory=lambda: [0.0] * 24)
    date: int = 0
    today: list[float] = field(default_factory=_zeros)
    expected: list[float] = field(default_factory=_zeros)

    def roll(self, date: int) -> None:
        if date != self.date:
            self.date = date
            self.today = [0.0] * len(MEASURES)
            self.expected = [0.0] * len(MEASURES)
            for sums in (self.sums, self.squares, self.hours):
                for place, value in enumerate(sums):
                    sums[place] = value * FADING
            self.weight *= FADING

    def learn(self, counts: Sequence[int], hours: set[int]) -> None:
        """A day of one of them, which had no alert."""
        weight = self.weight
        for measure, count in enumerate(counts):
            drawn = float(count)
            if weight > 20:
                mean = self.sums[measure] / weight
                variance = max(self.squares[measure] / weight - mean * mean, mean, 0.1)
                drawn = min(drawn, mean + 6 * math.sqrt(variance))
            self.sums[measure] += drawn
            self.squares[measure] += drawn * drawn
        self.weight += 1
        for hour in hours:
            self.hours[hour] += 1

    def usual(self, measure: int) -> tuple[float, float]:
        """Mean and variance of a day of one of them."""
        if self.weight < 1:
            return _UNKNOWN[measure]
        mean = self.sums[measure] / self.weight
        return mean, max(self.squares[measure] / self.weight - mean * mean, mean, 0.1)

    def surge(self, measure: int, own: int, own_mean: float) -> float:
        """How much more than usual the others of the role do today: 1 if no more."""
        expected = self.expected[measure] - own_mean
        if expected < 10 * max(own_mean, 1):
            return 1.0
        return max((self.today[measure] - own) / expected, 1.0)


# Before anything is known: mean and variance of a day.
_UNKNOWN = (
    (30.0, 900.0),
    (15.0, 300.0),
    (1.0, 9.0),
    (6.0, 36.0),
    (1.0, 4.0),
    (1.0, 9.0),
    (0.1, 0.3),
)


def shift_of(hour: int) -> int:
    """0 for the night, from ten to six, 1 for the day, 2 for the evening, from two."""
    return (hour + 2) % 24 // 8


def usual_of(person: Person, group: Group, day: Day) -> tuple[Usual, ...]:
    """What is usual for `person` on a day such as this, by measure."""
    own = person.own(day)
    if not own:
        return tuple(Usual(*group.usual(measure), 0, 0) for measure in _ALL)
    return tuple(_usual(sorted(own[measure]), group.usual(measure)) for measure in _ALL)


_ALL = range(len(MEASURES))


def _usual(own: list[int], role: tuple[float, float]) -> Usual:
    """`own` are a person's counts, the least first."""
    days = len(own)
    third, first = own[(3 * days) // 4], own[days // 4]
    cap = third + _DRAWN_IN * max(third - first, math.sqrt(third), 1)
    drawn = own if own[-1] <= cap else [min(count, cap) for count in own]
    mean = sum(drawn) / days
    squares = sum(map(mul, drawn, drawn))
    variance = max(squares - days * mean * mean, 0.0) / max(days - 1, 1)
    weight = days / (days + _OWN_DAYS)
    role_mean, role_variance = role
    mean = weight * mean + (1 - weight) * role_mean
    variance = weight * variance * (1 + 2 / days) + (1 - weight) * role_variance
    return Usual(mean, max(variance, mean), own[-1], days)
