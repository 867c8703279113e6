"""What is worth an alert: two lanes with budgets, learnt from the deployment's own history.

A rule's score says how unlikely something is by the rule's own reckoning, which no two rules do
alike. What counts is how often a score like it comes: `Lanes` keeps, by rule, the highest score of
each person and week, and so knows how many alerts per 1,000 user-days a threshold would have meant.
Each rule may use its share of a lane's budget; what was told lately against what may be is held by
making all shares larger or smaller together. Before there is history, scores are taken at their
word, and only far ones count.

A person counts once a week and rule, however often: so nobody can raise a threshold by much, and a
confirmed finding counts not at all.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from authz.detect.suspicion import Suspicion

Lane = Literal["act", "review"]

SHARES: Mapping[str, float] = {
    "relation": 2.5, "unexplained": 2.0, "slow_unexplained": 1.5, "bulk_read": 1.0,
    "fast_read": 1.0, "bulk_requests": 0.3, "slow_read": 0.7, "denials": 0.5,
    "shared_credential": 0.8, "break_glass": 0.8, "off_hours": 0.8, "new_place": 1.0,
    "service_drift": 0.5, "terminated": 0.3, "impossible_travel": 0.3, "combination": 2.0,
}  # fmt: skip
FAMILY: Mapping[str, str] = {
    "unexplained": "volume", "bulk_read": "volume", "fast_read": "volume",
    "bulk_requests": "volume", "slow_read": "slow", "slow_unexplained": "slow",
    "denials": "denials", "shared_credential": "place", "new_place": "place",
    "impossible_travel": "place", "off_hours": "hours", "break_glass": "break_glass",
    "relation": "relation", "service_drift": "account", "terminated": "account",
}  # fmt: skip
_WEEKS = 6
_BELIEVED = 1000.0  # user-days that the rules' own reckoning weighs as much as
_CLOSE = 0.02  # of the highest scores, the tail beyond them is drawn from
_HELD_DAYS = 21


@dataclass(frozen=True, slots=True)
class Budgets:
    """Alerts per 1,000 user-days."""

    act: float = 1.0
    review: float = 5.0


@dataclass(slots=True)
class _History:
    """One rule's."""

    weeks: deque[tuple[int, dict[str, float]]] = field(default_factory=deque)
    scores: list[float] = field(default_factory=list)
    slope: float = 0.4343

    def note(self, subject: str, week: int, score: float) -> None:
        if not self.weeks or self.weeks[-1][0] != week:
            self.weeks.append((week, {}))
        best = self.weeks[-1][1]
        if score > best.get(subject, 0.0):
            best[subject] = score

    def learn(self, oldest: int) -> None:
        while self.weeks and self.weeks[0][0] < oldest:
            self.weeks.popleft()
        self.scores = sorted(score for _, best in self.weeks for score in best.values())
        top = self.scores[-max(min(len(self.scores) // 4, 60), 5) :]
        if len(top) >= 5:
            self.slope = min(max(sum(one - top[0] for one in top[1:]) / (len(top) - 1), 0.1), 3.0)

    def above(self, score: float) -> float:
        """How many in the history are as high; of what is higher than nearly all, an estimate."""
        scores = self.scores
        count = len(scores) - bisect_left(scores, score)
        if count >= 3 or len(scores) < 5:
            return float(count)
        third = scores[-3]
        return (
            3.0 * 10 ** (-(score - third) / max(self.slope * 2.3026, 0.2)) if score > third else 3.0
        )


class Lanes:
    """`lane` of each suspicion; `close` after each day."""

    def __init__(self, budgets: Budgets = Budgets()) -> None:
        self._budgets = budgets
        self._history = {rule: _History() for rule in SHARES}
        self._all = sum(SHARES.values())
        self._days: deque[tuple[int, int, int, int]] = deque()  # date, user-days, act, review
        self._user_days = 0
        self._wide = {"act": 1.0, "review": 1.0}
        self._told = {"act": 0, "review": 0}
        self._learnt_days = 0

    def rate(self, rule: str, score: float) -> float:
        """How many alerts per 1,000 user-days a threshold at `score` would have meant."""
        count = self._history[rule].above(score) + _BELIEVED * 10**-score
        return 1000 * count / (self._user_days + _BELIEVED)

    def lane(self, suspicion: Suspicion, subject: str, date: int) -> Lane | None:
        """Note a suspicion; where it goes, if anywhere."""
        self._history[suspicion.rule].note(subject, date // 7, suspicion.score)
        if suspicion.certain:
            return "act"
        if self._learnt_days < 7 and suspicion.score < 6:
            return None
        rate = self.rate(suspicion.rule, suspicion.score)
        share = SHARES[suspicion.rule] / self._all
        if rate <= self._budgets.act * share * self._wide["act"]:
            return "act"
        if rate <= self._budgets.review * share * self._wide["review"]:
            return "review"
        return None

    def alerted(self, lane: Lane) -> None:
        self._told[lane] += 1

    def close(self, date: int, user_days: int) -> None:
        """A day is over."""
        self._days.append((date, user_days, self._told["act"], self._told["review"]))
        self._told = {"act": 0, "review": 0}
        while self._days[0][0] <= date - 7 * _WEEKS:
            self._days.popleft()
        self._user_days = sum(day[1] for day in self._days)
        self._learnt_days += 1
        for history in self._history.values():
            history.learn(date // 7 - _WEEKS)
        self._hold()

    def _hold(self) -> None:
        """Widen or narrow all shares, so that what was told lately fits the budgets."""
        lately = [day for day in self._days if day[0] > self._days[-1][0] - _HELD_DAYS]
        users = sum(day[1] for day in lately)
        if self._learnt_days < 10 or not users:
            return
        for place, lane in ((2, "act"), (3, "review")):
            budget = getattr(self._budgets, lane) * 0.9
            told = 1000 * (sum(day[place] for day in lately) + 0.5) / users
            change = min(max((budget / told) ** 0.2, 0.8), 1.15)
            self._wide[lane] = min(max(self._wide[lane] * change, 0.1), 6.0)
