"""Names for subjects and tokens, from files of the operator's: they are in no database.

``people.csv`` has the columns ``subject`` and ``name``, ``patients.csv`` has ``patient`` (the
identifier, as requests have it) and ``name``: the files that ``authz feeds load`` takes may have
the column too. Patients' names are kept by token, which takes the privacy key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import structlog

from authz.errors import UsageError
from authz.record.privacy import PrivacyKey
from authz.report.people import patients_in, people_rows

logger = structlog.get_logger()


class Directory:
    """The names in `directory`, read again when a file is another. Without one, there are none."""

    def __init__(self, directory: Path | None, keys: Sequence[PrivacyKey]) -> None:
        """Raises `UsageError` for a directory that is there and cannot be read."""

        def people(path: Path) -> Iterator[tuple[str, str]]:
            found = people_rows(path)
            return ((row["subject"].strip(), row.get("name", "").strip()) for row in found)

        def patients(path: Path) -> Iterator[tuple[str, str]]:
            return (
                (key.token(one.identifier), one.name) for one in patients_in(path) for key in keys
            )

        if directory is not None and not directory.is_dir():
            raise UsageError(f"console.directory: {directory}: want a directory that is there")
        self._people = _Names(directory and directory / "people.csv", people)
        self._patients = _Names(directory and directory / "patients.csv", patients)

    def people(self, subjects: Iterable[str]) -> dict[str, str]:
        """The names of those who are known, by subject."""
        return self._people.of(subjects)

    def patients(self, tokens: Iterable[str]) -> dict[str, str]:
        """The names of those who are known, by token."""
        return self._patients.of(tokens)

    @property
    def people_file(self) -> Path | None:
        """The file of people, if there is one; so too the next."""
        return self._people.file

    @property
    def patients_file(self) -> Path | None:
        return self._patients.file


class _Names:
    """Those that `read` finds in a file: pairs of who it is and their name."""

    def __init__(
        self, path: Path | None, read: Callable[[Path], Iterator[tuple[str, str]]]
    ) -> None:
        self._path = path
        self._read = read
        self._changed = 0
        self._names: dict[str, str] = {}
        self._refresh()

    @property
    def file(self) -> Path | None:
        return self._path if self._path and self._path.exists() else None

    def of(self, wanted: Iterable[str]) -> dict[str, str]:
        try:
            self._refresh()
        except UsageError as error:
            logger.error("the directory cannot be read again", error=str(error))
        return {one: self._names[one] for one in wanted if one in self._names}

    def _refresh(self) -> None:
        path = self.file
        if path is None:
            return
        try:
            changed = path.stat().st_mtime_ns
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if changed == self._changed:
            return
        found = dict(self._read(path))
        self._names = {one: name for one, name in found.items() if name}
        if found and not self._names:
            raise UsageError(f"{path}: it names nobody; want a column name, filled in")
        self._changed = changed
