"""Who people and patients are: by the feeds that are loaded, and by files that have their names.

The store holds no names. A file is a feed's CSV file (``people.csv``, ``patients.csv``), which may
have the columns `name` and `address` besides; or, for patients, one identifier a line.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from authz.detect.feeds import Row, rows
from authz.errors import UsageError
from authz.record.privacy import PrivacyKey
from authz.store import feeds
from authz.store.client import Client


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of somebody; empty where nothing is."""

    subject: str
    name: str = ""
    address: str = ""
    role: str = ""
    department: str = ""
    status: str = ""

    @property
    def shown(self) -> str:
        """The name, and the subject it goes by in the log."""
        return f"{self.name} ({self.subject})" if self.name else self.subject


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient whose identifier is known."""

    identifier: str
    name: str = ""
    address: str = ""


def people(client: Client, subjects: Iterable[str], file: Path | None = None) -> dict[str, Person]:
    """What is known of each of `subjects`. Raises `UsageError` for a `file` that is none, and
    `authz.store.client.QUERY_ERRORS`."""
    known = {subject: Person(subject) for subject in subjects if subject}
    loaded = feeds.current(client).get("people")
    for subject, role, department, status in (
        feeds.people(client, loaded, sorted(known)) if loaded else ()
    ):
        known[subject] = Person(subject, role=role, department=department, status=status)
    for row in people_rows(file) if file else ():
        subject = row["subject"].strip()
        if subject in known:
            known[subject] = _with(known[subject], row)
    return known


def people_rows(file: Path) -> Iterator[Row]:
    """The rows of a file of people. Raises `UsageError`."""
    with _opened(file) as lines:
        yield from rows(lines, str(file), "subject")


def _with(person: Person, row: Row) -> Person:
    told = {name: row.get(name, "").strip() for name in ("name", "address", "role", "department")}
    return replace(person, **{name: value for name, value in told.items() if value})


def identified(tokens: Iterable[str], keys: Sequence[PrivacyKey], file: Path) -> dict[str, Patient]:
    """Those of `tokens` that one of `keys` makes of an identifier in `file`, and whose it is.
    Raises `UsageError`, which repeats nothing of the file."""
    wanted, found = set(tokens), dict[str, Patient]()
    for patient in patients_in(file):
        for key in keys:
            token = key.token(patient.identifier)
            if token in wanted:
                found[token] = patient
    return found


def patients_in(file: Path) -> Iterator[Patient]:
    """Each patient whom `file` names. Raises `UsageError`."""
    with _opened(file) as lines:
        try:
            first = next(lines, "")
        except UnicodeDecodeError:
            raise UsageError(f"{file}: not text in UTF-8") from None
        columns = [column.strip().strip('"').lower() for column in first.split(",")]
        if "patient" in columns:
            for row in rows(itertools.chain([first], lines), str(file), "patient"):
                told = (row.get(name, "").strip() for name in ("patient", "name", "address"))
                yield Patient(*told)
            return
        try:
            for line in itertools.chain([first], lines):
                if one := line.strip():
                    yield Patient(one)
        except UnicodeDecodeError:
            raise UsageError(f"{file}: not text in UTF-8") from None


def _opened(file: Path) -> TextIO:
    try:
        return file.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
