"""Who saw a patient: what is asked of the database, of all logs.

Three kinds of record know it. A decision and its access have the patients that the request named, a
disclosure those whom the answer held; a request is all records of one `decision_id`, and a record
without one stands alone. A request known by its answer only has no patient in its decision and its
access, so these are fetched by the ids of what was found: never a join over the log.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.record import text

_COLUMNS = (
    "origin", "index", "kind", "time", "subject", "roles", "tenant", "purpose", "reason",
    "break_glass", "decision_id", "allowed", "enforced", "method", "path", "resource_type",
    "action", "source_ip", "status", "upstream",
)  # fmt: skip
_SELECTED = ", ".join(
    "toUnixTimestamp64Micro(time)" if name == "time" else f"`{name}`" for name in _COLUMNS
)
_KINDS = "kind IN ('decision', 'access', 'disclosure')"
_REQUEST = "if(decision_id = '', concat(origin, '/', toString(index)), decision_id)"
_NAMED = "hasAny(patients, %(tokens)s)"
# Envoy refuses by itself, without a decision, what it does not pass on.
_DENIED = (
    "kind != 'disclosure' AND NOT allowed AND (enforced OR (decision_id = '' AND upstream = ''))"
)

# An answer that was not read in full: the reason says why.
_UNRESOLVED = "kind = 'disclosure' AND reason_code != ''"

_AT_ONCE = 100  # of a bloom filter: with more ids nearly every granule may hold one of them
_APART_US = 600 * 1_000_000  # a request's records are sealed within this, nearly always


@dataclass(frozen=True, slots=True)
class Window:
    """From `since_us` on and before `until_us`, by the receiver's clock; None is without end."""

    since_us: int | None = None
    until_us: int | None = None

    @property
    def condition(self) -> str:
        bounds = (("since", ">=", self.since_us), ("until", "<", self.until_us))
        told = [
            f"sealed_at {sign} fromUnixTimestamp64Micro(%({name})s, 'UTC')"
            for name, sign, value in bounds
            if value is not None
        ]
        return " AND ".join(told) or "true"

    @property
    def values(self) -> dict[str, int]:
        told = {"since": self.since_us, "until": self.until_us}
        return {name: value for name, value in told.items() if value is not None}


EVER = Window()


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all requests that concern a patient. `first_us` is the earliest of their times."""

    requests: int
    people: int
    denied: int
    first_us: int


@dataclass(frozen=True, slots=True)
class Place:
    """A request that was found: the id of its decision, or of its one record that has none, and
    when the records that were found of it were sealed."""

    decision_id: str
    origin: str
    index: int
    first_us: int
    last_us: int


Row = dict[str, Any]
"""What a look-up needs of a record; `tokens` are those of its patients that were asked for."""


def totals(client: Client, tokens: Sequence[str], window: Window) -> Totals:
    """Counts over all that concerns a patient with one of `tokens`."""
    query = (
        f"SELECT uniqExact({_REQUEST}), uniqExactIf(subject, subject != ''),"
        f" uniqExactIf({_REQUEST}, {_DENIED}), toUnixTimestamp64Micro(min(time)) FROM audit_log"
        f" WHERE {_KINDS} AND {_NAMED} AND {window.condition}"
    )
    [row] = client.execute(query, {"tokens": list(tokens), **window.values})
    return Totals(*row)


def newest(client: Client, tokens: Sequence[str], window: Window, limit: int) -> list[Place]:
    """The requests that concern a patient with one of `tokens`, newest first, `limit` at most."""
    query = (
        "SELECT any((decision_id, origin, index)),"
        " toUnixTimestamp64Micro(min(sealed_at)), toUnixTimestamp64Micro(max(sealed_at))"
        f" FROM audit_log WHERE {_KINDS} AND {_NAMED} AND {window.condition}"
        f" GROUP BY {_REQUEST} AS request ORDER BY min(time) DESC, request DESC LIMIT %(limit)s"
    )
    values = {"tokens": list(tokens), "limit": limit, **window.values}
    found = client.execute(query, values)
    # An id that is no text (bytes) is none of ours: its record stands alone.
    return [
        Place(one if isinstance(one, str) else "", origin, index, first_us, last_us)
        for (one, origin, index), first_us, last_us in found
    ]


def records(client: Client, tokens: Sequence[str], places: Sequence[Place]) -> Iterator[Row]:
    """The decisions and accesses of requests, and those disclosures that hold one of `tokens`."""
    placed = sorted((place for place in places if place.decision_id), key=lambda p: p.first_us)
    alone = [place for place in places if not place.decision_id]
    for begin in range(0, len(placed), _AT_ONCE):
        some = placed[begin : begin + _AT_ONCE]
        near = Window(
            max(0, some[0].first_us - _APART_US), max(p.last_us for p in some) + _APART_US
        )
        found = list(_by_decision(client, tokens, [p.decision_id for p in some], near))
        yield from found
        # What began long before its answer ended: a bulk export, a stream.
        kinds: dict[str, set[str]] = {}
        for row in found:
            kinds.setdefault(row["decision_id"], set()).add(row["kind"])
        halves = {"decision", "access"}
        missing = [p.decision_id for p in some if not halves <= kinds.get(p.decision_id, set())]
        if missing:
            have = {(row["origin"], row["index"]) for row in found}
            for row in _by_decision(client, tokens, missing, EVER):
                if (row["origin"], row["index"]) not in have:
                    yield row
    if alone:
        yield from _by_place(client, tokens, alone)


def unresolved(client: Client, window: Window) -> int:
    """Answers of which it is not known in full whose data they held."""
    query = (
        f"SELECT uniqExact({_REQUEST}) FROM audit_log WHERE {_UNRESOLVED} AND {window.condition}"
    )
    [(count,)] = client.execute(query, window.values)
    return int(count)


def key_ids(client: Client, window: Window) -> set[str]:
    """The privacy keys under which patients are in the log: all of a record are under one."""
    query = (
        "SELECT DISTINCT splitByChar('.', patients[1])[1] FROM audit_log"
        f" WHERE {_KINDS} AND notEmpty(patients) AND {window.condition}"
    )
    return {_text(key_id) for (key_id,) in client.execute(query, window.values)}


def _by_decision(
    client: Client, tokens: Sequence[str], decision_ids: Sequence[str], window: Window
) -> Iterator[Row]:
    ids = {
        "name": "ids",
        "structure": [("id", "String")],
        "data": [{"id": one} for one in decision_ids],
    }
    condition = f"decision_id IN (SELECT id FROM ids) AND {window.condition}"
    return _read(client, tokens, condition, window.values, ids)


def _by_place(client: Client, tokens: Sequence[str], places: Sequence[Place]) -> Iterator[Row]:
    ids = {
        "name": "ids",
        "structure": [("origin", "String"), ("index", "UInt64")],
        "data": [{"origin": place.origin, "index": place.index} for place in places],
    }
    return _read(client, tokens, "(origin, index) IN (SELECT origin, index FROM ids)", {}, ids)


def _read(
    client: Client, tokens: Sequence[str], condition: str, values: dict[str, int], ids: Any
) -> Iterator[Row]:
    query = (
        f"SELECT {_SELECTED}, arrayIntersect(patients, %(tokens)s) FROM audit_log"
        f" WHERE {_KINDS} AND {condition} AND (kind != 'disclosure' OR {_NAMED})"
        " ORDER BY origin, index"
    )
    found = client.execute(query, {"tokens": list(tokens), **values}, external_tables=[ids])
    for row in found:
        yield dict(zip((*_COLUMNS, "tokens"), map(_text, row), strict=True))


def _text(value: Any) -> Any:
    """The driver gives bytes for what is no UTF-8, which nothing of ours wrote."""
    if isinstance(value, bytes):
        return text(value, len(value) * 4)
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value
