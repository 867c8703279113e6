"""What happened when, counted for pictures. Each question reads a bounded time, and few columns.

Times are by the receiver's clock, UTC. Errors are `authz.store.client.QUERY_ERRORS`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from clickhouse_driver import Client

from authz.store.client import BY_PERSON
from authz.store.lookups import (
    ALL_BY_PATIENT,
    KINDS,
    REQUEST,
    Row,
    Window,
    all_concerning,
    as_text,
    request,
)

_MINUTE_US = 60 * 1_000_000
_MOST = 20_000  # rows
_LAST_US = 5_662_310_399_000_000  # the end of 2149-06-06


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
    source = (
        f"audit_log ARRAY JOIN patients AS whom WHERE {KINDS} AND subject = %(subject)s"
        f" AND whom IN %(tokens)s AND {window.condition}"
    )
    values = {"subject": subject, "tokens": list(tokens), **window.values}
    return _seen(client, "whom", source, values, BY_PERSON)


def of_patient(client: Client, tokens: Sequence[str], window: Window) -> list[Seen]:
    """When whose requests concerned a patient with one of `tokens`."""
    columns = "origin, index, kind, sealed_at, subject, decision_id"
    source = all_concerning(columns, f"{KINDS} AND {window.condition}")
    values = {"tokens": list(tokens), **window.values}
    return _seen(client, "subject", source, values, ALL_BY_PATIENT)


def _seen(
    client: Client, whom: str, source: str, values: dict[str, Any], settings: dict[str, Any]
) -> list[Seen]:  # fmt: skip
    """The newest days first."""
    query = (
        f"SELECT toDate(sealed_at, 'UTC') AS day, {whom} AS about, uniqExact({REQUEST}) AS number"
        f" FROM {source} GROUP BY day, about ORDER BY day DESC, about LIMIT %(limit)s"
    )
    rows = client.execute(query, {**values, "limit": _MOST}, settings=settings)
    return [Seen(*map(as_text, row)) for row in rows]


def of_records(records: Iterable[Row]) -> list[Seen]:
    """As `of_patient`, of all the records that name the patient (`lookups.Concerned`)."""
    found: dict[tuple[date, str], set[str]] = {}
    for one in records:
        sealed = min(max(one["sealed_at"], 0), _LAST_US)  # as the database has days
        day = datetime.fromtimestamp(sealed // 1_000_000, UTC).date()
        found.setdefault((day, one["subject"]), set()).add(request(one))
    days = sorted(found, key=lambda one: (-one[0].toordinal(), one[1]))
    return [Seen(*one, len(found[one])) for one in days[:_MOST]]
