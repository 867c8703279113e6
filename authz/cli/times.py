"""Times as people give them on a command line."""

import datetime as dt
import re

from authz.errors import UsageError
from authz.record.shown import shown

__all__ = ["duration", "moment", "shown"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def duration(given: str) -> int | None:
    """The seconds of ``30m``, ``12h`` or ``7d``; None if it is nothing of that form."""
    form = _DURATION.fullmatch(given)
    return int(form[1]) * _UNITS[form[2]] if form else None


def moment(option: str, given: str, now_us: int) -> int:
    """Microseconds since the epoch of an ISO 8601 date or time (UTC, if it names no zone), or of an
    age such as ``7d``. Raises `UsageError`, which names `option`."""
    if (age := duration(given)) is not None:
        return max(0, now_us - age * 1_000_000)
    try:
        told = dt.datetime.fromisoformat(given)
        at = told if told.tzinfo else told.replace(tzinfo=dt.UTC)
        return max(0, (at - _EPOCH) // dt.timedelta(microseconds=1))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {given!r}: want a date or time such as 2026-11-01 or 2026-11-01T08:30 (UTC),"
            " or an age such as 7d, 12h or 30m"
        ) from None
