"""Findings, what people said of them, and uses of break-glass: what is asked of the database.

Each answer is records, for these are few; a row that is there twice is told once. Errors are
`authz.store.client.QUERY_ERRORS`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from clickhouse_driver import Client

from authz.record import Record, place_of, read_place
from authz.store import checkpoints, rows
from authz.store.lookups import EVER, Window

SAID = ("finding_acknowledged", "finding_explained", "finding_confirmed")

_RAISED = "kind = 'finding' AND event = 'raised'"
_SAID = "kind = 'notice' AND event IN %(events)s"
_GLASS = (
    "(kind = 'decision' AND break_glass AND allowed)"
    " OR (kind = 'notice' AND event = 'break_glass_reviewed')"
    " OR (kind = 'finding' AND rule = 'break_glass_unreviewed')"
)
# What is read of findings, of what is said of them, and of uses of break-glass.
_NAMES = (
    "origin", "index", "sealed_at", "time", "kind", "event", "lane", "rule", "subject", "roles",
    "source_ip", "tenant", "score_milli", "evidence", "records", "details", "reason", "decision_id",
    "allowed", "break_glass", "method", "path", "patients",
)  # fmt: skip
_REQUESTS = "kind IN ('decision', 'access')"
_UUID7 = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_DAY_US = 86_400 * 1_000_000


def raised(
    client: Client, window: Window = EVER, subject: str = "", lane: str = ""
) -> list[Record]:
    """The findings of a time, in the order in which they were sealed."""
    conditions = [_RAISED, window.condition]
    conditions += ["subject = %(subject)s"] if subject else []
    conditions += ["lane = %(lane)s"] if lane else []
    values = {"subject": subject, "lane": lane, **window.values}
    return _select(client, " AND ".join(conditions), values, _NAMES)


def said(client: Client, since_us: int, ids: Collection[str] = ()) -> list[Record]:
    """The notices in which people say something of findings, from `since_us` on (of `ids` only, if
    there are any): nothing can be said of a finding before it is there."""
    window = Window(since_us)
    condition = f"{_SAID} AND {window.condition}"
    if ids:
        condition += " AND hasAny(records, %(ids)s)"
    values = {"events": SAID, "ids": sorted(ids), **window.values}
    return _select(client, condition, values, _NAMES)


def at(client: Client, places: Iterable[tuple[str, int]]) -> list[Record]:
    """The records at these places, each a log and an index; those that are not there are not."""
    found = tuple(sorted(set(places)))
    if not found:
        return []
    return _select(client, "(origin, index) IN %(places)s", {"places": found})


def named(client: Client, ids: Collection[str], sealed_us: int) -> dict[str, Record]:
    """What findings name, by its id: a place, or a decision id, which means the decision, or (where
    that is not there) an access that repeats it. `sealed_us` is when the finding was sealed."""
    places = {one: place for one in ids if (place := read_place(one))}
    found = {place_of(record): record for record in at(client, places.values())}
    decisions = sorted(set(ids) - set(places))
    if decisions:
        window = Window(_since(decisions), sealed_us + _DAY_US)
        condition = f"{_REQUESTS} AND decision_id IN %(ids)s AND {window.condition}"
        values = {"ids": decisions, **window.values}
        records = _select(client, condition, values)
        for record in sorted(records, key=lambda one: one.get("kind", "") != "decision"):
            found.setdefault(str(record["decision_id"]), record)
    return {one: found[one] for one in ids if one in found}


def _since(decisions: Iterable[str]) -> int | None:
    """A day (for clocks differ) before the first of these began; None if one does not tell. A UUID
    of version 7 begins with its time, in milliseconds."""
    told = [_UUID7.fullmatch(one) for one in decisions]
    first = min((int(form[1] + form[2], 16) if form else 0 for form in told), default=0)
    return first * 1000 - _DAY_US if first else None


def glass(client: Client, window: Window = EVER) -> list[Record]:
    """Uses of break-glass, their reviews, and the findings that told one as late."""
    return _select(client, f"({_GLASS}) AND {window.condition}", window.values, _NAMES)


def after(client: Client, told: Mapping[str, int], limit: int) -> list[Record]:
    """The first `limit` findings beyond those of index `told` in each log (all of a log that is not
    in it), in the order in which they were sealed."""
    found: list[Record] = []
    condition = f"{_RAISED} AND origin = %(origin)s AND index > %(told)s AND index < %(end)s"
    # `rows.select` has no limit of its own: the places come first, the records of few after them.
    query = f"SELECT DISTINCT index FROM audit_log WHERE {condition} ORDER BY index LIMIT %(limit)s"
    for origin, end in checkpoints.sizes(client).items():
        values = {"origin": origin, "told": told.get(origin, -1), "end": end, "limit": limit}
        places = [(origin, index) for (index,) in client.execute(query, values)]
        found += at(client, places)
    return sorted(found, key=_sealed)[:limit]


def _select(
    client: Client, condition: str, values: Mapping[str, Any], names: Sequence[str] = rows.NAMES
) -> list[Record]:
    by_place = {
        (record.get("origin"), record.get("index", 0)): record
        for record in rows.select(client, condition, values, names)
    }
    return sorted(by_place.values(), key=_sealed)


def _sealed(record: Record) -> tuple[Any, ...]:
    return record.get("sealed_at", 0), record.get("origin", ""), record.get("index", 0)
