"""Blocks: a fold over the log at the receiver, a file and a look-up at the writer."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import TestLog

from authz.blocks import Blocks, Standing, block_notice, fault, is_blocking, unblock_notice
from authz.errors import UsageError
from authz.receiver.state import State

NOW = 1_700_000_000_000_000
HOUR = 3600 * 1_000_000
FAR = 4_000_000_000_000_000


def told(*rows, version=1):
    """The message that a receiver sends."""
    standing = Standing(0)
    for index, (subject, until_us) in enumerate(rows):
        record = block_notice(subject, until_us, "because", "admin", NOW)
        standing = standing.after([record | {"origin": "o", "index": index, "sealed_at": NOW}])
    return standing.message(0)


def test_find(tmp_path):
    """A block holds for its subject, exactly, and until its time, exactly."""
    blocks = Blocks.load(tmp_path / "blocks.json")
    assert blocks.find("a", NOW) is None
    blocks.replace(told(("a", NOW + HOUR), ("b", NOW + 2 * HOUR)))
    found = blocks.find("a", NOW)
    assert (found.subject, found.until_us, found.reason, found.id) == (
        "a", NOW + HOUR, "because", "o/0",
    )  # fmt: skip
    assert blocks.find("a", NOW + HOUR - 1)
    assert blocks.find("a", NOW + HOUR) is None, "it ends by itself"
    assert blocks.find("b", NOW + HOUR)
    assert blocks.find("A", NOW) is None
    assert blocks.find("", NOW) is None
    blocks.replace(told(("b", NOW + HOUR)))
    assert blocks.find("a", NOW) is None, "the set is replaced as a whole"


def test_file(tmp_path):
    """The next process blocks as the last one did, and nobody else may read whom."""
    path = tmp_path / "blocks.json"
    Blocks.load(path).replace(told(("a\n\u2028é", NOW + HOUR)))
    assert Blocks.load(path).find("a\n\u2028é", NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    Blocks.load(path).replace(told())
    assert Blocks.load(path).find("a\n\u2028é", NOW) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b"\xff", b"null", b'{"blocks": 5}', b'{"blocks": [5]}',
        b'{"blocks": [["a", 5, "r"]]}', b'{"blocks": [["a", "5", "r", "i"]]}',
        b'{"blocks": [[5, 5, "r", "i"]]}', b'{"blocks": [["a", null, "r", "i"]]}',
    ],
)  # fmt: skip
def test_damaged_file(tmp_path, content):
    """A file that is damaged stops the start with its mend: to start without would unblock all."""
    path = tmp_path / "blocks.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"blocks\.json.*delete it"):
        Blocks.load(path)


def test_a_full_disk_delays_no_block(tmp_path):
    """What cannot be written is in force all the same."""
    blocks = Blocks.load(tmp_path / "gone" / "blocks.json")
    blocks.replace(told(("a", NOW + HOUR)))
    assert blocks.find("a", NOW)


@pytest.mark.thorough
def test_no_moment_without_a_block(tmp_path):
    """While sets are replaced, whoever is in all of them is found at every moment."""
    blocks = Blocks.load(tmp_path / "blocks.json")
    blocks.replace(told(("always", FAR)))
    missed, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            if blocks.find("always", NOW) is None:
                missed.append(1)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(100):
        blocks.replace(told(("always", FAR), (str(number), FAR)))
    stop.set()
    for thread in threads:
        thread.join()
    assert not missed


@pytest.mark.parametrize(
    "change",
    [
        {"subject": ""}, {"subject": "", "event": "unblock"}, {"details": ""}, {"details": "[]"},
        {"details": '{"until": 5, "reason": "r"}'}, {"details": '{"reason": "r", "by": "b"}'},
        {"details": '{"until": true, "reason": "r", "by": "b"}'},
        {"details": '{"until": -1, "reason": "r", "by": "b"}'},
        {"details": '{"until": 9007199254740992, "reason": "r", "by": "b"}'},
        {"details": '{"until": 5.5, "reason": "r", "by": "b"}'},
        {"details": '{"until": 5, "reason": 7, "by": "b"}'},
        {"details": '{"until": 5, "reason": "%s", "by": "b"}' % ("x" * 513)},
    ],
)  # fmt: skip
def test_malformed(change):
    """A block that does not say whom, until when, why or by whom is refused and changes nothing."""
    before = Standing(3)
    good = block_notice("a", NOW + HOUR, "r", "admin", NOW)
    assert is_blocking(good)
    assert not fault(good)
    assert fault(good | change)
    assert before.after([good | change | {"index": 7, "sealed_at": NOW}]) is before


@pytest.fixture
def log(tmp_path):
    log = TestLog(tmp_path)
    yield log
    log.end()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("block", "unblock", "other", "seal", "finish", "restart")),
        st.sampled_from("abc"),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(STEPS)
def test_a_fold_over_the_log(tmp_path_factory, steps):
    """Whatever was sealed, stored, trimmed or restarted in between, those are blocked whose last
    record says so: none is lost, none comes back."""
    log = TestLog(tmp_path_factory.mktemp("log"))
    expected, batch, count = {}, None, 0
    for step, subject in steps:
        if step in ("block", "unblock", "other"):
            record = {"kind": "access", "subject": subject}
            if step == "block":
                record = block_notice(subject, FAR + count, "r", "admin", NOW)
                expected[subject] = FAR + count
            elif step == "unblock":
                record = unblock_notice(subject, "", "admin", NOW)
                expected.pop(subject, None)
            log.append([record])
            count += 1
        elif step == "seal":
            batch = batch or log.log.seal(3)
        elif step == "finish" and batch:
            log.log.finish(batch)
            batch = None
        elif step == "restart":
            log.restart()
            batch = None
        standing = {name: block.until_us for name, block in log.log.blocks.blocks.items()}
        assert standing == expected
    log.end()


def test_a_write_that_failed_blocks_nobody(log):
    """A block that could not be made durable is not in force."""
    record = block_notice("a", FAR, "r", "admin", NOW)
    log.log.frame([[(record, b"")]], log.journal.next)
    assert log.log.blocks.blocks == {}
    log.append([{"kind": "access"}])
    assert log.log.blocks.blocks == {}


def test_version_and_id(log):
    """The version grows with each change and survives; the id leads to the record."""
    log.append([{"kind": "access"}, block_notice("a", FAR, "r", "admin", NOW)])
    assert (log.log.blocks.version, log.log.blocks.blocks["a"].id) == (2, "test/receiver/1")
    log.append([{"kind": "access"}])
    log.restart()
    assert log.log.blocks.version == 2
    log.append([unblock_notice("a", "", "admin", NOW)])
    assert log.log.blocks.version == 4


def test_expired_blocks_are_not_sent_and_forgotten_later(log):
    """What has expired is not told; it is kept a while, since a clock may be wrong."""
    log.append([block_notice("a", NOW, "r", "admin", NOW)])
    log.append([block_notice("b", FAR, "r", "admin", NOW)])
    standing = log.log.blocks
    assert set(standing.blocks) == {"b"}, "long gone"
    assert [block.subject for block in standing.message(NOW).blocks] == ["b"]
    assert [block.subject for block in standing.message(FAR).blocks] == []


def test_state_of_blocks():
    """The state keeps them, and refuses what is none."""
    record = block_notice("a", FAR, "r", "admin", NOW)
    standing = Standing().after([record | {"origin": "o", "index": 4, "sealed_at": NOW}])
    state = State(blocks=standing)
    assert State.from_json(state.to_json()).blocks == standing
    with pytest.raises((TypeError, ValueError)):
        Standing.from_json(1, [["a", "b", "c", "d"]])
