"""Every tampering with checkpoints and tiles is found and placed."""

import base64
import copy

import pytest
from verified import (
    ORIGIN,
    SIZE,
    TABLES,
    checkpoint,
    forge_tiles,
    found,
    root_at,
    tiles,
    tiles_of_base,
    update,
)  # fmt: skip

from authz.ledger import Signer, tree_hash


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
    assert found(copied) == [("no_checkpoint", -1, -1)]


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
    assert found(copied) == [("signature", -1, -1)]


def test_checkpoint_by_another_key(copied):
    """A signature under the right name by a key that is not trusted is none."""
    copied.execute("ALTER TABLE checkpoints DELETE WHERE size = 300")
    checkpoint(copied, 300, root_at(copied, 300), Signer(ORIGIN, bytes(32)))
    assert found(copied) == [("other_key", -1, -1)]


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
    assert ("fork", -1, -1) in found(copied)


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


def test_rows_and_tiles_changed(copied):
    """Whoever rewrites the tiles too is caught by the signed root; the batch is named."""
    update(copied, "subject = 'someone else'", "index = 400")
    forge_tiles(copied)
    assert ("root", 300, 599) in found(copied)
