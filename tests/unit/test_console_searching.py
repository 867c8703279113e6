"""How the console walks back through a log, and the pictures of who looked at whom."""

import asyncio
from datetime import date
from itertools import pairwise

import pytest
from logs import SIGNER, TestLog

from authz.console import searching
from authz.console.searching import Search, parts, walk
from authz.console.store import Pool
from authz.console.timelines import timeline
from authz.ledger import Signer
from authz.store import pages
from authz.store.client import connect
from authz.store.lookups import Window
from authz.store.pages import ANY, Filters, Place
from authz.store.timelines import Seen

NOW = 1_790_000_000_000_000
DAY = 86_400_000_000


def decision(number, **more):
    return {
        "kind": "decision", "time": NOW, "decision_id": f"d{number}", "allowed": True,
        "subject": "dr.alder" if number % 2 else "n.reed",
        "patients": (["key.p1"], ["key.p0", "key.p1"], ["key.p1", "key.p2"], [])[number % 4],
    } | more  # fmt: skip


@pytest.mark.parametrize("until", [None, NOW, NOW - DAY])
@pytest.mark.parametrize("days", [0, 0.001, 7, 2200])
@pytest.mark.parametrize("shortest", [60_000_000, 8 * DAY])
def test_parts_of_a_time(until, days, shortest):
    """Together they are the whole of it, without a gap or an overlap, the newest first and short,
    and none longer than four times what came before it, nor than a year."""
    first = int((until or NOW) - days * DAY)
    found = list(parts(Window(first, until), NOW, shortest))
    assert (found[0].until_us, found[-1].since_us) == (until, first)
    assert all(one.since_us == other.until_us for one, other in pairwise(found))
    lengths = [(one.until_us or NOW) - one.since_us for one in found]
    assert lengths[0] <= shortest
    assert max(lengths) <= 366 * DAY
    assert all(later <= 4 * earlier for earlier, later in pairwise(lengths))
    assert len(found) <= 16


@pytest.fixture
def two_logs(database, tmp_path):
    """Requests in two logs, many of them sealed at one time."""
    for number, signer in enumerate((SIGNER, Signer("test/other", bytes(32)))):
        (tmp_path / str(number)).mkdir()
        log = TestLog(tmp_path / str(number), database, signer=signer)
        for batch in range(3):
            log.append([decision(number * 100 + batch * 10 + n) for n in range(7)])
            log.seal()
        log.end()
    return database


def pages_of(store, filters, size):
    """Page after page, as people go on to what is older."""

    pool = Pool(store)

    async def ask():
        found, after = [], None
        now = max(at for (at,) in await pool.ask(_times)) + 1
        while True:
            search = Search(filters, Window(now - DAY), after)
            page = [row async for rows in walk(pool, search, size, now) for row in rows]
            assert len(page) <= size
            if not page:
                return found
            found.append(page)
            last = page[-1]
            after = Place(last["sealed_at"], last["origin"], last["index"])

    try:
        return asyncio.run(ask())
    finally:
        for client in pool._idle:
            client.disconnect()


def _times(client):
    return client.execute("SELECT toUnixTimestamp64Micro(max(sealed_at)) FROM audit_log")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "filters", [ANY, Filters(subject="n.reed"), Filters(patients=("key.p1",))],
    ids=["all", "a person", "a patient"],
)  # fmt: skip
def test_each_request_is_on_one_page(two_logs, filters, monkeypatch):
    """Also where many were sealed at once, in several logs; in the order of a search in one go.
    Where a patient is named first, and where among others, is all in one order."""
    monkeypatch.setattr(searching, "_LONG_US", 1_000_000)
    with connect(two_logs) as client:
        whole = pages.search(client, filters, Window(0), 1000)
    assert len(whole) > 15
    for size in (1, 4, 1000):
        found = pages_of(two_logs, filters, size)
        assert [row for page in found for row in page] == whole
        assert {len(page) for page in found[:-1]} <= {size}


def test_a_timeline():
    """By day, week or month, as long as it is; who was there most comes first, and of the others it
    is told how many they are."""
    first, last = date(2026, 1, 1), date(2026, 1, 30)
    days = [Seen(date(2026, 1, 3), "a", 2), Seen(date(2026, 1, 5), "a", 1),
            Seen(date(2026, 1, 5), "b", 1)]  # fmt: skip
    made = timeline(days, first, last, str.upper)
    assert (made.unit, len(made.periods), made.more) == ("day", 30, 0)
    assert made.figures == [("2026-01-05", "a", 1), ("2026-01-05", "b", 1), ("2026-01-03", "a", 2)]
    assert made.rows == [("A", [0, 0, 2, 0, 1] + [0] * 25), ("B", [0] * 4 + [1] + [0] * 25)]
    weeks, months = (timeline(days, first, date(year, 6, 1), str) for year in (2026, 2031))
    assert (weeks.unit, weeks.periods[:2]) == ("week", ["2025-12-29", "2026-01-05"])
    assert [row[:2] for _, row in weeks.rows] == [[2, 1], [0, 1]]
    assert (months.unit, len(months.periods)) == ("month", 66)
    assert months.figures == [("2026-01", "a", 3), ("2026-01", "b", 1)]
    many = timeline([Seen(first, f"p{n}", n + 1) for n in range(40)], first, last, str)
    assert ([name for name, _ in many.rows][:2], many.more) == (["p39", "p38"], 25)
    assert timeline([], first, last, str).rows == []
