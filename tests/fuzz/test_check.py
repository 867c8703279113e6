"""The fuzz of Check, a few thousand requests of it; and that it would find what it looks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from authz.envoy.check import Facts
from authz.policy import cache
from authz.serve import check as check_module
from authz.serve import one_check

from .mutation import Requests, Tokens
from .service import Trial, opa_running

pytestmark = pytest.mark.opa
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address(opa, tmp_path_factory):
    with opa_running(opa, tmp_path_factory.mktemp("opa")) as socket:
        yield socket


@pytest.fixture
def trial(address, tmp_path):
    trial = Trial(11, address, tmp_path)
    yield trial
    trial.close()


def test_some_thousands(trial):
    """Each of them has one answer that Envoy could take, which the policy gave or which denies for
    a known reason; its last record says the same; and no secret is told."""
    result = trial.run(0, 6000, 4, lambda _: None)
    assert result.findings == []
    assert sum(result.reasons.values()) == 6000
    assert min(result.reasons["allowed"], result.reasons["denied"], result.cached) > 100


def test_it_runs_by_itself(opa, tmp_path):
    """The program says what it did, and ends with 0 where nothing was found."""
    command = [sys.executable, "-m", "tests.fuzz.check", "--count", "300", "--seed", "5",
               "--processes", "2"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "seed 5" in run.stdout
    assert "300 requests in" in run.stdout
    assert "findings: 0" in run.stdout


def test_requests_are_made_again_by_their_number(trial):
    """The same seed and number give the same bytes: a finding can be made again."""
    requests = Requests(3, Tokens(["a"], ["b"]))
    assert [requests.make(n) for n in range(200)] == [requests.make(n) for n in range(200)]


def _answers_crossed(patch):
    """The cache knows no paths: one person's answer serves another's question."""
    real = cache.cache_key

    def pathless(document):
        return real({**document, "parsed_path": [], "attributes": {}})

    patch.setattr(cache, "cache_key", pathless)


def _paths_trusted(patch):
    """No path is unsafe, so that what the policy sees is not what the service gets."""
    patch.setattr(one_check, "unsafe_path", lambda _: False)


def _answered_twice(patch):
    """An answer goes out, and another after it."""
    real = check_module.CheckService._answer

    def twice(self, check, record):
        real(self, check, record)
        return check.exchange.answer(check.exchange.answers[0]) or True

    patch.setattr(check_module.CheckService, "_answer", twice)


def _record_of_another_mind(patch):
    """The record says denied whatever the answer was."""
    real = check_module.CheckService._record

    def denied(self, check, verdict=None):
        return {**real(self, check, verdict), "allowed": False}

    patch.setattr(check_module.CheckService, "_record", denied)


def _cookies_told(patch):
    """The cookie is taken for the user agent."""
    real = one_check.facts

    def telling(document, **kwargs):
        known: Facts = real(document, **kwargs)
        http = document.get("attributes", {}).get("request", {}).get("http", {})
        return known._replace(user_agent=http.get("headers", {}).get("cookie", ""))

    patch.setattr(one_check, "facts", telling)


def _bugs(patch):
    """A request of one kind makes the service stumble."""
    real = one_check.complete

    def stumbling(document):
        if "Condition" in document["attributes"]["request"]["http"].get("path", ""):
            raise RecursionError
        real(document)

    patch.setattr(one_check, "complete", stumbling)


def _blocks_forgotten(patch):
    """Who is blocked gets what the policy says."""
    patch.setattr(one_check.Judge, "_blocked", lambda *_: False)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (_answers_crossed, "another's"),
        (_paths_trusted, "a path with two meanings"),
        (_answered_twice, "2 answers"),
        (_record_of_another_mind, "the last record says False"),
        (_cookies_told, "a secret"),
        (_bugs, "internal_error with status 500"),
        (_blocks_forgotten, "who is blocked is allowed"),
    ],
)
def test_what_is_broken_is_found(trial, monkeypatch, break_it, fault):
    """Each kind of fault that the fuzz is there for is found when there is one."""
    break_it(monkeypatch)
    found = {finding.fault for finding in trial.run(0, 3000, 4, lambda _: None).findings}
    assert any(fault in text for text in found), found
