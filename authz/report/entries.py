"""What was disclosed outside and entered by hand, as it stands by what was said of it since.

An entry cannot be changed or deleted, as nothing in a log can. A correction names it, and says what
holds instead; a withdrawal, that nothing does. The last one said counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from authz.record import Record, clean, details_of, notice, place_of

ENTERED, CORRECTED = "disclosure_entered", "disclosure_corrected"
WITHDRAWN = "disclosure_withdrawn"
EVENTS = (ENTERED, CORRECTED, WITHDRAWN)


@dataclass(frozen=True, slots=True)
class Correction:
    """Of an entry. `time` is in microseconds since the epoch, UTC."""

    time: int
    reason: str
    record: str
    withdrawn: bool
    """That it does not hold at all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """As it stands now. `date` is in microseconds since the epoch, UTC."""

    record: str
    """Of the entry itself."""
    date: int
    recipient: str
    address: str
    description: str
    purpose: str
    corrections: tuple[Correction, ...] = ()
    recipients: tuple[str, ...] = ()
    """All that it named at any time."""

    @property
    def withdrawn(self) -> bool:
        return bool(self.corrections) and self.corrections[-1].withdrawn


def entered(
    tokens: Sequence[str], by: str, why: str, time_us: int, details: Mapping[str, object]
) -> Record:
    """Says that data of a patient was disclosed outside; `details` are `recipient`, `address`,
    `description`, `purpose` and `date` (microseconds)."""
    return said(ENTERED, tokens, by, why, time_us, details)


def corrected(
    entry: str, tokens: Sequence[str], by: str, why: str, time_us: int,
    details: Mapping[str, object],
) -> Record:  # fmt: skip
    """Says that these `details` hold in place of all that the entry at `entry` says."""
    return said(CORRECTED, tokens, by, why, time_us, details) | clean({"records": [entry]})


def withdrawn(
    entry: str, tokens: Sequence[str], by: str, why: str, time_us: int,
    details: Mapping[str, object],
) -> Record:  # fmt: skip
    """Says that the entry at `entry` does not hold; there are no `details`."""
    return said(WITHDRAWN, tokens, by, why, time_us, details) | clean({"records": [entry]})


def said(
    event: str, tokens: Sequence[str], by: str, why: str, time_us: int,
    details: Mapping[str, object],
) -> Record:  # fmt: skip
    """A notice about the patient of `tokens`."""
    told = notice(event, time_us, {**details, "by": by})
    return told | clean({"subject": by, "reason": why, "patients": list(tokens)})


def entries(notices: Iterable[Record]) -> dict[str, Entry]:
    """What was entered, by the entry's record, and by the record of each correction of it.
    `notices` are one patient's, in the order in which they were sealed; what does not say what is
    said here is passed over."""
    first: dict[str, str] = {}
    found: dict[str, Entry] = {}
    for record in notices:
        event, place = record.get("event"), place_of(record)
        if event == ENTERED and (entry := _values(record, place)):
            first[place] = place
            found[place] = entry
        elif event in (CORRECTED, WITHDRAWN):
            named = record.get("records")
            about = first.get(str(named[0])) if isinstance(named, list) and named else None
            if about and (entry := _corrected(found[about], record, place)):
                first[place] = about
                found[about] = entry
    return {place: found[about] for place, about in first.items()}


def _corrected(before: Entry, record: Record, place: str) -> Entry | None:
    gone = record.get("event") == WITHDRAWN
    now = before if gone else _values(record, before.record)
    if now is None:
        return None
    time = record.get("time", 0)
    said = Correction(
        time if isinstance(time, int) else 0, str(record.get("reason", "")), place, gone
    )
    corrections, recipients = (*before.corrections, said), (*before.recipients, now.recipient)
    return replace(now, corrections=corrections, recipients=recipients)


def _values(record: Record, place: str) -> Entry | None:
    details = details_of(record)

    def told(name: str) -> str:
        value = details.get(name)
        return value if isinstance(value, str) else ""

    date = details.get("date")
    if not isinstance(date, int) or not told("recipient"):
        return None
    return Entry(
        place, date, told("recipient"), told("address"), told("description"), told("purpose"),
        recipients=(told("recipient"),),
    )  # fmt: skip
