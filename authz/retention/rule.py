"""How long records are kept: ``6y``, ``2555d``. What expires are whole months, as stored."""

import datetime as dt
import re
from dataclasses import dataclass

from authz.errors import UsageError

_FORM = re.compile(r"([0-9]{1,6})([yd])")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US = dt.timedelta(microseconds=1)
_LEAST_DAYS, _MOST_DAYS = 30, 200 * 366


@dataclass(frozen=True, slots=True)
class Rule:
    """Records are kept for `years`, or for `days`."""

    years: int = 0
    days: int = 0

    @classmethod
    def parse(cls, text: str, option: str = "--older-than") -> "Rule":
        """From ``6y`` or ``90d``. Raises `UsageError`, which names `option`."""
        form = _FORM.fullmatch(text)
        number = int(form[1]) if form else 0
        rule = cls(years=number) if form and form[2] == "y" else cls(days=number)
        if not _LEAST_DAYS <= max(rule.days, rule.years * 366) <= _MOST_DAYS:
            raise UsageError(
                f"{option} {text!r}: want years or days such as 6y or 90d, {_LEAST_DAYS}d to 200y"
            )
        return rule

    def __str__(self) -> str:
        return f"{self.years}y" if self.years else f"{self.days}d"

    def cutoff(self, now_us: int) -> int:
        """What was sealed before then is as old as this rule says (microseconds, UTC)."""
        now = _EPOCH + now_us * _US
        if not self.years:
            return max(0, (now - _EPOCH - dt.timedelta(days=self.days)) // _US)
        if now.year - self.years < _EPOCH.year:
            return 0
        day = min(now.day, 28) if now.month == 2 else now.day
        return (now.replace(year=now.year - self.years, day=day) - _EPOCH) // _US

    def before(self, now_us: int) -> int:
        """The first instant of the month that the cutoff is in: whole months before it expire."""
        at = _EPOCH + self.cutoff(now_us) * _US
        begun = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return (begun - _EPOCH) // _US

    def shorter_than(self, other: "Rule", now_us: int) -> bool:
        return self.cutoff(now_us) > other.cutoff(now_us)


SIX_YEARS = Rule(years=6)
"""What the law asks for (HIPAA, 45 CFR 164.316): the default, and the least without a reason."""


def partition_of(at_us: int) -> int:
    """The month's partition, as ClickHouse's ``toYYYYMM`` gives it."""
    at = _EPOCH + at_us * _US
    return at.year * 100 + at.month
