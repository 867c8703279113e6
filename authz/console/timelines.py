"""Who looked at whom over time: rows for a picture, and the same as figures."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from authz.store.timelines import Seen

_ROWS: Final = 15
_LONGEST: Final = 28  # characters of a name in the picture
_COLUMNS: Final = 45


@dataclass(frozen=True, slots=True)
class Timeline:
    """By `unit`, a day, a week or a month. `rows` have a name, and the requests in each of
    `periods`; `figures` period, whom, and requests, the newest first. `more` is how many others
    there are, with fewer requests than those."""

    unit: str
    periods: list[str]
    rows: list[tuple[str, list[int]]]
    figures: list[tuple[str, str, int]]
    more: int


def timeline(
    found: Sequence[Seen], first: date, last: date, name: Callable[[str], str]
) -> Timeline:
    """From the day `first` to `last`; `name` is how somebody is called in the picture."""
    totals = Counter[str]()
    for one in found:
        totals[one.whom] += one.requests
    shown = [whom for whom, _ in totals.most_common(_ROWS)]
    unit, begin = _unit(first, last)
    counted = Counter[tuple[str, str]]()
    for one in found:
        if one.whom in shown:
            counted[begin(one.day), one.whom] += one.requests
    periods = list(dict.fromkeys(map(begin, _days(first, last))))
    rows = [(name(whom)[:_LONGEST], [counted[one, whom] for one in periods]) for whom in shown]
    figures = sorted(
        ((period, whom, number) for (period, whom), number in counted.items() if number),
        key=lambda one: (one[0], one[2]), reverse=True,
    )  # fmt: skip
    return Timeline(unit, periods, rows, figures, len(totals) - len(shown))


def _unit(first: date, last: date) -> tuple[str, Callable[[date], str]]:
    days = (last - first).days
    if days < _COLUMNS:
        return "day", date.isoformat
    if days < 7 * _COLUMNS:
        return "week", lambda day: (day - timedelta(days=day.weekday())).isoformat()
    return "month", lambda day: f"{day:%Y-%m}"


def _days(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)
