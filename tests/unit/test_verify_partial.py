"""A part of a log: a window of time, or what is new. What is wrong in it is found, at its place;
what is outside is not read."""

import base64
import json

import pytest
from bench.verify.build import Built
from hostile import hostile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from logs import SIGNER, TRUST

from authz import anchors
from authz.cli.verify import _load_state
from authz.errors import UsageError
from authz.ledger import Checkpoint, Tree, leaf_hash, sign_note
from authz.receiver import sequence
from authz.record import FIELDS, canonical, form
from authz.store import rows
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify.logs import Window, state_of, verify_logs

ORIGIN = SIGNER.name
TABLES = ("audit_log", "tiles", "checkpoints")
HOUR, DAY = 3_600_000_000, 86_400_000_000
BEGIN = 1_700_000_000_000_000  # November 2023
SIZE, TICK, BATCH = 3000, 5, 200  # records, of an hour, under a checkpoint
SINCE, UNTIL = BEGIN + 10 * DAY, BEGIN + 12 * DAY
FIRST, END = 10 * 24 * TICK, 12 * 24 * TICK  # the records of that time
FAR = 256 + BATCH  # what is read beside a window: to a whole tile, and to a checkpoint
MORE = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Counted(StoredLogs):
    """Tells what was read."""

    def __init__(self, client):
        super().__init__(client)
        self.read = set()
        self.steps = 0

    def part(self, origin, first, end):
        self.read.update(range(first, end))
        return super().part(origin, first, end)

    def records(self, origin, first, end):
        if end > 1:  # whether a log follows another, its first record tells
            self.read.update(range(first, end))
        return super().records(origin, first, end)

    def sealed_from(self, origin, first, end):
        self.steps += 1
        return super().sealed_from(origin, first, end)


class AsOf(Counted):
    """The log as it was with `size` records, which a checkpoint is over."""

    grows = False

    def __init__(self, client, size):
        super().__init__(client)
        self.size = size

    def tiles(self, origin, level, first, end):
        found = super().tiles(origin, level, first, end)
        width = self.size >> 8 * level
        cut = [(index, data[: max(width - 256 * index, 0) * 32]) for index, data in found]
        return [(index, data) for index, data in cut if data]

    def newest(self, origin, beyond=-1):
        return (one for one in super().newest(origin, beyond) if one[0] <= self.size)

    def beyond(self, origin, size):
        return 0, 0, 0


def fill(log, records, tick=TICK, batch=BATCH):
    """So many records, `tick` of them an hour, of a writer and of Envoy in turn."""
    made = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence.time, "time_ns", lambda: (BEGIN + made // tick * HOUR) * 1000)
        while made < records:
            if made == 0:
                group = log.written([log.identity.start_notice(BEGIN, "1")])
            elif made % (11 * tick) == 0:
                group = log.written([log.identity.head_notice(BEGIN, *log.chain.place)])
            elif made // tick % 2:
                group = log.written([_record(made + n, "decision") for n in range(tick)])
            else:
                group = [_record(made + n, "access") for n in range(tick)]
            while len(group) < min(tick, records - made):
                group.append(_record(made + len(group), "access"))
            group = group[: records - made]
            log.append(group)
            made += len(group)
            if made % batch == 0 or made == records:
                log.seal()


def _record(number, kind):
    record = {"kind": kind, "time": BEGIN + number, "subject": f"p{number}", "patients": ["t", "u"]}
    return record | {"decision_id": f"d{number}", "allowed": True, "roles": ["physician"]}


def _filled(clickhouse, directory, name, records, **how):
    store = f"{clickhouse.store.rpartition('/')[0]}/{name}"
    with connect(clickhouse.store) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    log = Built(directory, store)
    fill(log, records, **how)
    log.end()
    return store


@pytest.fixture(scope="module")
def base(clickhouse, tmp_path_factory):
    """An untouched log, and a database to tamper with."""
    _filled(clickhouse, tmp_path_factory.mktemp("log"), "partial_base", SIZE)
    yield _filled(clickhouse, tmp_path_factory.mktemp("log"), "partial_copy", 0)
    with connect(clickhouse.store) as admin:
        for name in ("partial_base", "partial_copy"):
            admin.execute(f"DROP DATABASE {name}")


@pytest.fixture
def client(base, monkeypatch):
    """The copy, as it was."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0)
    with connect(base, mutations_sync=1) as client:
        reset(client)
        yield client


def reset(client):
    for table in TABLES:
        client.execute(f"TRUNCATE TABLE {table}")
        client.execute(f"INSERT INTO {table} SELECT * FROM partial_base.{table}")


def told(report):
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def window(client, since=SINCE, until=UNTIL, state=None):
    """What is found in a window, and what was read for it."""
    source = Counted(client)
    report = verify_logs(source, TRUST, state, window=Window(since, until))
    assert report.partial
    return told(report), source


def replace(client, records):
    """The rows as they were, but for `records`."""
    client.execute("TRUNCATE TABLE audit_log")
    client.execute(
        "INSERT INTO audit_log SELECT * FROM partial_base.audit_log WHERE index NOT IN %(others)s",
        {"others": [-1, *(record.get("index", 0) for record in records)]},
    )
    if records:
        rows.insert(client, [form(record) for record in records])


def changed(client, values, first, end=None):
    """Put `values` in place of those of some records."""
    end = first + 1 if end is None else end
    replace(client, [record | values for record in base_records(client, first, end)])


def base_records(client, first=0, end=SIZE):
    return list(rows.read(client, "partial_base.audit_log", ORIGIN, first, end))


def all_records(client, first=0, end=SIZE):
    return list(rows.read(client, "audit_log", ORIGIN, first, end))


def rewrite(client, change):
    """The rows of the log as `change` has them."""
    records = change(all_records(client))
    client.execute("TRUNCATE TABLE audit_log")
    rows.insert(client, [form(record) for record in records])


def hashes(client):
    return [leaf_hash(canonical(record)) for record in all_records(client)]


def seal_again(client, size, leaves, tiles=True):
    """A checkpoint over the first `size` of `leaves`, by the log's own key, and its tiles."""
    tree = Tree()
    done = [*tree.append(leaves[:size]), *tree.partial_tiles()]
    note = sign_note(Checkpoint(ORIGIN, size, tree.root()).text(), SIGNER)
    client.execute("ALTER TABLE checkpoints DELETE WHERE size = %(size)s", {"size": size})
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(ORIGIN, size, note)])
    if tiles:
        client.execute("TRUNCATE TABLE tiles")
        client.execute(
            "INSERT INTO tiles (origin, level, index, width, data) VALUES",
            [(ORIGIN, t.level, t.index, len(t.hashes), t.data) for t in done],
        )


# A window.


def test_the_days_are_where_they_are_said_to_be(client):
    """The log is what the tests take it for."""
    records = all_records(client)
    assert [r["sealed_at"] for r in records[FIRST - 1 : FIRST + 1]] == [SINCE - HOUR, SINCE]
    assert [r["sealed_at"] for r in records[END - 1 : END + 1]] == [UNTIL - HOUR, UNTIL]
    assert told(verify_logs(StoredLogs(client), TRUST)) == []


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


@pytest.mark.parametrize("records", [0, 1, 255, 256, 257])
def test_logs_of_any_size(clickhouse, tmp_path, records, monkeypatch):
    """Of logs around a tile's width, every window is checked, and a changed last record told."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0)
    store = _filled(clickhouse, tmp_path, f"partial_{records}", records)
    with connect(store, mutations_sync=1) as client:
        last = BEGIN + (records - 1) // TICK * HOUR
        for since, until in ((0, 5), (0, 2**53), (last, last + 1), (last + 1, 2**53)):
            expected = [] if records else [("no_checkpoint", -1, -1)]
            assert window(client, since, until)[0] == expected
        client.execute(f"ALTER TABLE audit_log UPDATE subject = 'x' WHERE index = {records} - 1")
        if records:
            assert window(client, last)[0] == [("changed", records - 1, records - 1)]
        client.execute(f"DROP DATABASE partial_{records}")


def test_a_large_log(clickhouse, tmp_path):
    """A day of half a year costs what a day costs, and is found in a few steps."""
    store = _filled(clickhouse, tmp_path, "partial_large", 70_000, tick=20, batch=2000)
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


# What is new.


def accepted(client, size):
    """The state that a check of the first `size` records leaves."""
    state = {}
    assert told(verify_logs(AsOf(client, size), TRUST, state)) == []
    return state_of(json.loads(json.dumps(state)))


def grown(client, state):
    source = Counted(client)
    report = verify_logs(source, TRUST, state, incremental=True)
    return told(report), source


@pytest.fixture(scope="module")
def whole(base):
    """The state that a check of all leaves."""
    with connect(base) as client:
        reset(client)
        return accepted(client, SIZE)


SPLITS = st.lists(
    st.integers(1, SIZE // BATCH - 1).map(lambda n: n * BATCH), min_size=1, max_size=3
)


@MORE
@given(SPLITS)
def test_in_any_parts(client, whole, splits):
    """Checked in parts, wherever it is split, a log is found as it is in one: the same is accepted
    of it, writers' chains over the splits included. Nothing is read twice."""
    state, read = {}, []
    for size in [*sorted(set(splits)), SIZE]:
        source = AsOf(client, size)
        assert told(verify_logs(source, TRUST, state, incremental=True)) == []
        state = state_of(json.loads(json.dumps(state)))
        read.append(source.read)
    assert state == whole
    assert set.union(*read) == set(range(SIZE))
    assert sum(map(len, read)) == SIZE


@MORE
@given(
    st.integers(1, SIZE // BATCH - 1).map(lambda n: n * BATCH), st.integers(0, SIZE - 1),
    st.sampled_from(({"subject": "x"}, {"prev": "0"}, {"patients": []}, {"sealed_at": BEGIN})),
)  # fmt: skip
def test_what_is_new_is_checked(client, size, index, change):
    """What was changed in the new part is told as a check of all tells it, and the state stays;
    what was changed before is for a check of all."""
    replace(client, [])
    state = accepted(client, size)
    kept = json.dumps(state)
    changed(client, change, index)
    if all_records(client, index, index + 1) == base_records(client, index, index + 1):
        return
    found, source = grown(client, state)
    assert min(source.read) == size
    if index < size:
        assert found == []
        return
    assert ("changed", index, index) in found
    everything = told(verify_logs(StoredLogs(client), TRUST))
    assert found == everything
    assert json.dumps(state) == kept


def test_dropped_between_two_checks(client):
    """A record that is left out where the new part begins breaks the writer's chain there, though
    all of it is signed: the receiver itself dropped it."""
    size = 2 * BATCH
    state = accepted(client, size)
    index = next(n for n, r in enumerate(all_records(client)) if n >= size and "writer_seq" in r)

    def drop(records):
        kept = records[:index] + records[index + 1 :]
        return [record | {"index": n} if n else record for n, record in enumerate(kept)]

    rewrite(client, drop)
    leaves = [leaf_hash(canonical(record)) for record in all_records(client)]
    client.execute(f"ALTER TABLE checkpoints DELETE WHERE size > {size}")
    seal_again(client, SIZE - 1, leaves)
    kinds = {kind for kind, first, _ in grown(client, state)[0] if first >= index}
    assert kinds & {"sequence", "chain"}


def test_an_interrupted_run(client):
    """A check that does not come to its end accepts nothing."""
    state = accepted(client, 1000)
    kept = json.dumps(state)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_logs(StoredLogs(client), TRUST, state, interrupt, incremental=True)
    assert json.dumps(state) == kept


def test_nothing_new(client, whole):
    """Where nothing is new, nothing is read, and all is as it was."""
    state = json.loads(json.dumps(whole))
    found, source = grown(client, state)
    assert (found, source.read, state) == ([], set(), whole)


def test_a_state_of_an_older_form(client, whole):
    """A state that does not hold the tree leads to a check of all, and to one that does."""
    state = {ORIGIN: {name: whole[ORIGIN][name] for name in ("size", "root")}}
    found, source = grown(client, state)
    assert (found, len(source.read), state) == ([], SIZE, whole)


def test_rolled_back(client, whole):
    """A log that has less than was accepted is at an older state."""
    report = verify_logs(AsOf(client, 2000), TRUST, dict(whole), incremental=True)
    assert told(report) == [("rollback", 2000, SIZE - 1)]


@pytest.mark.parametrize("size", [1000, SIZE])
def test_forked(client, size):
    """A log that was rewritten and signed anew is another than was accepted."""
    state = accepted(client, size)
    changed(client, {"subject": "x"}, 5)
    client.execute("TRUNCATE TABLE checkpoints")
    seal_again(client, SIZE, hashes(client))
    assert {kind for kind, _, _ in told(verify_logs(StoredLogs(client), TRUST))} <= {"chain"}
    assert "fork" in {kind for kind, _, _ in grown(client, state)[0]}
    assert {kind for kind, _, _ in window(client, state=state)[0]} == {"fork"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(), some, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_a_spoilt_state_file(client, whole, tmp_path, data):
    """Whatever stands in it: it is refused by its name, or leads to a check without any error."""
    state = json.loads(json.dumps(whole))
    place = [state]
    while isinstance(place[-1], dict | list) and place[-1] and data.draw(st.integers(0, 5)):
        inside = place[-1]
        keys = list(inside) if isinstance(inside, dict) else range(min(len(inside), 3))
        key = data.draw(st.sampled_from(list(keys)))
        place.append(inside[key])
        parent = (inside, key)
    if len(place) > 1:
        parent[0][parent[1]] = data.draw(JSON)
    else:
        state = data.draw(JSON)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state))
    try:
        loaded = _load_state(path)
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017 - or none is raised
    else:
        verify_logs(StoredLogs(client), TRUST, loaded, incremental=True)


@pytest.mark.parametrize("text", ["", "x", "[]", "{", '{"a": {"size": 1e999, "root": ""}}', "\0"])
def test_no_state_file(tmp_path, text):
    """What is no state at all is refused by its name."""
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"state\.json"):
        _load_state(path)
