"""What the operator tells of people and patients, and which reasons there are to look.

Tables, each a CSV file with a header, and each may be missing:

- ``people.csv``: subject, role, department, surname, household, status, patient, until.
- ``patients.csv``: patient, surname, household, vip.
- ``care_team.csv``, ``appointments.csv``, ``orders.csv``, ``encounters.csv``: subject, patient,
  from, until.
- ``census.csv``: department, patient, from, until: for all whose department that is.

Columns that are not there are empty; others are passed over. Times are ISO 8601, in UTC where they
do not say; an empty `from` or `until` is open. A `patient` is named as the records name it.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from authz.errors import UsageError

REASONS = {
    "care_team": "care team", "appointments": "appointment", "orders": "order",
    "encounters": "encounter",
}  # fmt: skip
"""The tables of reasons, and what each is called."""
CENSUS = "department census"
_HOUR = 3_600_000_000
# Charts are prepared before an appointment, and letters are written after it.
BEFORE_US = 24 * _HOUR
AFTER_US = 72 * _HOUR
FOREVER = 2**62
_GONE = frozenset(("terminated", "disabled", "inactive", "left", "suspended"))
_YES = frozenset(("1", "true", "yes", "y", "vip"))


@dataclass(frozen=True, slots=True)
class Known:
    """A person, as ``people.csv`` has them. `patient` is their own chart."""

    role: str = ""
    department: str = ""
    surname: str = ""
    household: str = ""
    patient: str = ""
    gone: bool = False
    """Their status says that they have no business here any more."""
    until: int = 0
    """When they left, in microseconds; 0 if nobody says."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A patient, as ``patients.csv`` has them."""

    surname: str = ""
    household: str = ""
    vip: bool = False


_NOBODY = Known()
_NO_CHART = Chart()


@dataclass(slots=True)
class Feeds:
    """The tables. `reason` is asked for every access, so it is by one look-up."""

    people: dict[str, Known] = field(default_factory=dict)
    patients: dict[str, Chart] = field(default_factory=dict)
    reasons: dict[str, dict[str, tuple[tuple[int, int, str], ...]]] = field(default_factory=dict)
    """By subject and patient: from, until, what."""
    stays: dict[str, tuple[tuple[int, int, str], ...]] = field(default_factory=dict)
    """By patient: from, until, in which department."""
    surnames: Counter[str] = field(default_factory=Counter)
    households: Counter[str] = field(default_factory=Counter)
    departments: Counter[str] = field(default_factory=Counter)
    staff: dict[str, str] = field(default_factory=dict)
    """By own chart, whose it is."""
    vips: int = 0
    as_of: int = 0
    """Since when people's status is as told here, in microseconds; 0 if that is not known."""

    @property
    def explains(self) -> bool:
        """Whether there are reasons at all."""
        return bool(self.reasons or self.stays)

    def known(self, subject: str) -> Known:
        return self.people.get(subject, _NOBODY)

    def chart(self, patient: str) -> Chart:
        return self.patients.get(patient, _NO_CHART)

    def reason(self, subject: str, patient: str, at: int) -> str:
        """Why `subject` may look at `patient` at that time; empty if nothing says."""
        found = self.reasons.get(subject)
        if found is not None:
            for begin, end, what in found.get(patient, ()):
                if begin - BEFORE_US <= at <= end + AFTER_US:
                    return what
        if stays := self.stays.get(patient):
            department = self.known(subject).department
            for begin, end, where in stays:
                if where == department and begin - BEFORE_US <= at <= end + AFTER_US:
                    return CENSUS
        return ""

    def add_person(self, subject: str, known: Known) -> None:
        self.people[subject] = known
        if known.department:
            self.departments[known.department] += 1
        if known.patient:
            self.staff[known.patient] = subject

    def add_patient(self, patient: str, chart: Chart) -> None:
        self.patients[patient] = chart
        self.surnames[chart.surname] += 1
        self.households[chart.household] += 1
        self.vips += chart.vip

    def add_reason(self, subject: str, patient: str, begin: int, end: int, what: str) -> None:
        charts = self.reasons.setdefault(subject, {})
        charts[patient] = (*charts.get(patient, ()), (begin, end, what))

    def add_stay(self, department: str, patient: str, begin: int, end: int) -> None:
        self.stays[patient] = (*self.stays.get(patient, ()), (begin, end, department))


def load(directory: Path, token: Callable[[str], str] = lambda patient: patient) -> Feeds:
    """The tables in `directory`; `token` names a patient as the records do. Raises `UsageError`."""
    if not directory.is_dir():
        raise UsageError(f"--feeds {directory}: no such directory")
    feeds = Feeds()
    for row in _of(directory, "people", "subject"):
        own = row.get("patient", "")
        feeds.add_person(
            row["subject"],
            Known(
                row.get("role", ""), row.get("department", ""), surname_of(row.get("surname", "")),
                row.get("household", ""), token(own) if own else "",
                is_gone(row.get("status", "")), time_of(row, "until", 0),
            ),
        )  # fmt: skip
    for row in _of(directory, "patients", "patient"):
        surname = surname_of(row.get("surname", ""))
        chart = Chart(surname, row.get("household", ""), is_vip(row.get("vip", "")))
        feeds.add_patient(token(row["patient"]), chart)
    for table, what in REASONS.items():
        for row in _of(directory, table, "subject", "patient"):
            feeds.add_reason(row["subject"], token(row["patient"]), *interval_of(row), what)
    for row in _of(directory, "census", "department", "patient"):
        feeds.add_stay(row["department"], token(row["patient"]), *interval_of(row))
    return feeds


def surname_of(text: str) -> str:
    """A surname as it is compared with others."""
    return " ".join(text.casefold().split())


def is_gone(status: str) -> bool:
    return status.strip().lower() in _GONE


def is_vip(text: str) -> bool:
    return text.strip().lower() in _YES


class Row(dict[str, str]):
    """One line, which knows where it stands."""

    __slots__ = ("where",)
    where: str


def _of(directory: Path, table: str, *needed: str) -> Iterator[Row]:
    path = directory / f"{table}.csv"
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    with file:
        yield from rows(file, str(path), *needed)


def rows(lines: Iterable[str], name: str, *needed: str) -> Iterator[Row]:
    """The rows of a CSV file, whose columns `needed` hold something. Raises `UsageError`, which
    repeats nothing of it: a column that slipped may hold anything."""
    reader = csv.reader(lines)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        for column in needed:
            if column not in header:
                raise UsageError(f"{name}: no column {column}; its first line must name them")
        for values in reader:
            if not values:
                continue
            row = Row(zip(header, values, strict=False))
            row.where = f"{name}, line {reader.line_num}"
            for column in needed:
                if not row.get(column):
                    raise UsageError(f"{row.where}: {column} is empty")
            yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{name}: not a CSV file in UTF-8 ({error})") from None


def interval_of(row: Row) -> tuple[int, int]:
    """From when until when, in microseconds; 0 and `FOREVER` where it is open."""
    return time_of(row, "from", 0), time_of(row, "until", FOREVER)


def time_of(row: Row, column: str, otherwise: int) -> int:
    text = row.get(column, "").strip()
    if not text:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{row.where}: {column} is no time in ISO 8601, such as 2026-03-01T08:00Z"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1_000_000)


def share(count: int, of: Mapping[str, object]) -> float:
    """How likely one drawn by chance is among `count`."""
    return count / max(len(of), 1)
