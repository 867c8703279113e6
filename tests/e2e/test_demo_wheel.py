"""The wheel, as somebody without a checkout gets it: in a clean virtual environment."""

import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import CHECKOUT, run, world

pytestmark = pytest.mark.thorough

_REQUESTS = 500
_FIRST_ANSWER_SECONDS = 20

# What git does not keep: the wheel must be built from what a clone has.
_NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "*_pb2.py", "*_pb2.pyi", "authz-data"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The checkout's wheel, built where the build leaves nothing in the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(CHECKOUT, directory / "source", ignore=_NOT_SOURCE)
    pip("wheel", "--no-deps", "--wheel-dir", directory, source)
    [built] = directory.glob("authz-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Iterator[Path]:
    """The program ``authz`` in a virtual environment that has the wheel's extra `demo` alone."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", f"{wheel}[demo]")
    yield environment / "bin" / "authz"
    shutil.rmtree(environment)  # over a gigabyte, which pytest would keep


def pip(*arguments: str | Path) -> None:
    """pip of this environment, with its cache and settings."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, slots=True)
class Shown:
    """What one run of the demo said, when, and what it left behind."""

    exit_code: int
    result: dict
    told: list[tuple[float, str]]
    running: dict[int, str]
    files: list[Path]


@pytest.fixture(scope="module")
def shown(installed, tmp_path_factory) -> Shown:
    """``authz demo`` of the wheel, in an empty directory and an environment without settings."""
    home, temporary, empty = (tmp_path_factory.mktemp(name) for name in ("home", "tmp", "empty"))
    base = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(temporary)}
    command = [installed, "demo", "--requests", str(_REQUESTS), "--json"]
    told = []
    with world(base) as clean:
        begun = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=empty,
            env=clean.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as demo:

            def listen() -> None:
                told.extend((time.monotonic() - begun, line) for line in demo.stderr)

            listener = threading.Thread(target=listen)
            listener.start()
            output = demo.stdout.read()
            exit_code = demo.wait(60)
            running = clean.running()
            listener.join()
        left = [*empty.rglob("*"), *temporary.rglob("*")]
    assert output, "".join(line for _, line in told)
    return Shown(exit_code, json.loads(output), told, running, left)


def test_the_wheel_has_what_the_program_reads(wheel):
    """The wheel holds the deployment files, the compiled protocol and the type marker."""
    names = set(zipfile.ZipFile(wheel).namelist())
    deployed = {
        f"authz/_deploy/{path.relative_to(CHECKOUT / 'deploy').as_posix()}"
        for path in (CHECKOUT / "deploy").rglob("*")
        if path.is_file()
    }
    assert deployed
    assert deployed <= names
    assert {"authz/v1/stream_pb2.py", "authz/v1/stream_pb2.pyi", "authz/py.typed"} <= names


def test_the_wheel_has_nothing_else(wheel):
    """All that is installed is the package and its metadata."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"authz"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("authz/test")]


def test_the_environment_is_clean(installed, tmp_path):
    """The program that runs is the wheel's and not the checkout's."""
    python = installed.with_name("python")
    with world({"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}) as clean:
        done = run([python, "-c", "import authz; print(authz.__file__)"], clean, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])


def test_every_request_is_recorded(shown):
    """All requests are decided, accessed and stored, none is a gap, and the log is intact."""
    result = shown.result
    counts = [result[name] for name in ("sent", "decisions", "accesses", "stored")]
    assert counts == [_REQUESTS] * 4
    assert result["allowed"] + result["denied"] == _REQUESTS
    assert result["allowed"] > 0
    assert result["denied"] > 0
    assert result["rejected_by_envoy"] > 0
    assert result["gaps"] == 0
    assert result["verified"] is True
    assert result["seconds"] > 0
    assert shown.exit_code == 0


def test_tampering_is_caught_and_placed(shown):
    """Each of the three tamperings is caught, and the finding says where."""
    tampering = {item["kind"]: item for item in shown.result["tampering"]}
    assert len(shown.result["tampering"]) == len(tampering) == 3
    assert all(item["caught"] is True for item in tampering.values())
    assert all(item["where"] for item in tampering.values())


def test_the_first_answer_comes_soon(shown):
    """Somebody who starts the demo sees a first answer within twenty seconds."""
    first = [seconds for seconds, line in shown.told if "first answer" in line]
    assert first, "".join(line for _, line in shown.told)
    assert first[0] < _FIRST_ANSWER_SECONDS


def test_nothing_is_left(shown):
    """When the demo has ended, none of its processes and none of its files are left."""
    assert shown.running == {}
    assert shown.files == []
