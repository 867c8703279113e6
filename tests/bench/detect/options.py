"""What one simulated hospital is made from, and how days and times are counted in it."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
from numpy.random import Generator

DAY: Final = 86_400
HOUR: Final = 3_600
UTC_OFFSET: Final = -6 * HOUR  # of the hospital's own clocks, all year


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes and rates. The same options make the same hospital, record by record.

    `unexplained`: at most this share of innocent accesses to charts has no reason in any feed.
    `vpn`: the share of working days with a part through the VPN. `floats`: the share of nurses'
    days on which a turn on another ward begins. `travel`: trips abroad, by person and month.
    `misuses`: how many of each kind. `history`: no misuse begins before this
    day, or before two fifths of all if they are few.
    """

    seed: int = 1
    people: int = 6_000
    patients: int = 130_000
    days: int = 120
    start: date = date(2026, 1, 5)
    unexplained: float = 0.02
    vpn: float = 0.15
    floats: float = 0.03
    travel: float = 0.02
    misuses: int = 12
    history: int = 40

    @classmethod
    def small(cls, seed: int = 1) -> "Options":
        """One for tests: some tens of thousands of records."""
        return cls(seed, people=200, patients=4_000, days=30, misuses=1)

    @property
    def calm(self) -> int:
        """How many days are without misuse."""
        return min(self.history, self.days * 2 // 5)

    @property
    def midnight(self) -> int:
        """When day 0 begins at the hospital, in seconds since the epoch."""
        begin = datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC)
        return int(begin.timestamp()) - UTC_OFFSET

    def begin(self, day: int) -> int:
        """When `day` begins at the hospital, in seconds since the epoch."""
        return self.midnight + day * DAY

    def date(self, day: int) -> date:
        return self.start + timedelta(days=day)

    def works(self, day: int) -> bool:
        """Whether offices and clinics are open."""
        when = self.date(day)
        return when.weekday() < 5 and (when.month, when.day) not in _HOLIDAYS

    def month_end(self, day: int) -> bool:
        """Whether a month is closed in these days: its last two or the next one's first three."""
        return self.date(day).day <= 3 or self.date(day + 2).day <= 2

    def random(self, *stream: int) -> Generator:
        """The random numbers of one purpose: drawing more for one leaves the others alone."""
        return np.random.default_rng([self.seed, *stream])


_HOLIDAYS: Final = frozenset(
    {(1, 1), (1, 19), (2, 16), (5, 25), (7, 3), (9, 7), (11, 26), (12, 25)}
)
