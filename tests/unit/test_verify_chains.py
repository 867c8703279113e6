"""What a dishonest receiver could do before it seals, when rows, tiles and roots all agree, is told
by the writers' chains."""

import base64

import orjson
import pytest
from verified import all_records, by_writer, fill, found, rechained, resealed, update

from authz.ledger import Signer


def test_dropped_before_sealing(sealed):
    """A writer's record that never reached the log leaves a hole in its sequence, told at the next
    one."""
    after = []

    def drop(records):
        place = by_writer(records, 20)
        records = [*records[:place], *records[place + 1 :]]
        after.append(by_writer(records, 21))
        return records

    assert sealed(drop) == [("sequence", after[0], after[0])]


def test_renumbered_before_sealing(sealed):
    """So does one that was given another number, at its own place and at the next one."""
    place = []

    def renumber(records):
        place.append(by_writer(records, 20))
        place.append(by_writer(records, 21))
        records[place[0]]["writer_seq"] = 2000
        return records

    told = sealed(renumber)
    assert told[0] == ("sequence", place[0], place[0])
    assert told[1] == ("sequence", place[1], place[1])


def test_invented_before_sealing(sealed):
    """A record made up in a writer's name fits nowhere in its chain."""
    place = []

    def invent(records):
        place.append(by_writer(records, 20))
        invented = dict(records[place[0]]) | {"decision_id": "d999", "allowed": True}
        return [*records[: place[0] + 1], invented, *records[place[0] + 1 :]]

    assert sealed(invent) == [("replayed", place[0] + 1, place[0] + 1)]


def test_swapped_before_sealing(sealed):
    """Of two of a writer's records that changed places the one comes too soon, the other late."""
    place = []

    def swap(records):
        one, other = by_writer(records, 20), by_writer(records, 21)
        place.extend((one, other))
        records[one], records[other] = records[other], records[one]
        return records

    assert sealed(swap) == [("sequence", place[0], place[0]), ("sequence", place[1], place[1])]


def test_replayed_before_sealing(sealed):
    """A batch that the receiver sealed twice: each of a writer's records in it is told, where it is
    the second time, and nothing of what follows."""
    places = []

    def replay(records):
        first, end = by_writer(records, 10), by_writer(records, 30)
        again = records[first:end]
        numbered = [n for n, record in enumerate(again, end) if "writer_seq" in record]
        places.extend(("replayed", n, n) for n in numbered)
        return [*records[:end], *again, *records[end:]]

    assert sealed(replay) == places
    assert len(places) == 20


def test_changed_before_sealing(sealed):
    """A writer's record changed before sealing does not fit the one after it."""

    def change(records):
        records[by_writer(records, 50)]["subject"] = "someone else"
        return records

    [(kind, first, last)] = sealed(change)
    assert (kind, first) == ("chain", last)


@pytest.mark.thorough
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


@pytest.mark.thorough
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


def test_dropped_behind_a_missing_row(new_log):
    """A row that is gone from the table hides nothing of what the receiver did to the same writer's
    records behind it, signed heads included."""
    places = []

    def drop(records):
        del records[by_writer(records, 100)]
        places.append(by_writer(records, 101))
        return records

    fill(new_log, drop)
    gone = places[0] - 30
    new_log.client.execute(
        f"ALTER TABLE audit_log DELETE WHERE index = {gone}", settings={"mutations_sync": 1}
    )
    told = sorted(found(new_log.client))
    assert told == [("missing", gone, gone), ("sequence", places[0], places[0])]


@pytest.fixture
def sealed_as(copied):
    """Seals all records as a receiver would have them; returns the findings."""

    def build(change):
        records = [change(record) for record in all_records(copied)]
        for record in records:
            for name in ("writer_seq", "prev"):
                record.pop(name, None)
        resealed(copied, records)
        return found(copied)

    return build


def test_sealed_twice_under_one_index(sealed_as):
    """A receiver that gives two records one index, and none the next one, cannot hide it."""
    assert set(sealed_as(lambda leaf: leaf | ({"index": 6} if leaf.get("index") == 7 else {}))) >= {
        ("conflict", 6, 6),
        ("missing", 7, 7),
    }


def test_clock_set_back_before_sealing(sealed_as):
    """One that seals a record with an earlier time than the one in front of it is told there."""
    told = sealed_as(lambda leaf: leaf | ({"sealed_at": 5} if leaf.get("index") == 7 else {}))
    assert told == [("order", 7, 7)]
