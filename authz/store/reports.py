"""What reports ask of the database, of all logs, beyond what a look-up asks (`lookups`).

Errors are `authz.store.client.QUERY_ERRORS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.record import Record
from authz.store import rows
from authz.store.client import BY_PERSON
from authz.store.lookups import DENIED, KINDS, REQUEST, Window, as_text

# A person's requests. All records of one have its subject; whom it named is known from its decision
# and access, whom its answer held from its disclosures.
_BY_REQUEST = (
    "SELECT min(time) AS at, countIf({denied}) > 0 AS refused,"
    " countIf(kind = 'disclosure' OR upstream != '') > 0 AS answered,"
    " maxIf(status, kind = 'access') AS got,"
    " countIf(kind = 'disclosure' AND NOT complete) > 0 AS unresolved,"
    " groupUniqArrayArrayIf(patients, kind != 'disclosure') AS named,"
    " groupUniqArrayArrayIf(patients, kind = 'disclosure') AS held,"
    " groupUniqArrayIf(toString(resource_type), resource_type != '') AS types,"
    " groupUniqArrayIf(toString(action), action != '') AS actions"
    " FROM audit_log WHERE {kinds} AND subject = %(subject)s AND {window} GROUP BY {request}"
)
_AFFECTED = (
    "SELECT token, count(), toUnixTimestamp64Micro(min(at)), toUnixTimestamp64Micro(max(at)),"
    " countIf(has(held, token)), countIf(answered),"
    " arraySort(groupUniqArrayArray(types)), arraySort(groupUniqArrayArray(actions))"
    " FROM ({requests})"
    " ARRAY JOIN arrayDistinct(arrayConcat(held, if(refused OR got >= 400, [], named))) AS token"
    " GROUP BY token ORDER BY min(at), token"
)
_ATTEMPTS = (
    "SELECT count(), countIf(refused), countIf(NOT refused AND got >= 400), countIf(unresolved)"
    " FROM ({requests})"
)
# Told by the receiver itself, as its own account; a row that is there twice is told once.
_GAPS = (
    "SELECT rule, sumIf(told, event = 'gap') - sumIf(told, event = 'gap_closed') AS open FROM"
    " (SELECT DISTINCT origin, index, event, toString(rule) AS rule,"
    "  toInt64(JSONExtractUInt(details, 'count')) AS told FROM audit_log"
    "  WHERE kind = 'notice' AND writer_seq = 0 AND event IN ('gap', 'gap_closed') AND {window})"
    " GROUP BY rule HAVING open > 0 ORDER BY rule"
)
_COUNTS = (
    "SELECT countIf(kind = 'decision'), countIf(kind = 'decision' AND allowed),"
    " countIf(kind = 'decision' AND NOT enforced), countIf(kind = 'access'),"
    " countIf(kind = 'disclosure'), uniqExactIf(subject, kind = 'decision' AND subject != '')"
    " FROM audit_log WHERE {kinds} AND {window}"
)
_DENIALS = (
    "SELECT reason_code, reason, count() AS times, uniqExact(subject) FROM audit_log"
    " WHERE kind = 'decision' AND NOT allowed AND {window}"
    " GROUP BY reason_code, reason ORDER BY times DESC, reason_code, reason LIMIT %(limit)s"
)
_PURPOSES = (
    "SELECT purpose, count() AS times, uniqExact(subject) FROM audit_log"
    " WHERE kind = 'decision' AND allowed AND {window}"
    " GROUP BY purpose ORDER BY times DESC, purpose"
)
_NOTICES = (
    "SELECT event, count() FROM audit_log WHERE kind = 'notice' AND {window}"
    " GROUP BY event ORDER BY event"
)
_LOOKS = (
    "SELECT JSONExtractString(details, 'command') AS command, subject,"
    " sum(greatest(JSONExtractUInt(details, 'times'), 1)) AS times"
    " FROM audit_log WHERE kind = 'notice' AND event = 'look' AND {window}"
    " GROUP BY command, subject ORDER BY times DESC, command, subject LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True)
class Affected:
    """A patient whose data a person may have got. Times are microseconds since the epoch, UTC."""

    token: str
    requests: int
    first_us: int
    last_us: int
    held: int
    """How many answers held their data, as disclosures say."""
    answered: int
    """Of how many requests an answer was seen."""
    resource_types: tuple[str, ...]
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempts:
    """All requests of a person: `denied` and `failed` ones gave nothing away, of `unresolved`
    answers it is not known in full whose data they held."""

    requests: int
    denied: int
    failed: int
    unresolved: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a time, in records."""

    decisions: int
    allowed: int
    unenforced: int
    accesses: int
    disclosures: int
    people: int


def affected(client: Client, subject: str, window: Window) -> tuple[Attempts, list[Affected]]:
    """The patients whom answers to `subject` held, or whom requests named that were not refused:
    the earliest first."""
    requests = _BY_REQUEST.format(
        denied=DENIED, kinds=KINDS, window=window.condition, request=REQUEST
    )
    values = {"subject": subject, **window.values}
    [counted] = client.execute(_ATTEMPTS.format(requests=requests), values, settings=BY_PERSON)
    found = client.execute(_AFFECTED.format(requests=requests), values, settings=BY_PERSON)
    return Attempts(*counted), [
        Affected(as_text(token), *row[:-2], *(tuple(map(as_text, names)) for names in row[-2:]))
        for token, *row in found
    ]


def gaps(client: Client, window: Window) -> dict[str, int]:
    """What the logs tell as missing and did not come later, by kind."""
    rows_ = client.execute(_GAPS.format(window=window.condition), window.values)
    return {as_text(rule): int(count) for rule, count in rows_}


def notices(
    client: Client, events: Sequence[str], window: Window, tokens: Sequence[str] = ()
) -> list[Record]:
    """The notices of `events`, those about a patient with one of `tokens` if there are any, in the
    order in which they were sealed."""
    condition = f"kind = 'notice' AND event IN %(events)s AND {window.condition}"
    condition += " AND hasAny(patients, %(tokens)s)" if tokens else ""
    values = {"events": list(events), "tokens": list(tokens), **window.values}
    found = {
        (record.get("origin"), record.get("index", 0)): record
        for record in rows.select(client, condition, values)
    }
    return sorted(found.values(), key=_sealed)


def counts(client: Client, window: Window) -> Counts:
    [row] = client.execute(_COUNTS.format(kinds=KINDS, window=window.condition), window.values)
    return Counts(*row)


def denials(client: Client, window: Window, limit: int) -> list[tuple[str, str, int, int]]:
    """The most frequent: reason code, reason, how often, to how many people."""
    return _told(client, _DENIALS, window, limit)


def purposes(client: Client, window: Window) -> list[tuple[str, int, int]]:
    """Of what was allowed: purpose, how often, to how many people."""
    return _told(client, _PURPOSES, window)


def events(client: Client, window: Window) -> list[tuple[str, int]]:
    """How many notices of each kind there are."""
    return _told(client, _NOTICES, window)


def looks(client: Client, window: Window, limit: int) -> list[tuple[str, str, int]]:
    """Looks at the log itself: command, who, how often."""
    return _told(client, _LOOKS, window, limit)


def _told(client: Client, query: str, window: Window, limit: int = 0) -> list[Any]:
    values = {"limit": limit, **window.values}
    found = client.execute(query.format(window=window.condition), values)
    return [tuple(map(as_text, row)) for row in found]


def _sealed(record: Record) -> tuple[Any, ...]:
    return record.get("sealed_at", 0), record.get("origin", ""), record.get("index", 0)
