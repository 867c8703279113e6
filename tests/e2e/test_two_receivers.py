"""Two receivers on one ClickHouse: decisions go to one, Envoy's accesses to the other.

One stack lives through it all; each test looks at another side of it.
"""

import asyncio
import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field

import pytest
import yaml
from live import Account, Answer, Caller, read, said, settle

from authz.demo.people import plan
from authz.demo.stack import HOST, ORIGIN, Stack, free_port, running
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import Report, verify_store

pytestmark = pytest.mark.thorough

SECOND = "demo/second"
REQUESTS = 150
COPY_SECONDS = 60


class Two(Stack):
    """A stack whose Envoy tells a second receiver."""

    @property
    def trust(self):
        """Both logs, as an operator puts the two files together."""
        logs = []
        for name in ("receiver", "second"):
            logs += yaml.safe_load((self.data_dir / name / "trust.yaml").read_text())["logs"]
        path = self.data_dir / "trust.yaml"
        path.write_text(yaml.safe_dump({"logs": logs}))
        return path

    def receiver(self, address, origin, directory):
        return self._authz("receiver", "--listen", address, "--origin", origin,
                           "--data-dir", directory)  # fmt: skip

    def _add_receiver(self):
        super()._add_receiver()
        address = f"{HOST}:{free_port()}"
        command = self.receiver(address, SECOND, self.data_dir / "second")
        self._part("second", command, address)

    def _add_envoy(self):
        decisions, self._receiver = self._receiver, self.parts["second"].address
        super()._add_envoy()
        self._receiver = decisions

    def _read_store(self, tell):
        super()._read_store(tell)
        second = self.parts["second"]
        second.environment = {"AUTHZ_STORE": self.store}
        if second.process is None:
            second.start()
            second.wait_until_up()

    def stop(self):
        self.drain()
        for name in ("envoy", "ext-authz", "second"):
            if name in self.parts:
                self.parts[name].stop()
        super().stop()


@dataclass
class Life:
    """What came of it."""

    answers: list[Answer] = field(default_factory=list)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    rosters: list[tuple[str, set[str]]] = field(default_factory=list)
    quiet: Account | None = None
    copies: dict[str, "subprocess.CompletedProcess[str]"] = field(default_factory=dict)
    waited: int = 0
    """How often a receiver that was killed and started again had to wait for its own lease."""
    after: Account | None = None
    dropped: Report | None = None


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    with running(Two(tmp_path_factory.mktemp("two")), lambda _: None) as stack:
        yield live(stack)


def live(stack):
    life = Life()
    life.answers += asyncio.run(send(stack, REQUESTS))
    life.quiet = account(stack)
    with connect(stack.store) as client:
        for origin, kind in client.execute("SELECT DISTINCT origin, kind FROM audit_log"):
            life.kinds.setdefault(origin, set()).add(kind)
    life.rosters = rosters(stack)
    directory = stack.data_dir / "receiver"
    shutil.copytree(directory, stack.data_dir / "copy")
    life.copies["of a running one"] = start_copy(stack)
    life.answers += asyncio.run(send(stack, 20))
    stack.parts["receiver"].stop()
    life.copies["of an earlier state"] = start_copy(stack)
    stack.restart("receiver")
    life.answers += asyncio.run(send(stack, 20))
    asyncio.run(settle(stack))
    stack.parts["receiver"].kill()
    stack.restart("receiver")
    life.after = account(stack)
    life.waited = said(stack, "receiver", "another process has the log's lease")
    for part in ("envoy", "ext-authz", "receiver", "second"):
        stack.parts[part].stop()
    with connect(stack.store, mutations_sync=1) as client:
        for table in ("audit_log", "tiles", "checkpoints", "sealed_originals"):
            client.execute(f"ALTER TABLE {table} DELETE WHERE origin = '{ORIGIN}'")
        life.dropped = verify_store(client, load_trust(stack.trust))
    return life


async def send(stack, count):
    requests, answers = iter(plan(count, 7)), []
    async with Caller(stack) as caller:

        async def work():
            for request in requests:
                answers.append(await caller.send(request))  # noqa: PERF401 - several do

        await asyncio.gather(*(work() for _ in range(6)))
    return answers


def account(stack):
    """As soon as nothing is pending any more."""
    asyncio.run(settle(stack))
    until = time.monotonic() + 60
    while (found := read(stack)).report.pending and time.monotonic() < until:
        time.sleep(0.5)
    return found


def rosters(stack):
    """Each: the log that it is in, and the logs it names. Waits until one in each names both."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with connect(stack.store) as client:
            query = "SELECT origin, details FROM notices WHERE event = 'roster'"
            found = [
                (origin, {log["origin"] for log in json.loads(details)["logs"]})
                for origin, details in client.execute(query)
            ]
        if {origin for origin, named in found if len(named) == 2} == {ORIGIN, SECOND}:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no rosters: {found}")


def start_copy(stack):
    """A receiver on the copied directory, until it ends."""
    command = stack.receiver(f"{HOST}:{free_port()}", ORIGIN, stack.data_dir / "copy")
    return subprocess.run(
        command,
        env={**stack.parts["receiver"].environment, "PATH": "/usr/bin:/bin"},
        timeout=COPY_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_count_comes_out_even(life):
    """Each decision has its access though they are in two logs, and both logs are intact."""
    report = life.quiet.report
    assert report.findings == []
    assert (report.gaps, report.pending) == ({}, 0)
    # A denial that Envoy did not wait for has none that names it.
    named = {row.decision_id for rows in life.quiet.accesses.values() for row in rows}
    left = [
        rows[-1]
        for rows in life.quiet.decisions.values()
        if not named.intersection(row.decision_id for row in rows)
    ]
    assert {(row.allowed, row.status) for row in left} <= {(False, 503)}, left
    assert report.matched + report.unanswered + len(left) == report.decisions
    assert report.matched > REQUESTS / 2
    assert life.quiet.missing(life.answers[:REQUESTS]) == []
    assert "access" not in life.kinds[ORIGIN]
    assert "decision" not in life.kinds[SECOND]
    assert [log.origin for log in report.logs] == [ORIGIN, SECOND]


def test_they_name_each_other(life):
    """Each log has a roster with both in it."""
    assert {origin for origin, named in life.rosters if named == {ORIGIN, SECOND}} == {
        ORIGIN,
        SECOND,
    }


def test_a_copy_is_refused_beside_the_owner(life):
    """A receiver on a copy of a running one's directory ends, and says who has the log."""
    done = life.copies["of a running one"]
    assert done.returncode == 2
    assert f"log {ORIGIN} belongs to process" in done.stderr
    assert "stop that one" in done.stderr


def test_an_older_copy_is_refused_alone(life):
    """On a copy that the log has outgrown it ends too, though nobody else has the log."""
    done = life.copies["of an earlier state"]
    assert done.returncode == 2
    assert "older copy" in done.stderr


def test_killed_and_started_it_goes_on_at_once(life):
    """A receiver that was killed takes its own lease over without waiting for its end."""
    assert life.waited == 0


def test_nothing_is_forked(life):
    """After all that both logs are intact, and everything that was answered is there."""
    report = life.after.report
    assert report.findings == []
    assert [log.doubles for log in report.logs] == [0, 0]
    assert life.after.missing(life.answers) == []
    assert life.after.doubled == []
    assert {kind: n for kind, n in report.gaps.items() if kind != "no_access"} == {}


def test_a_dropped_log_is_missed(life):
    """With every row and checkpoint of one log gone, the other one names it."""
    found = [(f.kind, f.origin) for f in life.dropped.findings]
    assert ("missing_log", ORIGIN) in found
    assert {origin for _, origin in found} == {ORIGIN}
