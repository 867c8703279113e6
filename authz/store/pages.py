"""What the console's pages ask of the database. Each question reads a bounded time or few rows.

Times are microseconds since the epoch, UTC. Errors are `authz.store.client.QUERY_ERRORS`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clickhouse_driver import Client

from authz.record import Record, details_of
from authz.store import checkpoints, reports, rows
from authz.store.client import BY_PERSON
from authz.store.lookups import EVER, KINDS, REQUEST, Window, as_text, concerning

_HOUR_US = 3_600 * 1_000_000
_DAY_US = 24 * _HOUR_US
_HALF_A_YEAR_US = 180 * _DAY_US
_APART_US = 600 * 1_000_000  # the records of one request are sealed within this, nearly always
_LISTED = (
    "origin", "index", "sealed_at", "time", "kind", "subject", "roles", "tenant", "purpose",
    "reason", "break_glass", "allowed", "enforced", "reason_code", "action", "resource_type",
    "method", "path", "patients", "source_ip", "country", "status", "decision_id", "upstream",
)  # fmt: skip
_SELECTED = ", ".join(
    f"toUnixTimestamp64Micro({name})" if name in ("time", "sealed_at") else f"`{name}`"
    for name in _LISTED
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filters:
    """What records are searched by; empty is any. `patients` are tokens, of which one is enough."""

    subject: str = ""
    patients: tuple[str, ...] = ()
    role: str = ""
    tenant: str = ""
    resource_type: str = ""
    resource_id: str = ""
    """As it is recorded: a patient's is their token."""
    reason: str = ""
    """Part of the stated reason."""
    reason_code: str = ""
    decision: str = ""
    """``allowed``, ``denied`` or ``break_glass``."""
    country: str = ""
    source_ip: str = ""

    @property
    def condition(self) -> str:
        told = [_CONDITIONS[name] for name, value in asdict(self).items() if value]
        return " AND ".join(told)

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self) | {"patients": list(self.patients)}

    @property
    def names_somebody(self) -> bool:
        """A person or a patient, whose records lie together."""
        return bool(self.subject or self.patients)


ANY = Filters()
_CONDITIONS = {
    "subject": "subject = %(subject)s",
    "patients": "hasAny(patients, %(patients)s)",
    "role": "has(roles, %(role)s)",
    "tenant": "tenant = %(tenant)s",
    "resource_type": "resource_type = %(resource_type)s",
    "resource_id": "resource_id = %(resource_id)s",
    "reason": "positionCaseInsensitiveUTF8(reason, %(reason)s) > 0",
    "reason_code": "reason_code = %(reason_code)s",
    "decision": (
        "kind != 'disclosure' AND"
        " multiIf(%(decision)s = 'allowed', allowed, %(decision)s = 'denied', NOT allowed,"
        " %(decision)s = 'break_glass', break_glass, false)"
    ),
    "country": "country = %(country)s",
    "source_ip": "source_ip = %(source_ip)s",
}
# Of a request the decision is listed, and what has none stands for itself.
_REQUESTS = "(kind = 'decision' OR (kind = 'access' AND decision_id = ''))"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands in the order in which they are listed."""

    sealed_at: int
    origin: str
    index: int

    @property
    def condition(self) -> str:
        """Of those that are listed after it."""
        at = "fromUnixTimestamp64Micro(%(after_time)s, 'UTC')"
        return (
            f"(sealed_at < {at} OR (sealed_at = {at} AND (origin > %(after_origin)s"
            " OR (origin = %(after_origin)s AND index < %(after_index)s))))"
        )

    @property
    def values(self) -> dict[str, Any]:
        at = {"after_time": self.sealed_at, "after_origin": self.origin}
        return at | {"after_index": self.index}


def search(
    client: Client, filters: Filters, window: Window, limit: int, after: Place | None = None
) -> list[Row]:
    """The newest requests, newest first, `limit` at most; those that are listed `after` one."""
    others = replace(filters, patients=()).condition
    conditions = (_REQUESTS, window.condition, others, after.condition if after else "")
    condition = " AND ".join(filter(None, conditions))
    order = "ORDER BY sealed_at DESC, origin, index DESC LIMIT %(limit)s"
    values = {**filters.values, **window.values, **(after.values if after else {}), "limit": limit}
    if filters.patients:
        values["tokens"] = values["patients"]
        rows = concerning(client, _SELECTED, condition, values, order)
    else:
        query = f"SELECT {_SELECTED} FROM audit_log WHERE {condition} {order}"
        rows = client.execute(query, values, settings=BY_PERSON if filters.subject else None)
    found = [dict(zip(_LISTED, map(as_text, row), strict=True)) for row in rows]
    found.sort(key=lambda one: (-one["sealed_at"], one["origin"], -one["index"]))
    return found[:limit]


def request(client: Client, origin: str, index: int) -> list[Record]:
    """The record at a place and those of the same request, in the order in which they were sealed;
    none if there is no such record."""
    found = list(rows.read(client, "audit_log", origin, index, index + 1))
    if not found:
        return []
    decision = found[0].get("decision_id")
    if not decision:
        return found[:1]
    sealed: Any = found[0].get("sealed_at", 0)
    window = Window(sealed - _APART_US, sealed + _APART_US)
    condition = f"decision_id = %(id)s AND {window.condition}"
    others = rows.select(client, condition, {"id": decision, **window.values})
    by_place = {(one.get("origin"), one.get("index", 0)): one for one in (*found, *others)}
    return sorted(by_place.values(), key=lambda one: (one["sealed_at"], one.get("index", 0)))


@dataclass(frozen=True, slots=True)
class Overview:
    """How things stand."""

    hours: list[tuple[int, int, int]]
    """Time, allowed and denied requests of each hour that has any, oldest first."""
    reasons: list[tuple[str, str, int]]
    """Why requests were denied: code, reason, how often, the most frequent first."""
    latency_us: tuple[float, float, float]
    """Of requests to the service: half, 95 and 99 of a hundred were faster."""
    gaps: int
    matched: int
    decided: int
    """Decisions of the intervals that are over, and those of them that have their access."""
    logs: list[tuple[str, int, int]]
    """Each log, the records that its newest checkpoint has, and when this was written."""
    since: int
    """When the first record that is there was sealed."""
    unexplained: tuple[str, int, int] | None
    """A day, accesses to charts on it, and how many no feed explains."""


def overview(client: Client, now_us: int, hours: int = 24) -> Overview:
    """Of the last `hours`."""
    since = now_us - hours * _HOUR_US
    window = Window(since)
    counted = client.execute(
        "SELECT toUnixTimestamp(hour) * 1000000 AS at, sumIf(decisions, allowed),"
        " sumIf(decisions, NOT allowed) FROM activity_hourly"
        " WHERE hour >= toStartOfHour(fromUnixTimestamp64Micro(%(since)s, 'UTC'))"
        " GROUP BY at ORDER BY at",
        {"since": since},
    )
    reasons = client.execute(
        "SELECT reason_code, reason, count() AS number FROM audit_log WHERE kind = 'decision'"
        f" AND NOT allowed AND {window.condition}"
        " GROUP BY reason_code, reason ORDER BY number DESC, reason LIMIT 8",
        window.values,
    )
    [latency] = client.execute(
        "SELECT quantiles(0.5, 0.95, 0.99)(duration_us) FROM audit_log WHERE kind = 'access'"
        f" AND upstream != '' AND {window.condition}",
        window.values,
    )
    quantiles = [0.0 if math.isnan(one) else float(one) for one in latency[0]]  # of no rows
    matched, decided = _accounts(client, window)
    gaps = sum(reports.gaps(client, window).values())
    logs = checkpoints.newest(client)
    return Overview(
        [(int(at), int(yes), int(no)) for at, yes, no in counted],
        [(as_text(code), as_text(reason), number) for code, reason, number in reasons],
        (quantiles[0], quantiles[1], quantiles[2]),
        gaps, matched, decided, [(one.origin, one.size, one.written_at) for one in logs],
        _first(client, [one.origin for one in logs]), _unexplained(client, now_us),
    )  # fmt: skip


def _accounts(client: Client, window: Window) -> tuple[int, int]:
    """Matched and all decisions, as the logs tell them themselves."""
    told = [
        details_of(one)
        for one in rows.select(
            client,
            "kind = 'notice' AND event = 'interval_summary' AND writer_seq = 0"
            f" AND {window.condition}",
            window.values,
        )
    ]
    return sum(int(one.get("matched", 0)) for one in told), sum(
        int(one.get("decisions", 0)) for one in told
    )


def _first(client: Client, origins: Sequence[str]) -> int:
    """When the first record that is there was sealed; 0 if none is. Each log's is found by its
    order."""
    query = (
        "SELECT toUnixTimestamp64Micro(sealed_at) FROM audit_log WHERE origin = %(origin)s"
        " ORDER BY origin, index LIMIT 1"
    )
    firsts = [int(at) for origin in origins for (at,) in client.execute(query, {"origin": origin})]
    return min(firsts, default=0)


def _unexplained(client: Client, now_us: int) -> tuple[str, int, int] | None:
    """As it was last told: each day it is, where `authz watch` runs."""
    for (details,) in _notices(client, "details", "watch_day", now_us, 1):
        told = details_of({"details": details})
        return (
            str(told.get("date", "")),
            int(told.get("charts", 0)),
            int(told.get("unexplained", 0)),
        )
    return None


def _notices(client: Client, columns: str, event: str, now_us: int, limit: int) -> Sequence[Any]:
    """Of the newest notices of an event, `limit` at most. Those of half a year are mostly enough,
    and are asked for first."""
    found: Sequence[Any] = ()
    for window in (Window(now_us - _HALF_A_YEAR_US), EVER):
        query = (
            f"SELECT {columns} FROM notices WHERE event = %(event)s AND {window.condition}"
            " ORDER BY sealed_at DESC LIMIT %(limit)s"
        )
        found = client.execute(query, {"event": event, "limit": limit, **window.values})
        if len(found) == limit:
            break
    return found


@dataclass(frozen=True, slots=True)
class Day:
    """What a person did on one day, and what is usual in their role then."""

    day: str
    requests: int
    denials: int
    patients: int
    role_patients: float


def person_days(client: Client, subject: str, days: int = 60) -> list[Day]:
    """A person's days, oldest first, each beside the median of their role's people."""
    found = client.execute(
        # Somebody may have several rows a day, by tenant and role: a patient in two is one.
        "WITH own AS (SELECT day, any(role) AS role, sum(requests) AS requests,"
        "   sum(denials) AS denials, uniqCombined64ArrayMerge(patients) AS patients"
        "   FROM baseline_daily WHERE subject = %(subject)s AND day > today() - %(days)s"
        "   GROUP BY day),"
        " peers AS (SELECT day, role, median(number) AS usual FROM ("
        "     SELECT day, role, subject, uniqCombined64ArrayMerge(patients) AS number"
        "     FROM baseline_daily WHERE role GLOBAL IN (SELECT role FROM own)"
        "     AND day > today() - %(days)s GROUP BY day, role, subject) GROUP BY day, role)"
        " SELECT toString(own.day), own.requests, own.denials, own.patients, peers.usual"
        " FROM own LEFT JOIN peers ON peers.day = own.day AND peers.role = own.role ORDER BY day",
        {"subject": subject, "days": days},
    )
    return [Day(day, req, den, pat, float(usual)) for day, req, den, pat, usual in found]


@dataclass(frozen=True, slots=True)
class Habits:
    """Where, when and as what somebody is there, over some weeks."""

    roles: list[str]
    hours: list[int]
    networks: list[str]
    countries: list[str]
    first: str
    last: str


def habits(client: Client, subject: str, days: int = 60) -> Habits | None:
    """None of who did nothing."""
    [row] = client.execute(
        "SELECT arraySort(groupUniqArray(role)), arraySort(groupUniqArrayArray(hours)),"
        " arraySort(groupUniqArrayArray(networks)), arraySort(groupUniqArrayArray(countries)),"
        " toString(min(day)), toString(max(day)), count() FROM baselines"
        " WHERE subject = %(subject)s AND day > today() - %(days)s",
        {"subject": subject, "days": days},
    )
    return Habits(*map(as_text, row[:6])) if row[6] else None


def patients_of(client: Client, subject: str, window: Window, limit: int) -> list[tuple[str, int]]:
    """Whose records somebody asked for or was shown: tokens, with how many requests."""
    found = client.execute(
        f"SELECT patient, uniqExact({REQUEST}) AS number FROM audit_log"
        f" ARRAY JOIN patients AS patient WHERE subject = %(subject)s AND {window.condition}"
        f" AND {KINDS} GROUP BY patient ORDER BY number DESC, patient LIMIT %(limit)s",
        {"subject": subject, "limit": limit, **window.values},
        settings=BY_PERSON,
    )
    return [(as_text(patient), number) for patient, number in found]


def roles_in_use(client: Client, days: int = 60) -> list[tuple[str, int, str]]:
    """Each role, how many people had it, and the last day it was used on."""
    found = client.execute(
        "SELECT role, uniqExact(subject), toString(max(day)) FROM baselines"
        " WHERE day > today() - %(days)s GROUP BY role ORDER BY role",
        {"days": days},
    )
    return [(as_text(role), people, day) for role, people, day in found]


def people_in(client: Client, role: str, limit: int, days: int = 60) -> list[tuple[str, int, str]]:
    """Who had a role: subject, requests, last day."""
    found = client.execute(
        "SELECT subject, sum(requests), toString(max(day)) FROM baselines"
        " WHERE role = %(role)s AND day > today() - %(days)s"
        " GROUP BY subject ORDER BY subject LIMIT %(limit)s",
        {"role": role, "days": days, "limit": limit},
    )
    return [(as_text(subject), requests, day) for subject, requests, day in found]


def policy_changes(client: Client, now_us: int, limit: int) -> list[tuple[int, str, str]]:
    """When which revision came into force, and at whose: the newest first."""
    columns = "toUnixTimestamp64Micro(time), policy_revision, writer"
    found = _notices(client, columns, "policy_loaded", now_us, limit)
    return [(at, as_text(revision), as_text(writer)) for at, revision, writer in found]
