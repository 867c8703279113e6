"""A real OPA for a moment: a policy's files, served on a unix socket in a directory of its own.

Only OPA knows a policy's syntax tree and decides as OPA does. Nothing listens on TCP, and the
directory is readable by its owner only; both are gone when the block ends.
"""

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import orjson

from authz.errors import UnavailableError, UsageError
from authz.policy.source import Policy

INSTALL = (
    "go install github.com/open-policy-agent/opa@v1.22.2, or a release from openpolicyagent.org"
)

_START_SECONDS = 120  # large data takes long to load
_PLACE = re.compile(r"^(?:error: )?(?:\w+ error: )?(?:\d+ errors? occurred[^:]*:\s*)?")


def find_opa() -> str:
    """The ``opa`` program on the PATH. Raises `UnavailableError` with the mend."""
    found = shutil.which("opa")
    if found is None:
        raise UnavailableError(f"the program `opa` is not on the PATH; install it: {INSTALL}")
    return found


def dialect(program: str, directory: Path) -> list[str]:
    """What tells OPA how the Rego in `directory` is written: nothing for v1, its option for v0, as
    policies before OPA 1.0 are. Nothing too if it is neither: then OPA says what is wrong."""
    for options in ([], ["--v0-compatible"]):
        command = [program, "check", "--bundle", *options, "."]
        if not subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode:
            return options
    return []


@contextlib.contextmanager
def running(policy: Policy, extra: Mapping[str, str] | None = None) -> Iterator[str]:
    """The ``unix://`` address of an OPA that serves `policy` and the modules `extra`.

    Raises `UsageError` when the policy does not compile, `UnavailableError` without OPA.
    """
    program = find_opa()
    with tempfile.TemporaryDirectory(prefix="authz-opa-") as temporary:
        directory = Path(temporary)
        files = directory / "policy"
        write(policy, files, extra)
        options = dialect(program, files)
        address = directory / "opa.sock"
        errors = directory / "output"
        with errors.open("wb") as output:
            process = subprocess.Popen(
                [program, "run", "--server", "--addr", f"unix://{address}", "--log-level", "error",
                 "--skip-version-check", *options, "."],
                cwd=files, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            _await(process, address, errors)
            yield f"unix://{address}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def write(policy: Policy, directory: Path, extra: Mapping[str, str] | None = None) -> None:
    """The policy as OPA reads it from a directory: modules by their names, data in one file."""
    directory.mkdir()
    for name, text in {**policy.modules, **(extra or {})}.items():
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise UsageError(f"--policy: {name}: a module's name leads out of the policy")
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if policy.data:
        (directory / "data.json").write_bytes(orjson.dumps(policy.data))


def _await(process: "subprocess.Popen[bytes]", address: Path, errors: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while not _answers(address):
        if process.poll() is not None:
            raise UsageError(f"--policy does not compile: {_told(errors)}")
        if time.monotonic() > until:
            raise UnavailableError(f"`opa run` does not answer after {_START_SECONDS} s")
        time.sleep(0.02)


def _answers(address: Path) -> bool:
    connection = http.client.HTTPConnection("opa", timeout=5)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection.sock:
            connection.sock.connect(os.fspath(address))
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def _told(errors: Path) -> str:
    """The first error that OPA told: file, line, what."""
    text = _PLACE.sub("", errors.read_text(errors="replace").strip(), count=1)
    return " ".join(text.split("\n")[0].split())[:500] or "`opa run` ended without a word"
