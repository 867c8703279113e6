"""The log's own account of itself over crashes, in a real database."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime

import orjson
import pytest
from logs import SIGNER, TRUST

from authz.journal.commit import Committer
from authz.receiver.accounts import Accounts
from authz.serve.books import Books
from authz.store.accounts import Accounted
from authz.verify import verify_store

SECONDS = {"interval_seconds": 10, "grace_seconds": 5, "patience_seconds": 60}


@contextlib.contextmanager
def books(log):
    """As a start of the receiver keeps them; nothing is flushed at the end."""
    committer = Committer(log.journal, log.log)
    kept = Books(log.store, log.log, committer, Accounts(
        log.log.origin, log.log.stored.accounted, **SECONDS, started_us=time.time_ns() // 1000
    ))  # fmt: skip
    try:
        yield kept
    finally:
        committer.close()
        kept._client.disconnect()


def requests(log, *names):
    for name in names:
        decision = {"kind": "decision", "decision_id": name, "allowed": True, "enforced": True}
        access = {**decision, "kind": "access", "upstream": "192.0.2.1:80"}
        log.append(log.written([decision]))
        log.append([access])


def summaries(log):
    return [
        orjson.loads(details)
        for (details,) in log.client.execute(
            "SELECT details FROM audit_log WHERE event = 'interval_summary' ORDER BY index"
        )
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_crash_between_journal_and_database(log, limit, monkeypatch):
    """Intervals that were told, and whose notices were not stored when the receiver crashed, are
    told once: a start waits until they are."""
    clock = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: clock)

    async def live(names, told):
        nonlocal clock
        with books(log) as kept:
            while log.log.waiting():
                await kept.keep(log.seal(limit))
            clock += 20_000_000_000
            requests(log, *names)
            await kept.keep(log.seal(2))
            assert log.log.waiting() == 2 * len(names) - 2 + told
            log.restart()

    asyncio.run(live("ab", 0))
    for names in ("cde", "fgh", "ij"):
        asyncio.run(live(names, 1))  # of the interval before
    with books(log) as kept:
        asyncio.run(kept.keep(log.seal()))
    assert [one["decisions"] for one in summaries(log)] == [2, 3, 3]
    report = verify_store(log.client, TRUST)
    assert (report.findings, report.gaps, report.matched) == ([], {}, 10)


def test_clock_set_back(log, monkeypatch):
    """A clock that was an hour ahead for a moment keeps no gap from being told: the log's own goes
    on, under traffic and without, and is told as it is counted by a verifier."""
    clock, stopwatch = time.time_ns(), time.monotonic_ns()
    monkeypatch.setattr("time.time_ns", lambda: clock)
    monkeypatch.setattr("time.monotonic_ns", lambda: stopwatch)
    ahead = 3_600_000_000_000

    async def live():
        nonlocal clock, stopwatch
        clock += ahead
        with books(log) as kept:
            requests(log, "a")
            log.append(log.written([{"kind": "decision", "decision_id": "x", "allowed": True}]))
            clock -= ahead
            for name in "bcdefgh":
                await kept.keep(log.seal())
                clock += 8_000_000_000
                stopwatch += 8_000_000_000
                requests(log, name)
            await kept.keep(log.seal())
            assert [(one["decisions"], one["missing"]) for one in summaries(log)][:1] == [(4, 1)]
            clock += 40_000_000_000
            stopwatch += 40_000_000_000
            while log.log.waiting():
                await kept.keep(log.seal())
            await kept.keep(None)
            while log.log.waiting():
                await kept.keep(log.seal())

    asyncio.run(live())
    assert sum(one["decisions"] for one in summaries(log)) == 9
    report = verify_store(log.client, TRUST)
    assert [one.kind for one in report.findings] == ["backdated"]
    assert report.gaps == {"no_access": 1}


DAMAGED = ["", "{", "[]", "{}", '{"first": "x", "end": [], "until": {}, "as_of": null}']


def test_damaged_rows(log):
    """Whatever somebody wrote into the table, the receiver asks it and goes on."""
    log.append([{"kind": "notice", "event": "log_started", "time": 1}])
    log.seal()
    rows = [
        (SIGNER.name, number, datetime.now(UTC), "notice", event, rule, details)
        for number, (event, rule, details) in enumerate(
            [
                (event, rule, details)
                for event, rule in [
                    ("interval_summary", ""), ("writer_lost", ""), ("gap", "writer_away")
                ]
                for details in DAMAGED
            ],
            1,
        )
    ]  # fmt: skip
    log.client.execute(
        "INSERT INTO audit_log (origin, index, sealed_at, kind, event, rule, details) VALUES", rows
    )
    asked = Accounted(log.client, SIGNER.name)
    assert asked.told() == []
    away, lost = asked.away()
    assert (away.keys(), lost) == ({""}, {""})


def test_very_many_under_way(log):
    """As many decisions as may be carried on are found again, but for those whose access came."""
    names = [f"0193e2a4-7c1f-7000-8000-{number:012x}" for number in range(10_000)]
    for begin in range(0, len(names), 100):
        some = names[begin : begin + 100]
        log.append(
            log.written(
                [{"kind": "decision", "decision_id": name, "allowed": True} for name in some]
            )
        )
        log.append([{"kind": "notice", "event": "under_way", "records": some, "details": "{}"}])
    log.append([{"kind": "access", "decision_id": names[7]}])
    log.seal(100_000)
    found = Accounted(log.client, SIGNER.name).under_way()
    assert {record["decision_id"] for record in found} == {*names} - {names[7]}
