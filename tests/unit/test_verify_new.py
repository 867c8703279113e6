"""What is new in a log since a check: what is wrong in it is found; the rest is not read again."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import TRUST
from partial import (
    BATCH,
    BEGIN,
    MORE,
    ORIGIN,
    SIZE,
    AsOf,
    Counted,
    all_records,
    base_records,
    changed,
    hashes,
    replace,
    reset,
    rewrite,
    seal_again,
    tampered,
    told,
    untouched,
    window,
)

from authz.cli.verify import _load_state
from authz.errors import UsageError
from authz.ledger import leaf_hash
from authz.record import canonical
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.verify.logs import state_of, verify_logs


@pytest.fixture(scope="module")
def base(clickhouse, tmp_path_factory):
    with untouched(clickhouse, tmp_path_factory) as store:
        yield store


@pytest.fixture
def client(base):
    with tampered(base) as client:
        yield client


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
