"""A growing tree, kept as its right edge; and the tiles (C2SP tlog-tiles, height 8) it leaves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from authz.ledger.merkle import HASH_BYTES, tree_hash

TILE_WIDTH = 256


@dataclass(frozen=True, slots=True)
class Tile:
    """`hashes` of one tile: `index` counts tiles of its `level` from the left; 1 to 256 wide."""

    level: int
    index: int
    hashes: tuple[bytes, ...]

    @property
    def data(self) -> bytes:
        return b"".join(self.hashes)


class Tree:
    """An RFC 6962 tree of `size` leaves, of which only each level's last, incomplete tile is held.

    Appending costs the same however large the tree is: one hash for the leaf's parent, amortised,
    and at most 256 hashes a level for a root.
    """

    def __init__(self, size: int = 0, edge: Sequence[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.edge = [list(level) for level in edge]
        if size < 0 or [len(level) for level in self.edge] != _widths(size):
            raise ValueError(f"the edge does not belong to a tree of size {size}")
        if any(len(value) != HASH_BYTES for level in self.edge for value in level):
            raise ValueError("the edge holds something that is no SHA-256 hash")

    def copy(self) -> "Tree":
        return Tree(self.size, self.edge)

    def append(self, leaf_hashes: Iterable[bytes]) -> list[Tile]:
        """Add leaves by their hashes; returns the tiles that became complete."""
        done: list[Tile] = []
        pending = list(leaf_hashes)
        self.size += len(pending)
        level, covered = 0, self.size
        while pending:
            if level == len(self.edge):
                self.edge.append([])
            hashes = self.edge[level] + pending
            whole = len(hashes) // TILE_WIDTH
            first = covered // TILE_WIDTH - whole
            pending = []
            for number in range(whole):
                tile = tuple(hashes[number * TILE_WIDTH : (number + 1) * TILE_WIDTH])
                done.append(Tile(level, first + number, tile))
                pending.append(tree_hash(tile))
            self.edge[level] = hashes[whole * TILE_WIDTH :]
            covered //= TILE_WIDTH
            level += 1
        return done

    def root(self) -> bytes:
        below: list[bytes] = []
        for level in self.edge:
            hashes = level + below
            below = [tree_hash(hashes)] if hashes else []
        return below[0] if below else tree_hash(())

    def partial_tiles(self) -> list[Tile]:
        """The incomplete tile at the end of each level, where there is one."""
        tiles = []
        for level, hashes in enumerate(self.edge):
            if hashes:
                tiles.append(Tile(level, self.size // TILE_WIDTH ** (level + 1), tuple(hashes)))
        return tiles


def _widths(size: int) -> list[int]:
    """The width of each level's last tile in a tree of `size`, as `append` leaves it."""
    widths = []
    while size:
        widths.append(size % TILE_WIDTH)
        size //= TILE_WIDTH
    return widths
