"""The record's canonical form, against the RFC's own implementation."""

import json

import pytest
import rfc8785
from hostile import RECORDS, TEXTS
from hypothesis import given
from hypothesis import strategies as st

from authz.record import FIELD, MAX_INT, canonical, clean


@given(RECORDS)
def test_canonical_is_rfc8785(record):
    """Whatever text and numbers a record holds, its bytes are RFC 8785's."""
    kept = {name: value for name, value in record.items() if value}
    assert canonical(record) == rfc8785.dumps(kept)


@given(RECORDS)
def test_defaults_are_left_out(record):
    """A value equal to its type's default is not in the leaf, so that row and leaf say the same."""
    assert canonical(record) == canonical({**record, "reason": "", "status": 0, "allowed": False,
                                           "roles": []} | record)  # fmt: skip
    assert all(json.loads(canonical(record)).values())


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        0.0,
        None,
        {},
        {"a": 1},
        [1],
        [["a"]],
        [None],
        ("a",),
        b"bytes",
        -1,
        MAX_INT + 1,
        "\ud800",
    ],
)
def test_other_types_are_refused(value):
    """What a record may not hold is an error, not a guess; also where it equals no default."""
    with pytest.raises((TypeError, ValueError)):
        canonical({"reason": value})


@given(st.dictionaries(st.sampled_from(sorted(FIELD)), st.text() | st.binary(), max_size=8))
def test_clean_text_is_kept_or_escaped(values):
    """Any text or bytes become valid, bounded Unicode; what fits and is valid is unchanged."""
    values = {name: value for name, value in values.items() if FIELD[name].type == "text"}
    record = clean(values)
    for name, value in values.items():
        text = record.get(name, "")
        assert len(text) <= FIELD[name].cap
        text.encode()
        if isinstance(value, str) and len(value) <= FIELD[name].cap and _encodable(value):
            assert text == value
        assert bool(text) == bool(value), "escaped, never dropped"
    assert clean(record) == record


def test_clean_escapes():
    """Bad bytes and lone surrogates are shown escaped."""
    assert clean({"reason": b"a\xffb", "subject": "x\ud800"}) == {
        "reason": "a\\xffb",
        "subject": "x\\ud800",
    }


def test_clean_clamps():
    """Numbers are brought into their column's range, arrays are cut, before anything is hashed."""
    record = clean({"status": 70_000, "bytes_in": 2**60, "duration_us": -5, "roles": ["r"] * 100})
    assert record == {"status": 65_535, "bytes_in": MAX_INT, "roles": ["r"] * 64}


def test_clean_knows_its_fields():
    """A name that is no field is a bug, and stops."""
    with pytest.raises(KeyError):
        clean({"subjekt": "x"})


@given(TEXTS)
def test_clean_is_what_canonical_takes(text):
    """What was cleaned can always be hashed."""
    canonical(clean({"reason": text, "roles": [text], "details": text}))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
