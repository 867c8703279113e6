"""How unusual a value is in its series: a tenant's requests by the minute, or any other figure.

`Level.judge` takes one value after the other and looks at each in several ways (`ASPECTS`): against
the usual level, against what is usual at that hour, against the values just before. How far out a
value must be is learnt from the series itself, for each way: nothing is assumed to be Gaussian, and
the same limit serves every series, whatever its unit. Memory and work are the same for each value,
however many came before.

What is unusual is told once: then it is quiet for a while, unless it becomes worse. What happened
at the same time of the days before is less of a surprise, and a new level that stays is usual soon.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from authz.detect.usual import tail

ALERT_AT = 3.7
"""How surprising an alert is: -log10 of how likely by chance, in the most unusual aspect. As there
are several, noise alone alerts about once in a thousand values."""
QUIET = 100
"""For how many values it is then quiet, unless one is `WORSE` by this factor."""
WORSE = 1.5
ASPECTS = {
    "high": "more than usual",
    "low": "less than usual",
    "hour": "not as usual at this hour",
    "step": "far from the value before",
    "rise": "more than in the values just before",
    "fall": "less than in the values just before",
    "shift": "a new level",
    "more": "somewhat more than usual for long",
    "less": "somewhat less than usual for long",
    "flat": "it hardly changes any more",
}
_NAMES = tuple(ASPECTS)
_RISING = frozenset({"high", "hour", "step", "rise"})

_SOON, _LATELY, _LONG = 1 / 6, 1 / 36, 1 / 2000  # rates: over so many values
_MOVES = 1 / 12
_DAYS = 1 / 40  # for an hour of the day; there are several values in it
_WEEKS = 1 / 10  # for an hour of the week
_BETTER = 0.9  # an hour's own level is used if it errs so much less
_UNKNOWN = 20  # values before the first is looked at
_DRAWN_IN = 10.0  # in usual errors: what is further out teaches no more than that

_LEARNING = 100  # looks, before a tail says anything
_EXCEPTIONAL = 0.05  # the share of values that is taken for the tail
_TAIL_RATE = 0.007
_TAIL_DRAWN_IN = 50.0  # in mean excesses
_NEVER_SEEN = 6.0  # the surprise of a change where there never was one
_MOST = 12.0

_SLACK, _MOST_Z, _MOST_SUM = 1.0, 4.0, 1000.0  # of the cumulative sums, in usual errors
_SLOTS = 48  # of a day
_SLOT_S = 86_400 // _SLOTS
_FORGOTTEN = 0.9  # by the day
_ALIKE = 0.8
_KNOWN = 2.0  # the most that is left of the surprise if it was so on another day
_TOLD = 0.1  # or if it was told just now


@dataclass(frozen=True, slots=True)
class Judgement:
    """`surprise` is -log10 of how likely the value is by chance, less if it was told before;
    `aspect` the way it is unusual in, of `ASPECTS`; `usual` what was expected at that time."""

    surprise: float
    aspect: str
    usual: float

    @property
    def score(self) -> float:
        """From 0 to 1: an alert from 0.5 on."""
        return self.surprise / (self.surprise + ALERT_AT)

    @property
    def alert(self) -> bool:
        return self.surprise >= ALERT_AT


class Level:
    """One series. With `counting`, its values are counts, of which few can be many by chance: a
    negative binomial tail has to agree that a value is high."""

    def __init__(self, *, counting: bool = False) -> None:
        self._counting = counting
        self._seen = 0
        self._before = 0.0
        self._long, self._lately, self._soon = _Mean(_LONG), _Mean(_LATELY), _Mean(_SOON)
        self._move, self._moves = _Mean(_MOVES), _Mean(_LONG)
        self._error, self._squared = _Mean(_LONG), _Mean(_LONG)
        self._clock = _Clock()
        self._more = self._less = 0.0
        self._tails = [_Tail() for _ in _NAMES]
        self._days = _Days()
        self._quiet, self._told = 0, 0.0

    def judge(self, time: float, value: float) -> Judgement:
        """Judge a finite value, then learn from it. `time` is in seconds since the epoch, by the
        clock of those whose days and weeks it follows, and does not go back."""
        if not self._seen:
            self._long.value = self._before = value
        usual = self._clock.usual(time, self._long.value)
        surprise, aspect = 0.0, ""
        if self._seen >= _UNKNOWN:
            surprise, aspect = self._surprise(time, value, usual)
        self._learn(time, value, usual)
        return Judgement(self._once(surprise), aspect, usual)

    def _surprise(self, time: float, value: float, usual: float) -> tuple[float, str]:
        most, aspect = 0.0, ""
        chance = _MOST
        if self._counting and value > usual:
            chance = tail(round(value), max(usual, 0.0), self._squared.value)
        self._days.roll(time)
        for number, (name, look) in enumerate(zip(_NAMES, self._looks(value, usual), strict=True)):
            surprise = self._tails[number].judge(look)
            if name in _RISING:
                surprise = min(surprise, chance)
            if self._days.known(number, look):
                surprise = min(surprise, _KNOWN)
            if surprise > most:
                most, aspect = surprise, name
        return most, aspect

    def _looks(self, value: float, usual: float) -> Sequence[float]:
        """By aspect, how far out the value is: the unit does not matter, only the order."""
        high, rise = value - self._long.value, value - self._soon.value
        lively = self._move.value / self._moves.value if self._moves.value > 0 else 1.0
        return (
            high, -high, abs(value - usual), abs(value - self._before), rise, -rise,
            abs(self._lately.value - self._long.value), self._more, self._less,
            -math.log(lively + 1e-12),
        )  # fmt: skip

    def _learn(self, time: float, value: float, usual: float) -> None:
        long, error = self._long.value, self._error.value
        drawn, move = value, abs(value - self._before)
        if self._seen >= _LEARNING and error > 0:
            off = max(min((value - usual) / error, _MOST_Z), -_MOST_Z)
            self._more = min(max(self._more + off - _SLACK, 0.0), _MOST_SUM)
            self._less = min(max(self._less - off - _SLACK, 0.0), _MOST_SUM)
            reach = _DRAWN_IN * self._clock.error
            drawn = max(min(value, long + reach), long - reach)
            move = min(move, 2 * reach)
        self._error.add(abs(drawn - usual))
        self._squared.add((drawn - usual) ** 2)
        self._move.add(move)
        self._moves.add(move)
        self._clock.add(time, drawn, long)
        for mean in (self._long, self._lately, self._soon):
            mean.add(drawn)
        self._before = value
        self._seen += 1

    def _once(self, surprise: float) -> float:
        """Less, if it was told already."""
        self._quiet -= 1
        if surprise < ALERT_AT:
            return surprise
        if self._quiet > 0 and surprise < WORSE * self._told:
            return surprise * _TOLD
        self._quiet, self._told = QUIET, surprise
        return surprise


class _Mean:
    """A mean in which old values fade."""

    __slots__ = ("_count", "_rate", "value")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) * max(self._rate, 1 / self._count)


class _Slots:
    """Means by the hour of a day or week."""

    def __init__(self, hours: int, rate: float) -> None:
        self._rate = rate
        self._values = array("d", bytes(8 * hours))
        self._counts = array("q", bytes(8 * hours))

    def usual(self, hour: int, otherwise: float) -> float:
        slot = hour % len(self._values)
        return self._values[slot] if self._counts[slot] else otherwise

    def add(self, hour: int, value: float) -> None:
        slot = hour % len(self._values)
        self._counts[slot] += 1
        rate = max(self._rate, 1 / self._counts[slot])
        self._values[slot] += (value - self._values[slot]) * rate


class _Clock:
    """What is usual at an hour, as long as the hour of the day, or of the week, tells more."""

    def __init__(self) -> None:
        self._day, self._week = _Slots(24, _DAYS), _Slots(7 * 24, _WEEKS)
        self._errors = [_Mean(_LONG) for _ in range(3)]

    @property
    def error(self) -> float:
        """How far from the long-term level a value usually is."""
        return self._errors[0].value

    def usual(self, time: float, long: float) -> float:
        least, best = self._errors[0].value * _BETTER, long
        for error, level in zip(self._errors[1:], self._levels(time, long)[1:], strict=True):
            if error.value < least:
                least, best = error.value, level
        return best

    def add(self, time: float, value: float, long: float) -> None:
        hour = int(time // 3600)
        for error, level in zip(self._errors, self._levels(time, long), strict=True):
            error.add(abs(value - level))
        self._day.add(hour, value)
        self._week.add(hour, value)

    def _levels(self, time: float, long: float) -> tuple[float, float, float]:
        hour = int(time // 3600)
        by_day = self._day.usual(hour, long)
        return long, by_day, self._week.usual(hour, by_day)


class _Tail:
    """How large looks of one kind get: the limit that one in twenty is beyond, and the mean of by
    how much, from which it follows how likely more is. Both move with each look, so that a spell of
    unusual values is soon less of a surprise."""

    __slots__ = ("_beyond", "_excess", "_first", "_limit")

    def __init__(self) -> None:
        self._first: list[float] = []
        self._limit = 0.0
        self._excess = 0.0
        self._beyond = 0

    def judge(self, look: float) -> float:
        """The surprise; then learns."""
        if not self._beyond:
            self._first.append(look)
            if len(self._first) == _LEARNING:
                self._begin()
            return 0.0
        over = look - self._limit
        surprise = 0.0
        if over > 0:
            surprise = _NEVER_SEEN
            if self._excess > 0:
                surprise = math.log10(math.e) * over / self._excess - math.log10(_EXCEPTIONAL)
        self._learn(over)
        return min(surprise, _MOST)

    def _learn(self, over: float) -> None:
        rate = max(_TAIL_RATE, 1 / (self._beyond + 1))
        step = self._excess or abs(over)
        if over > 0:
            self._beyond += 1
            if self._excess > 0:
                over = min(over, _TAIL_DRAWN_IN * self._excess)
            self._excess += (over - self._excess) * rate
            self._limit += step * rate * (1 - _EXCEPTIONAL)
        else:
            self._limit -= step * rate * _EXCEPTIONAL

    def _begin(self) -> None:
        self._beyond = int(_LEARNING * _EXCEPTIONAL)
        self._first.sort()
        self._limit = self._first[-self._beyond - 1]
        self._excess = sum(self._first[-self._beyond :]) / self._beyond - self._limit
        self._first.clear()


class _Days:
    """By aspect, the furthest out it was at each time of the days before."""

    def __init__(self) -> None:
        self._slot = -1
        self._furthest = [array("d", bytes(8 * _SLOTS)) for _ in _NAMES]
        self._now = array("d", bytes(8 * len(_NAMES)))

    def roll(self, time: float) -> None:
        slot = int(time // _SLOT_S) % _SLOTS
        if slot == self._slot:
            return
        if self._slot >= 0:
            for slots, now in zip(self._furthest, self._now, strict=True):
                slots[self._slot] = max(slots[self._slot] * _FORGOTTEN, now)
        self._slot = slot
        self._now = array("d", bytes(8 * len(_NAMES)))

    def known(self, number: int, look: float) -> bool:
        """Whether it was about as far out at this time of another day."""
        slots, slot = self._furthest[number], self._slot
        before = max(slots[slot - 1], slots[slot], slots[(slot + 1) % _SLOTS])
        self._now[number] = max(self._now[number], look)
        return _ALIKE * look <= before
