"""`make test`, `make thorough`: what failed beside other tests gets one more run, alone."""

import shutil
import subprocess

import pytest
from programs import CHECKOUT

FAILED, INTERRUPTED, NOTHING = 1, 2, 5
# Stands for pytest: keeps what it was asked, and ends as it is told to.
PROGRAM = """#!/bin/sh
echo "$*" >> asked
code=$(sed -n "$(wc -l < asked)p" codes)
exit "$code"
"""


@pytest.mark.parametrize(
    ("codes", "failed", "expected", "runs"),
    [
        ((0, 0), "", True, 2),
        ((FAILED, 0, 0), "tests/unit/test_a.py::test_b", True, 3),
        ((FAILED, FAILED), "tests/unit/test_a.py::test_b", False, 2),
        ((FAILED, NOTHING), "", False, 2),
        ((FAILED,), "tests/faults/test_a.py::test_b", False, 1),
        ((FAILED,), "tests/fuzz/test_a.py::test_b", False, 1),
        ((FAILED,), "tests/e2e/test_hostile_requests.py::test_b", False, 1),
        ((INTERRUPTED,), "tests/unit/test_a.py::test_b", False, 1),
        ((NOTHING,), "", False, 1),
        ((0, FAILED), "", False, 2),
    ],
)
@pytest.mark.parametrize(("target", "which"), [("test", "not thorough"), ("thorough", "thorough")])
def test_a_second_run(tmp_path, target, which, codes, failed, expected, runs):
    """Only for failed tests, only once, and never for what must hold each time."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ruff", "mypy", "lint-imports"):
        (programs / name).write_text("#!/bin/sh\n")
    (programs / "pytest").write_text(PROGRAM)
    for program in programs.iterdir():
        program.chmod(0o755)
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    cache = tmp_path / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(f'{{"{failed}": true}}')
    done = subprocess.run(
        ["make", target, f"BIN={programs}", "VENV=.", "--old-file=./.dev"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text().splitlines()
    assert (done.returncode == 0, len(asked)) == (expected, runs), done.stdout + done.stderr
    many = f"-m not alone and not namespaces and {which}"
    assert asked[0] == f"--numprocesses 2 --dist loadfile {many}"
    again = [line for line in asked if "--last-failed " in line]
    assert len(again) == (codes[0] == FAILED and runs > 1)
    assert all(line.endswith(many) for line in again)
    if expected:
        assert asked[-1] == f"-m alone and not namespaces and {which}"
