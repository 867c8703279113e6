"""What end-to-end tests share: programs run as people run them, and what they leave behind."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from authz.demo import stack
from authz.errors import UsageError
from authz.report.pages import check_pdf

CHECKOUT = Path(__file__).parents[1]
AUTHZ = [sys.executable, "-m", "authz"]
OWN = Path(sys.executable).parent  # programs that come with the extra `dev`, on PATH or not

# In the environment of all that a test starts, and so of all that that starts in turn.
_MARK = "AN_E2E_TEST"

T = TypeVar("T")

free_port = stack.free_port


class World:
    """An environment for programs, and a way to tell which of them still run."""

    def __init__(self, base: Mapping[str, str]) -> None:
        self._mark = secrets.token_hex(8)
        self.environment = {**base, _MARK: self._mark}

    def running(self) -> dict[int, str]:
        """The command lines of the processes that were started in this world, by process id."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and wanted in (process / "environ").read_bytes():
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = line.decode(errors="replace")
        return found

    def end(self) -> None:
        """Kill what a failed test has left running."""
        for process in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def world(base: Mapping[str, str] | None = None) -> Iterator[World]:
    """A world with this process's environment, or `base`; what is left of it at the end is killed.

    Without `base`, settings of ours are left out: a test means the defaults.
    """
    ours = {name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")}
    made = World(ours if base is None else base)
    try:
        yield made
    finally:
        made.end()


def run(
    command: Sequence[str | Path], where: World, seconds: float = 60, **more: object
) -> "subprocess.CompletedProcess[str]":
    """The finished command, its output as text."""
    usual = {"env": where.environment, "stdin": subprocess.DEVNULL}
    return subprocess.run(
        [str(part) for part in command],
        timeout=seconds,
        capture_output=True,
        text=True,
        check=False,
        **(usual | more),
    )


def until(true: Callable[[], T], seconds: float) -> T:
    """What `true` returns once that is true, or at last after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def freeze(process: int) -> None:
    """Stop a process, and wait until all its threads stand still: a signal takes its time."""
    os.kill(process, signal.SIGSTOP)
    threads = Path(f"/proc/{process}/task")

    def stands() -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
            told = [(thread / "stat").read_text() for thread in threads.iterdir()]
            return all(text.rpartition(")")[2].split()[0] == "T" for text in told)
        return False

    assert until(stands, 10), f"{process} does not stop"


def program(name: str, package: str) -> str:
    """Where `name` is. Without it the test is skipped, and in CI that is a failure."""
    found = shutil.which(name)
    if found is None:
        reason = f"needs {name}: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def makes_pdfs() -> None:
    """Where PDFs cannot be made the test is skipped, and in CI that is a failure."""
    try:
        check_pdf()
    except UsageError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
