"""Every tampering with checkpoints and tiles is found and placed."""

import base64
import copy
import time
from types import SimpleNamespace

import pytest
from logs import TRUST
from verified import (
    ORIGIN,
    SIZE,
    SIZES,
    TABLES,
    all_records,
    by_writer,
    checkpoint,
    fill,
    findings,
    found,
    resealed,
    reset,
    root_at,
    tiles,
    tiles_of_base,
    update,
)  # fmt: skip

from authz.ledger import Signer, tree_hash
from authz.verify import verify_store

ANOTHER = Signer(ORIGIN, bytes(32))


def test_rollback(copied):
    """Rows, tiles and checkpoints cut back together are a valid older log: the state tells."""
    state = {}
    assert found(copied, state) == []
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 300")
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size > 300")
    copied.execute("TRUNCATE TABLE tiles")
    copied.execute(
        "INSERT INTO tiles SELECT * FROM verify_base.tiles WHERE level = 0 AND index = 0"
    )
    data = tiles_of_base(copied, 1)[: 44 * 32]
    upper = tree_hash([tiles_of_base(copied, 0)[n * 32 : n * 32 + 32] for n in range(256)])
    copied.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 0, 1, 44, data), (ORIGIN, 1, 0, 1, upper)],
    )
    accepted = copy.deepcopy(state)
    assert found(copied, state) == [("rollback", 300, SIZE - 1)]
    assert state == accepted, "what was accepted is not forgotten"
    assert found(copied) == []


def test_state_of_another_history(copied):
    """What was accepted before must be a part of what is there now, root by root."""
    wrong = base64.b64encode(bytes(32)).decode()
    assert ("fork", -1, -1) in found(copied, {ORIGIN: {"size": SIZE, "root": wrong}})
    # No checkpoint of this size is left: the root is recomputed at it.
    assert found(copied, {ORIGIN: {"size": 123, "root": wrong}}) == [("fork", 1, 122)]
    right = base64.b64encode(root_at(copied, 123)).decode()
    assert found(copied, {ORIGIN: {"size": 123, "root": right}}) == []


def test_no_checkpoint(copied):
    """A trusted log without any checkpoint is not verified."""
    copied.execute("TRUNCATE TABLE checkpoints")
    assert ("no_checkpoint", -1, -1) in found(copied)


def test_empty_database(copied):
    """Nor is one of which nothing is there at all."""
    for table in TABLES:
        copied.execute(f"TRUNCATE TABLE {table}")
    [finding] = findings(copied)
    assert finding.kind == "no_checkpoint"
    assert finding.text == "the log has no checkpoint, and no record: all of it is gone"


@pytest.mark.parametrize(
    "note",
    [
        "substring(note, 1, position(note, '\\n\\n') + 1)",
        "replaceOne(note, '\\n', ' \\n')",
        "concat(note, unhex('FF'))",
        "unhex('FFFE')",
        "''",
    ],
)
def test_spoilt_checkpoint(copied, note):
    """A checkpoint without its signature, changed, or no text at all is told."""
    update(copied, f"note = {note}", "size = 300", "checkpoints")
    [finding] = findings(copied)
    assert finding.kind == "signature"
    assert finding.text.startswith("the checkpoint of size 300")


def test_checkpoint_by_another_key(copied):
    """A signature under the right name by a key that is not trusted is none."""
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size = 300")
    checkpoint(copied, 300, root_at(copied, 300), ANOTHER)
    [finding] = findings(copied)
    assert (finding.kind, "size 300" in finding.text) == ("other_key", True)


def test_key_substituted(copied):
    """A log that is signed by another key throughout has no checkpoint, whatever else is right."""
    copied.execute("TRUNCATE TABLE checkpoints")
    for size in SIZES:
        checkpoint(copied, size, root_at(copied, size), ANOTHER)
    told = findings(copied)
    kinds = [one.kind for one in told]
    assert kinds == ["other_key"] * len(SIZES) + ["no_checkpoint", "unsealed"]
    assert told[-2].text == "the log has no checkpoint that a trusted key signed"


def test_checkpoint_of_another_size(copied):
    """A checkpoint filed under another size is told."""
    copied.execute(
        "INSERT INTO checkpoints (origin, size, note)"
        " SELECT origin, 301, note FROM checkpoints WHERE size = 300"
    )
    assert found(copied) == [("signature", -1, -1)]


def test_fork(copied):
    """Two roots signed for one size are a fork."""
    checkpoint(copied, 300, bytes(32))
    told = findings(copied)
    assert {one.kind for one in told} == {"fork"}
    assert told[0].text == "two different roots were signed for size 300"


def test_two_heads(copied):
    """Two logs under one key, each with checkpoints of its own: those of the one that is not there
    are named, from where the two part."""
    mine = copied.execute("SELECT origin, size, note FROM checkpoints WHERE size > 300")
    records = all_records(copied)
    records[400]["bytes_out"] = 1
    resealed(copied, records, (1, 256, 300, 650, 700))
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size = 700")
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 650")
    copied.execute("INSERT INTO checkpoints (origin, size, note) VALUES", mine[:1])
    assert [one for one in found(copied) if one[0] == "fork"] == [("fork", 300, 599)]
    copied.execute("INSERT INTO checkpoints (origin, size, note) VALUES", mine[1:])
    assert [one for one in found(copied) if one[0] == "root"] == [("root", 650, 699)]


@pytest.mark.parametrize("sizes", [SIZES, (1, 256, 650, SIZE)])
def test_everything_resealed(copied, sizes):
    """Whoever has the log's key can make it anew, with an access changed, and it is right in
    itself: what was accepted before tells, also if the checkpoint of then is not made again."""
    state = {}
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size = 700")
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 600")
    assert findings(copied, state) == []
    reset(copied)
    records = all_records(copied)
    index = next(n for n in range(500, SIZE) if records[n]["kind"] == "access")
    records[index]["bytes_out"] = 1
    resealed(copied, records, sizes)
    assert found(copied) == []
    [finding] = findings(copied, state)
    assert finding.kind == "fork"
    assert finding.text == "size 600 was accepted before with another root"


def test_decision_resealed(copied):
    """A decision that was changed so does not even fit its writer's next one."""
    records = all_records(copied)
    records[by_writer(records, 50)]["allowed"] = False
    resealed(copied, records)
    index = by_writer(records, 51)
    assert found(copied) == [("chain", index, index)]


@pytest.mark.parametrize("minutes", [9, 11])
@pytest.mark.parametrize("size", [1, SIZE])
def test_backdated(copied, size, minutes):
    """A checkpoint that says it was written well before its last record was sealed is told."""
    change = f"written_at = written_at - INTERVAL {minutes} MINUTE"
    update(copied, change, f"size = {size}", "checkpoints")
    told = [one for one in findings(copied) if minutes > 10]
    assert [one.kind for one in told] == ["backdated"] * (minutes > 10)
    for finding in told:
        assert finding.text.startswith(f"the checkpoint of size {size} was written at")


def test_a_receivers_clock_ran_ahead(new_log, monkeypatch):
    """That is a note, told once, and hides no checkpoint whose row says another time."""
    ahead = SimpleNamespace(
        time_ns=lambda: time.time_ns() + 1200 * 10**9,
        monotonic=time.monotonic,
        monotonic_ns=time.monotonic_ns,
    )
    monkeypatch.setattr("authz.receiver.sequence.time", ahead)
    fill(new_log)
    report = verify_store(new_log.client, TRUST)
    assert report.findings == []
    [note] = report.logs[0].notes
    assert note.startswith("the checkpoint of size 1 was written at")
    update(new_log.client, "written_at = written_at - INTERVAL 11 MINUTE", "1", "checkpoints")
    assert [one.kind for one in findings(new_log.client)] == ["backdated"]


def test_dated_before_a_smaller_one(copied):
    """So is one that is older than a smaller one, though not than its records."""
    update(copied, "written_at = written_at + INTERVAL 2 DAY", "1", "checkpoints")
    update(copied, "written_at = written_at - INTERVAL 1 DAY", "size = 600", "checkpoints")
    [finding] = findings(copied)
    assert finding.kind == "backdated"
    assert "size 600" in finding.text
    assert "a smaller one" in finding.text


def test_written_again(copied):
    """A checkpoint that is written once more, days later, with a witness's signature or in another
    attempt, makes the ones after it no older."""
    copied.execute(
        "INSERT INTO checkpoints SELECT * REPLACE (written_at + INTERVAL 3 DAY AS written_at)"
        " FROM checkpoints"
    )
    assert found(copied) == []


def test_fork_and_tile(copied):
    """A wrong root between does not hide from verification what else is wrong."""
    first = base64.b64decode("+" * 42 + "8=")  # in the order of notes, before any other
    checkpoint(copied, 300, first)
    data = dict(tiles(copied))[0]
    copied.execute("ALTER TABLE tiles DELETE WHERE level = 0 AND index = 0")
    copied.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 0, 0, 256, data[:320] + bytes(32) + data[352:])],
    )
    assert found(copied) == [("fork", -1, -1), ("tiles", 10, 10), ("fork", 256, 299)]


@pytest.mark.parametrize(("level", "index"), [(0, 0), (0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_tile(copied, level, index, how):
    """A tile that was changed or is gone is told as that, since the records are what was signed."""
    if how == "changed":
        data = dict(tiles(copied, level))[index]
        wrong = bytes([data[0] ^ 1]) + data[1:]
        copied.execute(
            "INSERT INTO tiles (origin, level, index, width, data) VALUES",
            [(ORIGIN, level, index, len(data) // 32, wrong)],
        )
        copied.execute(
            f"ALTER TABLE tiles DELETE WHERE level = {level} AND index = {index}"
            f" AND hex(substring(data, 1, 1)) != '{wrong[0]:02X}'"
        )
    else:
        copied.execute(f"ALTER TABLE tiles DELETE WHERE level = {level} AND index = {index}")
    [(kind, first, last)] = found(copied)
    assert kind == "tiles"
    width = 256 ** (level + 1)
    assert index * width <= first <= last < min((index + 1) * width, SIZE)
    if (level, how) == (0, "changed"):
        assert first == last == index * width
