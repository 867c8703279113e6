"""What a check finds, and what all of it together means."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from authz.errors import UnavailableError


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen. No text here may hold a token or the value of a header."""

    level: Level
    part: str
    """Where: a file and the names in it, an address, a setting."""
    seen: str
    why: str = ""
    mend: str = ""


Check: TypeAlias = Callable[[], Iterable[Finding]]
"""Looks at one thing. Raises `UnavailableError` if it cannot."""


def look(part: str, check: Check) -> list[Finding]:
    """What `check` finds. That it cannot look at `part` is a finding too."""
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)  # noqa: PERF402 - what came before an error counts
    except UnavailableError as error:
        found.append(Finding(Level.UNKNOWN, part, str(error)))
    return found


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if something is to be mended, else 3 if something could not be looked at, else 0."""
    levels = {finding.level for finding in findings}
    if levels & {Level.WARN, Level.FAIL}:
        return 1
    return 3 if Level.UNKNOWN in levels else 0
