"""What Envoy says that it sent, against what came: no entry in flight is told as lost."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.config import load
from authz.errors import UsageError
from authz.receiver.losses import Losses, Lost, Said

SECOND = 1_000_000
GRACE = 15
POLL = 5
NODE = "sidecar-0"


@dataclass
class Envoy:
    """One that polls are made of: `losses` hears of it every `POLL` seconds."""

    losses: Losses
    now: int = 1_000 * SECOND
    run: int = 0
    sent: int = 0
    dropped: int = 0
    received: int = 0
    found: list[Lost] = field(default_factory=list)

    def poll(self, *, times: int = 1, comparable: bool = True, quiet: bool = True) -> None:
        for _ in range(times):
            self.now += POLL * SECOND
            said = Said(NODE, str(self.run), self.sent, self.dropped, comparable)
            self.losses.hear(said, self.received if quiet else None, self.now)
            self.found += self.losses.take()

    def send(self, count: int, *, lost: int = 0) -> None:
        self.sent += count
        self.received += count - lost

    def restart(self) -> None:
        self.run += 1
        self.sent = self.dropped = 0

    def told(self, kind: str) -> int:
        return sum(lost.count for lost in self.found if lost.kind == kind)


@pytest.fixture
def envoy() -> Envoy:
    envoy = Envoy(Losses(GRACE), sent=500, dropped=7)  # of before we were there
    envoy.poll()
    return envoy


def test_nothing_is_lost(envoy):
    """As long as all that was sent arrives, nothing is told."""
    for count in (100, 0, 1, 50):
        envoy.send(count)
        envoy.poll(times=4)
    assert envoy.found == []


def test_lost(envoy):
    """What has not come within the grace time is lost: once, with the time between which it was."""
    envoy.send(10)
    envoy.poll()
    clear = envoy.now
    envoy.send(20, lost=3)
    envoy.poll(times=3)
    assert envoy.found == []
    envoy.poll(times=10)
    [lost] = envoy.found
    assert lost == Lost("envoy_lost", NODE, 3, clear, clear + POLL * SECOND)


def test_in_flight(envoy):
    """An entry under way is none, also when others are under way in its place each time."""
    for _ in range(10):
        envoy.sent += 5
        envoy.poll(times=2)
        envoy.received += 5
        envoy.poll()
    assert envoy.found == []


def test_a_long_cut(envoy):
    """While the receiver is cut off, each interval has its own count, and the sum is what was
    lost."""
    for _ in range(20):
        envoy.send(30, lost=30)
        envoy.poll()
    envoy.send(10)
    envoy.poll(times=5)
    assert envoy.told("envoy_lost") == 600
    assert {lost.kind for lost in envoy.found} == {"envoy_lost"}
    for before, after in zip(envoy.found, envoy.found[1:], strict=False):
        assert before.until == after.since


def test_taken_once_per_interval():
    """What is found between two takes is one fact of a kind, of all its time."""
    losses = Losses(GRACE)
    envoy = Envoy(losses)
    envoy.poll()
    start = envoy.now
    for _ in range(12):
        envoy.send(4, lost=4)
        envoy.dropped += 1
        envoy.now += POLL * SECOND
        losses.hear(Said(NODE, "0", envoy.sent, envoy.dropped), envoy.received, envoy.now)
    losses_of = sorted(losses.take(), key=lambda lost: lost.kind)
    assert losses_of == [
        Lost("envoy_dropped", NODE, 12, start, envoy.now),
        Lost("envoy_lost", NODE, 36, start, envoy.now - GRACE * SECOND),
    ]
    assert losses.take() == []


def test_late(envoy):
    """What was told as lost and comes after all is told as late, and can be lost again."""
    envoy.send(20, lost=8)
    envoy.poll(times=5)
    assert envoy.told("envoy_lost") == 8
    envoy.received += 6
    envoy.poll(times=5)
    assert envoy.told("envoy_late") == 6
    envoy.send(5, lost=5)
    envoy.poll(times=5)
    assert (envoy.told("envoy_lost"), envoy.told("envoy_late")) == (13, 6)


def test_dropped(envoy):
    """What Envoy says it dropped is told at once, and nothing of before our time."""
    envoy.dropped += 4
    envoy.poll(times=3)
    [lost] = envoy.found
    assert lost == Lost("envoy_dropped", NODE, 4, envoy.now - 3 * POLL * SECOND,
                        envoy.now - 2 * POLL * SECOND)  # fmt: skip


def test_restart(envoy):
    """Counters that begin anew are no loss, and what was lost before and after is."""
    envoy.send(40, lost=2)
    envoy.dropped += 1
    envoy.poll()
    envoy.restart()
    envoy.poll()
    envoy.send(10, lost=1)
    envoy.dropped += 3
    envoy.poll(times=5)
    assert (envoy.told("envoy_lost"), envoy.told("envoy_dropped")) == (3, 4)


def test_counters_reset(envoy):
    """Somebody may set Envoy's counters back without a restart."""
    envoy.sent = envoy.dropped = 0
    envoy.send(10, lost=1)
    envoy.poll(times=5)
    assert envoy.told("envoy_lost") == 1


def test_several_receivers(envoy):
    """Of an Envoy that sends a share to others only what it dropped is told; once it sends here
    alone, what it loses from then on."""
    envoy.poll(comparable=False)
    envoy.send(100, lost=60)
    envoy.dropped += 2
    envoy.poll(times=5, comparable=False)
    envoy.poll()
    envoy.send(100, lost=1)
    envoy.poll(times=5)
    assert (envoy.told("envoy_lost"), envoy.told("envoy_dropped")) == (1, 2)


def test_over_a_stop_of_the_receiver(envoy):
    """A receiver that stopped cleanly tells afterwards what was lost while it was away."""
    envoy.send(50, lost=2)
    envoy.poll()
    envoy.send(5)  # came after the last poll
    kept = json.loads(json.dumps(envoy.losses.kept(lambda _: envoy.received)))
    away = Envoy(Losses(GRACE, kept), envoy.now, sent=envoy.sent, dropped=envoy.dropped)
    away.sent += 30
    away.dropped += 1
    away.poll()
    away.send(10)
    away.poll(times=5)
    assert (away.told("envoy_lost"), away.told("envoy_dropped")) == (32, 1)
    assert away.found[0].since == envoy.now


def test_found_and_not_taken_before_a_stop(envoy):
    """What was found and not yet told when the receiver stopped is told by the next."""
    envoy.send(20, lost=3)
    envoy.dropped += 2
    for _ in range(5):
        envoy.now += POLL * SECOND
        envoy.losses.hear(Said(NODE, "0", envoy.sent, envoy.dropped), envoy.received, envoy.now)
    kept = json.loads(json.dumps(envoy.losses.kept(lambda _: envoy.received)))
    assert sorted(Losses(GRACE, kept).take(), key=lambda lost: lost.kind) == sorted(
        envoy.losses.take(), key=lambda lost: lost.kind
    )
    away = Envoy(Losses(GRACE, kept), envoy.now, sent=envoy.sent, dropped=envoy.dropped)
    away.poll(times=5)
    assert (away.told("envoy_lost"), away.told("envoy_dropped")) == (3, 2)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 50), st.integers(0, 50)),
        st.tuples(st.just("fly"), st.integers(1, 20), st.integers(0, 2)),
        st.tuples(st.just("drop"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("restart"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
        st.tuples(st.just("busy"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 5), st.just(0)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_never_more_than_was_lost(events):
    """Whatever happens, and whenever Envoy starts again, no more is told than was lost by then; in
    the end all of it is, except what was sent between an Envoy's last word and its end."""
    envoy = Envoy(Losses(GRACE), sent=3)
    lost = unheard = dropped = 0
    heard = envoy.sent  # of what it has sent
    flying: list[list[int]] = []  # count, polls until it arrives: fewer than the grace time has
    envoy.poll()

    def poll(**how: bool) -> None:
        for one in flying:
            one[1] -= 1
            if one[1] < 0:
                envoy.received += one[0]
        flying[:] = [one for one in flying if one[1] >= 0]
        envoy.poll(**how)
        nonlocal heard
        heard = envoy.sent
        assert envoy.told("envoy_lost") - envoy.told("envoy_late") <= lost

    for what, first, second in events:
        if what == "send":
            envoy.send(first, lost=min(first, second))
            lost += min(first, second)
        elif what == "fly":
            while flying:
                poll()
            poll()  # there is a moment without
            envoy.sent += first
            flying.append([first, second])
        elif what == "drop":
            envoy.dropped += first
            dropped += first
            poll()
        elif what == "restart":
            # Sent since the last poll: some arrive, some do not, and nobody says so any more.
            envoy.received += first
            lost += second
            unheard += first + second + envoy.sent - heard
            heard = 0
            envoy.restart()
        elif what == "reset":
            poll()
            envoy.sent = envoy.dropped = 0
            poll()  # or it would not be seen: the same number may be reached again
        else:
            for _ in range(first):
                poll(quiet=what == "wait")
    for _ in range(10):
        poll()
    told = envoy.told("envoy_lost") - envoy.told("envoy_late")
    assert lost - unheard <= told <= lost
    assert envoy.told("envoy_dropped") == dropped


@pytest.mark.parametrize("address", ["http://127.0.0.1:9901", "http://[::1]:9901", "unix:///a b"])
def test_addresses(monkeypatch, address):
    """An admin interface is named by a URL or a socket's path."""
    monkeypatch.setenv("AUTHZ_RECEIVER__ENVOY_ADMINS", json.dumps([address]))
    assert load().receiver.envoy_admins == (address,)


@pytest.mark.parametrize("address", ["127.0.0.1:9901", "https://a:1", "unix://", "http://a"])
def test_wrong_addresses(monkeypatch, address):
    """Another form is refused, with the mend."""
    monkeypatch.setenv("AUTHZ_RECEIVER__ENVOY_ADMINS", json.dumps([address]))
    with pytest.raises(UsageError, match=r"envoy_admins.*want http://host:port .* or unix:///path"):
        load()
