"""A changed policy decides within a second, on running traffic, through Envoy, on an OPA server
with its decisions cached."""

import itertools
import subprocess
import time

import pytest
from live import account, during, replace

from authz.demo.people import Request
from authz.demo.stack import Stack, free_port, running
from authz.policy.opa import OpaEngine

pytestmark = pytest.mark.opa
SERVED = Request("linden", "GET", "/fhir/metadata")
TEXT = """package envoy.authz
import rego.v1
allow := {"allowed": %s} if input.attributes.request.http.method == "GET"
"""


@pytest.fixture
def changing(opa, tmp_path):
    """A stack that asks an OPA which watches its policy's file."""
    policy = tmp_path / "policy"
    policy.mkdir()
    replace(policy / "policy.rego", TEXT % "true")
    address = f"127.0.0.1:{free_port()}"
    command = [opa, "run", "--server", "--watch", "--addr", address, "--log-level", "error",
               str(policy)]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        stack = Stack(tmp_path / "data", policy=f"http://{address}", timeout_ms=2000)
        with running(stack, lambda _: None):
            yield stack, policy / "policy.rego"
    finally:
        server.kill()
        server.wait()


def hits(stack) -> float:
    """How many decisions were taken from the cache."""
    import urllib.request

    command = stack.parts["ext-authz"].command
    address = command[command.index("--metrics") + 1]
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(
        next(line for line in lines if line.startswith("authz_cache_hits_total ")).split()[1]
    )


@pytest.mark.thorough
def test_policy_change_on_opa(changing):
    """Every change is in force a second after it at the latest, though decisions are cached, and
    each decision is recorded."""
    stack, file = changing
    changes: list[tuple[float, int]] = []

    def change() -> None:
        for number, (allowed, status) in enumerate([("false", 403), ("true", 200)] * 4):
            time.sleep(1.6 + 0.11 * number)  # at another point of the watcher's round each time
            replace(file, TEXT % allowed)
            changes.append((time.monotonic(), status))
        time.sleep(1.6)

    answers = during(change, stack, itertools.repeat(SERVED))
    assert {answer.status for answer in answers} == {200, 403}
    taken = []
    for (begun, status), (end, _) in itertools.pairwise([*changes, (time.monotonic(), 0)]):
        period = [answer for answer in answers if begun < answer.sent < end - 0.1]
        late = [answer.sent - begun for answer in period if answer.status != status]
        taken.append(max(late, default=0.0))
    print("policy changes in force after", [round(seconds, 3) for seconds in taken], "s")
    # A decision is kept for a second, and asked for up to a round of the watcher after the change.
    assert max(taken) < 1 + OpaEngine.watch_seconds, taken
    assert sorted(taken)[len(taken) // 2] < 1, taken
    assert hits(stack) > len(answers) / 2, "this test is about cached decisions"
    found = account(stack)
    assert not found.missing(answers)
    assert (found.report.verified, found.report.gaps) == (True, {})
