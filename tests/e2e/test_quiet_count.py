"""A day with everything that is ordinary trouble: the count comes out even, and nothing is alarmed.

One stack, one day of traffic; each test looks at another side of it.
"""

import asyncio
import itertools
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
from live import PATIENT, Account, Answer, Caller, Told, Tuned, account, edited, told
from programs import freeze

from authz.demo.people import Request, plan
from authz.demo.stack import Stack, running

pytestmark = pytest.mark.thorough

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)
ORDINARY = 500
WORKERS = 12
BOOTSTRAP = edited(
    ("timeout: 15s", "timeout: 1s"),
    ("retry_on: connect-failure,refused-stream,reset", "retry_on: reset,5xx"),
)


def get(path: str, person: str | None = "linden", **headers: str) -> Request:
    return Request(person, "GET", path, {k.replace("_", "-"): v for k, v in headers.items()})


@dataclass(frozen=True)
class Trouble:
    """One kind of trouble: the request (`{n}` is another number each time), the status the client
    sees (0: the answer breaks off), and the decision behind it (None: Envoy did not ask)."""

    request: Request
    status: int
    allowed: bool | None = True
    times: int = 8


TROUBLE = {
    "redirect": Trouble(get("/fhir/_fault/redirect"), 302),
    "retried after 503": Trouble(get("/fhir/_fault/flaky?k={n}"), 200),
    "retried after a reset, in vain": Trouble(get("/fhir/_fault/reset"), 503),
    "upstream too slow": Trouble(get("/fhir/_fault/slow?s=3"), 504),
    "too slow in the middle of the answer": Trouble(get("/fhir/_fault/stream?s=3"), 0),
    "upstream's 401": Trouble(get("/fhir/_fault/unauthorized"), 401),
    "upstream's 429": Trouble(get("/fhir/_fault/busy"), 429),
    "upstream's 503": Trouble(get("/fhir/_fault/unavailable"), 503),
    "upstream's 404": Trouble(get("/fhir/_fault/nothing"), 404),
    "slow, in time": Trouble(get("/fhir/_fault/slow?s=0.3"), 200),
    "streamed": Trouble(get("/fhir/_fault/stream?s=0.4"), 200),
    "no token": Trouble(get("/fhir/metadata", None), 401, None),
    "a token that is none": Trouble(
        get("/fhir/metadata", None, authorization="Bearer a.b.c"), 401, None
    ),
    "escaped slash": Trouble(get("/fhir/Patient%2Fp-0001"), 400, None),
    "escaped backslash": Trouble(get("/fhir/Patient%5Cp-0001"), 400, None),
    "path parameter": Trouble(get("/fhir/Patient;v=1/p-0001", "alder"), 400, False),
    "dots, gone before anyone asks": Trouble(get("/fhir/x/../Patient/p-0001", "alder"), 200),
    "slashes, merged before anyone asks": Trouble(get("//fhir///Patient/p-0001", "alder"), 200),
    "not UTF-8": Trouble(get("/fhir/%ff", "alder"), 400, False),
    "denied": Trouble(get("/fhir/Patient/p-0200", "alder"), 403, False),
}
UNDERSCORE = Request("linden", "GET", "/fhir/metadata", {"x_b": "1"})
LEAVING = {
    "check": (get("/fhir/Patient/p-0001", "alder"), 0.0, 0.03, 40),
    "check, long": (get("/fhir/Observation?patient=p-0002", "alder"), 0.0, 0.006, 40),
    "work": (get("/fhir/_fault/slow?s=0.5"), 0.0, 0.03, 20),
    "work, long": (get("/fhir/_fault/slow?s=0.5"), 0.03, 0.45, 20),
    "stream": (get("/fhir/_fault/stream?s=0.6"), 0.0, 0.6, 30),
}


@dataclass
class Day:
    """What was sent, by what it was for, and what came of it."""

    ordinary: list[Answer] = field(default_factory=list)
    trouble: dict[str, list[Answer]] = field(default_factory=dict)
    left: dict[str, list[Answer]] = field(default_factory=dict)
    refused: list[Answer] = field(default_factory=list)
    paused: list[Answer] = field(default_factory=list)
    found: Account | None = None
    told: Told | None = None

    def count(self, answers: list[Answer]) -> Counter[tuple[int, int]]:
        """How many requests have how many (decisions, accesses)."""
        found = self.found
        return Counter(
            (len(found.decisions.get(a.trace, [])), len(found.accesses.get(a.trace, [])))
            for a in answers
        )


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    print(f"AUTHZ_TEST_SEED={SEED}")
    directory = tmp_path_factory.mktemp("day")
    stack = Tuned(directory, bootstrap=BOOTSTRAP, receiver=PATIENT, timeout_ms=2000)
    with running(stack, lambda _: None):
        day = asyncio.run(live_through(stack, Random(SEED)))
        account(stack)
        day.told = told(stack.store)
        day.found = account(stack)
        yield day


async def live_through(stack: Stack, random: Random) -> Day:
    """All of it at once, in random order; then, when nothing else goes on, a rush and pauses."""
    day = Day()
    async with Caller(stack) as caller:
        todo = [ordinary(caller, day, request) for request in plan(ORDINARY, random.random())]
        for name, trouble in TROUBLE.items():
            todo += [afflicted(caller, day, name, trouble, n) for n in range(trouble.times)]
        todo += [refused(caller, day) for _ in range(8)]
        for name, (request, least, most, times) in LEAVING.items():
            for _ in range(times):
                seconds, reset = random.uniform(least, most), random.random() < 0.5
                todo.append(leaving(caller, day, name, request, seconds, reset))
        random.shuffle(todo)
        queue = iter(todo)

        async def work() -> None:
            for one in queue:
                await one

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        await rush(caller, day, random)
        await pauses(caller, day, random)
    return day


async def ordinary(caller: Caller, day: Day, request: Request) -> None:
    day.ordinary.append(await caller.send(request))


async def afflicted(caller: Caller, day: Day, name: str, trouble: Trouble, number: int) -> None:
    request = trouble.request
    path = request.path.replace("{n}", str(number))
    request = Request(request.person, request.method, path, request.headers)
    day.trouble.setdefault(name, []).append(await caller.send(request))


async def refused(caller: Caller, day: Day) -> None:
    day.refused.append(await caller.send(UNDERSCORE))


async def leaving(
    caller: Caller, day: Day, name: str, request: Request, seconds: float, reset: bool
) -> None:
    day.left.setdefault(name, []).append(await caller.leave(request, seconds, reset=reset))


async def rush(caller: Caller, day: Day, random: Random) -> None:
    """More at once than can be decided in a moment, so that many leave while theirs waits."""
    request, *_ = LEAVING["check"]
    for _ in range(3):
        leave = [
            leaving(caller, day, "check, rush", request, random.uniform(0.0, 0.06), reset)
            for reset in (True, False) * 30
        ]
        await asyncio.gather(*leave)
        await asyncio.sleep(random.uniform(0, 0.3))


async def pauses(caller: Caller, day: Day, random: Random) -> None:
    """ext-authz holds its breath: clients leave while their Check surely runs, and Envoy gives
    others up."""
    request, *_ = LEAVING["check"]
    pid = caller.stack.parts["ext-authz"].process.pid
    for _ in range(5):
        freeze(pid)
        try:
            leave = [
                leaving(caller, day, "check, paused", request, random.uniform(0.01, 0.1), reset)
                for reset in (True, False) * 4
            ]
            await asyncio.gather(*leave)
        finally:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.1)
    freeze(pid)
    try:
        given_up = [caller.send(request) for _ in range(10)]
        day.paused += await asyncio.gather(*given_up)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_nothing_is_amiss(day):
    """After all of it: no gap, nothing pending, every record verified."""
    report = day.found.report
    assert report.verified, report.findings
    assert report.gaps == {}, report
    assert report.pending == 0, report
    assert not day.found.doubled
    assert day.found.invented == 0


def test_nothing_is_told_as_a_gap(day):
    """The log's own account comes out even: no gap was ever told, and its summaries add up to what
    there is."""
    told = day.told
    assert (told.gaps, told.closed) == ({}, {})
    report = day.found.report
    assert 0 < told.sums["decisions"] <= report.decisions
    assert (
        told.sums["matched"] + told.sums["unanswered"] + told.sums["unseen"]
        == (told.sums["decisions"])
    )
    assert told.sums["unexplained"] == told.sums["missing"] == 0


def test_totals(day):
    """Each decision and each access is accounted for, and none is counted twice."""
    report = day.found.report
    assert report.decisions == day.found.decision_ids, report
    assert report.allowed + report.denied == report.decisions, report
    assert report.matched + report.unanswered == report.decisions, report
    assert report.matched + report.unanswered + report.rejected_by_envoy == report.accesses, report


def test_ordinary_requests(day):
    """Of 500 ordinary requests in the midst of it, each has its decision and its access."""
    decided = [answer for answer in day.ordinary if answer.request.expect != "rejected"]
    rejected = [answer for answer in day.ordinary if answer.request.expect == "rejected"]
    statuses = Counter(answer.status for answer in day.ordinary)
    assert len(decided) == ORDINARY
    assert statuses.keys() <= {200, 201, 400, 401, 403}, statuses
    assert not day.found.missing(decided)
    assert day.count(decided) == {(1, 1): ORDINARY}
    assert day.count(rejected) == {(0, 1): len(rejected)}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble(day, name):
    """However it went, there is one access, and one decision if Envoy asked for it."""
    wanted, answers = TROUBLE[name], day.trouble[name]
    assert Counter(answer.status for answer in answers) == {wanted.status: wanted.times}
    decisions = 0 if wanted.allowed is None else 1
    assert day.count(answers) == {(decisions, 1): wanted.times}
    for answer in answers:
        [access] = day.found.accesses[answer.trace]
        assert wanted.status in (access.status, 0)
        assert bool(access.upstream) == bool(wanted.allowed)
        for decision in day.found.decisions.get(answer.trace, []):
            assert decision.allowed == wanted.allowed
            assert decision.decision_id == access.decision_id


def test_refused_while_read(day):
    """A request that Envoy ends before it has read the headers has an access all the same."""
    assert Counter(answer.status for answer in day.refused) == {400: 8}
    assert day.found.untraced == {"http1.unexpected_underscore downstream_protocol_error": 8}


def test_clients_that_leave(day):
    """Of those who left, none is counted twice, none reached the service undecided, and those who
    left during the Check did not reach it at all."""
    left = list(itertools.chain.from_iterable(day.left.values()))
    counts = {name: dict(day.count(answers)) for name, answers in day.left.items()}
    assert len(left) >= 300, counts
    for answer in left:
        accesses = day.found.accesses.get(answer.trace, [])
        decisions = day.found.decisions.get(answer.trace, [])
        assert len(accesses) <= 1, counts
        assert len({row.decision_id for row in decisions}) <= 1, counts
        if accesses and accesses[0].upstream:
            assert [row.allowed for row in decisions] == [True]
            assert decisions[0].decision_id == accesses[0].decision_id
    for answer in day.left["check, paused"]:
        [access] = day.found.accesses[answer.trace]
        assert not access.upstream
    print("clients that left, (decision records, accesses):", counts)


def test_checks_given_up(day):
    """A Check that Envoy gives up is answered 503 by Envoy, and no alarm is raised over it."""
    assert Counter(answer.status for answer in day.paused) == {503: 10}
    for answer in day.paused:
        [access] = day.found.accesses[answer.trace]
        assert not access.upstream
