"""What is worth an alert: two lanes with budgets, learnt from the deployment's own history.

A rule's score says how unlikely something is by the rule's own reckoning, and no two rules reckon
alike. What counts is how often a score like it comes: kept are, by rule, the highest score of each
person and week, which tell how many alerts per 1,000 user-days a threshold would have meant. Each
rule may use its share of a lane's budget, and all shares are widened or narrowed together until
what was told lately fits. Before there is history, scores are taken at their word, and only high
ones count.

A person counts once a week and rule, however often, so nobody raises a threshold by much; what
somebody confirmed to be misuse counts not at all.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from authz.detect.suspicion import Suspicion

Lane = Literal["act", "review"]
LANES: tuple[Lane, Lane] = ("act", "review")

SHARES: Mapping[str, float] = {
    "relation": 2.5, "unexplained": 2.0, "slow_unexplained": 1.5, "bulk_read": 1.0,
    "fast_read": 1.0, "bulk_requests": 0.3, "slow_read": 0.7, "denials": 0.5,
    "shared_credential": 0.8, "break_glass": 0.8, "off_hours": 0.8, "new_place": 1.0,
    "service_drift": 0.5, "terminated": 0.3, "impossible_travel": 0.3, "combination": 2.0,
}  # fmt: skip
"""How much of a budget each rule may use, beside the others."""
_ALL = sum(SHARES.values())
_WEEKS = 6
_BELIEVED = 1000.0  # user-days that the rules' own reckoning weighs as much as
_UNTAUGHT_DAYS = 7
_UNTAUGHT_SCORE = 6.0
_HELD_DAYS = 21


@dataclass(frozen=True, slots=True)
class Budgets:
    """Alerts per 1,000 user-days."""

    act: float = 1.0
    review: float = 5.0

    def of(self, lane: Lane) -> float:
        return self.act if lane == "act" else self.review


@dataclass(slots=True)
class History:
    """One rule's: the best score of each subject, by week."""

    weeks: dict[int, dict[str, float]] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    """Of all weeks, in order, as of the last day that was closed."""
    slope: float = 0.4343
    """How far beyond the highest scores others may lie, on average."""

    def note(self, subject: str, week: int, score: float) -> None:
        best = self.weeks.setdefault(week, {})
        if score > best.get(subject, 0.0):
            best[subject] = score

    def forget(self, subject: str) -> None:
        for best in self.weeks.values():
            best.pop(subject, None)

    def learn(self, oldest: int) -> None:
        for week in [week for week in self.weeks if week < oldest]:
            del self.weeks[week]
        self.scores = sorted(score for best in self.weeks.values() for score in best.values())
        top = self.scores[-max(min(len(self.scores) // 4, 60), 5) :]
        if len(top) >= 5:
            beyond = sum(score - top[0] for score in top[1:]) / (len(top) - 1)
            self.slope = min(max(beyond, 0.1), 3.0)

    def above(self, score: float) -> float:
        """How many in the history are as high; beyond nearly all, an estimate."""
        scores = self.scores
        count = len(scores) - bisect_left(scores, score)
        if count >= 3 or len(scores) < 5:
            return float(count)
        third = scores[-3]
        return 3.0 * 10 ** (-max(score - third, 0) / max(self.slope * 2.3026, 0.2))


@dataclass(slots=True)
class Told:
    """A day that is over."""

    date: int
    user_days: int
    act: int
    review: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a lane of `budget` alerts per 1,000 user-days would have told in the weeks that are
    kept, each person once a week and rule; `rate` is per 1,000 user-days too."""

    budget: float
    alerts: int
    rate: float
    rules: dict[str, int]


@dataclass(slots=True)
class Calibration:
    """What was learnt."""

    history: dict[str, History] = field(
        default_factory=lambda: {rule: History() for rule in SHARES}
    )
    days: list[Told] = field(default_factory=list)
    user_days: int = 0
    learnt: int = 0
    wide: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 1.0))
    today: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))


class Lanes:
    """`lane` of each suspicion; `close` after each day."""

    def __init__(self, budgets: Budgets, learnt: Calibration) -> None:
        self.budgets = budgets
        self._learnt = learnt

    def rate(self, rule: str, score: float) -> float:
        """How many alerts per 1,000 user-days a threshold at `score` would have meant."""
        learnt = self._learnt
        count = learnt.history[rule].above(score) + _BELIEVED * 10**-score
        return 1000 * count / (learnt.user_days + _BELIEVED)

    def lane(self, suspicion: Suspicion, subject: str, date: int) -> Lane | None:
        """Note a suspicion; where it goes, if anywhere."""
        learnt = self._learnt
        learnt.history[suspicion.rule].note(subject, date // 7, suspicion.score)
        if suspicion.certain:
            return "act"
        if learnt.learnt < _UNTAUGHT_DAYS and suspicion.score < _UNTAUGHT_SCORE:
            return None
        rate = self.rate(suspicion.rule, suspicion.score)
        share = SHARES[suspicion.rule] / _ALL
        for lane in LANES:
            if rate <= self.budgets.of(lane) * share * learnt.wide[lane]:
                return lane
        return None

    def alerted(self, lane: Lane) -> None:
        self._learnt.today[lane] += 1

    def confirmed(self, subject: str) -> None:
        """Misuse teaches nothing about what is usual."""
        for history in self._learnt.history.values():
            history.forget(subject)

    def close(self, date: int, user_days: int) -> None:
        """A day is over."""
        learnt = self._learnt
        learnt.days.append(Told(date, user_days, learnt.today["act"], learnt.today["review"]))
        learnt.days = [day for day in learnt.days if day.date > date - 7 * _WEEKS]
        learnt.today = dict.fromkeys(LANES, 0)
        learnt.user_days = sum(day.user_days for day in learnt.days)
        learnt.learnt += 1
        for history in learnt.history.values():
            history.learn(date // 7 - _WEEKS)
        self._hold(date)

    def _hold(self, date: int) -> None:
        """Widen or narrow all shares, so that what was told lately fits the budgets."""
        learnt = self._learnt
        lately = [day for day in learnt.days if day.date > date - _HELD_DAYS]
        users = sum(day.user_days for day in lately)
        if learnt.learnt < _UNTAUGHT_DAYS or not users:
            return
        for lane in LANES:
            # What would be right is believed like one alert: a small house has few user-days.
            budget = self.budgets.of(lane) * 0.9
            alerts = sum(getattr(day, lane) for day in lately)
            told = 1000 * (alerts + 1) / (users + 1000 / budget)
            change = (budget / told) ** 0.2
            wide = learnt.wide[lane] * min(max(change, 0.8), 1.15)
            learnt.wide[lane] = min(max(wide, 0.1), 6.0)

    @property
    def user_days(self) -> int:
        """Of the weeks that are kept."""
        return self._learnt.user_days

    def what_if(self) -> list[WhatIf]:
        """What other budgets would have meant, from half of the smaller to twice the larger."""
        budgets = sorted({
            budget * factor
            for budget in (self.budgets.act, self.budgets.review)
            for factor in (0.5, 1, 2)
        })  # fmt: skip
        return [self._would_be(budget) for budget in budgets]

    def _would_be(self, budget: float) -> WhatIf:
        rules = {
            rule: sum(
                self.rate(rule, score) <= budget * SHARES[rule] / _ALL for score in history.scores
            )
            for rule, history in self._learnt.history.items()
        }
        alerts = sum(rules.values())
        return WhatIf(budget, alerts, 1000 * alerts / max(self.user_days, 1), rules)
