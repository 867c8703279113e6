"""What pages of the console say in words."""

import pytest

from authz.console import words
from authz.record import FIELDS


@pytest.mark.parametrize("time_us", [1, 1_790_000_000_123_456, 253_402_300_799_999_999])
def test_a_time(time_us):
    assert words.moment(time_us)[4] == "-"
    assert words.day(time_us) != "?"


@pytest.mark.parametrize("time_us", [-1, 253_402_300_800_000_000, 2**63 - 1])
def test_what_is_no_time(time_us):
    """A number that somebody wrote into the table in a time's place stops no page."""
    assert words.moment(time_us) == f"{time_us} µs"
    assert words.day(time_us) == "?"


def test_a_record_in_order():
    """Who and what comes first, and each field once."""
    assert sorted(words.IN_ORDER) == sorted(field.name for field in FIELDS)
    assert words.IN_ORDER.index("subject") < words.IN_ORDER.index("origin")
