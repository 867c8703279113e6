"""Names for subjects and tokens, from files of the operator's: they are in no database.

``people.csv`` has the columns ``subject`` and ``name``, ``patients.csv`` has ``patient`` (the
identifier, as requests have it) and ``name``: the files that ``authz feeds load`` takes may have
the column too. Patients' names are kept by token, which takes the privacy key.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from authz.detect.feeds import rows
from authz.errors import UsageError
from authz.record.privacy import PrivacyKey

logger = structlog.get_logger()


class Directory:
    """The names in `directory`, read again when a file is another. Without one, there are none."""

    def __init__(self, directory: Path | None, keys: Sequence[PrivacyKey]) -> None:
        """Raises `UsageError` for a directory that is there and cannot be read."""
        self._files: list[_File] = []
        self._people = self._patients = _File(None, "", lambda one: (one,))
        if directory is not None:
            if not directory.is_dir():
                raise UsageError(f"console.directory: {directory}: want a directory that is there")
            self._people = _File(directory / "people.csv", "subject", lambda one: (one,))
            self._patients = _File(
                directory / "patients.csv", "patient", lambda one: [key.token(one) for key in keys]
            )
            for file in (self._people, self._patients):
                file.refresh()

    def people(self, subjects: Iterable[str]) -> dict[str, str]:
        """The names of those who are known, by subject."""
        return self._people.of(subjects)

    def patients(self, tokens: Iterable[str]) -> dict[str, str]:
        """The names of those who are known, by token."""
        return self._patients.of(tokens)


class _File:
    def __init__(
        self, path: Path | None, column: str, names_of: Callable[[str], Sequence[str]]
    ) -> None:
        self._path = path
        self._column = column
        self._names_of = names_of
        self._changed = 0
        self._names: dict[str, str] = {}

    def of(self, wanted: Iterable[str]) -> dict[str, str]:
        try:
            self.refresh()
        except UsageError as error:
            logger.error("the directory cannot be read again", error=str(error))
        return {one: self._names[one] for one in wanted if one in self._names}

    def refresh(self) -> None:
        path = self._path
        if path is None or not path.exists():
            return
        try:
            changed = path.stat().st_mtime_ns
            if changed == self._changed:
                return
            with path.open(newline="", encoding="utf-8-sig") as file:
                found = list(rows(file, str(path), self._column))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if found and "name" not in found[0]:
            raise UsageError(f"{path}: no column name; its first line must name them")
        named = [(row[self._column], row["name"]) for row in found if row["name"]]
        self._names = {key: name for one, name in named for key in self._names_of(one)}
        self._changed = changed
