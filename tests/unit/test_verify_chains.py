"""What a dishonest receiver could do before it seals, when rows, tiles and roots all agree, is told
by the writers' chains."""

import base64

import orjson
import pytest
from verified import by_writer, found, rechained, update

from authz.ledger import Signer


def test_dropped_before_sealing(sealed):
    """A writer's record that never reached the log leaves a hole in its sequence."""

    def drop(records):
        place = by_writer(records, 50)
        return [*records[:place], *records[place + 1 :]]

    assert "sequence" in {kind for kind, *_ in sealed(drop)}


def test_changed_before_sealing(sealed):
    """A writer's record changed before sealing does not fit the one after it."""

    def change(records):
        records[by_writer(records, 50)]["subject"] = "someone else"
        return records

    assert "chain" in {kind for kind, *_ in sealed(change)}


@pytest.mark.parametrize("what", ["drop", "change", "invent", "swap"])
def test_signed_heads(sealed, what):
    """Whoever also makes the chain fit again is told by the writer's signed heads, though other
    records stand between a head and the record it vouches for."""

    def spoil(records):
        place = by_writer(records, 20)
        record = records[place]
        if what == "drop":
            del records[place]
        elif what == "change":
            record["subject"] = "someone else"
        elif what == "invent":
            records.insert(place, dict(record))
        else:
            records[place], records[place + 1] = records[place + 1], records[place]
        return rechained(records)

    assert "chain_head" in {kind for kind, *_ in sealed(spoil)}


def test_heads_by_another_key(sealed):
    """Heads signed by any other key than the one announced are worth nothing."""

    def spoil(records):
        records[by_writer(records, 20)]["subject"] = "someone else"
        return rechained(records, Signer("x", bytes(32)))

    assert "chain_head" in {kind for kind, *_ in sealed(spoil)}


def test_second_key(sealed):
    """A writer that announces another key than before is told."""

    def spoil(records):
        again = dict(records[by_writer(records, 1)])
        key = base64.b64encode(bytes(32)).decode()
        again["details"] = orjson.dumps({"public_key": key}).decode()
        place = by_writer(records, 20)
        return rechained([*records[:place], again, *records[place:]])

    assert "writer_key" in {kind for kind, *_ in sealed(spoil)}


@pytest.mark.parametrize(
    "details",
    [
        "", "[]", "{}", '{"public_key": 5}', '{"public_key": "AAAA"}', '{"public_key": "!"}',
        '{"seq": "x", "head": 5, "signature": ""}', '{"seq": [], "head": {}, "signature": "AA=="}',
        '{"seq": 1e99, "head": "", "signature": 7}', "\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("seq", [1, 43])
def test_malformed_notices(copied, details, seq):
    """A notice that says nothing sensible is a finding, and never ends the verification."""
    update(copied, "details = %(details)s", f"writer_seq = {seq}", details=details)
    assert found(copied)
