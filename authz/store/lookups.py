"""Who saw a patient: what is asked of the database, of all logs.

Three kinds of record know it. A decision and its access have the patients that the request named, a
disclosure those whom the answer held; a request is all records of one `decision_id`, and a record
without one stands alone. A request known by its answer only has no patient in its decision and its
access, so these are fetched by the ids of what was found: never a join over the log.
"""

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from clickhouse_driver import Client

from authz.record import text
from authz.store.client import BY_PATIENT, BY_PERSON

_COLUMNS = (
    "origin", "index", "kind", "time", "subject", "roles", "tenant", "purpose", "reason",
    "break_glass", "decision_id", "allowed", "enforced", "policy_revision", "method",
    "path", "resource_type", "action", "source_ip", "status", "upstream",
)  # fmt: skip
_SELECTED = ", ".join(
    "toUnixTimestamp64Micro(time)" if name == "time" else f"`{name}`" for name in _COLUMNS
)
KINDS = "kind IN ('decision', 'access', 'disclosure')"
REQUEST = "if(decision_id = '', concat(origin, '/', toString(index)), decision_id)"
_NAMED = "hasAny(patients, %(tokens)s)"
# Envoy refuses by itself, without a decision, what it does not pass on.
DENIED = (
    "kind != 'disclosure' AND NOT allowed AND (enforced OR (decision_id = '' AND upstream = ''))"
)

_ASKED_AT_ONCE = 10_000
_MONTH_US = 31 * 86_400 * 1_000_000
_APART_US = 600 * 1_000_000  # a request's records are sealed within this, nearly always
_MOST_KEYS = 20
_MOST_AT_ONCE = 20_000  # records of a patient, twice


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

    def cuts(self, found: "Found") -> bool:
        """Whether some of a request's records may lie outside."""
        return any(
            end - _APART_US <= at <= end + _APART_US
            for end in self.values.values()
            for at in (found.first_us, found.last_us)
        )


EVER = Window()


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all requests that concern a patient. `first_us` is the earliest of their times."""

    requests: int
    people: int
    denied: int
    first_us: int


@dataclass(frozen=True, slots=True)
class Answers:
    """Of all patients: whether there are disclosures, which say whose data answers held; and the
    number of answers of which they do not say it in full."""

    disclosures: bool
    unresolved: int


@dataclass(frozen=True, slots=True)
class Found:
    """A request that concerns a patient, and its records that name them (in the window)."""

    decision_id: str
    """Empty for a record that has none: it stands alone."""
    named: tuple[tuple[str, int, tuple[str, ...]], ...]
    """Their log and index, and the tokens in them that were asked for."""
    first_us: int
    last_us: int
    """When these were sealed."""


Row = dict[str, Any]
"""What a look-up needs of a record; `tokens` are those of its patients that were asked for."""


@dataclass(frozen=True, slots=True)
class Concerned:
    """What concerns a patient: the counts are of all, `requests` are the newest, newest first."""

    totals: Totals
    requests: list[Found]
    records: list[Row] | None = None
    """All that name the patient, unless these are very many."""


def concerning(
    client: Client, columns: str, condition: str, values: Mapping[str, Any], tail: str = ""
) -> list[tuple[Any, ...]]:
    """`columns` of the records that meet `condition` and have one of the patients `%(tokens)s`.
    `tail` is an order or a limit, of each half. Those whose first patient it is lie together; of
    the few others an index tells the blocks."""
    first, others = (f"{half} {tail}" for half in _halves(columns, condition))
    return [*client.execute(first, values, settings=BY_PATIENT), *client.execute(others, values)]


def all_concerning(columns: str, condition: str) -> str:
    """The same as a subquery, for what is too much to take in; it wants `ALL_BY_PATIENT`."""
    return f"({' UNION ALL '.join(_halves(columns, condition))})"


ALL_BY_PATIENT = {**BY_PATIENT, "use_skip_indexes": 1}


def _halves(columns: str, condition: str) -> tuple[str, str]:
    select = f"SELECT {columns} FROM audit_log WHERE {condition} AND"
    return f"{select} patients[1] IN %(tokens)s", (
        f"{select} hasAny(arraySlice(patients, 2), %(tokens)s) AND NOT has(%(tokens)s, patients[1])"
    )


def newest(client: Client, tokens: Sequence[str], window: Window, limit: int) -> Concerned:
    """The requests that concern a patient with one of `tokens`, newest first, `limit` at most; the
    counts are over all of them."""
    columns = (
        f"{_SELECTED}, arrayIntersect(patients, %(tokens)s), toUnixTimestamp64Micro(sealed_at)"
    )
    values = {"tokens": list(tokens), **window.values}
    condition = f"{KINDS} AND {window.condition}"
    rows = concerning(client, columns, condition, values, f"LIMIT {_MOST_AT_ONCE}")
    if len(rows) >= _MOST_AT_ONCE:
        return _newest_of_many(client, tokens, window, limit)
    records = [dict(zip((*_COLUMNS, "tokens", "sealed_at"), map(as_text, row), strict=True))
               for row in rows]  # fmt: skip
    requests: dict[str, list[Row]] = {}
    for one in records:
        requests.setdefault(request(one), []).append(one)
    by_time = sorted(
        ((min(one["time"] for one in own), name) for name, own in requests.items()),
        reverse=True,
    )
    subjects = {one["subject"] for one in records} - {""}
    refused = sum(any(map(_is_refused, own)) for own in requests.values())
    first_us = by_time[-1][0] if by_time else 0
    # An id that is no text (bytes) is none of ours, and nothing else has it.
    at = _COLUMNS.index("decision_id")
    foreign = {as_text(row[at]) for row in rows if isinstance(row[at], bytes)}
    found = [_found(requests[name], foreign) for _, name in by_time[:limit]]
    return Concerned(Totals(len(requests), len(subjects), refused, first_us), found, records)


def request(one: Row) -> str:
    """`REQUEST`."""
    return one["decision_id"] or f"{one['origin']}/{one['index']}"


def _is_refused(one: Row) -> bool:
    """`DENIED`."""
    decided = one["enforced"] or not (one["decision_id"] or one["upstream"])
    return bool(one["kind"] != "disclosure" and not one["allowed"] and decided)


def _found(own: Sequence[Row], foreign: Container[str]) -> Found:
    decision = own[0]["decision_id"]
    named = tuple((one["origin"], one["index"], tuple(one["tokens"])) for one in own)
    sealed = [one["sealed_at"] for one in own]
    return Found("" if decision in foreign else decision, named, min(sealed), max(sealed))


def _newest_of_many(client: Client, tokens: Sequence[str], window: Window, limit: int) -> Concerned:
    """`newest`, of a patient of whom there is too much to take it all in."""
    columns = (
        "origin, index, decision_id, time, sealed_at, subject, kind, allowed, enforced, upstream,"
        " arrayIntersect(patients, %(tokens)s) AS own"
    )
    query = (
        "SELECT id, named, toUnixTimestamp64Micro(first), toUnixTimestamp64Micro(last),"
        " count() OVER (), length(groupUniqArrayArray(subjects) OVER ()), countIf(refused) OVER (),"
        " toUnixTimestamp64Micro(min(at) OVER ()) FROM ("
        f"SELECT {REQUEST} AS request, any(decision_id) AS id, min(time) AS at,"
        " groupArray((origin, index, own)) AS named,"
        " min(sealed_at) AS first, max(sealed_at) AS last,"
        f" groupUniqArrayIf(subject, subject != '') AS subjects, countIf({DENIED}) > 0 AS refused"
        f" FROM {all_concerning(columns, f'{KINDS} AND {window.condition}')} GROUP BY request"
        ") ORDER BY at DESC, request DESC LIMIT %(limit)s"
    )
    values = {"tokens": list(tokens), "limit": limit, **window.values}
    rows = client.execute(query, values, settings=ALL_BY_PATIENT)
    found = [
        # An id that is no text (bytes) is none of ours, and nothing else has it.
        Found(one if isinstance(one, str) else "", tuple(as_text(named)), first_us, last_us)
        for one, named, first_us, last_us, *_ in rows
    ]
    return Concerned(Totals(*rows[0][4:]) if rows else Totals(0, 0, 0, 0), found)


def records(
    client: Client, tokens: Sequence[str], concerned: Concerned, window: Window
) -> Iterator[Row]:
    """The decisions and accesses of the requests, and those of their disclosures that name a
    patient.

    Patients are the widest column by far, and are not read again where that tells nothing new: it
    does of a request that is only in part in `window`.
    """
    requests = concerned.requests
    known = {(origin, index): own for found in requests for origin, index, own in found.named}
    reading = _Reading(client, tokens, known, anew=window != EVER)
    halves: dict[str, set[str]] = {}
    seen = set()

    def told(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            halves.setdefault(row["decision_id"], set()).add(row["kind"])
            place = (row["origin"], row["index"])
            if place not in seen:
                seen.add(place)
                yield row

    def is_whole(found: Found) -> bool:
        return {"decision", "access"} <= halves.get(found.decision_id, set())

    named = concerned.records
    yield from told(_at(known, reading.named(requests) if named is None else named))
    decided = [found for found in requests if found.decision_id]
    # Of the others a half has no patient, or an end of the window is between its records.
    apart = [found for found in decided if window.cuts(found) or not is_whole(found)]
    for some in _parts(apart):
        yield from told(reading.near(some))
    # What began long before its answer ended: a bulk export, a stream.
    for ids in _parts([found.decision_id for found in apart if not is_whole(found)]):
        yield from told(reading.anywhere(ids))


T = TypeVar("T")


def _parts(whole: Sequence[T]) -> Iterator[Sequence[T]]:
    return (whole[at : at + _ASKED_AT_ONCE] for at in range(0, len(whole), _ASKED_AT_ONCE))


class _Reading:
    """Reads records of requests, by what is known of these; `known` has the tokens by place."""

    def __init__(
        self, client: Client, tokens: Sequence[str], known: dict[tuple[str, int], tuple[str, ...]],
        *, anew: bool,
    ) -> None:  # fmt: skip
        self._client = client
        self._tokens = list(tokens)
        self._known = known
        self._anew = anew

    def near(self, requests: Sequence[Found]) -> Iterator[Row]:
        """Those that were sealed about when the requests' known ones were."""
        ids = [{"id": found.decision_id} for found in requests]
        # Every ten minutes: the skip index of `sealed_at` leaves out nearly all of the table.
        step = _APART_US
        steps = {
            near
            for found in requests
            for time_us in (found.first_us, found.last_us)
            for near in range(max(0, time_us // step - 1), time_us // step + 2)
        }
        begun = [{"at": near * step // 1_000_000} for near in sorted(steps)]
        begun = [one for one in begun if one["at"] < 1 << 32]  # as long as DateTime reaches
        times = _table("times", "at UInt32", begun)
        condition = (
            "decision_id IN (SELECT id FROM ids)"
            " AND toStartOfTenMinutes(sealed_at) IN (SELECT toDateTime(at, 'UTC') FROM times)"
        )
        return self._read(condition, [_table("ids", "id String", ids), times])

    def anywhere(self, decision_ids: Sequence[str]) -> Iterator[Row]:
        ids = _table("ids", "id String", [{"id": one} for one in decision_ids])
        return self._read("decision_id IN (SELECT id FROM ids)", [ids])

    def named(self, requests: Sequence[Found]) -> Iterator[Row]:
        """Those that name a patient, of these and of the requests about then."""
        if not requests:
            return iter(())
        lasted = Window(
            min(one.first_us for one in requests), max(one.last_us for one in requests) + 1
        )
        condition = f"{KINDS} AND {_NAMED} AND {lasted.condition}"
        return self._rows(f"SELECT {_SELECTED}, [] FROM audit_log WHERE {condition}", lasted.values)

    def _read(self, condition: str, tables: Sequence[Any]) -> Iterator[Row]:
        tokens, telling_one = "[]", "(origin, index) IN (SELECT origin, index FROM telling)"
        if self._anew:
            tokens, telling_one = "arrayIntersect(patients, %(tokens)s)", _NAMED
        query = (
            f"SELECT {_SELECTED}, {tokens} FROM audit_log WHERE {KINDS} AND {condition}"
            f" AND (kind != 'disclosure' OR {telling_one}) ORDER BY origin, index"
        )
        named = [{"origin": origin, "index": index} for origin, index in self._known]
        telling = _table("telling", "origin String, index UInt64", named)
        return self._rows(query, {}, [*tables, telling])

    def _rows(
        self, query: str, values: Mapping[str, object], tables: Sequence[Any] = ()
    ) -> Iterator[Row]:
        values = {"tokens": self._tokens, **values}
        for row in self._client.execute(query, values, external_tables=list(tables)):
            record = dict(zip((*_COLUMNS, "tokens"), map(as_text, row), strict=True))
            place = (record["origin"], record["index"])
            yield record | {"tokens": record["tokens"] or self._known.get(place, ())}


def unresolved(client: Client, window: Window) -> Answers:
    """How far it is known whose data answers held. Answers that were to be shown and were not have
    no record of their own: the log tells them as gaps."""
    query = (
        "SELECT sumIf(told, event = 'gap') - sumIf(told, event = 'gap_closed') FROM"
        " (SELECT DISTINCT origin, index, event,"
        "  toInt64(JSONExtractUInt(details, 'count')) AS told FROM audit_log"
        "  WHERE kind = 'notice' AND rule = 'no_disclosure' AND writer_seq = 0"
        f"  AND event IN ('gap', 'gap_closed') AND {window.condition})"
    )
    [(gaps,)] = client.execute(query, window.values)
    query = (
        f"SELECT uniqExact({REQUEST}) FROM audit_log"
        f" WHERE kind = 'disclosure' AND NOT complete AND {window.condition}"
    )
    [(found,)] = client.execute(query, window.values)
    until = window.until_us or time.time_ns() // 1000
    lately = Window(max(until - _MONTH_US, window.since_us or 0), window.until_us)
    some = "SELECT 1 FROM audit_log WHERE kind = 'disclosure' AND {} LIMIT 1"
    told = any(
        client.execute(some.format(part.condition), part.values) for part in (lately, window)
    )
    return Answers(told, found + max(gaps, 0))


def other_keys(client: Client, known: Iterable[str], window: Window) -> set[str]:
    """The privacy keys under which patients are in the logs, `_MOST_KEYS` at most, other than those
    that are `known`. All patients of a record are under one, by which records lie together."""
    found: set[str] = set()
    for _ in range(_MOST_KEYS):
        values = {f"key{number}": key for number, key in enumerate({*known, *found})}
        told = [
            f"NOT startsWith(patients[1], concat(%({name})s, '.')) AND patients[1] != %({name})s"
            for name in values
        ]
        # What is no token, or no text, hides none of the keys.
        mine = ["patients[1] != ''", "isValidUTF8(patients[1])", *told, window.condition]
        query = f"SELECT patients[1] FROM audit_log WHERE {' AND '.join(mine)} LIMIT 1"
        rows = client.execute(query, {**values, **window.values}, settings=BY_PATIENT)
        if not rows:
            break
        found.add(rows[0][0].partition(".")[0])
    return found


def of_person(
    client: Client, subject: str, window: Window, limit: int
) -> tuple[Totals, Iterator[Row]]:
    """Counts over all requests of a person, and the records of the newest `limit` of them; `tokens`
    are all of their patients."""
    query = (
        "SELECT places, toUnixTimestamp64Micro(first), toUnixTimestamp64Micro(last),"
        " count() OVER (), 1, countIf(refused) OVER (), toUnixTimestamp64Micro(min(at) OVER ())"
        " FROM ("
        f"SELECT {REQUEST} AS request, min(time) AS at, groupArray((origin, index)) AS places,"
        " min(sealed_at) AS first, max(sealed_at) AS last,"
        f" countIf({DENIED}) > 0 AS refused FROM audit_log"
        f" WHERE {KINDS} AND subject = %(subject)s AND {window.condition} GROUP BY request"
        ") ORDER BY at DESC, request DESC LIMIT %(limit)s"
    )
    values = {"subject": subject, "limit": limit, **window.values}
    rows = client.execute(query, values, settings=BY_PERSON)
    if not rows:
        return Totals(0, 0, 0, 0), iter(())
    lasted = Window(min(row[1] for row in rows), max(row[2] for row in rows) + 1)
    places = {tuple(place) for row in rows for place in as_text(row[0])}
    return Totals(*rows[0][3:]), _whole(client, subject, places, lasted)


def _whole(
    client: Client, subject: str, places: Container[tuple[str, int]], lasted: Window
) -> Iterator[Row]:
    query = (
        f"SELECT {_SELECTED}, patients FROM audit_log WHERE {KINDS} AND subject = %(subject)s"
        f" AND {lasted.condition}"
    )
    rows = client.execute(query, {"subject": subject, **lasted.values}, settings=BY_PERSON)
    yield from _at(
        places, (dict(zip((*_COLUMNS, "tokens"), map(as_text, row), strict=True)) for row in rows)
    )


def _at(places: Container[tuple[str, int]], rows: Iterable[Row]) -> list[Row]:
    """Those of `rows` that are at these places, in log order. Were the database asked for places or
    for order, it would read them one by one and not as they lie together."""
    here = [row for row in rows if (row["origin"], row["index"]) in places]
    return sorted(here, key=lambda row: (row["origin"], row["index"]))


def _table(name: str, structure: str, data: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What is sent beside a query, whose own text has a bound."""
    columns = [tuple(column.split(" ")) for column in structure.split(", ")]
    return {"name": name, "structure": columns, "data": list(data)}


def as_text(value: Any) -> Any:
    """The driver gives bytes for what is no UTF-8, which nothing of ours wrote."""
    if isinstance(value, bytes):
        return text(value, len(value) * 4)
    if isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    return value
