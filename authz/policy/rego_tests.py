"""A policy's own tests (``*_test.rego``), run by ``opa test``."""

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from authz.errors import UsageError
from authz.policy.opa_process import dialect, find_opa


@dataclass(frozen=True, slots=True)
class Test:
    """One test rule and how it ended: ``passed``, ``failed``, ``error`` or ``skipped``."""

    __test__ = False  # for pytest: a value, not a test

    package: str
    name: str
    outcome: str
    file: str
    line: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Tests:
    """How a policy's tests ended; `coverage` in percent, if it was asked for and all passed."""

    tests: tuple[Test, ...]
    coverage: float | None = None
    uncovered: tuple[str, ...] = ()
    """Lines that no test reaches, ``file:line``."""

    @property
    def passed(self) -> bool:
        return all(test.outcome in ("passed", "skipped") for test in self.tests)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def run_tests(policy: Path, *, coverage: bool = False) -> Tests:
    """Run the tests in a directory, or beside a file.

    Raises `UsageError` if the policy does not compile or has no tests, `UnavailableError` without
    OPA.
    """
    program = find_opa()
    if not policy.is_dir():
        raise UsageError(f"--policy {policy}: want the directory of the policy and its tests")
    told = _opa(program, policy)
    try:
        results = orjson.loads(told.stdout)
    except orjson.JSONDecodeError:
        raise UsageError(f"--policy {policy}: {_error(told)}") from None
    if not results:
        raise UsageError(
            f"--policy {policy}: no tests there; write rules `test_...` in a file `..._test.rego`"
        )
    tests = Tests(tuple(_test(result) for result in results))
    return _covered(program, policy, tests) if coverage and tests.passed else tests


def _test(result: dict[str, Any]) -> Test:
    outcomes = ("error", "error"), ("fail", "failed"), ("skip", "skipped")
    outcome = next((name for key, name in outcomes if result.get(key)), "passed")
    place = result.get("location") or {}
    return Test(
        str(result.get("package", "")).removeprefix("data."), str(result.get("name", "")), outcome,
        str(place.get("file", "")), int(place.get("row", 0)),
        round(int(result.get("duration", 0)) / 1e6, 3),
    )  # fmt: skip


def _covered(program: str, policy: Path, tests: Tests) -> Tests:
    try:
        report = orjson.loads(_opa(program, policy, "--coverage").stdout)
    except orjson.JSONDecodeError:
        return tests
    uncovered = [
        f"{file}:{part['start']['row']}"
        for file, found in sorted(report.get("files", {}).items())
        for part in found.get("not_covered", ())
    ]
    return Tests(tests.tests, round(float(report["coverage"]), 1), tuple(dict.fromkeys(uncovered)))


def _opa(program: str, policy: Path, *options: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        # As a bundle: only .rego, data.json and data.yaml count, as for the engines.
        [program, "test", "--bundle", "--format", "json", *dialect(program, policy), *options, "."],
        cwd=policy, capture_output=True, check=False,
    )  # fmt: skip


def _error(told: "subprocess.CompletedProcess[bytes]") -> str:
    text = (told.stderr or told.stdout).decode(errors="replace")
    return " ".join(text.split())[:500] or "`opa test` says nothing"
