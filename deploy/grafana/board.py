"""What a dashboard is, as values: its panels, each with one query, and what a reader may choose."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["series", "bars", "table", "ranked", "number", "heat"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One query and how it is shown.

    `series`, `bars` and `heat` begin with a time, in ascending order, and then have numbers, or one
    text and one number; `ranked` is a text and a number; `number` is one row of one column.
    """

    title: str
    kind: Kind
    sql: str
    width: int = 12
    """Of 24."""
    unit: str = "short"
    says: str = ""
    since: str = ""
    """A time of its own, such as ``60d``, in place of the dashboard's."""
    least: str = ""
    """The shortest interval, such as ``1h``, where rows have that grain."""
    by: str = ""
    """The column of text that names the series, where there is one."""
    red_from: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a reader may choose: any text, or (`sql`) one of those that are there, or all."""

    name: str
    label: str
    says: str
    sql: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. Panels fill rows of 24 columns, in order."""

    name: str
    title: str
    says: str
    since: str
    panels: tuple[Panel, ...]
    choices: tuple[Choice, ...] = ()


def chosen(name: str) -> str:
    """The value of a choice, as SQL. Grafana puts a value into a query as text: escaped like this
    nothing in it can end the string."""
    return f"decodeURLComponent('${{{name}:percentencode}}')"


ALL = "*"
TENANT = Choice(
    "tenant",
    "Tenant",
    "one of those with requests in the last 30 days, or all",
    "SELECT DISTINCT tenant FROM activity_hourly WHERE hour > now() - INTERVAL 30 DAY"
    " ORDER BY tenant",
)
OF_TENANT = f"({chosen('tenant')} = '{ALL}' OR tenant = {chosen('tenant')})"

HOURS = "hour BETWEEN toStartOfHour($__fromTime) AND $__toTime"
"""Of `activity_hourly`: with the hour in which the time begins."""
DAYS = "day BETWEEN toDate($__fromTime, 'UTC') AND toDate($__toTime, 'UTC')"
"""Of `baselines`: with the days in which the time begins and ends."""
BEFORE = "day BETWEEN toDate($__fromTime, 'UTC') - 60 AND toDate($__toTime, 'UTC')"
"""The same with the sixty days before."""
