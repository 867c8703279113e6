"""Paths of tiles and the form of entry bundles, as C2SP tlog-tiles has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger.tiles import ENTRIES, MAX_ENTRY, Place, pack, unpack, width_at


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (Place(0, 0), "tile/0/000"),
        (Place(0, 1234067), "tile/0/x001/x234/067"),
        (Place(1, 1000, 17), "tile/1/x001/000.p/17"),
        (Place(ENTRIES, 999, 255), "tile/entries/999.p/255"),
    ],
)
def test_published_paths(place, path):
    """The paths are those that the specification gives as examples, and their like."""
    assert place.path == path
    assert Place.parse(path) == place


@given(st.integers(-1, 63), st.integers(0, 2**55), st.integers(1, 256))
def test_paths_read_back(level, index, width):
    """Every place has one path, and that path means this place."""
    assert Place.parse(Place(level, index, width).path) == Place(level, index, width)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0", "tile/64/000", "tile/00/000", "tile/0/x000/000", "tile/0/000.p/256",
        "tile/0/000.p/0", "tile/0/000.p/007", "/tile/0/000", "tile/0/000/", "tile/0/../000",
        "tile/8/0/000", "tile/0/\u0660\u0660\u0660", "tile/-1/000", "",
    ],
)  # fmt: skip
def test_no_paths(path):
    """Another spelling of a place, or of none, is refused."""
    assert Place.parse(path) is None


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_bundles(entries):
    """What is packed is unpacked; a bundle that is cut anywhere inside an entry is told."""
    data = pack(entries)
    assert list(unpack(data)) == entries
    if entries:
        with pytest.raises(ValueError, match="cut"):
            list(unpack(data[:-1]))


def test_entry_too_large():
    """An entry that a bundle cannot hold is refused, and the largest it can is not."""
    assert list(unpack(pack([bytes(MAX_ENTRY)]))) == [bytes(MAX_ENTRY)]
    with pytest.raises(ValueError, match="65536 bytes"):
        pack([bytes(MAX_ENTRY + 1)])


@pytest.mark.parametrize(
    ("level", "index", "size", "width"),
    [(0, 0, 0, 0), (0, 0, 5, 5), (ENTRIES, 0, 5, 5), (0, 1, 256, 0), (1, 0, 70_000, 256),
     (1, 1, 70_000, 17), (2, 0, 70_000, 1)],
)  # fmt: skip
def test_widths(level, index, size, width):
    """Upper tiles grow as the tiles below them become complete."""
    assert width_at(level, index, size) == width
