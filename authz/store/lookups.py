"""Who saw a patient: what is asked of the database, of all logs.

Three kinds of record know it. A decision and its access have the patients that the request named, a
disclosure those whom the answer held; a request is all records of one `decision_id`, and a record
without one stands alone. A request known by its answer only has no patient in its decision and its
access, so these are fetched by the ids of what was found: never a join over the log.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.record import text

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

# A disclosure of an answer that was not read in full: `reason_code` says why.
_UNRESOLVED = "NOT complete"

_ASKED_AT_ONCE = 10_000
_APART_US = 600 * 1_000_000  # a request's records are sealed within this, nearly always
_SPOTS, _SPOT = (
    64,
    100,
)  # where in a log it is looked which keys there are: so many, of so many rows


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
class Answers:
    """Of all patients: `disclosures` say whose data answers held; `unresolved` is the number of
    answers of which they do not say it in full."""

    disclosures: int
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


def totals(client: Client, tokens: Sequence[str], window: Window) -> Totals:
    """Counts over all that concerns a patient with one of `tokens`."""
    query = (
        f"SELECT uniqExact({REQUEST}), uniqExactIf(subject, subject != ''),"
        f" uniqExactIf({REQUEST}, {DENIED}), toUnixTimestamp64Micro(min(time)) FROM audit_log"
        f" WHERE {KINDS} AND {_NAMED} AND {window.condition}"
    )
    [row] = client.execute(query, {"tokens": list(tokens), **window.values})
    return Totals(*row)


def newest(client: Client, tokens: Sequence[str], window: Window, limit: int) -> list[Found]:
    """The requests that concern a patient with one of `tokens`, newest first, `limit` at most."""
    query = (
        "SELECT any(decision_id),"
        " groupArray((origin, index, arrayIntersect(patients, %(tokens)s))),"
        " toUnixTimestamp64Micro(min(sealed_at)), toUnixTimestamp64Micro(max(sealed_at))"
        f" FROM audit_log WHERE {KINDS} AND {_NAMED} AND {window.condition}"
        f" GROUP BY {REQUEST} AS request ORDER BY min(time) DESC, request DESC LIMIT %(limit)s"
    )
    values = {"tokens": list(tokens), "limit": limit, **window.values}
    return [
        # An id that is no text (bytes) is none of ours, and nothing else has it.
        Found(one if isinstance(one, str) else "", tuple(as_text(named)), first_us, last_us)
        for one, named, first_us, last_us in client.execute(query, values)
    ]


def records(
    client: Client, tokens: Sequence[str], requests: Sequence[Found], window: Window
) -> Iterator[Row]:
    """The decisions and accesses of `requests`, and those of their disclosures that name a patient.

    Patients are the widest column by far, and are not read again where that tells nothing new: it
    does of a request that is only in part in `window`.
    """
    known = {(origin, index): own for found in requests for origin, index, own in found.named}
    reading = _Reading(client, tokens, known, anew=window != EVER)
    decided = [found for found in requests if found.decision_id]
    for begin in range(0, len(decided), _ASKED_AT_ONCE):
        some = {found.decision_id: found for found in decided[begin : begin + _ASKED_AT_ONCE]}
        halves: dict[str, set[str]] = {}
        seen = set()
        for row in reading.near(list(some.values())):
            halves.setdefault(row["decision_id"], set()).add(row["kind"])
            seen.add((row["origin"], row["index"]))
            yield row
        # What began long before its answer ended: a bulk export, a stream.
        both = {"decision", "access"}
        missing = [one for one in some if not both <= halves.get(one, set())]
        for row in reading.anywhere(missing):
            if (row["origin"], row["index"]) not in seen:
                yield row
    alone = [found.named for found in requests if not found.decision_id]
    yield from reading.at([(origin, index) for named in alone for origin, index, _ in named])


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
        return (
            self._read("decision_id IN (SELECT id FROM ids)", [ids]) if decision_ids else iter(())
        )

    def at(self, places: Sequence[tuple[str, int]]) -> Iterator[Row]:
        data = [{"origin": origin, "index": index} for origin, index in places]
        table = _table("places", "origin String, index UInt64", data)
        condition = "(origin, index) IN (SELECT origin, index FROM places)"
        return self._read(condition, [table]) if places else iter(())

    def _read(self, condition: str, tables: Sequence[Any]) -> Iterator[Row]:
        named = [{"origin": origin, "index": index} for origin, index in self._known]
        telling = _table("telling", "origin String, index UInt64", named)
        tokens, telling_one = "[]", "(origin, index) IN (SELECT origin, index FROM telling)"
        if self._anew:
            tokens, telling_one = "arrayIntersect(patients, %(tokens)s)", _NAMED
        query = (
            f"SELECT {_SELECTED}, {tokens} FROM audit_log WHERE {KINDS} AND {condition}"
            f" AND (kind != 'disclosure' OR {telling_one}) ORDER BY origin, index"
        )
        values = {"tokens": self._tokens}
        for row in self._client.execute(query, values, external_tables=[*tables, telling]):
            record = dict(zip((*_COLUMNS, "tokens"), map(as_text, row), strict=True))
            place = (record["origin"], record["index"])
            yield record | {"tokens": record["tokens"] or self._known.get(place, ())}


def unresolved(client: Client, window: Window) -> Answers:
    """How far it is known whose data answers held. Answers that were to be shown and were not have
    no record of their own: the log tells them as gaps."""
    untold = (
        "SELECT sumIf(told, event = 'gap') - sumIf(told, event = 'gap_closed') FROM"
        " (SELECT DISTINCT origin, index, event, toInt64(JSONExtractUInt(details, 'count')) AS told"
        "  FROM audit_log WHERE kind = 'notice' AND rule = 'no_disclosure' AND writer_seq = 0"
        f" AND event IN ('gap', 'gap_closed') AND {window.condition})"
    )
    [(gaps,)] = client.execute(untold, window.values)
    query = (
        f"SELECT count(), uniqExactIf({REQUEST}, {_UNRESOLVED}) FROM audit_log"
        f" WHERE kind = 'disclosure' AND {window.condition}"
    )
    [(disclosures, found)] = client.execute(query, window.values)
    return Answers(disclosures, found + max(gaps, 0))


def key_ids(client: Client, window: Window) -> set[str]:
    """The privacy keys under which patients are in the logs, from a sample: 64 places of each log.
    A key is in use for long, and all patients of a record are under one."""
    ends = (
        f"SELECT origin, min(index), max(index) FROM audit_log WHERE {window.condition}"
        " GROUP BY origin"
    )
    query = (
        "SELECT DISTINCT splitByChar('.', patients[1])[1] FROM audit_log"
        f" WHERE {KINDS} AND notEmpty(patients) AND {window.condition}"
        " AND origin = %(origin)s AND index IN (SELECT index FROM spots)"
    )
    found = set()
    for origin, first, last in client.execute(ends, window.values):
        apart = max(_SPOT, (last - first) // _SPOTS)
        spots = {
            index
            for spot in range(first, last + 1, apart)
            for index in range(spot, min(spot + _SPOT, last + 1))
        } | set(range(max(first, last - _SPOT), last + 1))
        table = _table("spots", "index UInt64", [{"index": index} for index in sorted(spots)])
        values = {"origin": as_text(origin), **window.values}
        found |= {as_text(one) for (one,) in client.execute(query, values, external_tables=[table])}
    return found


def of_person(
    client: Client, subject: str, window: Window, limit: int
) -> tuple[Totals, Iterator[Row]]:
    """Counts over all requests of a person, and the records of the newest `limit` of them; `tokens`
    are all of their patients."""
    counts = (
        f"SELECT uniqExact({REQUEST}), 1, uniqExactIf({REQUEST}, {DENIED}),"
        " toUnixTimestamp64Micro(min(time)) FROM audit_log"
        f" WHERE {KINDS} AND subject = %(subject)s AND {window.condition}"
    )
    query = (
        "SELECT groupArray((origin, index)) FROM audit_log"
        f" WHERE {KINDS} AND subject = %(subject)s AND {window.condition}"
        f" GROUP BY {REQUEST} AS request ORDER BY min(time) DESC, request DESC LIMIT %(limit)s"
    )
    values = {"subject": subject, "limit": limit, **window.values}
    [counted] = client.execute(counts, values)
    places = [place for (one,) in client.execute(query, values) for place in one]
    return Totals(*counted), _whole(client, places)


def _whole(client: Client, places: Sequence[tuple[str, int]]) -> Iterator[Row]:
    query = (
        f"SELECT {_SELECTED}, patients FROM audit_log"
        " WHERE (origin, index) IN (SELECT origin, index FROM places) ORDER BY origin, index"
    )
    for begin in range(0, len(places), _ASKED_AT_ONCE):
        data = [
            {"origin": origin, "index": index}
            for origin, index in places[begin : begin + _ASKED_AT_ONCE]
        ]
        table = _table("places", "origin String, index UInt64", data)
        for row in client.execute(query, external_tables=[table]):
            yield dict(zip((*_COLUMNS, "tokens"), map(as_text, row), strict=True))


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
