"""The fail-closed table, where a part fails: OPA, the disk, ourselves.

Through a real Envoy, also with `failure_mode_allow: true`.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request as Get
from urllib.request import urlopen

import pytest
from live import Account, Answer, Caller, Tuned, account, edited
from programs import program

from authz.demo.people import Request
from authz.demo.stack import Stack, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.alone

STRICT, LENIENT = "failure_mode_allow: false", "failure_mode_allow: true"
POLICY = "package envoy.authz\nimport rego.v1\nallow := true\n"
FAULTS = "500 502 garbage not-an-object closed cut wrong-length hang empty".split()


class Faulty(BaseHTTPRequestHandler):
    """In front of a real OPA: hands requests on, but for decisions on ``/fhir/fault/NAME``."""

    protocol_version = "HTTP/1.1"
    opa = ""

    def do_GET(self) -> None:
        self._hand_on(None)

    def do_PUT(self) -> None:
        self._hand_on(self._body())

    def do_POST(self) -> None:
        body = self._body()
        found = [name for name in FAULTS if f'"/fhir/fault/{name}"'.encode() in body]
        if found:
            getattr(self, "fault_" + found[0].replace("-", "_"))()
        else:
            self._hand_on(body)

    def log_message(self, *_: object) -> None: ...

    def fault_500(self) -> None:
        self._answer(500, b'{"code":"internal_error","result":true}')

    def fault_502(self) -> None:
        self._answer(502, b"Bad gateway")

    def fault_garbage(self) -> None:
        self._answer(200, b"\xff{result: true}")

    def fault_not_an_object(self) -> None:
        self._answer(200, b"true")

    def fault_empty(self) -> None:
        self._answer(200, b"{}")

    def fault_closed(self) -> None:
        self.close_connection = True

    def fault_cut(self) -> None:
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"result": tr')
        self.close_connection = True

    def fault_wrong_length(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n")
        self.close_connection = True

    def fault_hang(self) -> None:
        time.sleep(1.5)
        self._answer(200, b'{"result":true}')

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def _hand_on(self, body: bytes | None) -> None:
        asked = Get(self.opa + self.path, data=body, method=self.command)
        with urlopen(asked) as answer:
            self._answer(answer.status, answer.read())

    def _answer(self, status: int, body: bytes) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


@pytest.fixture(scope="module")
def faulty_opa(opa, tmp_path_factory) -> Iterator[str]:
    policy = tmp_path_factory.mktemp("policy") / "policy.rego"
    policy.write_text(POLICY)
    address = f"127.0.0.1:{free_port()}"
    real = subprocess.Popen([opa, "run", "--server", "--addr", address, "--log-level", "error",
                             str(policy)], stderr=subprocess.DEVNULL)  # fmt: skip
    Faulty.opa = f"http://{address}"
    for _ in range(200):
        with contextlib.suppress(OSError):
            urlopen(f"{Faulty.opa}/health").close()
            break
        time.sleep(0.05)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    real.kill()
    real.wait()


@pytest.fixture(
    params=[
        pytest.param(STRICT, id="strict", marks=pytest.mark.thorough),
        pytest.param(LENIENT, id="lenient"),
    ]
)
def mode(request):
    return edited((STRICT, request.param))


def send(stack: Stack, *paths: str, together: bool = False) -> list[Answer]:
    async def run() -> list[Answer]:
        requests = [Request("linden", "GET", path) for path in paths]
        async with Caller(stack) as caller:
            if together:
                return list(await asyncio.gather(*(caller.send(one) for one in requests)))
            return [await caller.send(request) for request in requests]

    return asyncio.run(run())


def reasons(found: Account, answer: Answer) -> list[str]:
    return [row.reason_code for row in found.decisions[answer.trace]]


@pytest.mark.opa
def test_opa_misbehaves(faulty_opa, mode, tmp_path):
    """Whatever OPA sends back in place of a decision, or if it sends nothing, the request is denied
    in time, for the reason on record, alone and among others, and the next one is served."""
    stack = Stack(tmp_path / "data", policy=faulty_opa, bootstrap=mode, timeout_ms=600)
    with running(stack, lambda _: None):
        answers = {}
        for name in FAULTS:
            answers[name], served = send(stack, f"/fhir/fault/{name}", "/fhir/metadata")
            assert served.status == 200, name
        among = send(stack, *[f"/fhir/fault/{name}" for name in FAULTS] * 3, together=True)
        found = account(stack)
    for name, answer in answers.items():
        wanted = (403, "policy_error") if name == "empty" else (503, "policy_unavailable")
        assert (answer.status, reasons(found, answer)[-1]) == wanted, name
        assert not found.accesses[answer.trace][0].upstream
    assert {answer.status for answer in among} <= {403, 503}
    assert not any(access.upstream for one in among for access in found.accesses[one.trace])
    assert (found.report.verified, found.report.gaps) == (True, {})


@contextlib.contextmanager
def failing(stack: Stack) -> Iterator[None]:
    """The kernel's answers to ext-authz's `fdatasync` replaced, by strace."""
    process = stack.parts["ext-authz"].process
    assert process is not None
    strace = program("strace", "strace")
    command = [strace, "-f", "-o", "/dev/null", "-e", "trace=fdatasync",
               "-e", "inject=fdatasync:error=EIO", "-p", str(process.pid)]  # fmt: skip
    tracing = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    tasks = Path(f"/proc/{process.pid}/task")
    try:
        for _ in range(100):  # until each thread is traced
            traced = [_tracer(task / "status") for task in tasks.iterdir()]
            if all(traced):
                break
            time.sleep(0.05)
        assert all(traced), "strace does not trace here"
        yield
    finally:
        tracing.terminate()
        tracing.wait()


def _tracer(status: Path) -> bool:
    line = next(line for line in status.read_text().splitlines() if line.startswith("TracerPid"))
    return line.split()[1] != "0"


def test_disk_errors(mode, tmp_path):
    """A disk that fails denies everybody, says so in health and on record, and when it works again,
    so does everything else."""
    stack = Stack(tmp_path / "data", bootstrap=mode, timeout_ms=1000)
    with running(stack, lambda _: None):
        before = send(stack, *["/fhir/metadata"] * 3)
        with failing(stack):
            failed = send(stack, *["/fhir/metadata"] * 6)
        for _ in range(50):
            after = send(stack, "/fhir/metadata")
            if after[0].status == 200:
                break
            time.sleep(0.1)
        found = account(stack)
    assert Counter(answer.status for answer in before + after) == {200: 4}
    assert Counter(answer.status for answer in failed) == {503: 6}
    for answer in failed:
        assert not found.accesses[answer.trace][0].upstream
        assert not any(row.allowed for row in found.decisions.get(answer.trace, [])[-1:])
    assert not found.missing(before + after)
    assert found.invented == 0
    assert (found.report.verified, found.report.gaps) == (True, {})


SLOW = """import os, time
real = os.fdatasync
def fdatasync(file):
    if os.path.exists(os.environ["SLOW_DISK"]):
        time.sleep(0.9)
    real(file)
os.fdatasync = fdatasync
from authz.cli import main
main()
"""


class SlowDisk(Stack):
    """A stack whose ext-authz waits long for each sync while the file `slow` is there. (strace can
    hold up a sync too, but it stops all other system calls for moments, and on a busy machine that
    alone is longer than the 50 ms that a denial has.)"""

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        self.slow = self.data_dir / "slow"
        part = self.parts["ext-authz"]
        part.command = [sys.executable, "-c", SLOW, *part.command[3:]]
        part.environment = {**part.environment, "SLOW_DISK": str(self.slow)}


def test_slow_disk(mode, tmp_path):
    """A disk that takes longer than Envoy waits has everybody denied by us, in time, and the last
    word on record is that denial."""
    stack = SlowDisk(tmp_path / "data", bootstrap=mode, timeout_ms=400)
    with running(stack, lambda _: None):
        stack.slow.touch()
        late = send(stack, *["/fhir/metadata"] * 4)
        together = send(stack, *["/fhir/metadata"] * 20, together=True)
        stack.slow.unlink()
        time.sleep(1)
        after = send(stack, "/fhir/metadata")
        found = account(stack)
    assert Counter(answer.status for answer in late + together) == {503: 24}
    assert after[0].status == 200
    for answer in late + together:
        rows = found.decisions[answer.trace]
        assert (rows[-1].reason_code, rows[-1].allowed) == ("deadline", False)
        assert not found.accesses[answer.trace][0].upstream
    assert (found.report.verified, found.report.gaps) == (True, {})


BUG = """import authz.serve.one_check as check
real = check.read_verdict
def read_verdict(outcome):
    if outcome == {"allowed": True, "headers": {"x-bug": "here"}}:
        raise RuntimeError("secret-of-the-request")
    return real(outcome)
check.read_verdict = read_verdict
from authz.cli import main
main()
"""


class Buggy(Tuned):
    """A stack whose ext-authz has a bug that some decisions meet."""

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        part = self.parts["ext-authz"]
        part.command = [sys.executable, "-c", BUG, *part.command[3:]]


def test_a_bug(mode, tmp_path):
    """A bug of ours denies whoever meets it, with 500, on record, without a word of the request in
    the log; others do not notice."""
    policy = tmp_path / "policy.rego"
    policy.write_text(
        "package envoy.authz\nimport rego.v1\n"
        "path := input.parsed_path[1]\n"
        'allow := {"allowed": true, "headers": {"x-bug": "here"}} if path == "bug"\n'
        'allow := {"allowed": true} if path != "bug"\n'
    )
    stack = Buggy(tmp_path / "data", policy=policy, bootstrap=mode)
    with running(stack, lambda _: None):
        bug, served, *_ = send(stack, "/fhir/bug", "/fhir/metadata")
        found = account(stack)
        log = stack.parts["ext-authz"].log.read_text()
        with connect(stack.store) as client:
            query = "SELECT decision_id FROM decisions WHERE reason_code = 'internal_error'"
            [(denied,)] = client.execute(query)
    assert (bug.status, served.status) == (500, 200)
    [access] = found.accesses[bug.trace]
    assert not access.upstream
    assert access.decision_id == denied
    assert "a bug in Check" in log
    assert "secret-of-the-request" not in log
    assert (found.report.verified, found.report.gaps) == (True, {})
