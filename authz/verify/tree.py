"""Steps 4 and 6 of `authz.verify.logs`: one log's tree, held against its signed roots and tiles."""

import base64
from collections.abc import Sequence
from dataclasses import replace

from authz.ledger import (
    TILE_WIDTH,
    Place,
    ProofError,
    Tile,
    Tree,
    leaf_hash,
    prove_consistency,
    prove_inclusion,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from authz.record import Record, canonical
from authz.verify.checkpoints import Checkpoints
from authz.verify.report import Finding, LogReport
from authz.verify.source import Logs

NO_LEAF = bytes(32)  # stands for a row that no record could have left


class TreeCheck:
    """`advance` over all leaves; then what lies behind, or a record alone, can be held against the
    tiles. `sealed` is the tree as they have it; the last signed root met is over `intact_up_to`."""

    def __init__(self, source: Logs, checkpoints: Checkpoints, report: LogReport) -> None:
        self.sealed = Tree()
        self.intact_up_to = 0
        self._source = source
        self._checkpoints = checkpoints
        self._report = report
        self._told: Tree | None = None  # as the rows have it, from the first record that differs
        self._differing: list[int] = []  # where rows and tiles do, no root judged it
        self._unmet: list[Finding] = []  # roots that were not met, since the last one that was

    def advance(
        self, first: int, end: int, told: Sequence[bytes | None], tiles: Sequence[bytes | None]
    ) -> None:
        """On over the leaves `first` to `end`, to each checkpoint in them, and its root."""
        sealed = [tile or row or NO_LEAF for tile, row in zip(tiles, told, strict=True)]
        claimed = [row or tile or NO_LEAF for tile, row in zip(tiles, told, strict=True)]
        roots = self._checkpoints.roots
        place = first
        for stop in sorted({size for size in roots if first < size < end} | {end}):
            some = slice(place - first, stop - first)
            if self._told is None and sealed[some] != claimed[some]:
                self._told = self.sealed.copy()
            done = self.sealed.append(sealed[some])
            if self._told:
                self._told.append(claimed[some])
            self.upper_tiles(done)
            if stop in roots:
                self._check_root(stop, roots[stop])
                if stop != self._report.size:
                    del roots[stop]
            place = stop

    def differs(self, index: int) -> None:
        """Row and tile do, at this place; the next root tells which of them was signed."""
        self._differing.append(index)

    def _check_root(self, size: int, signed: bytes) -> None:
        by_tiles = self.sealed.root() == signed
        by_rows = self._told.root() == signed if self._told else by_tiles
        if size == self._checkpoints.accepted_alone and not by_rows and not by_tiles:
            text = f"size {size} was accepted before with another root"
            self._report.find("fork", self.intact_up_to, size - 1, text)
            return
        differing = [index for index in self._differing if index < size]
        self._differing = self._differing[len(differing) :]
        if by_rows and not by_tiles:
            text = "the tiles differ from what was signed; the records do not"
            span = differing or [self.intact_up_to, size - 1]
            self._report.find("tiles", span[0], span[-1], text)
            self.sealed = self._told or self.sealed
        else:
            for index in differing:
                self._report.find("changed", index, index, "not what was sealed here")
        if not by_rows and not by_tiles:
            text = "records and tiles differ from what was signed: the root is another"
            self._unmet.append(self._report.find("root", self.intact_up_to, size - 1, text))
        else:
            self.forked(size)
            self.intact_up_to = size
            self._told = None

    def forked(self, size: int) -> None:
        """The root over `size` records is met, and so is the log's history up to it: what was
        signed before over another one is that of a second log under the same key."""
        for finding in self._unmet:
            text = f"the root that was signed over {finding.last + 1} records"
            text += f" is no part of the one over {size}"
            self._report.replace(finding, replace(finding, kind="fork", text=text))
        self._unmet = []

    def upper_tiles(self, recomputed: Sequence[Tile]) -> None:
        for tile in recomputed:
            if not tile.level or self._report.findings:
                continue  # leaves are held against rows; what is in doubt already tells nothing
            stored = self._source.tiles(self._report.origin, tile.level, tile.index, tile.index + 1)
            wide = [data for _, data in stored if data.startswith(tile.data)]
            if wide and all(tile.data.startswith(data) for _, data in stored if data not in wide):
                continue  # wider when a receiver at work is ahead of the checkpoint
            width = TILE_WIDTH ** (tile.level + 1)
            last = min((tile.index + 1) * width, self._report.size) - 1
            text = f"tile {tile.index} of level {tile.level} is another, or gone"
            self._report.find("tiles", tile.index * width, last, text)

    def leads_on(self, size: int, root: bytes) -> bool:
        """Whether the newest checkpoint is over these first records, as the tiles have it."""
        newest = self._report.size
        try:
            proof = prove_consistency(size, newest, self.read_tiles)
            verify_consistency(size, newest, proof, root, base64.b64decode(self._report.root))
        except ProofError:
            return False
        return True

    def root_at(self, size: int) -> bytes | None:
        """The root over the first records, as the tiles have it (checked, once `finish` is done);
        None if the log has not so many, or a tile is gone."""
        if size > self._report.size:
            return None
        try:
            return root_at(size, self.read_tiles)
        except ProofError:
            return None

    def includes(self, record: Record) -> bool:
        """Whether a record that this check does not come by is one of the log all the same."""
        index, size = record.get("index", 0), self._report.size
        assert isinstance(index, int)
        root = base64.b64decode(self._report.root)
        try:
            leaf = leaf_hash(canonical(record))
            proof = prove_inclusion(index, size, self.read_tiles)
            verify_inclusion(leaf, index, size, proof, root)
        except (ProofError, ValueError, TypeError):
            return False
        return True

    def read_tiles(self, places: Sequence[Place]) -> list[bytes]:
        """The widest there is of each; no bytes for one that is not there."""
        found = []
        for place in places:
            level, index = place.level, place.index
            stored = self._source.tiles(self._report.origin, level, index, index + 1)
            found.append(stored[-1][1] if stored else b"")
        return found
