"""The growing tree and its tiles, against the definitions written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import TILE_WIDTH, Tree, leaf_hash, tree_hash

BATCHES = st.lists(st.integers(0, 700), max_size=8)


def leaves(count: int, start: int = 0) -> list[bytes]:
    return [leaf_hash(str(start + number).encode()) for number in range(count)]


def tiles_of(hashes: list[bytes]) -> dict[tuple[int, int], bytes]:
    """C2SP tlog-tiles, written out: level by level, 256 hashes a tile."""
    tiles, level = {}, 0
    while hashes:
        for first in range(0, len(hashes), TILE_WIDTH):
            tiles[level, first // TILE_WIDTH] = b"".join(hashes[first : first + TILE_WIDTH])
        whole = len(hashes) // TILE_WIDTH
        hashes = [tree_hash(hashes[n * TILE_WIDTH : (n + 1) * TILE_WIDTH]) for n in range(whole)]
        level += 1
    return tiles


@given(BATCHES)
def test_root_and_tiles(batches):
    """However leaves arrive, root and tiles are those of the definition."""
    tree, hashes, tiles = Tree(), [], {}
    for count in batches:
        more = leaves(count, len(hashes))
        hashes += more
        for tile in tree.append(more):
            assert (tile.level, tile.index) not in tiles, "a complete tile is given once"
            tiles[tile.level, tile.index] = tile.data
        assert tree.size == len(hashes)
        assert tree.root() == tree_hash(hashes)
    tiles |= {(tile.level, tile.index): tile.data for tile in tree.partial_tiles()}
    assert tiles == tiles_of(hashes)


@given(BATCHES, BATCHES)
def test_restored_tree_goes_on(before, after):
    """A tree restored from its size and edge grows as the original does."""
    tree = Tree()
    for count in before:
        tree.append(leaves(count, tree.size))
    restored = Tree(tree.size, tree.edge)
    for count in after:
        more = leaves(count, tree.size)
        assert tree.append(more) == restored.append(more)
        assert tree.root() == restored.root()


def test_large_tree_has_upper_tiles():
    """Beyond 65,536 leaves a third level begins."""
    tree = Tree()
    done = tree.append(leaves(TILE_WIDTH**2 + 5))
    assert max(tile.level for tile in done) == 1
    assert [len(tile.hashes) for tile in tree.partial_tiles()] == [5, 1]
    assert tree.root() == tree_hash(leaves(TILE_WIDTH**2 + 5))


@pytest.mark.parametrize(
    ("size", "edge"),
    [(1, []), (0, [[bytes(32)]]), (1, [[b"short"]]), (256, [[], []]), (-1, []), (-1, [[]])],
)
def test_what_is_no_edge(size, edge):
    """A tree is not restored from an edge that is not of its size, or holds something else."""
    with pytest.raises(ValueError, match="edge"):
        Tree(size, edge)
