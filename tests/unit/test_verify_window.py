"""A window of a log's time: what is wrong in it is found; what is outside is not read."""

import base64
import json

import pytest
from hostile import hostile
from hypothesis import example, given
from hypothesis import strategies as st
from logs import SIGNER, TRUST
from partial import (
    BATCH,
    BEGIN,
    DAY,
    END,
    FAR,
    FIRST,
    HOUR,
    MORE,
    ORIGIN,
    SINCE,
    SIZE,
    TICK,
    UNTIL,
    AsOf,
    all_records,
    base_records,
    changed,
    filled,
    hashes,
    rewrite,
    seal_again,
    tampered,
    told,
    untouched,
    window,
)

from authz import anchors
from authz.record import FIELDS
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify.logs import Window, verify_logs


@pytest.fixture(scope="module")
def base(clickhouse, tmp_path_factory):
    with untouched(clickhouse, tmp_path_factory) as store:
        yield store


@pytest.fixture
def client(base):
    with tampered(base) as client:
        yield client


def test_the_days_are_where_they_are_said_to_be(client):
    """The log is what the tests take it for."""
    records = all_records(client)
    assert [r["sealed_at"] for r in records[FIRST - 1 : FIRST + 1]] == [SINCE - HOUR, SINCE]
    assert [r["sealed_at"] for r in records[END - 1 : END + 1]] == [UNTIL - HOUR, UNTIL]
    assert told(verify_logs(StoredLogs(client), TRUST)) == []


@pytest.mark.thorough
@MORE
@given(st.integers(-30, SIZE // TICK + 30), st.integers(0, SIZE // TICK + 60))
@example(-30, 10)  # before everything
@example(SIZE // TICK + 20, 10)  # after everything
@example(SIZE // TICK - 20, 100)  # to the tail
@example(0, SIZE)
def test_any_window(client, begin, hours):
    """All records of a window are read, few others, and what is untouched is found so."""
    since, until = BEGIN + begin * HOUR, BEGIN + (begin + hours) * HOUR + 1
    found, source = window(client, since, until)
    assert found == []
    within = {n for n in range(SIZE) if since <= BEGIN + n // TICK * HOUR < until}
    assert within <= source.read
    assert len(source.read) <= len(within) + 2 * 256 + FAR


INSIDE = st.one_of(
    st.sampled_from((FIRST, FIRST + 1, END - 1, END - 2)), st.integers(FIRST, END - 1)
)


@pytest.mark.thorough
@MORE
@given(INSIDE, st.sampled_from(FIELDS), st.randoms(use_true_random=False))
def test_any_changed_value(client, index, field, random):
    """Whichever value of whichever record in the window is changed, it is told there."""
    if field.name in ("origin", "index"):
        return
    value = hostile(random).get(field.name, {"text": "x", "texts": ["x"], "bool": True}.get(
        field.type, 77))  # fmt: skip
    [record] = base_records(client, index, index + 1)
    if (record.get(field.name) or None) == (value or None):
        return
    changed(client, {field.name: value}, index)
    assert ("changed", index, index) in window(client)[0]


@pytest.mark.thorough
@MORE
@given(
    st.integers(FIRST, END - 1), st.integers(1, 300),
    st.sampled_from((1, BEGIN - DAY, SINCE - 1, UNTIL, UNTIL + DAY, BEGIN + 400 * DAY)),
)  # fmt: skip
@example(FIRST, END - FIRST, SINCE - 1)
@example(FIRST, END - FIRST, UNTIL)
@example(FIRST, END - FIRST, BEGIN + 400 * DAY)
def test_moved_out_of_the_window(client, first, count, sealed_at):
    """Records that were given another time, all of the window's even, are told."""
    end = min(first + count, END)
    changed(client, {"sealed_at": sealed_at}, first, end)
    found = {n for kind, n, _ in window(client)[0] if kind == "changed"}
    assert found
    assert found <= set(range(first, end))


@pytest.mark.thorough
@pytest.mark.parametrize("index", [5, FIRST - 700, END + 700, SIZE - 1])
def test_moved_into_the_window(client, index):
    """A record that claims to be of the window is checked, wherever it is."""
    changed(client, {"sealed_at": SINCE + HOUR}, index)
    assert ("changed", index, index) in window(client)[0]


@pytest.mark.parametrize(
    ("first", "end"),
    [(FIRST, FIRST + 1), (END - 1, END), (FIRST, END), (FIRST - 500, END + 500), (FIRST + 9, END),
     (FIRST - 300, FIRST + 3), (END, SIZE), (0, END), (FIRST, SIZE)],
)  # fmt: skip
def test_deleted(client, first, end):
    """Rows that are gone are told with their places, at the window's edges and beyond, even if
    nothing is left of it."""
    rewrite(client, lambda records: records[:first] + records[end:])
    gone = [(a, b) for kind, a, b in window(client)[0] if kind in ("missing", "truncated")]
    lost = {n for a, b in gone for n in range(a, b + 1)}
    assert lost <= set(range(first, end))
    assert set(range(max(first, FIRST), min(end, END))) <= lost


def test_dropped_partition(client):
    """A month that was dropped is missed in a window that lies in it."""
    since = BEGIN + 18 * DAY
    client.execute("ALTER TABLE audit_log DROP PARTITION 202312")
    [(kept,)] = client.execute("SELECT count() FROM audit_log")
    assert window(client, since, since + DAY)[0] == [("truncated", kept, SIZE - 1)]


def test_what_is_outside_is_not_read(client):
    """Changes outside of the window are for a check of all."""
    client.execute("ALTER TABLE audit_log UPDATE roles = ['x'] WHERE index IN (5, 2900)")
    found, source = window(client)
    assert found == []
    assert min(source.read) >= FIRST - 257
    assert max(source.read) <= END + FAR
    everything = told(verify_logs(StoredLogs(client), TRUST))
    assert {("changed", 5, 5), ("changed", 2900, 2900)} <= set(everything)


def test_a_window_leaves_the_state_alone(client):
    """What was accepted before stays as it was, and is still held against the log."""
    state = {}
    verify_logs(AsOf(client, 2000), TRUST, state)
    kept = json.dumps(state)
    assert window(client, state=state)[0] == []
    assert json.dumps(state) == kept
    for since in (BEGIN, SINCE, BEGIN + 20 * DAY):
        state = {ORIGIN: {"size": 2000, "root": base64.b64encode(bytes(32)).decode()}}
        kinds = [kind for kind, _, _ in window(client, since, since + DAY, state)[0]]
        assert kinds == ["fork"]


def test_a_leaf_tile_that_was_changed_or_is_gone(client):
    """Tiles that are not what was signed are told, and no record is said to be wrong."""
    place = FIRST // 256 + 1
    where = f"level = 0 AND index = {place}"
    client.execute(f"ALTER TABLE tiles UPDATE data = concat(unhex('00'), substring(data, 2))"
                   f" WHERE {where}")  # fmt: skip
    assert window(client)[0] == [("tiles", place * 256, place * 256)]
    client.execute(f"ALTER TABLE tiles DELETE WHERE {where}")
    kinds = {kind for kind, _, _ in window(client)[0]}
    assert kinds == {"tiles"}


@pytest.mark.parametrize("change", ["UPDATE data = reverse(data)", "DELETE"])
def test_the_tiles_before_the_window(client, change):
    """Without the upper tiles that it stands on, a window is checked from the beginning; if they
    lie, it is not said to be right."""
    client.execute(f"ALTER TABLE tiles {change} WHERE level = 1")
    found, source = window(client)
    if change == "DELETE":
        assert 0 in source.read
    assert {kind for kind, _, _ in found} <= {"tiles", "root"}
    assert found


@pytest.mark.parametrize("tiles", [True, False])
def test_a_log_that_was_rewritten_before_the_window(client, tiles):
    """The newest checkpoint is over another past than the one of the window: a fork, whether its
    tiles are there or not."""
    client.execute("ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = 5")
    seal_again(client, SIZE, hashes(client), tiles=tiles)
    assert "fork" in {kind for kind, _, _ in window(client)[0]}


def test_a_log_that_was_rewritten_behind_the_window(client):
    """What is another behind the window is for a check of all, if all of it is signed."""
    client.execute("ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = 2900")
    seal_again(client, SIZE, hashes(client))
    assert window(client)[0] == []


def test_a_tile_behind_the_window(client):
    """A tile behind it that was changed is told as what it is, and as no fork."""
    client.execute("ALTER TABLE tiles UPDATE data = concat(substring(data, 1, length(data) - 1),"
                   " unhex('00')) WHERE level = 1")  # fmt: skip
    assert {kind for kind, _, _ in window(client)[0]} == {"tiles"}


def test_without_checkpoints_of_its_own(client):
    """A window whose next signed root is far is checked up to that."""
    client.execute(f"ALTER TABLE checkpoints DELETE WHERE size != {SIZE}")
    client.execute(f"ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = {END - 1}")
    found, source = window(client)
    assert ("changed", END - 1, END - 1) in found
    assert max(source.read) == SIZE - 1


@pytest.mark.thorough
@pytest.mark.parametrize("records", [0, 1, 255, 256, 257])
def test_logs_of_any_size(clickhouse, tmp_path, records, monkeypatch):
    """Of logs around a tile's width, every window is checked, and a changed last record told."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0)
    store = filled(clickhouse, tmp_path, f"partial_{records}", records)
    with connect(store, mutations_sync=1) as client:
        last = BEGIN + (records - 1) // TICK * HOUR
        for since, until in ((0, 5), (0, 2**53), (last, last + 1), (last + 1, 2**53)):
            expected = [] if records else [("no_checkpoint", -1, -1)]
            assert window(client, since, until)[0] == expected
        client.execute(f"ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = {records} - 1")
        if records:
            assert window(client, last)[0] == [("changed", records - 1, records - 1)]
        client.execute(f"DROP DATABASE partial_{records}")


@pytest.mark.thorough
def test_a_large_log(clickhouse, tmp_path):
    """A day of half a year costs what a day costs, and is found in a few steps."""
    store = filled(clickhouse, tmp_path, "partial_large", 70_000, tick=20, batch=2000)
    with connect(store, mutations_sync=1) as client:
        year = BEGIN + 3000 * HOUR
        found, source = window(client, year, year + DAY)
        assert found == []
        assert set(range(60_000, 60_480)) <= source.read
        assert len(source.read) < 3500
        assert source.steps < 40
        [(months,)] = client.execute("SELECT uniq(toYYYYMM(sealed_at)) FROM audit_log")
        assert months >= 5
        client.execute("ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = 60100")
        assert ("changed", 60_100, 60_100) in window(client, year, year + DAY)[0]
        client.execute("DROP DATABASE partial_large")


def test_what_an_anchor_has_seen(client, tmp_path):
    """An anchor's checkpoints outside of the window are not missed, and its newest one must be of
    the log."""
    trust = [TrustedLog(ORIGIN, (SIGNER.verifier,), anchors=(tmp_path,))]
    notes = client.execute(f"SELECT size, note FROM checkpoints WHERE size < {SIZE}")
    for size, note in notes:
        anchors.put(tmp_path, ORIGIN, size, note)

    def found():
        return verify_logs(StoredLogs(client), trust, window=Window(SINCE, UNTIL))

    assert told(found()) == []
    assert found().logs[0].anchored == SIZE - BATCH
    client.execute(f"ALTER TABLE checkpoints DELETE WHERE size = {SIZE - BATCH}")
    assert told(found()) == []
    changed(client, {"roles": ["x"]}, SIZE - BATCH - 2)
    seal_again(client, SIZE, hashes(client))
    assert {finding.kind for finding in found().findings} == {"anchor_fork"}
