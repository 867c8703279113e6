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


def whole(record: Record) -> dict[str, object]:
    """A record with the values that it leaves out."""
    return {field.name: record.get(field.name, _EMPTY[field.type]) for field in FIELDS}


def moment(time_us: int) -> str:
    """As people read it, UTC."""
    if not time_us:
        return ""
    return f"{datetime.fromtimestamp(time_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def date_of(time_us: int) -> date:
    """The day of a time, UTC."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).date()


def day(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1_000_000, UTC):%-d %B %Y}" if time_us else "?"


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
