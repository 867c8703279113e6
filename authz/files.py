"""Files that a crash leaves whole: with their old content or the new, and under a durable name;
and whose they are."""

import fcntl
import os
from pathlib import Path

from authz.errors import UsageError


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def make_directory(directory: Path) -> None:
    """`directory` and those above it, durable: files in it are no more so than its name."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in made:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a created, renamed or removed name in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` so that a crash leaves the old content or the new, never a part."""
    fresh = path.with_name(f".{path.name}.new")
    file = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    fresh.replace(path)
    sync_directory(path.parent)


def create_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole and durable, for its owner's eyes only. Raises `FileExistsError`
    if something is there, and other `OSError`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    file = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        write_all(file, data)
        os.fsync(file)
        os.link(fresh, path)  # unlike a rename, it replaces nothing
    finally:
        os.close(file)
        fresh.unlink()
    sync_directory(path.parent)


def is_open(path: Path) -> bool:
    """Whether others may read a secret file than those whom its owner means. Raises `OSError`.

    A file of our own is ours alone. One that root gives us, such as a credential of systemd's or a
    secret that Kubernetes mounts, is root's, and can be read through its group: of systemd's, these
    bits are the access list's mask (0440), and nobody is in the group.
    """
    found = path.stat()
    given = found.st_uid == 0 != os.geteuid()
    return bool(found.st_mode & (0o037 if given else 0o077))


def lock_directory(directory: Path) -> int:
    """Have `directory` for this process alone, until the file returned is closed. Raises
    `UsageError` if another has it."""
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UsageError(
            f"{directory} is in use by another process; stop it, or choose another --data-dir"
        ) from None
    return lock
