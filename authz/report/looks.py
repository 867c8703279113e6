"""A look at the log is itself in the log, before anything is shown."""

from collections.abc import Mapping, Sequence

from authz.record import Record, clean, notice

EVENT = "look"


def look_notice(
    command: str, by: str, why: str, purpose: str, patients: Sequence[str], time_us: int,
    details: Mapping[str, object],
) -> Record:  # fmt: skip
    """Says that `by` looks with `command`, and at what: `patients` are tokens, `details` the rest
    of what was asked."""
    told = notice(EVENT, time_us, {"command": command, "by": by, **details})
    asked = {"subject": by, "reason": why, "purpose": purpose, "patients": list(patients)}
    return told | clean(asked)
