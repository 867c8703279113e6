"""A panel's query as Grafana's data source would send it."""

import re
from urllib.parse import quote

from deploy.grafana.board import Board, Panel

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


def seconds(text: str) -> int:
    return int(text[:-1]) * _SECONDS[text[-1]]


def query_of(board: Board, panel: Panel, now: int, values: dict[str, str]) -> str:
    """For the time that the panel shows at first, until `now` (seconds since the epoch)."""
    since = seconds(panel.since or board.since.removeprefix("now-"))
    interval = max(seconds(panel.least or "1s"), since // 1000)
    return expanded(panel.sql, (now - since, now + 1), interval, values)


def expanded(sql: str, times: tuple[int, int], interval: int, values: dict[str, str]) -> str:
    """The macros and variables are those of the data source's version 4."""
    for name, value in values.items():
        sql = sql.replace(f"${{{name}:percentencode}}", quote(value, safe="-_.~"))
    first, last = (f"toDateTime({time})" for time in times)
    macros = {
        "fromTime": lambda _: first,
        "toTime": lambda _: last,
        "timeFilter": lambda column: f"{column} >= {first} AND {column} <= {last}",
        "timeInterval": lambda column: (
            f"toStartOfInterval(toDateTime({column}), INTERVAL {interval} second)"
        ),
        "interval_s": lambda _: str(interval),
    }
    sql = re.sub(r"\$__(\w+)(?:\(([^()]*)\))?", lambda found: macros[found[1]](found[2]), sql)
    assert "$" not in sql, sql
    return sql
