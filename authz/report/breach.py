"""Whom to notify (45 CFR 164.404): every patient whose data one person may have got, in a time.

Counted is what answers held, as disclosures say, and whom requests named that were not refused. A
request that was let through and of which no answer was seen counts too: that nothing was got would
have to be shown (164.402).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from authz.record.shown import shown
from authz.report.completeness import Completeness, section
from authz.report.document import Cell, Document, Row, Section, count, lines, listed
from authz.report.people import Patient
from authz.store.reports import Affected, Attempts

_DOING = {"C": "created", "R": "read", "U": "updated", "D": "deleted", "E": "searched"}
_MOST_TYPES = 6


@dataclass(frozen=True, slots=True)
class Concerned:
    """A patient, and what of theirs it was. Times are microseconds since the epoch, UTC."""

    patient: Patient | None
    """None where no identifier that was given makes one of `tokens`."""
    tokens: tuple[str, ...]
    requests: int
    first: int
    last: int
    held: int
    """How many answers held their data."""
    answered: int
    """Of how many requests an answer was seen."""
    resource_types: tuple[str, ...]
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Breach:
    attempts: Attempts
    concerned: tuple[Concerned, ...]
    """The earliest first."""

    @property
    def unidentified(self) -> tuple[Concerned, ...]:
        return tuple(one for one in self.concerned if one.patient is None)

    @property
    def identified(self) -> tuple[Concerned, ...]:
        return tuple(one for one in self.concerned if one.patient)

    def to_json(self) -> dict[str, Any]:
        return {
            "patients": len(self.concerned), "unidentified": len(self.unidentified),
            **asdict(self),
        }  # fmt: skip


def breach(
    attempts: Attempts, affected: Sequence[Affected], patients: Mapping[str, Patient]
) -> Breach:
    """`patients` are those known, by token: one of them under several keys is told once."""
    by_patient: dict[object, list[Affected]] = {}
    for one in affected:
        by_patient.setdefault(patients.get(one.token, one.token), []).append(one)
    found = [
        Concerned(
            patients.get(own[0].token), tuple(one.token for one in own),
            sum(one.requests for one in own), min(one.first_us for one in own),
            max(one.last_us for one in own), sum(one.held for one in own),
            sum(one.answered for one in own), _all(own, "resource_types"), _all(own, "actions"),
        )
        for own in by_patient.values()
    ]  # fmt: skip
    return Breach(attempts, tuple(sorted(found, key=lambda one: (one.first, one.tokens))))


def _all(own: Sequence[Affected], name: str) -> tuple[str, ...]:
    return tuple(sorted({value for one in own for value in getattr(one, name)}))


def document(
    found: Breach, rests_on: Completeness, about: Sequence[tuple[str, Cell]], issuer: str, *,
    asked: bool,
) -> Document:  # fmt: skip
    """`asked`: identifiers were given to tell patients by."""
    attempts, unknown = found.attempts, len(found.unidentified)
    notes = [
        (
            f"{count(len(found.concerned), 'patient', 'patients')} affected by"
            f" {count(attempts.requests, 'request', 'requests')}; {attempts.denied:,} were denied"
            f" and {attempts.failed:,} failed, and count for nobody."
        ),
        (
            "Counted are answers that held a patient's data, and requests that named a patient and"
            " were not refused, whether or not an answer was seen."
        ),
    ]
    if attempts.unresolved:
        notes.append(
            f"Of {count(attempts.unresolved, 'answer', 'answers')} to this person it is not known"
            " in full whose data they held: there may be more patients."
        )
    if unknown and asked:
        notes.append(
            f"{count(unknown, 'patient is', 'patients are')} none of the identifiers given, and"
            " listed by token."
        )
    sections = [
        Section(
            f"Patients to notify: {len(found.identified):,}", ("patient", *_COLUMNS),
            tuple((_named(one), *_row(one)) for one in found.identified), empty="None.",
        )
    ] if asked else []  # fmt: skip
    if unknown or not asked:
        sections.append(
            Section(
                f"Patients by token: {unknown:,}", ("token", *_COLUMNS),
                tuple((lines(*one.tokens), *_row(one)) for one in found.unidentified),
                notes=() if asked else (
                    "With a file of identifiers it says who they are (authz report --identifiers).",
                ),
                empty="None.",
            )
        )  # fmt: skip
    return Document(
        "Patients affected by a breach", tuple(about), (*sections, section(rests_on)),
        notes=tuple(notes), issuer=issuer, marking="CONFIDENTIAL: for the breach file",
    )  # fmt: skip


_COLUMNS = ("first, last (UTC)", "requests", "what", "known by")


def _named(one: Concerned) -> Cell:
    assert one.patient
    return lines(one.patient.identifier, one.patient.name, one.patient.address)


def _row(one: Concerned) -> Row:
    doing = ", ".join(_DOING.get(action, action) for action in one.actions)
    known = [f"{one.held:,} in answers"] if one.held else []
    known += [f"{one.requests - one.held:,} by request"] if one.requests > one.held else []
    unseen = one.requests - one.answered
    known += [f"{unseen:,} without a seen answer"] if unseen else []
    return (
        lines(shown(one.first), shown(one.last) if one.last != one.first else ""),
        f"{one.requests:,}",
        lines(listed(one.resource_types, _MOST_TYPES), doing),
        lines(*known),
    )
