"""Two processes never own one log at the same time, whatever happens between their statements."""

import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.store import migrations
from authz.store.client import connect
from authz.store.lease import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    SETTINGS,
    Claim,
    Claims,
    Lease,
    holder_of,
)

SECONDS = 6

# Who there is: of the first two, the second is started once the first is dead, in its directory.
HOLDERS = ("a", "a", "b", "c")


class Killed(BaseException):
    """Ends the thread of a process that was killed."""


@dataclass
class World:
    """A table, a clock, and the inserts that are still on their way."""

    time: float = 1000.0
    rows: list[Claim] = field(default_factory=list)
    late: list[Claim] = field(default_factory=list)

    def newest(self) -> list[Claim]:
        newest = {}
        for row in sorted(self.rows, key=lambda row: row.number):
            newest[row.process] = row
        return list(newest.values())


class Process:
    """Takes the lease, renews it, gives it back, again and again, in a thread that stands still
    before and after all that others can see, until it is told what happens next."""

    def __init__(self, world, number, kind):
        self.world = world
        self.dead = False
        self.fate = "go"
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        # Its stopwatch began at some time of its own.
        self.lease = kind(self, HOLDERS[number], "", lambda: world.time + 17 * number)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._done.acquire()

    @property
    def live(self):
        return not self.dead and self.lease.live

    def step(self, fate):
        """Go on to where it stands still next."""
        self.fate = fate
        self._turn.release()
        self._done.acquire()

    def kill(self):
        self.dead = True
        self.step("go")
        self._thread.join()

    def insert(self, holder, process, number, who, *, owns, seconds):
        self._stand()
        taken = round(self.world.time * 1e6)
        row = Claim(holder, process, number, who, owns, taken, taken + seconds * 1_000_000)
        self._stand()
        fate = self.fate
        if fate == "late":
            self.world.late.append(row)
        elif fate != "lost":
            self.world.rows.append(row)
        self._stand()
        if fate != "go":
            raise OSError("no answer")

    def claims(self):
        self._stand()
        now = round(self.world.time * 1e6)
        self._stand()
        found = self.world.newest()
        self._stand()
        return found, now

    def _stand(self):
        self._done.release()
        self._turn.acquire()
        if self.dead:
            raise Killed

    def _run(self):
        try:
            self._stand()
            while True:
                try:
                    if not self.lease.live:
                        self.lease.take()
                    elif self.fate == "release":
                        self.lease.release()
                    else:
                        self.lease.renew()
                except OSError:
                    pass
        except Killed:
            self._done.release()


def one_by_one(runs):
    """Steps, from runs of steps of one process: how many, what happens at the first, and when."""
    return [
        step
        for number, many, what, seconds in runs
        for step in [(number, what, seconds), *[(number, "go", 0)] * (many - 1)]
    ]


STEPS = st.lists(
    st.tuples(
        st.integers(0, len(HOLDERS) - 2),
        st.sampled_from((1, 1, 1, 2, 3, 6, 12)),
        st.sampled_from(("go",) * 8 + ("release", "unclear", "lost", "late", "kill", "arrive")),
        st.sampled_from((0,) * 10 + (0.5, 1, RENEW_SECONDS, 9, 14, LEASE_SECONDS)),
    ),
    min_size=10,
    max_size=60,
).map(one_by_one)


def most_owners(steps, kind=Lease, seen=None):
    """The most that owned the log at one time, while `steps` went on."""
    world = World()
    processes = [Process(world, number, kind) for number in (0, 2, 3)]
    started = list(processes)
    most = 0
    try:
        for number, what, seconds in steps:
            process = processes[number]
            world.time += seconds
            if what == "arrive":
                world.rows += world.late
                world.late.clear()
            elif what == "kill":
                if number == 0 and not process.dead and len(started) == len(processes):
                    process.kill()
                    processes[0] = Process(world, 1, kind)
                    started.append(processes[0])
            else:
                process.step(what)
            owners = sum(process.live for process in started)
            most = max(most, owners)
            if seen is not None:
                seen[owners] += 1
    finally:
        for process in started:
            if not process.dead:
                process.kill()
    return most


@pytest.mark.thorough
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_never_two_owners(steps):
    """Inserts that are slow, lost, unclear or late; processes that stand still, die, come back."""
    assert most_owners(steps) <= 1


class Unread(Lease):
    """Wrong: once it has claimed, it does not look again."""

    def _rival(self, claims, since):
        mine = any(claim.process == self._process for claim in claims)
        return None if mine else super()._rival(claims, since)


class Late(Lease):
    """Wrong: a renewal counts whenever it is acknowledged."""

    def renew(self):
        begun = self._stopwatch()
        self._claim(owns=True)
        self._until = begun + LEASE_SECONDS - 5


class Watch(Lease):
    """Wrong: its stopwatch starts when the answer is there."""

    def renew(self):
        self._claim(owns=True)
        if self.live:
            self._until = self._stopwatch() + LEASE_SECONDS


A, B = [(1, "go", 0)], [(2, "go", 0)]  # a step of the one, of the other
TAKE, RENEW = 10, 3  # steps
ORDERS = {
    # Both look, both claim, both look again.
    "claimed together": ((A + B) * TAKE, Unread),
    # A renewal begins at second 14, and is on its way until another has looked at second 21.
    "renewed too late": (
        A * (TAKE + RENEW - 1) + [(1, "go", 14)] + A + [(2, "go", 7)] + B * (TAKE - 1) + A * 2,
        Late,
    ),
    # A renewal of second 0 is acknowledged at second 14.
    "answered too late": (
        A * (TAKE + RENEW - 1) + [(1, "go", 14)] + [(2, "go", 7)] + B * (TAKE - 1), Watch,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_orders_that_tell(name):
    """In these orders somebody would own the log beside the owner, if it were done otherwise."""
    steps, wrong = ORDERS[name]
    assert most_owners(steps) <= 1
    assert most_owners(steps, wrong) == 2


def test_it_is_owned_at_all():
    """Left alone, the first has it at once and keeps it by renewing."""
    seen = Counter()
    assert most_owners(A * TAKE + [(1, "go", 2)] * 60, seen=seen) == 1
    assert seen == {0: TAKE - 1, 1: 61}


@pytest.fixture
def lease(database):
    """Makes processes' leases of one log."""
    clients = []

    def make(holder):
        clients.append(connect(database, **SETTINGS))
        migrations.migrate(clients[-1])
        return Lease(Claims(clients[-1], "o"), holder, f"process of {holder}")

    yield make
    for client in clients:
        client.disconnect()


def test_in_clickhouse(lease):
    """In the real table: whose it is, nobody else gets, until it is given back. A process that
    follows in the same directory need not wait."""
    first, other = lease("a"), lease("b")
    assert first.take() is None
    assert first.live
    rival = other.take()
    assert (rival.who, rival.owns, other.live) == ("process of a", False, False)
    first.renew()
    renewed = other.take()
    assert renewed.owns
    assert renewed.number > rival.number
    follower = lease("a")
    assert follower.take() is None
    first.release()
    assert other.take() is not None, "it is the follower's"
    follower.release()
    assert not follower.live
    with pytest.raises(OSError, match="ended"):
        follower.check()
    assert other.take() is None
    other.check()


def test_holder(tmp_path):
    """A directory is the same holder each time, and its copy is another."""
    for name in ("one", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    one = holder_of(tmp_path / "one" / "lock")
    assert one == holder_of(tmp_path / "one" / "lock")
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    assert one == holder_of(tmp_path / "elsewhere" / "lock")
    assert one != holder_of(tmp_path / "copy" / "lock")


CONTENDER = """
import json, random, sys, time
from authz.store import lease
from authz.store.client import connect
lease.LEASE_SECONDS, lease._MARGIN = 3, 1
mine = lease.Lease(lease.Claims(connect(sys.argv[1], **lease.SETTINGS), "o"), sys.argv[2], "")
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    if mine.take() is None:
        begun = time.clock_gettime(time.CLOCK_BOOTTIME)
        for _ in range(random.randrange(3)):
            time.sleep(0.1)
            mine.renew()
        if mine.live:
            ended = time.clock_gettime(time.CLOCK_BOOTTIME)
            print(json.dumps([begun, ended]), flush=True)
        mine.release()
    time.sleep(random.random() / 5)
"""


def test_several_processes(database, tmp_path):
    """Processes that all want it, against a real ClickHouse, each have it at times, and no two at
    one time."""
    with connect(database) as client:
        migrations.migrate(client)
    (tmp_path / "contender.py").write_text(CONTENDER)
    command = [sys.executable, str(tmp_path / "contender.py"), database]
    running = [
        subprocess.Popen([*command, str(n), str(SECONDS)], stdout=subprocess.PIPE) for n in range(4)
    ]
    spans = []
    for number, process in enumerate(running):
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        spans += [(*json.loads(line), number) for line in told.splitlines()]
    spans.sort()
    assert len({number for *_, number in spans}) > 1
    for (_, ended, one), (begun, _, other) in itertools.pairwise(spans):
        assert begun >= ended, (one, other)
