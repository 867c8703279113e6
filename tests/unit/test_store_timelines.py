"""What pictures of time ask of the database."""

import time
from datetime import UTC, date, datetime
from unittest.mock import patch

import pytest
from test_lookup import KEY, access, decision, disclosure, stored

from authz.receiver import sequence
from authz.store import timelines
from authz.store.lookups import Window

BEGIN = time.time_ns() // 1000 // 86_400_000_000 * 86_400_000_000 + 10 * 86_400_000_000
FIRST = datetime.fromtimestamp(BEGIN // 1_000_000, UTC).date()
DAY, MINUTE = 86_400_000_000, 60_000_000


@pytest.fixture
def sealed_on(log):
    """Seals records at a time by the receiver's clock, which never goes back."""

    def seal(at, *records):
        with patch.object(sequence.time, "time_ns", lambda: at * 1000):
            stored(log, list(records))

    return seal


def test_who_looked_at_whom_when(log, sealed_on):
    """A request counts once on its day, whichever of its records tells whom it was about; nobody
    else's patients, and no other time."""
    sealed_on(
        BEGIN,
        decision(1, patients=["p1"]),
        access(1, patients=["p1"]),
        disclosure(1, ["p1", "p2"]),
        decision(2, patients=["p1"], subject="dr.elm"),
    )
    sealed_on(
        BEGIN + DAY,
        decision(3, patients=["p1"]),
        decision(4, patients=["p1"]),
        disclosure(4, ["p3"]),
    )
    sealed_on(BEGIN + 5 * DAY, decision(5, patients=["p1"]))
    one, two = KEY.token("p1"), KEY.token("p2")
    window = Window(BEGIN, BEGIN + 5 * DAY)
    next_day = date.fromordinal(FIRST.toordinal() + 1)
    assert timelines.of_person(log.client, "dr.alder", [one, two], window) == [
        (next_day, one, 2), *sorted([(FIRST, one, 1), (FIRST, two, 1)]),
    ]  # fmt: skip
    assert timelines.of_person(log.client, "dr.alder", [], window) == []
    assert timelines.of_patient(log.client, [one], window) == [
        (next_day, "dr.alder", 2), (FIRST, "dr.alder", 1), (FIRST, "dr.elm", 1),
    ]  # fmt: skip


def test_minute_by_minute(log, sealed_on):
    """Each minute is there, the earliest first; decisions only, and none that is older."""
    no = {"allowed": False}
    sealed_on(BEGIN, decision(1))
    sealed_on(BEGIN + MINUTE, decision(2), decision(3, **no), access(3))
    sealed_on(BEGIN + 3 * MINUTE, decision(4, **no))
    now = BEGIN + 3 * MINUTE + 1
    assert timelines.minutes(log.client, now + 30_000_000, 3) == [(2, 1, 1), (1, 0, 0), (0, 0, 1)]
