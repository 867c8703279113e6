"""A disk that fails when told to, and knows what a loss of power may take."""

import errno
import os
from pathlib import Path
from random import Random
from typing import Any

SYSCALLS = ("open", "write", "fsync", "fdatasync")


class Disk:
    """Stands in for `os` in the journal's modules: files are real, and synced parts remembered.

    `fail_at` counts down the calls; the one that finds it at zero fails. A failing write may have
    written part of its data, as a full disk does.
    """

    def __init__(self) -> None:
        self.fail_at: int | None = None
        self.failed = ""
        self.no_room = False  # for anything but what is written
        self.error = errno.ENOSPC
        self._paths: dict[int, Path] = {}
        self._written: dict[Path, int] = {}
        self._synced: dict[Path, int] = {}
        self._named: set[Path] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._may_fail("open")
        file = os.open(path, flags, mode)
        self._paths[file] = Path(path)
        return file

    def write(self, file: int, data: bytes) -> int:
        if self._fails():
            self._wrote(file, os.write(file, bytes(data[: len(data) // 2])))
            self._fail("write")
        return self._wrote(file, os.write(file, data))

    def posix_fallocate(self, file: int, offset: int, length: int) -> None:
        if self.no_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(file, offset, length)

    def fsync(self, file: int) -> None:
        self._may_fail("fsync")
        self._sync(file)

    def fdatasync(self, file: int) -> None:
        self._may_fail("fdatasync")
        self._sync(file)

    def close(self, file: int) -> None:
        self._paths.pop(file, None)
        os.close(file)

    def kill(self) -> None:
        """The process ends: what it wrote stays, what it held is let go."""
        for file in self._paths:
            os.close(file)
        self._paths.clear()
        self.fail_at = None

    def cut_power(self, directory: Path, random: Random) -> None:
        """After `kill`: of each file, what was not synced is there, or gone, or zeros; and room
        that was made for more may be gone."""
        for path in directory.glob("*.journal"):
            synced = self._synced.get(path, 0)
            if path not in self._named and random.random() < 0.5:
                path.unlink()
                continue
            size = path.stat().st_size
            kept = random.randint(synced, max(synced, self._written.get(path, 0)))
            with path.open("r+b") as file:
                file.truncate(kept)
                if random.random() < 0.5:
                    file.truncate(size)

    def _sync(self, file: int) -> None:
        path = self._paths[file]
        if path.is_dir():
            self._named.update(path.iterdir())
        else:
            self._synced[path] = self._written.get(path, 0)

    def _wrote(self, file: int, count: int) -> int:
        path = self._paths[file]
        self._written[path] = self._written.get(path, 0) + count
        return count

    def _fails(self) -> bool:
        if self.fail_at is None:
            return False
        self.fail_at -= 1
        return self.fail_at < 0

    def _may_fail(self, name: str) -> None:
        if self._fails():
            self._fail(name)

    def _fail(self, name: str) -> None:
        self.fail_at = None
        self.failed = name
        raise OSError(self.error, os.strerror(self.error))
