"""Rows of CSV files as rows of the store: patients as tokens, surnames and households as marks."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from authz.detect.feeds import Row, interval_of, is_vip, rows, surname_of, time_of
from authz.errors import UsageError
from authz.record.privacy import PrivacyKey, is_token
from authz.store import feeds

Told = tuple[str, feeds.Row]
"""A feed, and a row of it."""


class Reason(NamedTuple):
    """`of` is a person's subject or, in the census, a department; `patient` an identifier, or a
    token; `interval` in microseconds, `FOREVER` for no end."""

    feed: str
    of: str
    patient: str
    interval: tuple[int, int]


class Names:
    """What stands in the tables for people's and patients' names."""

    def __init__(self, key: PrivacyKey) -> None:
        self._key = key

    def patient(self, given: str, where: str) -> str:
        """The token of an identifier; a token under this key stays what it is."""
        name = given.strip()
        if is_token(name):
            if name.startswith(f"{self._key.id}."):
                return name
            raise UsageError(
                f"{where}: patient is a token under another privacy key; give the identifier, or"
                " the --privacy-key it was made with"
            )
        if not name:
            raise UsageError(f"{where}: patient is empty")
        return self._key.token(name)

    def surname(self, given: str) -> str:
        name = surname_of(given)
        return self._key.mark("surname", name) if name else ""

    def household(self, given: str) -> str:
        name = surname_of(given)
        return self._key.mark("household", name) if name else ""


def reason(found: Reason, names: Names, where: str, source: str) -> Told:
    """A row of the reasons."""
    person, department = (found.of, "") if found.feed != "census" else ("", found.of)
    begin, end = (_within(at) for at in found.interval)
    patient = names.patient(found.patient, where)
    kind = feeds.KINDS[found.feed]
    return found.feed, (person, department, patient, kind, begin, end, source)


def read(feed: str, lines: Iterable[str], name: str, names: Names) -> Iterator[Told]:
    """The rows of the CSV file of `feed`; `name` is what messages call it. Raises `UsageError`."""
    needed, of = _READERS[feed]
    for row in rows(lines, name, *needed):
        yield feed, of(row, names, name, feed)


def _person(row: Row, names: Names, *_: str) -> feeds.Row:
    own = row.get("patient", "").strip()
    return (
        row["subject"].strip(), row.get("role", ""), row.get("department", "").strip(),
        names.surname(row.get("surname", "")), names.household(row.get("household", "")),
        names.patient(own, row.where) if own else "", row.get("status", "").strip().lower(),
        _within(time_of(row, "until", 0)),
    )  # fmt: skip


def _patient(row: Row, names: Names, *_: str) -> feeds.Row:
    return (
        names.patient(row["patient"], row.where), names.surname(row.get("surname", "")),
        names.household(row.get("household", "")), is_vip(row.get("vip", "")),
    )  # fmt: skip


def _reason(row: Row, names: Names, name: str, feed: str) -> feeds.Row:
    of = row["department" if feed == "census" else "subject"].strip()
    found = Reason(feed, of, row["patient"], interval_of(row))
    return reason(found, names, row.where, name)[1]


_READERS: dict[str, tuple[tuple[str, ...], Callable[..., feeds.Row]]] = {
    "people": (("subject",), _person),
    "patients": (("patient",), _patient),
    **dict.fromkeys(feeds.KINDS, (("subject", "patient"), _reason)),
    "census": (("department", "patient"), _reason),
}


def _within(at: int) -> int:
    """A time that ClickHouse's columns hold."""
    return min(max(at, 0), feeds.END)
