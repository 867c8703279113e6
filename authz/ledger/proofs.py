"""Proofs, roots and trees out of tiles (C2SP tlog-tiles, height 8). Pure.

A proof is a list of hashes of subtrees (RFC 6962, section 2.1). Each of these is made of complete
subtrees, whose hashes are in tiles or one tile's height above them. So which tiles are needed is
known from the sizes, and they are asked for in one call.

Nothing is authenticated here: whoever has a proof holds it against a root by `verify_inclusion`
and `verify_consistency`, and a tree's root against a checkpoint.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from authz.ledger.merkle import HASH_BYTES, ProofError, node_hash, tree_hash
from authz.ledger.tiles import Place, width_at
from authz.ledger.tree import TILE_WIDTH, Tree

Reader = Callable[[Sequence[Place]], Sequence[bytes]]
"""Gives the data of the tiles at some places, in their order. What is wider than its place says is
taken as far as that; what is narrower (or empty, for a tile that is not there) is a `ProofError`,
if what is missing is needed."""

_HEIGHT = TILE_WIDTH.bit_length() - 1

_Range = tuple[int, int]
"""Leaves from the first on and before the second."""


def prove_inclusion(index: int, size: int, read: Reader) -> list[bytes]:
    """The proof that leaf `index` is in the tree of `size`: PATH of RFC 6962.

    Raises `ValueError` for an index outside, `ProofError` for a tile that is missing.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in a tree of size {size}")
    return hashes_of(_path(index, size), size, read)


def prove_consistency(size1: int, size2: int, read: Reader) -> list[bytes]:
    """The proof that the tree of `size2` only appended to that of `size1`: PROOF of RFC 6962,
    empty for sizes that are equal or when the first is zero. Raises as `prove_inclusion` does."""
    if not 0 <= size1 <= size2:
        raise ValueError(f"sizes {size1} and {size2} are not in order")
    return hashes_of(_subproof(size1, size2), size2, read) if size1 else []


def root_at(size: int, read: Reader) -> bytes:
    """The root of the tree of `size`. Raises `ProofError` for a tile that is missing."""
    return hashes_of([(0, size)], size, read)[0] if size else tree_hash(())


def edge_of(size: int, read: Reader) -> Tree:
    """The tree of `size`, ready to grow. Raises `ProofError` for a tile that is missing."""
    levels = range((size.bit_length() + _HEIGHT - 1) // _HEIGHT)
    at = [Place(level, size >> _HEIGHT * (level + 1), size >> _HEIGHT * level & 0xFF)
          for level in levels]  # fmt: skip
    tiles = _Tiles((place for place in at if place.width), read)
    edge = [tiles.cut(place.level, place.index * TILE_WIDTH, place.width) for place in at]
    return Tree(size, edge)


def _path(index: int, size: int) -> Iterable[_Range]:
    """The subtrees of an inclusion proof, the leaf's sibling first."""
    ranges: list[_Range] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return reversed(ranges)


def _subproof(size1: int, size2: int) -> Iterable[_Range]:
    """The subtrees of a consistency proof; `size1` is at least 1."""
    ranges: list[_Range] = []
    begin, end = 0, size2
    while size1 < end:
        middle = begin + split(end - begin)
        if size1 <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    # What is left ends the old tree; whoever has the old root knows it if it is the old tree.
    return reversed([*ranges, (begin, end)] if begin else ranges)


def split(count: int) -> int:
    """The largest power of two below `count`, which is more than 1."""
    return 1 << (count - 1).bit_length() - 1


def hashes_of(ranges: Iterable[_Range], size: int, read: Reader) -> list[bytes]:
    """The hash of each subtree in a tree of `size`."""
    subtrees = [[*_complete(begin, end)] for begin, end in ranges]
    places = {}
    for level, index in (subtree for one in subtrees for subtree in one):
        tile, number = level // _HEIGHT, (index << level % _HEIGHT) // TILE_WIDTH
        places[tile, number] = Place(tile, number, width_at(tile, number, size))
    tiles = _Tiles(places.values(), read)
    proof = []
    for one in subtrees:
        *rest, folded = [tiles.subtree(level, index) for level, index in one]
        for left in reversed(rest):
            folded = node_hash(left, folded)
        proof.append(folded)
    return proof


def _complete(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees that a subtree is made of, left to right and smaller and smaller: each
    by its height and its place in the row of those that are as high."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


class _Tiles:
    """Tiles that were read."""

    def __init__(self, places: Iterable[Place], read: Reader) -> None:
        asked = list(places)
        found = read(asked) if asked else ()
        self._data = {
            (place.level, place.index): data for place, data in zip(asked, found, strict=True)
        }

    def subtree(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree."""
        height = level % _HEIGHT
        return tree_hash(self.cut(level // _HEIGHT, index << height, 1 << height))

    def cut(self, level: int, first: int, count: int) -> list[bytes]:
        """Hashes of one tile: `count` of them, from number `first` of their level on."""
        if not count:
            return []
        tile, start = divmod(first, TILE_WIDTH)
        data = self._data[level, tile][start * HASH_BYTES : (start + count) * HASH_BYTES]
        if len(data) != count * HASH_BYTES:
            raise ProofError(f"{Place(level, tile, start + count).path} is missing")
        return [data[n : n + HASH_BYTES] for n in range(0, len(data), HASH_BYTES)]
