"""Makes an export: a file of records, and its manifest last, so that one without it is none."""

import base64
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from authz.files import replace_file, write_all
from authz.ledger import ProofError
from authz.ledger.runs import Run, prove_runs
from authz.report.exports.cells import HEADER, cells, csv_text, time_text
from authz.report.exports.events import audit_events
from authz.report.exports.manifest import (
    FILES,
    MOST_RUNS,
    NAME,
    File,
    Filters,
    Format,
    LogPart,
    Manifest,
)
from authz.store import exports, tiles
from authz.store.client import Client
from authz.store.exports import Selection

Progress = Callable[[int, int], None]
"""Is told how many of a log's records are done, and how many it has."""

_Form = Callable[[Sequence[bytes]], tuple[bytes, int]]
"""From leaves to what a file has of them, and how many lines that is."""


def write_export(
    client: Client, origins: Sequence[str], folder: Path, form: Format, wanted: Selection,
    progress: Progress,
) -> Manifest:  # fmt: skip
    """Write the `wanted` records of the logs `origins` to `folder`, which is made, as `form`.

    Whether they are right is not asked here, but by whoever has them (`check_export`). Errors are
    `OSError` and the database's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export = Export(client, origins, form, wanted, progress)
    with _writing(folder / FILES[form]) as write:
        for piece in export.pieces():
            write(piece)
    manifest = export.manifest()
    replace_file(folder / NAME, manifest.to_json())
    return manifest


@contextmanager
def _writing(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A file for its owner's eyes only. Raises `FileExistsError` if something is there."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    def write(data: bytes) -> None:
        try:
            write_all(file, data)
        except OSError as error:  # a full disk, not the database
            raise OSError(error.errno, error.strerror, str(path)) from None

    try:
        yield write
        os.fsync(file)
    finally:
        os.close(file)


@dataclass(slots=True)
class Export:
    """The `wanted` records of the logs `origins` as `form`: the file's `pieces`, and once all of
    them are there its `manifest`."""

    client: Client
    origins: Sequence[str]
    form: Format
    wanted: Selection
    progress: Progress = lambda *_: None
    _digest: Any = field(default_factory=hashlib.sha256)
    _bytes: int = 0
    _lines: int = 0
    _logs: list[LogPart] = field(default_factory=list)

    def pieces(self) -> Generator[bytes, None, None]:
        """Until the last, `client` is not to be used for anything else."""
        if self.form == "csv":
            yield self._out(csv_text([HEADER]).encode(), 0)
        for origin in self.origins:
            part = yield from self._log(origin)
            if part:
                self._logs.append(part)

    def manifest(self) -> Manifest:
        file = File(
            name=FILES[self.form], bytes=self._bytes, sha256=self._digest.hexdigest(),
            lines=self._lines,
        )  # fmt: skip
        return Manifest(
            made_at=time_text(time.time_ns() // 1000), format=self.form,
            filters=_filters(self.wanted), logs=self._logs, files=[file],
        )  # fmt: skip

    def _out(self, data: bytes, lines: int) -> bytes:
        self._digest.update(data)
        self._bytes += len(data)
        self._lines += lines
        return data

    def _log(self, origin: str) -> Generator[bytes, None, LogPart | None]:
        """One log's records; None if it has no checkpoint, and so nothing to rest on."""
        newest = tiles.best_checkpoint(self.client, origin, 0)
        if newest is None:
            return None
        size, note = newest
        places, write = _Places(), _FORMS[self.form]
        for found in exports.leaves(self.client, origin, size, self.wanted):
            yield self._out(*write(found.leaves))
            places.add(found.indexes)
            self.progress(found.indexes[-1] + 1, size)
        proof, why = None, ""
        if self.form == "fhir":
            places.runs, why = None, "what FHIR says of a record does not give the record back"
        elif places.runs is None:
            why = f"they lie in more than {MOST_RUNS} places of the log"
        else:
            try:
                read = tiles.Tiles(self.client, origin)
                runs = [(begin, end) for begin, end in places.runs]
                proof = [base64.b64encode(one).decode() for one in prove_runs(runs, size, read)]
            except ProofError as error:
                why = f"{error}; authz verify tells what was changed"
            except ValueError:
                why = "several records claim one place; authz verify tells what was changed"
        return LogPart(
            origin=origin, checkpoint=note, records=places.records, first=places.first,
            end=places.end, runs=places.runs, proof=proof, no_proof=why,
        )  # fmt: skip


@dataclass(slots=True)
class _Places:
    """Which records there are: `runs`, as long as these are not too many."""

    records: int = 0
    runs: list[list[int]] | None = field(default_factory=list)
    first: int = 0
    end: int = 0

    def add(self, indexes: Sequence[int]) -> None:
        """Some more, in order."""
        if not self.records:
            self.first = indexes[0]
        self.records += len(indexes)
        whole = indexes[-1] - indexes[0] + 1 == len(indexes) == len(set(indexes))
        for begin, end in [(indexes[0], indexes[-1] + 1)] if whole else _runs(indexes):
            if self.runs is None:
                break
            if self.runs and self.runs[-1][1] == begin:
                self.runs[-1][1] = end
            else:
                self.runs.append([begin, end])
                if len(self.runs) > MOST_RUNS:
                    self.runs = None
        self.end = indexes[-1] + 1


def _runs(indexes: Iterable[int]) -> Iterator[Run]:
    first = end = -1
    for index in indexes:
        if index != end:
            if end > first:
                yield first, end
            first = index
        end = index + 1
    yield first, end


def _ndjson(leaves: Sequence[bytes]) -> tuple[bytes, int]:
    return b"\n".join([*leaves, b""]), len(leaves)


def _csv(leaves: Sequence[bytes]) -> tuple[bytes, int]:
    return csv_text(cells(orjson.loads(leaf)) for leaf in leaves).encode(), len(leaves)


def _fhir(leaves: Sequence[bytes]) -> tuple[bytes, int]:
    events = [orjson.dumps(event) for leaf in leaves for event in audit_events(orjson.loads(leaf))]
    return b"\n".join([*events, b""]), len(events)


_FORMS: Mapping[Format, _Form] = {"ndjson": _ndjson, "csv": _csv, "fhir": _fhir}


def _filters(wanted: Selection) -> Filters:
    since, until = wanted.window.since_us, wanted.window.until_us
    asked = asdict(wanted.filters) | {"patients": list(wanted.filters.patients)}
    return Filters(
        since="" if since is None else time_text(since),
        until="" if until is None else time_text(until), kinds=list(wanted.kinds), **asked,
    )  # fmt: skip
