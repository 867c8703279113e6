"""What the receiver's disk held at each moment, from strace's record of its calls.

Only what a sync vouched for counts: a file up to what was written before its last sync that
succeeded, a name once its directory was synced.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from authz.journal.segments import Journal

CALLS = "openat,write,fsync,fdatasync,rename"

_CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+)")
_BEGUN = re.compile(r"^(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)\)\s+= (-?\d+)")
_FILE = re.compile(r"^\d+<(.*?)>")


@dataclass(slots=True)
class Disk:
    written: dict[str, int] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)

    def call(self, name: str, arguments: str, result: int) -> str:
        """Take a call that ended; returns the file that has been replaced by it, if it was that."""
        if result < 0:
            return ""
        if name == "openat":
            path = arguments.split('"')[1]
            if "O_CREAT" in arguments and ("O_EXCL" in arguments or "O_TRUNC" in arguments):
                self.written[path] = self.synced[path] = 0
                self.created.add(path)
        elif name == "rename":
            return arguments.split('"')[1]
        elif found := _FILE.match(arguments):
            path = found[1]
            if name == "write":
                self.written[path] = self.written.get(path, 0) + result
                self.text[path] = arguments.partition('"')[2]
            else:
                self.synced[path] = self.written.get(path, 0)
                self.named |= {made for made in self.created if Path(made).parent == Path(path)}
        return ""


def calls(trace: str) -> Iterator[tuple[str, str, int]]:
    """Calls in the order in which they ended: name, arguments, result."""
    begun: dict[tuple[str, str], str] = {}
    for line in trace.splitlines():
        if found := _CALL.match(line):
            yield found[2], found[3], int(found[4])
        elif found := _BEGUN.match(line):
            begun[found[1], found[2]] = found[3]
        elif found := _RESUMED.match(line):
            yield found[2], begun.pop((found[1], found[2]), "") + found[3], int(found[4])


def checkpoints(trace: str, journal: Path, files: Path, scratch: Path) -> list[tuple[int, int]]:
    """Of each checkpoint that was put in its place: its size, and how many records a loss of power
    at that moment would have left in `journal`, whose files are in `files` as they were at last."""
    disk, found = Disk(), []
    for name, arguments, result in calls(trace):
        replaced = disk.call(name, arguments, result)
        if not replaced.endswith("/.checkpoint.new"):
            continue
        assert disk.synced[replaced] == disk.written[replaced], "a checkpoint that was not synced"
        size = int(disk.text[replaced].split("\\n")[1])
        found.append((size, _records(disk, journal, files, scratch)))
    return found


def _records(disk: Disk, journal: Path, files: Path, scratch: Path) -> int:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in files.glob("*.journal"):
        path = str(journal / file.name)
        if path in disk.named:
            (scratch / file.name).write_bytes(file.read_bytes()[: disk.synced[path]])
    found = Journal(scratch, start=0)
    try:
        return found.next
    finally:
        found.close()
