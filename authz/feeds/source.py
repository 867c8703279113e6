"""What an operator names as a source, read row by row: a directory of CSV files, one of them, FHIR
resources in a file (a Bundle, or NDJSON), or the address of either, with all pages of a search."""

import http.client
import io
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from authz.detect.feeds import rows
from authz.errors import UnavailableError, UsageError
from authz.feeds import fhir, tables
from authz.feeds.tables import Names, Told
from authz.feeds.web import Web, name_of
from authz.store.feeds import FEEDS, KINDS

_MOST_BYTES = 256 << 20  # of one JSON document, which is in memory as a whole
_WEB = re.compile(r"https?://", re.IGNORECASE)


def is_address(source: str) -> bool:
    return _WEB.match(source) is not None


def mapping(path: Path, column: str, to: str) -> dict[str, str]:
    """A table of two columns: who a practitioner is, which department a location. Raises
    `UsageError`."""
    with _opened(path) as file:
        found = rows(_lines(file), str(path), column, to)
        return {row[column].strip(): row[to].strip() for row in found}


@dataclass(slots=True)
class Source:
    """`read` it once; `told` and `skipped` then say the rest. `only` one feed is loaded, if that is
    given. An address is asked by way of `web`."""

    given: str
    names: Names
    fhir: fhir.Reader
    only: str | None = None
    web: Web | None = None
    told: dict[str, str] = field(default_factory=dict)
    """The feeds that the source tells of, though it be nothing, and where."""

    @property
    def skipped(self) -> Counter[tuple[str, str]]:
        """Resources, or parts of them, that gave no reason: by feed, and why."""
        return Counter(
            {one: n for one, n in self.fhir.skipped.items() if self.only in (None, one[0])}
        )

    def read(self) -> Iterator[Told]:
        """The rows of all feeds. Raises `AuthzError`."""
        path = Path(self.given)
        if self.web is not None:
            yield from self._pages(self.web)
        elif path.is_dir():
            yield from self._directory(path)
        else:
            with _opened(path) as file:
                if path.suffix.lower() == ".csv":
                    yield from self._csv(self.only or path.stem.lower(), file, self.given)
                else:
                    yield from self._documents(file, self.given)
        if self.only:
            self.told.setdefault(self.only, name_of(self.given) if self.web else self.given)
        if not self.told:
            raise UsageError(
                f"{name_of(self.given) if self.web else self.given}: nothing in it is of a feed;"
                f" to have one empty, say which: --feed {', '.join(KINDS)}"
            )

    def _directory(self, path: Path) -> Iterator[Told]:
        wanted = [self.only] if self.only else FEEDS
        there = [path / f"{feed}.csv" for feed in wanted if (path / f"{feed}.csv").exists()]
        if not there:
            names = ", ".join(f"{feed}.csv" for feed in wanted)
            raise UsageError(f"{path}: there is no {names}")
        for file in there:
            with _opened(file) as content:
                yield from self._csv(file.stem, content, str(file))

    def _csv(self, feed: str, file: IO[bytes], name: str) -> Iterator[Told]:
        if feed not in FEEDS:
            raise UsageError(f"{name}: which feed is it? Say --feed {', '.join(FEEDS)}")
        self.told[feed] = name
        yield from tables.read(feed, _lines(file), name, self.names)

    def _pages(self, web: Web) -> Iterator[Told]:
        following: str | None = self.given
        seen = set[str]()
        while following:
            if following in seen:
                raise UsageError(f"{name_of(following)}: Bundle.link leads in a circle")
            seen.add(following)
            answer = web.ask(following)
            with answer.file:
                try:
                    if "csv" in answer.kind or answer.name.lower().endswith(".csv"):
                        stem = Path(answer.name).stem.lower()
                        yield from self._csv(self.only or stem, answer.file, answer.name)
                        last = None
                    else:
                        last = yield from self._documents(answer.file, answer.name)
                except (OSError, http.client.HTTPException):
                    raise UnavailableError(
                        f"{answer.name}: the answer broke off; nothing is changed, try again"
                    ) from None
                answer.end()
            following = web.next(last, following) if last else None

    def _documents(
        self, file: IO[bytes], name: str
    ) -> Generator[Told, None, dict[str, Any] | None]:
        """Of a file of FHIR resources; returns the last Bundle that was in it."""
        bundle = None
        for where, document in _documents(file, name):
            kind = document.get("resourceType")
            if not isinstance(kind, str):
                raise UsageError(f"{where}: want a FHIR resource, with its resourceType")
            if kind == "OperationOutcome":
                raise UnavailableError(f"{where}: an OperationOutcome, which tells of an error")
            resources = iter([(where, document)])
            if kind == "Bundle":
                bundle, resources = document, _entries(document, where)
            for place, resource in resources:
                for found in self.fhir.read(resource, place):
                    if self.only in (None, found.feed):
                        yield tables.reason(found, self.names, place, name)
            told = {self.only} & self.fhir.seen if self.only else self.fhir.seen
            self.told |= {feed: name for feed in told if feed not in self.told}
        return bundle


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _lines(file: IO[bytes]) -> Iterator[str]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from text


def _documents(file: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects in a file, and where each is: one a line, or the whole file is one."""
    number = 0
    while line := file.readline(_MOST_BYTES + 1):
        number += 1
        if not line.strip():
            continue
        document = _object(line)
        if document is None and number == 1:
            line += file.read(_MOST_BYTES + 1 - len(line))
            document = _object(line)
        if len(line) > _MOST_BYTES:
            raise UsageError(
                f"{name}: more than {_MOST_BYTES >> 20} MiB in one document; give it in pages, or"
                " as NDJSON, a resource a line"
            )
        if document is None:
            raise UsageError(f"{name}, line {number}: want a FHIR resource in JSON")
        yield f"{name}, line {number}", document


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _entries(bundle: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        raise UsageError(f"{where}: Bundle.entry: want an array")
    for number, entry in enumerate(entries):
        place = f"{where}: Bundle.entry[{number}]"
        resource = entry.get("resource", {}) if isinstance(entry, dict) else None
        if not isinstance(resource, dict):
            raise UsageError(f"{place}: want an object, with a resource")
        yield place, resource
