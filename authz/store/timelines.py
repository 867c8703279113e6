"""What happened when, counted for pictures. Each question reads a bounded time, and few columns.

Times are by the receiver's clock, UTC. Errors are `authz.store.client.QUERY_ERRORS`.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from clickhouse_driver import Client

from authz.store.lookups import KINDS, REQUEST, Window, as_text, concerning

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
    return _seen(
        client, "arrayJoin(arrayIntersect(patients, %(tokens)s))",
        f"audit_log WHERE {KINDS} AND subject = %(subject)s AND hasAny(patients, %(tokens)s)"
        f" AND {window.condition}",
        {"subject": subject, "tokens": list(tokens), **window.values},
    ) if tokens else []  # fmt: skip


def of_patient(client: Client, tokens: Sequence[str], window: Window) -> list[Seen]:
    """When whose requests concerned a patient with one of `tokens`."""
    columns = "origin, index, kind, sealed_at, subject, decision_id"
    source = concerning(columns, f"{KINDS} AND {window.condition}")
    return _seen(client, "subject", source, {"tokens": list(tokens), **window.values})


def _seen(client: Client, whom: str, source: str, values: dict[str, Any]) -> list[Seen]:
    """The newest days first."""
    query = (
        f"SELECT toDate(sealed_at, 'UTC') AS day, {whom} AS whom, uniqExact({REQUEST}) AS number"
        f" FROM {source}"
        " GROUP BY day, whom ORDER BY day DESC, whom LIMIT %(limit)s"
    )
    return [Seen(*map(as_text, row)) for row in client.execute(query, {**values, "limit": _MOST})]
