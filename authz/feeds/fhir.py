"""Reasons to look in FHIR resources (R4; elements that R5 has renamed are read too).

| Resource | Who | When |
|---|---|---|
| CareTeam | `participant.member` | `period`, or the participant's own |
| Appointment | the other participants, of the patients among them | `start` to `end` |
| Encounter | `participant.individual` | their `period`, or the encounter's |
| Encounter | all of the department that `location.location` is | its `period`, or the encounter's |
| ServiceRequest | `requester`, `performer` | from `authoredOn` until `occurrence[x]` |

What did not come about gives no reason (`_NOTHING`). Nothing is repeated in an error's text but the
names of elements: values may be of patients.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from authz.detect.feeds import FOREVER
from authz.disclosure.fhir import target_of
from authz.errors import UsageError
from authz.feeds.tables import Reason

FEEDS = {
    "CareTeam": ("care_team",), "Appointment": ("appointments",),
    "Encounter": ("encounters", "census"), "ServiceRequest": ("orders",),
}  # fmt: skip
"""What a resource may tell of."""
_NOTHING = {
    "CareTeam": ("proposed", "entered-in-error"),
    "Appointment": ("proposed", "pending", "waitlist", "cancelled", "entered-in-error"),
    "Encounter": ("planned", "cancelled", "entered-in-error"),
    "ServiceRequest": ("draft", "entered-in-error"),
}
_OVER = ("suspended", "inactive")  # a team that has no end is one only while it is active
_PEOPLE = ("Practitioner", "PractitionerRole")
_LENGTHS = {4: "-01-01", 7: "-01"}  # what a year and a month lack

Interval = tuple[int, int]


@dataclass(slots=True)
class Reader:
    """Reads resources. Who a practitioner is, and which department a location, is what the
    operator's tables say, by id or by type and id; where there is no table, it is their id."""

    practitioners: Mapping[str, str] | None = None
    locations: Mapping[str, str] | None = None
    seen: set[str] = field(default_factory=set)
    """The feeds that were told of."""
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What gave no reason, by feed, and why."""

    def read(self, resource: dict[str, Any], where: str) -> Iterator[Reason]:
        """The reasons that one resource gives; `where` is how messages call it. Raises
        `UsageError`."""
        kind = resource.get("resourceType")
        if kind not in FEEDS:
            return
        feed = FEEDS[kind][0]
        self.seen.add(feed)
        element = _Element(resource, f"{where}: {kind}")
        if resource.get("status") in _NOTHING[kind]:
            self.skipped[feed, f"status {resource['status']}"] += 1
            return
        match kind:
            case "CareTeam":
                yield from self._care_team(element)
            case "Appointment":
                yield from self._appointment(element)
            case "Encounter":
                yield from self._encounter(element)
            case "ServiceRequest":
                yield from self._service_request(element)

    def _care_team(self, team: "_Element") -> Iterator[Reason]:
        patient = self._patient("care_team", team.one("subject"))
        for participant in team.many("participant") if patient else ():
            begin, end = participant.period("period") or team.period("period") or (0, FOREVER)
            if end == FOREVER and team.value.get("status") in _OVER:
                self.skipped["care_team", f"status {team.value['status']}, without an end"] += 1
            elif person := self._person("care_team", participant.one("member")):
                yield Reason("care_team", person, patient, (begin, end))

    def _appointment(self, meeting: "_Element") -> Iterator[Reason]:
        begin = meeting.time("start")
        if begin is None:
            self.skipped["appointments", "without a start"] += 1
            return
        interval = begin, meeting.time("end", last=True) or begin
        there = [
            one for one in meeting.many("participant") if one.value.get("status") != "declined"
        ]
        actors = [one.one("actor") for one in there]
        patients = [found for actor in actors if (found := _patient_of(actor))]
        if not patients:
            self.skipped["appointments", "without a patient"] += 1
            return
        people = [found for actor in actors if (found := self._person("appointments", actor))]
        for person in people:
            for patient in patients:
                yield Reason("appointments", person, patient, interval)

    def _encounter(self, stay: "_Element") -> Iterator[Reason]:
        patient = self._patient("encounters", stay.one("subject"))
        if not patient:
            return
        whole = stay.period("period") or stay.period("actualPeriod") or (0, FOREVER)
        for participant in stay.many("participant"):
            actor = participant.one("individual") or participant.one("actor")
            if person := self._person("encounters", actor):
                yield Reason("encounters", person, patient, participant.period("period") or whole)
        for place in stay.many("location"):
            self.seen.add("census")
            location = place.one("location")
            if department := self._department(location):
                yield Reason("census", department, patient, place.period("period") or whole)

    def _service_request(self, order: "_Element") -> Iterator[Reason]:
        patient = self._patient("orders", order.one("subject"))
        if not patient:
            return
        authored, done = order.time("authoredOn"), order.time("occurrenceDateTime")
        ended = order.time("occurrenceDateTime", last=True)
        interval = order.period("occurrencePeriod") or (done, ended)
        times = [at for at in (authored, *interval) if at is not None]
        if not times:
            self.skipped["orders", "without a time"] += 1
            return
        for actor in (order.one("requester"), *order.many("performer")):
            if person := self._person("orders", actor):
                yield Reason("orders", person, patient, (min(times), max(times)))

    def _patient(self, feed: str, reference: "_Element") -> str:
        patient = _patient_of(reference)
        if not patient:
            self.skipped[feed, "without a patient"] += 1
        return patient

    def _person(self, feed: str, reference: "_Element") -> str:
        kind, name = reference.target()
        if kind not in _PEOPLE or not name:
            return ""
        if self.practitioners is None:
            found = name if kind == "Practitioner" else ""
        else:
            found = self.practitioners.get(f"{kind}/{name}") or self.practitioners.get(name, "")
        if not found:
            self.skipped[feed, "practitioners of whom it is not told who they are"] += 1
        return found

    def _department(self, reference: "_Element") -> str:
        _, name = reference.target()
        if self.locations is None:
            found = name
        else:
            found = self.locations.get(f"Location/{name}") or self.locations.get(name, "")
        if not found:
            self.skipped["census", "locations of which it is not told what department"] += 1
        return found


class _Element:
    """An element, which knows where it stands. False if it is not there."""

    __slots__ = ("value", "where")

    def __init__(self, value: dict[str, Any], where: str) -> None:
        self.value = value
        self.where = where

    def __bool__(self) -> bool:
        return bool(self.value)

    def one(self, name: str) -> "_Element":
        value = self.value.get(name)
        if value is not None and not isinstance(value, dict):
            raise UsageError(f"{self.where}.{name}: want an object")
        return _Element(value or {}, f"{self.where}.{name}")

    def many(self, name: str) -> "list[_Element]":
        value = self.value.get(name)
        if value is not None and not isinstance(value, list):
            raise UsageError(f"{self.where}.{name}: want an array")
        found = []
        for number, item in enumerate(value or ()):
            if not isinstance(item, dict):
                raise UsageError(f"{self.where}.{name}[{number}]: want an object")
            found.append(_Element(item, f"{self.where}.{name}[{number}]"))
        return found

    def text(self, name: str) -> str:
        value = self.value.get(name)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{self.where}.{name}: want a text")
        return value or ""

    def target(self) -> tuple[str, str]:
        """The type and the id of what a reference is to; of one by identifier only, its value."""
        kind, name = target_of(self.text("reference"))
        if name:
            return kind, name
        kind = self.text("type").rpartition("/")[2]
        return (kind, self.one("identifier").text("value")) if kind in _PEOPLE else ("", "")

    def period(self, name: str) -> Interval | None:
        period = self.one(name)
        if not period:
            return None
        end = period.time("end", last=True)
        return period.time("start") or 0, FOREVER if end is None else end

    def time(self, name: str, *, last: bool = False) -> int | None:
        """Microseconds since the epoch; of a day, a month or a year, their first moment or, with
        `last`, their last."""
        told = self.text(name)
        if not told:
            return None
        try:
            at = datetime.fromisoformat(told + _LENGTHS.get(len(told), ""))
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            if last and len(told) <= 10:
                at = _next(at, len(told)) - timedelta(microseconds=1)
        except (ValueError, OverflowError):
            raise UsageError(
                f"{self.where}.{name}: no FHIR dateTime, such as 2026-03-01T08:00:00Z"
            ) from None
        return int(at.timestamp() * 1_000_000)


def _patient_of(reference: _Element) -> str:
    """By id, as requests have it: an identifier in a reference is of another kind."""
    kind, name = reference.target()
    return name if kind == "Patient" else ""


def _next(at: datetime, length: int) -> datetime:
    """The next year, month or day, as many characters as were told."""
    if length == 10:
        return at + timedelta(days=1)
    later = at + timedelta(days=366 if length == 4 else 31)
    return later.replace(day=1, month=1) if length == 4 else later.replace(day=1)
