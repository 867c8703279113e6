"""ClickHouse: who may change what must stay, what goes by itself, whether queries are on record.

It is asked as whoever `--store` names, who must be an administrator to see all of it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from authz.doctor.findings import Check, Finding, Level
from authz.errors import UnavailableError
from authz.store.client import QUERY_ERRORS, Client, connect, explain, name_of

RIGHTS: Final = """
SELECT DISTINCT ifNull(user_name, role_name) AS who, toString(access_type) AS may,
  concat(ifNull(database, '*'), '.', ifNull(table, '*')) AS what
FROM system.grants
WHERE (database IS NULL OR database IN (currentDatabase(), 'system')) AND NOT is_partial_revoke
  AND (match(may, '^(ALTER|CREATE|DROP|INSERT|TRUNCATE|UNDROP|MOVE PARTITION)')
      AND may NOT LIKE '%TEMPORARY TABLE'
    OR may IN ('ROLE ADMIN', 'IMPERSONATE', 'ACCESS MANAGEMENT', 'SOURCES', 'ALL') OR grant_option)
  AND NOT (match(who, '^authz_(receiver|feeds|retention|migrator)(_cluster)?$') AND may = 'INSERT')
  AND NOT (match(who, '^authz_retention(_cluster)?$')
    AND (may = 'ALTER DELETE' OR may IN ('CREATE TABLE', 'DROP TABLE') AND table LIKE 'expiring_%'))
  AND NOT (match(who, '^authz_migrator(_cluster)?$')
    AND (may = 'ALTER DELETE' AND table LIKE 'baseline_daily%' OR match(may,
      '^(ALTER (ADD|MATERIALIZE|SETTINGS|DROP INDEX)|CREATE (DATABASE|TABLE|VIEW)|DROP VIEW)')))
ORDER BY who, may, what
"""
"""As deploy/clickhouse/README.md has it."""

TTLS: Final = """
SELECT database, name, extract(engine_full, 'TTL (.*?)( SETTINGS|$)') AS goes
FROM system.tables
WHERE database = 'system' AND name IN ('query_log', 'session_log')
  OR database = currentDatabase() AND goes != ''
    AND match(name, '^(audit_log|checkpoints|tiles|policies)')
"""

_OVERRIDDEN: Final = """
SELECT JSONExtractString(details, 'override') AS why, toString(toDate(max(time))) AS last
FROM notices WHERE event = 'expired' AND why != '' GROUP BY why ORDER BY last
"""
_ELEMENTS: Final = """
SELECT ifNull(profile_name, ''), ifNull(user_name, ''), ifNull(role_name, ''),
  ifNull(setting_name, ''), ifNull(value, ''), ifNull(toString(writability), ''),
  ifNull(inherit_profile, '')
FROM system.settings_profile_elements ORDER BY index
"""
_LOGGING: Final = {
    "log_queries": "1", "log_queries_min_type": "QUERY_START",
    "log_queries_min_query_duration_ms": "0", "log_queries_probability": "1",
}  # fmt: skip
"""Settings by which a query can be kept out of the log of queries, and what they are by default."""
_DAYS: Final = {"Second": 1 / 86400, "Minute": 1 / 1440, "Hour": 1 / 24, "Day": 1, "Week": 7,
                "Month": 30, "Quarter": 91, "Year": 365}  # fmt: skip
_INTERVAL: Final = re.compile(r"toInterval(\w+)\((\d+)\)")
_SIX_YEARS: Final = 6 * 365
_QUERY_LOG_DAYS: Final = (7, 90)
_CHANGES: Final = "whoever has these rights can change, remove or invent what must stay"
_OFF_RECORD: Final = "who asks the database itself, past authz, is not on record"


def checks(url: str, administrators: frozenset[str]) -> list[tuple[str, Check]]:
    """Each check with the part that it looks at. `administrators` may change everything."""
    part = name_of(url)
    as_administrator = partial(_as_administrator, administrators=administrators)
    return [(part, partial(_asked, url, check)) for check in (dropped_early, as_administrator)]


def _asked(url: str, check: Callable[[Client, str], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        with connect(url) as client:
            yield from check(client, name_of(url))
    except QUERY_ERRORS as error:
        raise UnavailableError(str(explain(error, url))) from None


def _as_administrator(
    client: Client, part: str, administrators: frozenset[str]
) -> Iterator[Finding]:
    """What only an administrator sees: others' rights and settings, and the server's own logs."""
    if client.execute("CHECK GRANT SHOW ACCESS ON *.*") != [(1,)]:
        raise UnavailableError(
            "this user sees neither others' rights nor the server's logs: give --store with an"
            " administrator's URL"
        )
    [(own,)] = client.execute("SELECT currentUser()")
    known = administrators | {str(own)}
    yield from rights(client, part, known)
    yield from goes(client, part)
    yield from logged(client, part, known)


def rights(client: Client, part: str, known: frozenset[str]) -> Iterator[Finding]:
    """Nobody but administrators, who are `known`, and authz's own roles can change what must
    stay."""
    may: dict[str, list[str]] = defaultdict(list)
    for who, right, what in client.execute(RIGHTS):
        if who not in known:
            may[who].append(f"{right} on {what}")
    for who, found in may.items():
        more = f", and {len(found) - 3} more" * (len(found) > 3)
        mend = f"REVOKE them from {who}, or name who is an administrator (--administrator)"
        seen = f"{who} may {', '.join(found[:3])}{more}"
        yield Finding(Level.FAIL, part, seen, _CHANGES, mend)
    if not may:
        yield Finding(Level.OK, part, f"only {', '.join(sorted(known))} may change what must stay")


def goes(client: Client, part: str) -> Iterator[Finding]:
    """No record goes by itself, and the server's own logs stay as long as they are needed."""
    found = {(database, name): text for database, name, text in client.execute(TTLS)}
    logs = {name: found.pop(("system", name), None) for name in ("query_log", "session_log")}
    for (database, name), text in found.items():
        yield Finding(
            Level.FAIL, part, f"{database}.{name} has a TTL: {text}",
            "records go by themselves, without a notice and whatever is on hold: verify finds them"
            " missing",
            f"ALTER TABLE {database}.{name} REMOVE TTL; let records go by `authz retention apply`",
        )  # fmt: skip
    yield from _query_log(part, logs["query_log"])
    yield from _session_log(part, logs["session_log"])


def _query_log(part: str, text: str | None) -> Iterator[Finding]:
    mend = "set <query_log> as in deploy/clickhouse/config.d/logs.xml"
    if text is None:
        yield Finding(Level.FAIL, part, "there is no system.query_log", _OFF_RECORD, mend)
        return
    least, most = _QUERY_LOG_DAYS
    kept = _days(text)
    if kept is not None and kept < least:
        why = f"`authz watch` may be away for no longer: after that, {_OFF_RECORD}"
        yield Finding(Level.WARN, part, f"system.query_log keeps {kept:g} days", why, mend)
    elif kept is None or kept > most:
        seen = "has no TTL" if kept is None else f"keeps {kept:g} days"
        why = "queries name people and patients; what of them must stay is in the log without these"
        yield Finding(Level.WARN, part, f"system.query_log {seen}", why, mend)


def _session_log(part: str, text: str | None) -> Iterator[Finding]:
    kept = _SIX_YEARS if text == "" else 0 if text is None else _days(text)
    if kept is not None and kept < _SIX_YEARS:
        seen = "there is no system.session_log" if text is None else (
            f"system.session_log keeps {kept:g} days"
        )  # fmt: skip
        yield Finding(
            Level.WARN, part, seen, "who signed in to the database is not known for six years",
            "set <session_log> as in deploy/clickhouse/config.d/logs.xml",
        )  # fmt: skip


def _days(ttl: str) -> float | None:
    """How long a TTL keeps a row, roughly; None where there is none or it is of another form."""
    found = [_DAYS[unit] * int(number) for unit, number in _INTERVAL.findall(ttl) if unit in _DAYS]
    return min(found, default=None)


def dropped_early(client: Client, part: str) -> Iterator[Finding]:
    """Nothing was dropped by a rule shorter than six years."""
    for why, last in client.execute(_OVERRIDDEN):
        yield Finding(
            Level.WARN, part, f"records were dropped before six years, last on {last}: {why}",
            "HIPAA (45 CFR 164.316) asks for six years",
            "see that the reason holds; `authz retention apply --older-than 6y` is the rule",
        )  # fmt: skip


def logged(client: Client, part: str, known: frozenset[str]) -> Iterator[Finding]:
    """No user can keep queries out of the log of queries."""
    elements: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for profile, user, role, *rest in client.execute(_ELEMENTS):
        key = ("profile", profile) if profile else ("user", user) if user else ("role", role)
        elements[key].append(tuple(rest))
    roles: dict[tuple[str, str], list[str]] = defaultdict(list)
    granted = "SELECT ifNull(user_name, ''), ifNull(role_name, ''), granted_role_name"
    for user, role, name in client.execute(f"{granted} FROM system.role_grants"):
        roles["user" if user else "role", user or role].append(name)

    def settings(kind: str, name: str, seen: frozenset[tuple[str, str]]) -> Iterator[Any]:
        """(setting, value, writability) of what is said of logging, the strongest last."""
        if (kind, name) in seen:
            return
        seen |= {(kind, name)}
        for role in roles[kind, name]:
            yield from settings("role", role, seen)
        for setting, value, writable, inherited in elements[kind, name]:
            if inherited:
                yield from settings("profile", inherited, seen)
            if setting in _LOGGING:
                yield setting, value, writable

    free = []
    for (user,) in client.execute("SELECT name FROM system.users ORDER BY name"):
        values, fixed = dict(_LOGGING), dict.fromkeys(_LOGGING, False)
        for whose in (("profile", "default"), ("user", user)):
            kind, name = whose
            for setting, value, writable in settings(kind, name, frozenset()):
                values[setting] = value or values[setting]
                fixed[setting] = writable == "CONST" if writable else fixed[setting]
        if user not in known and not (all(fixed.values()) and _all_logged(values)):
            free.append(user)
    if free:
        yield Finding(
            Level.WARN, part, f"can keep queries out of the log of queries: {', '.join(free)}",
            _OFF_RECORD,
            "give each a settings profile of deploy/clickhouse/sql/limits.sql (authz_logged)",
        )  # fmt: skip


def _all_logged(values: Mapping[str, str]) -> bool:
    return (
        values["log_queries"].lower() in {"1", "true"}
        and values["log_queries_min_type"] in {"QUERY_START", "QUERY_FINISH"}
        and values["log_queries_min_query_duration_ms"] == "0"
        and values["log_queries_probability"] == "1"
    )
