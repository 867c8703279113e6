"""The receiver under strace: killed, or failing, at one system call after another.

    python -m tests.faults.syscalls [--only TEXT]

Each call that concerns the receiver's files, in a start and in what follows it, is once the last
before kill -9, and once fails with EIO and with ENOSPC. Traffic goes in before and after; then it
is started without faults, and all is counted and verified.
"""

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console

from authz.journal.segments import Journal

from .feeding import KILLED, Feeder, Server, Site, check, database, ready, site

KILL = "signal=SIGKILL"
FAULTS = (KILL, "error=EIO", "error=ENOSPC")
# What the program calls for its files, by which file.
CALLS = {
    "journal": "openat write fallocate fsync fdatasync ftruncate",
    "checkpoint": "openat write fsync rename",
    "state.json": "openat write fsync rename",
    "trust.yaml": "openat write fsync rename",
    "log.key": "openat write fsync rename",
    "directory": "openat fsync",
}
TRACED = Path(__file__).with_name("traced.py")
_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` of the calls `call` on `file` fails so, or is the last; `fresh`: of a first
    start."""

    call: str
    file: str
    kind: str
    nth: int
    fresh: bool = False

    def __str__(self) -> str:
        when = "first start" if self.fresh else "later start"
        return f"{self.call} {self.nth} of {self.file}, {self.kind}, {when}"


def places(*, fresh: bool) -> Iterator[tuple[str, str]]:
    for file, calls in CALLS.items():
        if fresh or file != "log.key":
            for call in calls.split():
                yield call, file


def program(fault: Fault, data_dir: Path, trace: Path) -> list[str | Path]:
    """The receiver's program, with `fault`; its calls are written to `trace`."""
    paths = {
        "journal": [data_dir / "journal", data_dir / "journal" / _segment(data_dir)],
        "directory": [data_dir],
    }.get(fault.file, [data_dir / f".{fault.file}.new"])
    # Not --seccomp-bpf: with it strace 6.1 forgets to inject signals.
    options: list[str | Path] = ["-y", "-qq", "-s", "64", "-o", trace]
    options += ["-e", f"trace={fault.call}"]
    options += ["-e", f"inject={fault.call}:{fault.kind}:when={fault.nth}"]
    for path in paths:
        options += ["-P", path]
    return [sys.executable, TRACED, *options, "--"]


def _segment(data_dir: Path) -> str:
    """The name of the segment that the next start begins."""
    number = 0
    if (data_dir / "journal").exists():
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(data_dir / "journal", Path(copy) / "journal")
            journal = Journal(Path(copy) / "journal", start=0)
            number = journal.next
            journal.close()
    return f"{number:016d}-0000.journal"


class Trial:
    """A receiver with its writer, put through faults one after another."""

    def __init__(self, here: Site, feeder: Feeder) -> None:
        self._here = here
        self._feeder = feeder

    async def go(self, fault: Fault) -> str:
        """How the receiver ended, empty if the fault did not come to pass. Raises `AssertionError`
        with what it did harm to."""
        here, feeder = self._here, self._feeder
        trace = here.directory / "trace"
        trace.unlink(missing_ok=True)
        before = here.log.stat().st_size if here.log.exists() else 0
        here.start(program=program(fault, here.data_dir, trace))
        for _ in range(2):
            feeder.decide(3)
            await self._taken()
            await asyncio.sleep(0.12)  # a batch is sealed
        ended = here.ended
        if ended is None:
            ended = here.stop()
        said = here.log.read_bytes()[before:].decode(errors="replace")
        if fault.kind == KILL:
            struck, expected = ended == KILLED, {0, KILLED}
        else:
            struck = "INJECTED" in trace.read_text()
            expected = {0, 1, 2} if struck else {0}
        if ended not in expected:
            raise AssertionError(f"{fault}: ended with {ended}: {said[-500:]}")
        try:
            await self._recover()
        except AssertionError as error:
            raise AssertionError(f"{fault}: {error}") from None
        last = said.strip().splitlines()[-1] if ended and ended != KILLED else ""
        return f"ended with {ended} {last[:100]}" if struck else ""

    async def _taken(self) -> None:
        """Until what was sent is taken, or the receiver has ended."""
        until = time.monotonic() + _SECONDS
        while self._here.ended is None and time.monotonic() < until:
            self._feeder.tell()
            if not self._feeder.owed:
                return
            await asyncio.sleep(0.01)

    async def _recover(self) -> None:
        here, feeder = self._here, self._feeder
        here.start()
        await ready(here)
        feeder.decide(1)
        await feeder.settle()
        count = check(here, feeder)
        assert not count.wrong, count.wrong
        code = here.stop()
        assert code == 0, code


@asynccontextmanager
async def trial(server: Server, directory: Path, *, fresh: bool) -> AsyncIterator[Trial]:
    """A receiver that was never started, or was once."""
    with database(server.store) as store, site(directory, store) as here:
        async with Feeder(directory / "writer", here.address) as feeder:
            if not fresh:
                here.start()
                await ready(here)
                await feeder.settle()
                here.stop()
            yield Trial(here, feeder)


async def sweep(server: Server, directory: Path, only: str, told: Callable[[str], None]) -> None:
    """All of it; faults of a first start each on a log of its own, the others on one."""
    number = itertools.count()
    for fresh in (True, False):
        async with AsyncExitStack() as stack:
            one: Trial | None = None
            for kind, (call, file) in itertools.product(FAULTS, places(fresh=fresh)):
                for nth in range(1, 100):
                    fault = Fault(call, file, kind, nth, fresh)
                    if only not in str(fault):
                        break
                    begun = time.monotonic()
                    if fresh or one is None:
                        await stack.aclose()
                        where = directory / str(next(number))
                        one = await stack.enter_async_context(trial(server, where, fresh=fresh))
                    end = await one.go(fault)
                    told(f"{time.monotonic() - begun:4.1f} s  {fault}: {end or 'not met'}")
                    if not end:
                        break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="faults whose text has this in it")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    console, begun = Console(), time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="authz-syscalls-"))
    server = Server(directory / "clickhouse")
    runs = 0

    def tell(text: str) -> None:
        nonlocal runs
        runs += 1
        console.print(text, soft_wrap=True)

    try:
        asyncio.run(sweep(server, directory, options.only, tell))
    except AssertionError as error:
        console.print(f"{error}; all of it is in {directory}")
        sys.exit(1)
    finally:
        server.stop()
    console.print(f"{runs} runs in {time.monotonic() - begun:.0f} s; nothing lost or doubled")


if __name__ == "__main__":
    main()
