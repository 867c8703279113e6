"""`authz block` on running traffic through a real Envoy."""

import asyncio
import json
import os
import pwd
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from live import Caller, account
from programs import AUTHZ

from authz.demo.people import PEOPLE, Request
from authz.demo.stack import Stack, running
from authz.store.client import connect

LOOK = Request("linden", "GET", "/fhir/metadata")
OTHER = Request("alder", "GET", "/fhir/metadata")
SUBJECT = PEOPLE["linden"].sub
REASON = "her badge was stolen"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running(Stack(tmp_path_factory.mktemp("block")), lambda _: None) as stack:
        yield stack


def authz(stack, *arguments, code=0):
    """What the command prints as JSON, or its error."""
    command = [*AUTHZ, *arguments, "--receiver", stack.parts["receiver"].address]
    command += ["--data-dir", str(stack.data_dir / "operator"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else json.loads(done.stdout)


async def traffic(stack, disturb):
    """Answers to a look every few milliseconds while `disturb` runs, as (sent, status); and when
    `disturb` was done."""
    seen, done = [], asyncio.Event()
    async with Caller(stack) as caller:

        async def look():
            while not done.is_set():
                answer = await caller.send(LOOK)
                seen.append((answer.sent, answer.status))
                await asyncio.sleep(0.002)

        looking = [asyncio.create_task(look()) for _ in range(2)]
        await asyncio.sleep(0.3)
        finished = await asyncio.to_thread(disturb)
        await asyncio.sleep(1.5)
        done.set()
        await asyncio.gather(*looking)
    return sorted(seen), finished


def then(function, *args, **kwargs):
    """Runs it, and tells when it was done."""

    def disturb():
        function(*args, **kwargs)
        return time.monotonic()

    return disturb


def statuses(stack, *requests):
    async def send():
        async with Caller(stack) as caller:
            return [(await caller.send(request)).status for request in requests]

    return asyncio.run(send())


def changes(seen):
    """The statuses seen, one for each run of the same. A denial in time, because the machine was
    busy, says nothing of the block."""
    kinds = [status for _, status in seen if status != 503]
    return kinds[:1] + [b for a, b in pairwise(kinds) if a != b]


def test_block_and_unblock_under_traffic(stack):
    """A block takes effect on new requests within a second of the command's end, and is lifted
    within a second; nobody else is touched, and the log says who did it and why."""
    account(stack)  # other tests of this stack may have been first
    with connect(stack.store) as client:
        [(start,)] = client.execute("SELECT max(size) FROM checkpoints")
    said = authz(stack, "unblock", SUBJECT)  # its key and directory are there from here on
    block = ("block", SUBJECT, "--for", "1h", "--reason", REASON)
    seen, finished = asyncio.run(traffic(stack, then(authz, stack, *block)))
    assert changes(seen) in ([200, 403], [200, 403, 200, 403]), "two senders may cross"
    last = max(sent for sent, status in seen if status == 200)
    first = min(sent for sent, status in seen if status == 403)
    print(f"first denial {1000 * (first - finished):+.0f} ms, last allowed"
          f" {1000 * (last - finished):+.0f} ms from the end of authz block")  # fmt: skip
    assert last < finished + 1
    assert statuses(stack, LOOK, OTHER) == [403, 200]
    seen, finished = asyncio.run(traffic(stack, then(authz, stack, "unblock", SUBJECT)))
    last = max(sent for sent, status in seen if status == 403)
    print(f"last denial {1000 * (last - finished):+.0f} ms from the end of authz unblock")
    assert last < finished + 1
    assert seen[-1][1] == 200
    found = account(stack)
    assert found.report.verified
    assert not found.report.gaps
    with connect(stack.store) as client:
        told = client.execute(
            "SELECT event, subject, JSONExtractString(details, 'by'),"
            " JSONExtractString(details, 'reason'), JSONExtractUInt(details, 'until') > 0"
            " FROM notices WHERE event IN ('block', 'unblock') AND index >= %(start)s"
            " ORDER BY index",
            {"start": start},
        )
        me = pwd.getpwuid(os.getuid()).pw_name
        assert told == [
            ("unblock", SUBJECT, me, "", 0),
            ("block", SUBJECT, me, REASON, 1),
            ("unblock", SUBJECT, me, "", 0),
        ]
        [(number,)] = client.execute(
            "SELECT index FROM notices WHERE event = 'block' AND index >= %(start)s",
            {"start": start},
        )
        denied = client.execute(
            "SELECT DISTINCT subject, allowed, status, reason FROM decisions"
            " WHERE reason_code = 'blocked' AND index >= %(start)s",
            {"start": start},
        )
        reason = f"blocked ({said['origin']}/{number}): {REASON}"
        assert denied == [(SUBJECT, False, 403, reason)]


@pytest.mark.thorough
def test_block_outlives_a_restart_without_receiver(stack):
    """ext-authz that starts while no receiver is there blocks whom it blocked before."""
    authz(stack, "block", SUBJECT, "--for", "30m", "--reason", REASON)
    for part in ("receiver", "ext-authz"):
        stack.parts[part].kill()
    stack.restart("ext-authz")
    assert statuses(stack, LOOK, OTHER) == [403, 200]
    error = authz(stack, "unblock", SUBJECT, code=3)
    assert "no receiver answers" in error
    assert len(error.splitlines()) == 1
    stack.restart("receiver")
    assert statuses(stack, LOOK) == [403]
    authz(stack, "unblock", SUBJECT)
    until = time.monotonic() + 5  # ext-authz may be waiting to connect again
    while statuses(stack, LOOK) != [200]:
        assert time.monotonic() < until
    assert account(stack).report.verified


@pytest.mark.thorough
def test_block_ends_by_itself(stack):
    """A block ends at its time, with nobody doing anything."""
    said = {}

    def block():
        said.update(authz(stack, "block", SUBJECT, "--for", "4s", "--reason", REASON))
        time.sleep(4)
        return time.time() - time.monotonic()

    seen, offset = asyncio.run(traffic(stack, block))
    until = said["until_us"] / 1e6 - offset
    denied = [sent for sent, status in seen if status == 403]
    assert denied
    print(f"last denial {1000 * (max(denied) - until):+.0f} ms from its time")
    assert max(denied) < until + 0.1
    assert all(status == 200 for sent, status in seen if sent > until + 0.1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["block", "a", "--for", "1h"], "--reason"),
        (["block", "a", "--reason", "r"], "--for"),
        (["block", "a", "--for", "1w", "--reason", "r"], "30m, 1h or 7d"),
        (["block", "a", "--for", "0s", "--reason", "r"], "30m, 1h or 7d"),
        (["block", "a", "--for", "99999d", "--reason", "r"], "30m, 1h or 7d"),
        (["block", "a", "--for", "-1h", "--reason", "r"], "--for"),
        (["block", "a", "--for", "1h", "--reason", " "], "--reason: want text"),
        (["block", "", "--for", "1h", "--reason", "r"], "SUBJECT: want text"),
        (["block", "x" * 257, "--for", "1h", "--reason", "r"], "SUBJECT: want text"),
        (["block", b"\xff", "--for", "1h", "--reason", "r"], "SUBJECT: want text"),
        (["block", "a", "--for", "1h", "--reason", "r"], "--receiver is missing"),
        (["block", "--for", "1h", "--reason", "r"], "SUBJECT is missing"),
        (["block", "--for", "1h", "--reason", "r", "--finding", "o@1"], "give the --store"),
        (["block", "a", "--for", "1h", "--reason", "r", "--finding", "o"], "demo/receiver@10"),
        (["block", "a", "--for", "1h", "--reason", "r", "--finding", f"o@{2**53}"], "indexes end"),
        (["unblock", "a", "--receiver", "nowhere"], "receiver"),
    ],
)
def test_wrong_usage(tmp_path, arguments, text):
    """What cannot be recorded as it was meant is refused before anything is done."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "200"}
    command = [sys.executable, "-m", "authz", *arguments]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr.decode(errors="replace")
    assert not list(tmp_path.iterdir())
