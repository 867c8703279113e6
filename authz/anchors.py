"""Directories in which a log's checkpoints are kept where its operator cannot rewrite them.

``DIRECTORY/<origin>/<size>``: the origin escaped as in URLs, all but letters, digits and ``_-.~``
(and a leading dot); the size in 16 digits; each file is a checkpoint as the log signed it. Further
files of one size are ``<size>.1``, ``<size>.2``: the same with witnesses' cosignatures, or what
follows a file that a crash has cut. No file is ever overwritten, so that storage will do which
takes each file once.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from authz.files import sync_directory

_NAME = re.compile(r"[0-9]{16}(\.[0-9]+)?", re.ASCII)
_MOST_BYTES = 65_536
_MOST_FILES = 100  # of one size


def folder(directory: Path, origin: str) -> Path:
    """Where the log's checkpoints are."""
    name = quote(origin, safe="")
    return directory / (f"%2E{name[1:]}" if name.startswith(".") else name)


def put(directory: Path, origin: str, size: int, note: str) -> None:
    """Keep a checkpoint, durably. Safe to repeat. Raises `OSError`.

    `directory` itself must be there: what is not mounted is not made up.
    """
    place = folder(directory, origin)
    if not place.exists():
        with contextlib.suppress(FileExistsError):
            place.mkdir()
        sync_directory(directory)
    data = note.encode()
    for number in range(_MOST_FILES):
        path = place / (f"{size:016}.{number}" if number else f"{size:016}")
        if path.exists():
            if path.read_bytes() != data:
                continue
            _sync(path)  # whoever wrote it may have been killed before that
        else:
            _create(path, data)
        sync_directory(place)
        return
    raise OSError(0, f"{place / f'{size:016}'} is there with something else {_MOST_FILES} times")


def _create(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        if os.write(file, data) != len(data):
            raise OSError(0, "the file was cut")
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):  # where that is not allowed, the next one is beside it
            path.unlink()
        raise
    finally:
        os.close(file)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def notes_in(directory: Path, origin: str) -> Iterator[str]:
    """What is kept of the log, by size: notes as they were put there, and whatever else bears such
    a name. Raises `OSError`."""
    place = folder(directory, origin)
    for path in sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name)):
        with path.open("rb") as file:
            yield file.read(_MOST_BYTES).decode(errors="replace")
