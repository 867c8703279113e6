"""A disk as `tests/disk.py`'s that knows of renames too: what a loss of power may leave of files
that were replaced."""

from pathlib import Path
from random import Random

from disk import Disk


class PowerDisk(Disk):
    """`rename` stands in for `Path.replace`; it counts as a call that may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        # Names replaced since their directory was synced, each with what was there before.
        self._replaced: dict[Path, bytes | None] = {}

    def rename(self, fresh: Path, target: Path) -> Path:
        self._may_fail("rename")
        whole = fresh.stat().st_size == self._synced.get(fresh, 0)
        before = target.read_bytes() if target.exists() else None
        self._replaced.setdefault(target, before)
        found = fresh.rename(target)
        if not whole:
            self._replaced[target] = b"\0"  # its content may be anything
        return found

    def lose(self, directory: Path, random: Random) -> None:
        """The process and then the power: what was not synced in and below `directory` is there,
        or not."""
        self.kill()
        for target, before in self._replaced.items():
            if random.random() < 0.5:
                if before is None:
                    target.unlink(missing_ok=True)
                else:
                    target.write_bytes(before)
        self._replaced.clear()
        self.cut_power(directory, random)
        # What is there now is what the disk holds.
        self._written = {path: path.stat().st_size for path in directory.glob("*.journal")}
        self._synced = dict(self._written)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        file = super().open(path, flags, mode)
        if str(path).endswith(".new"):
            self._written[Path(path)] = self._synced[Path(path)] = 0  # truncated
        return file

    def _sync(self, file: int) -> None:
        super()._sync(file)
        path = self._paths[file]
        if path.is_dir():
            for target in [name for name in self._replaced if name.parent == path]:
                del self._replaced[target]

    def _fails(self) -> bool:
        self.calls += 1
        return super()._fails()
