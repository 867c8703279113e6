"""A look at the log is itself in the log, before anything is shown."""

from collections.abc import Mapping, Sequence

from authz.record import FIELD, Record, clean, notice

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


def look_notices(
    command: str, by: str, why: str, purpose: str, patients: Sequence[str], time_us: int,
    details: Mapping[str, object],
) -> list[Record]:  # fmt: skip
    """The same at any number of patients: as many notices as these take."""
    most = FIELD["patients"].items
    return [
        look_notice(command, by, why, purpose, patients[begin : begin + most], time_us, details)
        for begin in range(0, len(patients) or 1, most)
    ]
