"""Rows that were moved to another log, or another month's that are gone, are found and placed."""

from datetime import UTC, datetime

import pytest
from logs import TRUST, TestLog
from verified import ORIGIN, SIZE, all_records, fill, findings, found, found_in, put, update

from authz.ledger import Signer
from authz.receiver import sequence
from authz.trust import TrustedLog
from authz.verify import verify_store

OTHER = Signer("other/receiver", bytes(range(1, 33)))
BOTH = [*TRUST, TrustedLog(OTHER.name, (OTHER.verifier,))]


@pytest.fixture
def two_logs(copied, untouched_log, tmp_path):
    """The copy, and beside it a log of three records."""
    other = TestLog(tmp_path, untouched_log, signer=OTHER)
    other.append([{"kind": "notice", "event": f"e{number}"} for number in range(3)])
    other.seal()
    other.end()
    assert found_in(copied, BOTH) == []
    return copied


def move(client, index, origin, to):
    """One of our rows to another log."""
    row = all_records(client)[index] | {"origin": origin, "index": to}
    client.execute(f"ALTER TABLE audit_log DELETE WHERE origin = '{ORIGIN}' AND index = {index}")
    put(client, [row])


def test_within_another(two_logs):
    """In a place that the other log has a record for, both claim it; where it came from is said."""
    move(two_logs, 100, OTHER.name, 1)
    assert found_in(two_logs, BOTH) == [
        (OTHER.name, "conflict", 1, 1),
        (ORIGIN, "missing", 100, 100),
        (ORIGIN, "moved", 100, 100),
    ]
    [moved] = [one for one in findings(two_logs, trust=BOTH) if one.kind == "moved"]
    assert moved.text.endswith(f"record 1 of log '{OTHER.name}'")


def test_behind_another(two_logs):
    """Behind the other log's end nobody sealed it."""
    move(two_logs, 100, OTHER.name, 3)
    assert found_in(two_logs, BOTH) == [
        (OTHER.name, "unsealed", 3, 3),
        (ORIGIN, "missing", 100, 100),
        (ORIGIN, "moved", 100, 100),
    ]


def test_in_place_of_anothers(two_logs):
    """So it is where the other log's own record had to make room."""
    two_logs.execute(f"ALTER TABLE audit_log DELETE WHERE origin = '{OTHER.name}' AND index = 1")
    move(two_logs, 100, OTHER.name, 1)
    assert found_in(two_logs, BOTH) == [
        (OTHER.name, "changed", 1, 1),
        (ORIGIN, "missing", 100, 100),
        (ORIGIN, "moved", 100, 100),
    ]


@pytest.mark.parametrize("to", [0, 100, SIZE + 7])
def test_to_an_unknown_one(copied, to):
    """In a log that nobody trusts it is found too."""
    move(copied, 100, "elsewhere", to)
    assert found_in(copied, TRUST) == [
        ("elsewhere", "unknown_origin", to, to),
        (ORIGIN, "missing", 100, 100),
        (ORIGIN, "moved", 100, 100),
    ]


def test_whole_batch(copied):
    """Of many records that were moved together the range is told, and of each where it went."""
    records = all_records(copied)
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 300 AND index < 350")
    put(copied, [record | {"origin": "elsewhere"} for record in records[300:350]])
    told = found_in(copied, TRUST)
    assert ("elsewhere", "unknown_origin", 300, 349) in told
    assert (ORIGIN, "missing", 300, 349) in told
    assert [one for one in told if one[1] == "moved"] == [
        (ORIGIN, "moved", index, index) for index in range(300, 350)
    ]


def test_renamed_log(copied):
    """A log that is given another name as a whole is gone under its own."""
    records = all_records(copied)
    copied.execute("TRUNCATE TABLE audit_log")
    put(copied, [record | {"origin": "elsewhere"} for record in records])
    told = found_in(copied, TRUST)
    assert ("elsewhere", "unknown_origin", 0, SIZE - 1) in told
    assert (ORIGIN, "truncated", 0, SIZE - 1) in told


def test_to_another_tenant(copied):
    """A record of another tenant is another record."""
    update(copied, "tenant = 'elsewhere'", "index = 100")
    assert found(copied) == [("changed", 100, 100)]


def test_dropped_origin(two_logs):
    """A log that was dropped with all its rows is named; the other one is as it was."""
    for table in ("audit_log", "checkpoints", "tiles"):
        two_logs.execute(f"ALTER TABLE {table} DELETE WHERE origin = '{OTHER.name}'")
    [finding] = findings(two_logs, trust=BOTH)
    assert (finding.kind, finding.origin) == ("no_checkpoint", OTHER.name)
    assert "all of it is gone" in finding.text


# A log of three months: batches of 1, 255 and 44 records in the first, 300 in the second.

MONTHS = {"202601": (0, 299), "202602": (300, 599), "202603": (600, SIZE - 1)}


@pytest.fixture
def months(new_log, monkeypatch):
    clock = [0]

    def begin(batch):
        day = datetime(2026, max(batch - 1, 1), 15, tzinfo=UTC)
        clock[0] = int(day.timestamp()) * 1_000_000_000

    with monkeypatch.context() as patched:
        patched.setattr(sequence.time, "time_ns", lambda: clock[0])
        fill(new_log, begin=begin)
    assert found(new_log.client) == []
    return new_log.client


@pytest.mark.parametrize("month", MONTHS)
def test_dropped_partition(months, month):
    """A month that was dropped is a range that is missing, or the end that is gone."""
    months.execute(f"ALTER TABLE audit_log DROP PARTITION {month}")
    report = verify_store(months, TRUST)
    kind = "truncated" if month == "202603" else "missing"
    assert [(f.kind, f.first, f.last) for f in report.findings] == [(kind, *MONTHS[month])]
    assert report.detached == []


def test_detached_partition(months):
    """One that was detached is too, and it is told that its rows lie beside the log; attached
    again, all is well."""
    months.execute("ALTER TABLE audit_log DETACH PARTITION 202602")
    report = verify_store(months, TRUST)
    assert [(f.kind, f.first, f.last) for f in report.findings] == [("missing", 300, 599)]
    assert report.detached == ["202602"]
    months.execute("ALTER TABLE audit_log ATTACH PARTITION 202602")
    assert found(months) == []


@pytest.mark.parametrize("table", ["tiles", "checkpoints"])
def test_dropped_table_content(months, table):
    """Nor can the tables that prove the rest be emptied unseen."""
    months.execute(f"TRUNCATE TABLE {table}")
    kind = {"tiles": ("tiles", 0, SIZE - 1), "checkpoints": ("no_checkpoint", -1, -1)}[table]
    assert kind in found(months)
