"""The fail-closed table of the design, row by row, through a real Envoy."""

import asyncio
import itertools
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from live import Account, Answer, Caller, Row, Tuned, account, during, edited, replace, said

from authz.demo.people import Request
from authz.demo.stack import Stack, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.alone

POLICY = """package envoy.authz
import rego.v1

case := input.parsed_path[0]

allow := {"allowed": true} if case == "fhir"

allow := false if case == "no"
allow := {"allowed": false, "http_status": 409, "body": "not now"} if case == "not-now"

allow := "yes" if case == "text"
allow := 1 if case == "number"
allow := null if case == "null"
allow := [true] if case == "array"
allow := {} if case == "empty"
allow := {"allowed": "true"} if case == "allowed-text"
allow := {"allow": true} if case == "misspelt"
allow := {"allowed": true} if case == "conflict"
allow := {"allowed": false} if case == "conflict"
allow := {"allowed": false, "http_status": 200} if case == "status-allows"
allow := {"allowed": false, "http_status": 799} if case == "status-unknown"
allow := {"allowed": true, "http_status": "200"} if case == "status-text"
allow := {"allowed": true, "headers": {"x-a": "1\\r\\nx-b: 2"}} if case == "header-split"
allow := {"allowed": true, "headers": {"a b": "c"}} if case == "header-name"
allow := {"allowed": true, "audit": {"patient": "p-0001"}} if case == "audit-misspelt"
allow := {"allowed": true, "dynamic_metadata": {"a": DEEP}} if case == "deep"

allow := true if {
	case == "slow"
	count([1 | some i in numbers.range(1, 600); some j in numbers.range(1, 600); i * j == 7]) > 0
}
""".replace("DEEP", "[" * 100 + "]" * 100)

YES = 'package envoy.authz\nimport rego.v1\nallow := {"allowed": true}\n'
NO = 'package envoy.authz\nimport rego.v1\nallow := {"allowed": false}\n'
SERVED = Request("linden", "GET", "/fhir/metadata")

STRICT, LENIENT = "failure_mode_allow: false", "failure_mode_allow: true"


@dataclass(frozen=True)
class Case:
    """The answer and the record that a request for this path must get."""

    path: str
    status: int
    reason_code: str
    header: int = 0
    """The length of a header to send along."""


ERRORS = (
    "undefined text number null array empty allowed-text misspelt conflict status-allows"
    " status-unknown status-text header-split header-name audit-misspelt deep"
).split()
CASES = {
    **{name: Case(f"/{name}", 403, "policy_error") for name in ERRORS},
    "no": Case("/no", 403, "denied"),
    "not-now": Case("/not-now", 409, "denied"),
    "path parameter": Case("/fhir/Patient;x=1/p-0001", 400, "unsafe_path"),
    "path parameter, escaped": Case("/fhir/Patient%3Bx=1/p-0001", 400, "unsafe_path"),
    "escape in an escape": Case("/fhir/Patient%252Fp-0001", 400, "unsafe_path"),
    "control character": Case("/fhir/Patient%0Ap-0001", 400, "unsafe_path"),
    "too large": Case("/fhir/metadata", 413, "bad_request", 20_000),
    "slow": Case("/slow", 503, "policy_unavailable"),  # the last: it holds up what comes after it
}


@dataclass
class Outcome:
    """What one stack made of all cases."""

    stack: Stack
    answers: dict[str, Answer] = field(default_factory=dict)
    behind: list[list[Answer]] = field(default_factory=list)
    """Slow requests, and denied ones that waited behind them: three rounds."""
    found: Account | None = None


def outcome(directory, bootstrap: Callable[[str], str]) -> Iterator[Outcome]:
    policy = directory / "policy.rego"
    policy.write_text(POLICY)
    settings = {"AUTHZ_EXT_AUTHZ__MAX_REQUEST_BYTES": "16384"}
    stack = Tuned(directory / "data", policy=policy, bootstrap=bootstrap, ext_authz=settings)
    with running(stack, lambda _: None):
        result = Outcome(stack)
        asyncio.run(try_all(result))
        result.found = account(stack)
        yield result


async def try_all(result: Outcome) -> None:
    async with Caller(result.stack) as caller:
        for name, case in CASES.items():
            headers = {"x-long": "a" * case.header} if case.header else {}
            request = Request("linden", "GET", case.path, headers)
            result.answers[name] = await caller.send(request)
        await asyncio.sleep(2)
        slow, denied = Request("linden", "GET", "/slow"), Request("linden", "GET", "/no")
        requests = [slow, *itertools.repeat(denied, 10), slow, *itertools.repeat(denied, 10)]
        for _ in range(3):
            round_ = await asyncio.gather(*(caller.send(request) for request in requests))
            result.behind.append(list(round_))
            await asyncio.sleep(2)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    yield from outcome(tmp_path_factory.mktemp("strict"), edited((STRICT, STRICT)))


@pytest.fixture(scope="module")
def lenient(tmp_path_factory):
    yield from outcome(tmp_path_factory.mktemp("lenient"), edited((STRICT, LENIENT)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_case(request, mode, name):
    """An odd request or decision is denied and recorded, whatever Envoy does about failures."""
    result, case = request.getfixturevalue(mode), CASES[name]
    answer = result.answers[name]
    assert answer.status == case.status
    if case.header:  # what is too large is not read: the record knows nothing of the request
        [access] = result.found.accesses[answer.trace]
        assert access.status == case.status
        assert access.decision_id
        assert not access.upstream
        return
    decisions = result.found.decisions[answer.trace]
    assert [row.allowed for row in decisions] == [False] * len(decisions)
    assert decisions[0].reason_code == case.reason_code
    assert decisions[0].status == case.status
    [access] = result.found.accesses[answer.trace]
    assert access.decision_id == decisions[0].decision_id
    assert not access.upstream


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_behind_a_slow_policy(request, mode):
    """Who waits behind a slow decision is denied in time, by us and not by Envoy: that is 50 ms
    before Envoy stops waiting, which a busy machine can take away, but not each time."""
    result = request.getfixturevalue(mode)
    for answer in itertools.chain.from_iterable(result.behind):
        [access] = result.found.accesses[answer.trace]
        last = result.found.decisions[answer.trace][-1]
        assert not last.allowed
        if by_us(access):
            assert answer.status in (403, 503)
            # What took too long is denied without waiting for its record, and so is not named.
            assert bool(access.decision_id) == (last.reason_code != "deadline")
        else:
            assert not access.decision_id
        assert not access.upstream or (mode == "lenient" and not by_us(access))
    in_time = [
        all(by_us(access) for answer in round_ for access in result.found.accesses[answer.trace])
        for round_ in result.behind
    ]
    assert any(in_time), in_time


def by_us(access: Row) -> bool:
    """Whether Envoy denied because of our answer, and not because it had none."""
    return access.details.startswith("ext_authz_denied ")


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_all_of_it_is_in_the_log(request, mode):
    """However odd the answers, every one has its record, and nothing is alarmed, but for what Envoy
    let through without our answer."""
    found = request.getfixturevalue(mode).found
    through = sum(
        bool(access.upstream) and not access.decision_id
        for accesses in found.accesses.values()
        for access in accesses
    )
    assert found.report.verified, found.report.findings
    assert (found.report.gaps, found.report.pending) == ({"bypass": through} if through else {}, 0)
    assert mode == "lenient" or not through


def test_ext_authz_down(strict):
    """Without ext-authz nobody gets in, each attempt is on record, and all is well when it is
    back."""
    stack, part = strict.stack, "ext-authz"
    stack.parts[part].stop()
    try:
        down = ask(stack, [SERVED] * 10)
    finally:
        stack.restart(part)
    assert Counter(answer.status for answer in down) == {503: 10}
    assert until(lambda: ask(stack, [SERVED])[0].status == 200, 10)
    found = account(stack)
    for answer in down:
        [access] = found.accesses[answer.trace]
        assert (access.status, access.decision_id, access.upstream) == (503, "", "")
    assert (found.report.gaps, found.report.pending) == ({}, 0)


@pytest.fixture
def changing(tmp_path):
    """A stack whose policy is a directory with one file, which allows."""
    policy = tmp_path / "policy"
    policy.mkdir()
    replace(policy / "policy.rego", YES)
    with running(Stack(tmp_path / "data", policy=policy), lambda _: None) as stack:
        yield stack


def test_policy_change(changing):
    """A changed policy is in force within a second, under traffic, and nobody is turned away over
    the change."""
    file = changing.policy / "policy.rego"
    changes: list[tuple[float, int]] = []

    def change() -> None:
        for number, (text, status) in enumerate([(NO, 403), (YES, 200)] * 3):
            time.sleep(1.3 + 0.07 * number)  # at another point of the watcher's round each time
            replace(file, text)
            changes.append((time.monotonic(), status))
        time.sleep(1.5)

    answers = during(change, changing, itertools.repeat(SERVED))
    assert {answer.status for answer in answers} == {200, 403}
    taken = []
    for (begun, status), (end, _) in itertools.pairwise([*changes, (time.monotonic(), 0)]):
        period = [answer for answer in answers if begun < answer.sent < end - 0.1]
        late = [answer.sent - begun for answer in period if answer.status != status]
        taken.append(max(late, default=0.0))
    print("policy changes in force after", [round(seconds, 3) for seconds in taken], "s")
    assert statistics.median(taken) < 1, taken
    found = account(changing)
    assert not found.missing(answers)
    assert (found.report.verified, found.report.gaps) == (True, {})


def test_broken_policy(changing):
    """A policy that cannot be used leaves the last good one in force, and the next good one takes
    its place."""
    file = changing.policy / "policy.rego"
    broken = {
        "not rego": "package envoy.authz\nallow := {",
        "empty": "",
        "another package": "package other\nimport rego.v1\nallow := true\n",
        "an unknown function": "package envoy.authz\nimport rego.v1\nallow if no.such(1)\n",
        "what the engine lacks": "package envoy.authz\nimport rego.v1\n"
        'allow if http.send({"method": "GET", "url": "http://127.0.0.1:1"}).status == 200\n',
        # Not right after the other without the rule: what is said again is told once.
        "no such rule": "package envoy.authz\nimport rego.v1\nallowed := true\n",
        "not text": "\udcff",
    }
    unused: list[str] = []

    def refusals() -> int:
        return said(changing, "ext-authz", "the last good one stays")

    def break_it() -> None:
        for name, text in broken.items():
            before = refusals()
            file.write_bytes(text.encode(errors="surrogateescape"))
            if not until(lambda before=before: refusals() > before, 5):
                unused.append(name)
        file.unlink()
        time.sleep(0.7)

    answers = during(break_it, changing, itertools.repeat(SERVED))
    assert unused == []
    assert Counter(answer.status for answer in answers) == {200: len(answers)}
    replace(file, NO)
    assert until(lambda: ask(changing, [SERVED])[0].status == 403, 10)
    assert changing.parts["ext-authz"].process.poll() is None


@pytest.mark.parametrize("restarted", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_full_journal(tmp_path, restarted):
    """With the journal full nobody gets in, not after a restart either; once the receiver has taken
    it, all is well again, and it is on record that something could not be recorded."""
    settings = {"AUTHZ_JOURNAL__MAX_BYTES": str(1 << 20)}
    with running(Tuned(tmp_path / "data", ext_authz=settings), lambda _: None) as stack:
        first = ask(stack, [SERVED] * 10)
        stack.parts["receiver"].stop()
        filling = fill(stack)
        if restarted:
            stack.parts["ext-authz"].kill()
            stack.restart("ext-authz")
        full = ask(stack, [SERVED] * 50, workers=8)
        stack.restart("receiver")
        assert until(lambda: ask(stack, [SERVED])[0].status == 200, 30)
        after = ask(stack, [SERVED] * 50)
        statuses = Counter(answer.status for answer in filling)
        print("filled by", dict(statuses))
        assert statuses.keys() == {200, 503}, statuses
        assert Counter(answer.status for answer in full) == {503: 50}
        assert Counter(answer.status for answer in after) == {200: 50}
        found = account(stack)
        assert not found.missing(first + filling + after)
        assert found.report.verified, found.report.findings
        assert found.report.gaps.keys() <= {"no_access"}, found.report.gaps
        assert found.invented == 0
        assert until(lambda: "journal_unavailable" in events(stack), 10)


@pytest.mark.thorough
def test_full_receiver(tmp_path):
    """A receiver whose journal is full while ClickHouse is away, and that is killed then, starts
    again and goes on; nothing that was answered is lost."""
    settings = {"AUTHZ_JOURNAL__MAX_BYTES": str(1 << 20)}
    with running(Tuned(tmp_path / "data", receiver=settings), lambda _: None) as stack:
        stack.parts["clickhouse"].stop()
        answers = [ask(stack, [SERVED] * 100, workers=8) for _ in range(20)]
        assert until(lambda: said(stack, "receiver", "reached its bound"), 10)
        stack.parts["receiver"].kill()
        stack.restart("receiver")
        stack.restart("clickhouse")
        answers = list(itertools.chain.from_iterable(answers))
        assert Counter(answer.status for answer in answers) == {200: 2000}
        found = account(stack)
        assert not found.missing(answers)
        assert found.report.verified, found.report.findings
        assert found.report.gaps.keys() <= {"no_access"}, found.report.gaps
        assert found.invented == 0


def fill(stack: Stack) -> list[Answer]:
    """Send until the answer is 503, or 6000 times."""
    answers: list[Answer] = []
    for _ in range(60):
        answers += ask(stack, [SERVED] * 100, workers=8)
        if answers[-1].status == 503:
            break
    return answers


def events(stack: Stack) -> list[str]:
    with connect(stack.store) as client:
        return [event for (event,) in client.execute("SELECT event FROM notices")]


@pytest.mark.opa
def test_opa_down(opa, tmp_path):
    """While OPA is down every request is denied, with the reason on record; then it goes on."""
    policy = tmp_path / "policy.rego"
    policy.write_text(YES)
    address = f"127.0.0.1:{free_port()}"
    command = [opa, "run", "--server", "--addr", address, "--log-level", "error", str(policy)]
    server = subprocess.Popen(command)
    try:
        stack = Stack(tmp_path / "data", policy=f"http://{address}")
        with running(stack, lambda _: None):
            first = ask(stack, [SERVED] * 10)
            server.kill()
            server.wait()
            down = ask(stack, [SERVED] * 20, workers=4)
            server = subprocess.Popen(command)
            assert until(lambda: ask(stack, [SERVED])[0].status == 200, 20)
            assert Counter(answer.status for answer in first) == {200: 10}
            assert Counter(answer.status for answer in down) == {503: 20}
            found = account(stack)
            for answer in down:
                [decision] = found.decisions[answer.trace]
                assert (decision.allowed, decision.reason_code) == (False, "policy_unavailable")
                assert not found.accesses[answer.trace][0].upstream
            assert (found.report.verified, found.report.gaps) == (True, {})
    finally:
        server.kill()
        server.wait()


def ask(stack: Stack, requests: list[Request], workers: int = 1) -> list[Answer]:
    """Send `requests`, `workers` at a time."""

    async def run() -> list[Answer]:
        todo = iter(requests)
        async with Caller(stack) as caller:

            async def work() -> list[Answer]:
                return [await caller.send(request) for request in todo]

            done = await asyncio.gather(*(work() for _ in range(workers)))
        return sorted(itertools.chain.from_iterable(done), key=lambda answer: answer.sent)

    return asyncio.run(run())


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` comes true within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
