"""With `--durability receiver`: what was answered is in the log, though the disk of ext-authz is
gone; and where no receiver acknowledges, nobody gets in."""

import asyncio
import itertools
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from live import Account, Answer, Caller, Tuned, account, during, edited, passed, said
from programs import freeze, until

from authz.demo.people import Request, plan
from authz.demo.stack import Stack, running

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)
KILLS = 4
SERVED = Request("linden", "GET", "/fhir/metadata")


def stack_in(directory: Path, *, lenient: bool = False) -> Stack:
    mode = f"failure_mode_allow: {str(lenient).lower()}"
    settings = {
        "AUTHZ_JOURNAL__DURABILITY": "receiver",
        "AUTHZ_PRIVACY__KEY": str(directory / "privacy.key"),  # a secret of the deployment's
    }
    edit = edited(("failure_mode_allow: false", mode))
    return Tuned(directory / "data", bootstrap=edit, ext_authz=settings, timeout_ms=1000)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running(stack_in(tmp_path_factory.mktemp("durability")), lambda _: None) as stack:
        assert lets_through(stack)
        yield stack


@pytest.fixture(scope="module")
def lenient(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lenient")
    with running(stack_in(directory, lenient=True), lambda _: None) as stack:
        assert lets_through(stack)
        yield stack


@pytest.mark.thorough
def test_a_disk_that_is_destroyed(stack):
    """ext-authz is killed and its data directory removed, again and again: every decision that was
    answered is in the log, once, and nothing is alarmed."""
    print(f"AUTHZ_TEST_SEED={SEED}")
    random = Random(f"{SEED} disk")

    answers: list[Answer] = []

    def destroy() -> None:
        for _ in range(KILLS):
            assert passed(answers, 15)
            time.sleep(random.uniform(0.2, 0.6))
            stack.parts["ext-authz"].kill()
            shutil.rmtree(stack.data_dir / "ext-authz")
            stack.restart("ext-authz")
            assert lets_through(stack)

    during(destroy, stack, requests(), 8, answers)
    check(answers, account(stack), set())


@pytest.mark.thorough
def test_a_receiver_that_is_killed(stack):
    """The receiver is killed and started again during traffic: nothing is lost or doubled, and all
    is quiet afterwards."""
    print(f"AUTHZ_TEST_SEED={SEED}")
    random = Random(f"{SEED} receiver")

    answers: list[Answer] = []

    def kill() -> None:
        for _ in range(KILLS):
            assert passed(answers, 15)
            time.sleep(random.uniform(0.05, 0.6))
            stack.parts["receiver"].kill()
            time.sleep(random.uniform(0, 0.2))
            stack.restart("receiver")
            assert lets_through(stack)

    during(kill, stack, requests(), 8, answers)
    found = account(stack)
    check(answers, found, {"no_access"})  # Envoy loses entries while nobody takes them
    after = ask(stack, 100)
    later = account(stack)
    refused = [row.reason_code for one in after if one.status != 200
               for row in later.decisions.get(one.trace, [])]  # fmt: skip
    assert Counter(answer.status for answer in after) == {200: 100}, refused
    assert not later.missing(after)
    assert later.report.gaps.keys() <= {"no_access"}
    assert all(answer.trace in later.accesses for answer in after), "quiet again"


@pytest.mark.thorough
def test_a_receiver_that_is_stopped(lenient):
    """Without a receiver everybody is denied by us, so that Envoy's `failure_mode_allow` has
    nothing to act on; health says why; and all is well when there is one again."""
    lenient.parts["receiver"].stop()
    assert until(lambda: ask(lenient, 1)[0].status == 503, 10)
    down = ask(lenient, 100)
    assert Counter(answer.status for answer in down) == {503: 100}
    reason = '"reason": "no receiver is connected"'
    assert until(lambda: said(lenient, "ext-authz", reason), 10)
    lenient.restart("receiver")
    assert lets_through(lenient)
    found = account(lenient)
    for answer in down:
        [row] = found.decisions[answer.trace]
        assert (row.allowed, row.status, row.reason_code) == (False, 503, "journal_unavailable")
    assert found.report.verified
    assert found.report.gaps.keys() <= {"no_access"}


@pytest.mark.thorough
def test_a_receiver_that_hangs(lenient):
    """A receiver that answers nothing, though its connection stands: denied in time and by us; and
    all is well when it goes on."""
    receiver = lenient.parts["receiver"].process
    freeze(receiver.pid)
    try:
        hanging = ask(lenient, 100)
    finally:
        receiver.send_signal(signal.SIGCONT)
    assert lets_through(lenient)
    assert Counter(answer.status for answer in hanging) == {503: 100}
    found = account(lenient)
    last = Counter(found.decisions[answer.trace][-1].reason_code for answer in hanging)
    print(dict(last))
    assert last.keys() == {"deadline", "journal_unavailable"}
    assert not any(found.decisions[answer.trace][-1].allowed for answer in hanging)
    assert found.report.verified
    assert found.report.gaps.keys() <= {"no_access"}


def requests() -> Iterator[Request]:
    return itertools.chain.from_iterable(plan(1000, seed) for seed in itertools.count())


def check(answers: list[Answer], found: Account, gaps: set[str]) -> None:
    statuses = Counter(answer.status for answer in answers)
    report = found.report
    print(dict(statuses), report.records, "records", report.gaps)
    assert statuses.keys() <= {200, 201, 400, 401, 403, 503}, statuses
    assert statuses[200] > 50, f"too few got through to show anything: {statuses}"
    assert not found.missing(answers), f"answered and not recorded, of {statuses}"
    assert (report.verified, report.findings) == (True, [])
    assert (found.doubled, found.invented) == ([], 0)
    assert report.gaps.keys() <= gaps, report.gaps


def ask(stack: Stack, count: int) -> list[Answer]:
    async def run() -> list[Answer]:
        async with Caller(stack) as caller:
            gate = asyncio.Semaphore(8)

            async def one() -> Answer:
                async with gate:
                    return await caller.send(SERVED)

            return await asyncio.gather(*(one() for _ in range(count)))

    return asyncio.run(run())


def lets_through(stack: Stack) -> bool:
    return until(lambda: ask(stack, 1)[0].status == 200, 20)
