"""The receiver killed, and failing, at some of its system calls; all of them:
``python -m tests.faults.syscalls``."""

import asyncio
import contextlib
import os
import sys

import pytest
from programs import program

from .feeding import Feeder, Server, check, database, ready, site
from .order import CALLS, checkpoints
from .syscalls import KILL, TRACED, Fault, trial

EIO, ENOSPC = "error=EIO", "error=ENOSPC"
FAULTS = [
    Fault("fsync", "log.key", KILL, 1, fresh=True),
    Fault("fdatasync", "journal", KILL, 3),
    Fault("rename", "checkpoint", KILL, 1),
    Fault("fdatasync", "journal", EIO, 2),
    Fault("write", "journal", ENOSPC, 3),
    Fault("rename", "state.json", EIO, 1),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    program("strace", "strace")
    server = Server(tmp_path_factory.mktemp("clickhouse"))
    yield server
    server.stop()


@pytest.mark.thorough
@pytest.mark.parametrize("fresh", [True, False])
def test_some_calls(server, tmp_path, fresh):
    """Whichever call is the last one or fails: what was acknowledged is there after the next
    start, and the log verifies."""

    async def run():
        async with trial(server, tmp_path, fresh=fresh) as one:
            for fault in FAULTS:
                if fault.fresh == fresh:
                    end = await one.go(fault)
                    print(fault, end)
                    assert end, f"{fault} did not come to pass"

    asyncio.run(run())


async def keep(journal, files):
    """Have the journal's files in `files` too, where nobody trims them."""
    while True:
        for file in journal.glob("*.journal"):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(file, files / file.name)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["", "inject=fdatasync:error=EIO:when=4+7"])
def test_what_is_signed_is_on_disk(server, tmp_path, fault):
    """At each moment at which a checkpoint takes its place, a loss of power would leave everything
    that it is over; also when every seventh sync of the journal fails."""
    trace = tmp_path / "trace"

    async def run():
        with database(server.store) as store, site(tmp_path / "site", store) as here:
            options = ["-y", "-qq", "-s", "64", "-o", trace, "-e", f"trace={CALLS}"]
            options += ["-e", fault] if fault else []
            here.start(program=[sys.executable, TRACED, *options, "--"])
            await ready(here)
            keeping = asyncio.create_task(keep(here.data_dir / "journal", files))
            async with Feeder(tmp_path / "writer", here.address) as feeder:
                for _ in range(4):
                    await feeder.feed(0.4)
                    await feeder.settle()
                    await asyncio.sleep(0.1)
                assert check(here, feeder).wrong == []
            keeping.cancel()
            here.kill()
            return here.data_dir / "journal"

    files = tmp_path / "files"
    files.mkdir()
    journal = asyncio.run(run())
    text = trace.read_text()
    assert ("EIO" in text) == bool(fault)
    found = checkpoints(text, journal, files, tmp_path / "scratch")
    print(len(found), "checkpoints; the last ones:", found[-3:])
    assert len(found) >= 3
    assert all(size <= records for size, records in found)
