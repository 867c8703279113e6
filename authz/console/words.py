"""What pages say, in words: times, how things stand, what a verification found."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Final

from authz.record import FIELDS, Record
from authz.report.document import count
from authz.store.pages import Overview
from authz.verify import Report

ACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "search or execute"}
)


_EMPTY = {"text": "", "texts": (), "bool": False, "int": 0, "time": 0}
_YEAR_10000_US = 253_402_300_800_000_000
# What people ask of a record first: who, why, what, how it ended, from where.
_FIRST = (
    "time", "subject", "roles", "tenant", "purpose", "reason", "break_glass", "action",
    "resource_type", "resource_id", "method", "path", "patients", "allowed", "enforced",
    "reason_code", "policy_revision", "status", "source_ip", "country", "user_agent",
)  # fmt: skip
IN_ORDER: Final = [*_FIRST, *(field.name for field in FIELDS if field.name not in _FIRST)]
"""A record's fields as a page has them."""


def whole(record: Record) -> dict[str, object]:
    """A record with the values that it leaves out."""
    return {field.name: record.get(field.name, _EMPTY[field.type]) for field in FIELDS}


def moment(time_us: int) -> str:
    """As people read it, UTC; what somebody wrote that is no time of the calendar, as it is."""
    if not time_us:
        return ""
    if not 0 < time_us < _YEAR_10000_US:
        return f"{time_us} µs"
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def date_of(time_us: int) -> date:
    """The day of a time, UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).date()


def day(time_us: int) -> str:
    if not 0 < time_us < _YEAR_10000_US:
        return "?"
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%-d %B %Y}"


def standing(overview: Overview, report: Report | None, verified_at: int) -> str:
    """The log's state, as a plain sentence."""
    if not overview.since:
        return "Nothing is recorded yet."
    gaps = count(overview.gaps, "gap", "gaps")
    since = day(overview.since)
    if report is None:
        return f"Recorded since {since}; {gaps} in the last day. Not verified from here yet."
    if not report.verified:
        return (
            f"NOT intact: {count(len(report.findings), 'finding', 'findings')} at the"
            f" verification of {moment(verified_at)} UTC."
        )
    return (
        f"Everything since {since} is intact, as verified at {moment(verified_at)} UTC;"
        f" {gaps} in the last day."
    )


def verdict(report: Report) -> tuple[str, list[str]]:
    """A verification, for who is no engineer: the verdict, and what it means."""
    checked, logs = count(report.checked, "record", "records"), len(report.logs)
    what = f"{checked} in {count(logs, 'log', 'logs')}"
    told = [f"{what} were hashed again and held against what was signed when they were written."]
    if not report.verified:
        told.append(
            "Something is not as it was sealed. Keep the database as it is, tell your security"
            " officer, and have an auditor run authz verify with a trust file of their own."
        )
        return "NOT intact", told
    told.append("No record was changed, dropped, added or moved since it was written.")
    gaps = sum(report.gaps.values())
    if gaps:
        told.append(
            f"The log itself tells of {count(gaps, 'gap', 'gaps')}: requests of which one half is"
            " missing. That is no tampering, and each has a cause to look into."
        )
    else:
        told.append("Every allowed request has its access: there are no gaps.")
    return "Intact", told
