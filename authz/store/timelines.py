"""What happened when, counted for pictures. Each question reads a bounded time, and few columns.

Times are by the receiver's clock, UTC. Errors are `authz.store.client.QUERY_ERRORS`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from clickhouse_driver import Client

from authz.store.client import BY_PERSON
from authz.store.lookups import KINDS, REQUEST, Row, Window, as_text, concerning, request

_MINUTE_US = 60 * 1_000_000
_MOST = 20_000  # rows


class Minute(NamedTuple):
    """Decisions of one minute; `ago` 0 is that which ends now."""

    ago: int
    allowed: int
    denied: int


class Seen(NamedTuple):
    """On a day somebody's requests concerned somebody: a patient's token, or a person."""

    day: date
    whom: str
    requests: int


def minutes(client: Client, now_us: int, last: int) -> list[Minute]:
    """Each of the `last` minutes, the earliest first."""
    found = client.execute(
        "SELECT intDiv(%(until)s - 1 - toUnixTimestamp64Micro(sealed_at), %(minute)s) AS ago,"
        " countIf(allowed), countIf(NOT allowed) FROM audit_log"
        f" WHERE kind = 'decision' AND {_between(now_us, last).condition} GROUP BY ago",
        {"minute": _MINUTE_US, **_between(now_us, last).values},
    )
    counted = {ago: Minute(ago, allowed, denied) for ago, allowed, denied in found}
    return [counted.get(ago, Minute(ago, 0, 0)) for ago in reversed(range(last))]


def _between(now_us: int, last: int) -> Window:
    return Window(now_us - last * _MINUTE_US, now_us)


def of_person(client: Client, subject: str, tokens: Sequence[str], window: Window) -> list[Seen]:
    """When a person's requests concerned which of the patients with `tokens`."""
    if not tokens:
        return []
    query = (
        f"SELECT {_DAY}, arrayJoin(arrayIntersect(patients, %(tokens)s)) AS whom, {_REQUEST}"
        f" FROM audit_log WHERE {KINDS} AND subject = %(subject)s AND hasAny(patients, %(tokens)s)"
        f" AND {window.condition} GROUP BY day, whom"
    )
    values = {"subject": subject, "tokens": list(tokens), **window.values}
    return _seen(client.execute(query, values, settings=BY_PERSON))


def of_patient(client: Client, tokens: Sequence[str], window: Window) -> list[Seen]:
    """When whose requests concerned a patient with one of `tokens`."""
    columns = f"{_DAY}, subject AS whom, {_REQUEST}"
    values = {"tokens": list(tokens), **window.values}
    condition = f"{KINDS} AND {window.condition}"
    return _seen(concerning(client, columns, condition, values, "GROUP BY day, whom"))


def of_records(records: Iterable[Row]) -> list[Seen]:
    """The same of all records that name a patient (`lookups.Concerned`)."""
    return _seen(
        (datetime.fromtimestamp(one["sealed_at"] / 1e6, UTC).date(), one["subject"], [request(one)])
        for one in records
    )


_DAY = "toDate(sealed_at, 'UTC') AS day"
_REQUEST = f"groupUniqArray({REQUEST}) AS requests"


def _seen(rows: Iterable[tuple[date, Any, Sequence[Any]]]) -> list[Seen]:
    """The newest days first. A request may have several records, and these may be in both halves
    of what concerns a patient."""
    found: dict[tuple[date, str], set[Any]] = {}
    for day, whom, requests in rows:
        found.setdefault((day, as_text(whom)), set()).update(requests)
    days = sorted(found, key=lambda one: (-one[0].toordinal(), one[1]))
    return [Seen(day, whom, len(found[day, whom])) for day, whom in days[:_MOST]]
