"""The temporary OPA: nobody else reaches it, and nothing of it stays."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from authz.errors import UnavailableError, UsageError
from authz.policy.opa_process import running
from authz.policy.source import Policy

pytestmark = pytest.mark.opa

POLICY = Policy({"a.rego": "package a\n\nallow if input.x\n"}, {"names": ["x"]})


@pytest.fixture
def on_path(opa, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(opa).parent), prepend=os.pathsep)


def children():
    """The command lines of this process's children."""
    ours = f"PPid:\t{os.getpid()}\n"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that just ended
            if ours in (entry / "status").read_text():
                found.append((entry / "cmdline").read_bytes())
    return found


def test_it_is_ours_alone_and_goes(on_path):
    """It listens on a socket in a directory for its owner only, and on no port; process and
    directory are gone when the block ends, also by an error."""
    for error in (None, RuntimeError()):
        with contextlib.suppress(RuntimeError), running(POLICY) as url:
            directory = Path(url.removeprefix("unix://")).parent
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            [command] = [line for line in children() if str(directory).encode() in line]
            assert command.count(b"--addr") == 1
            assert b"unix://" in command
            if error:
                raise error
        assert not directory.exists()
        assert not [line for line in children() if str(directory).encode() in line]


def test_a_policy_does_not_write_elsewhere(on_path):
    """A bundle whose module's name leads out of the directory is refused."""
    for name in ("../a.rego", "b/../../a.rego", "/tmp/a.rego"):
        with (
            pytest.raises(UsageError, match="leads out"),
            running(Policy({name: "package a\n"}, {})),
        ):
            pass


def test_without_opa(monkeypatch, tmp_path):
    """Without the program the error says how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="go install"), running(POLICY):
        pass
