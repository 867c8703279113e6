"""The last look at records before they expire: they can be proved now, and can be later.

What is dropped cannot be looked at again. So of each record that expires the leaf must be the one
in the log's tiles, the tiles above must be what the leaves make them, and all of it must lead to a
checkpoint that the log has signed. Otherwise nothing is dropped: it would hide what was done.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from authz.errors import AuthzError
from authz.ledger import (
    HASH_BYTES,
    TILE_WIDTH,
    Checkpoint,
    NoteError,
    Place,
    ProofError,
    Tile,
    Verifier,
    leaf_hash,
    open_note,
)
from authz.ledger.proofs import edge_of
from authz.record import Record, canonical
from authz.retention.notices import HOLD, place_of
from authz.retention.spans import Spans
from authz.store import checkpoints, rows
from authz.store import retention as store
from authz.store.client import Client
from authz.store.tiles import Tiles

_CHUNK = 64 * TILE_WIDTH

Keys = Mapping[str, Sequence[Verifier]]
"""The trusted keys of each log."""


class NotProvableError(AuthzError):
    """Records, tiles or checkpoints are not what was sealed, so nothing may expire."""

    exit_code = 1

    def __init__(self, origin: str, text: str) -> None:
        super().__init__(f"log {origin}: {text}; nothing was dropped; run: authz verify")


class Provable:
    """The logs in `client`'s database. Without `keys`, the names under checkpoints are looked at,
    and not their signatures. `progress` is called with how many records were looked at."""

    def __init__(
        self, client: Client, keys: Keys | None, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        self._client = client
        self._keys = keys
        self._progress = progress

    def notices(self, records: Iterable[Record]) -> list[Record]:
        """Those of `records` that are what their logs have sealed. What is not sealed yet counts
        if it is a hold. Raises `NotProvableError`."""
        sizes = checkpoints.sizes(self._client)
        found = []
        for record in records:
            origin, index = place_of(record)
            if index >= sizes.get(origin, 0):
                if record.get("event") == HOLD:
                    found.append(record)
                continue
            [tile] = self._tiles(origin, [(0, index // TILE_WIDTH)])
            if _leaf(record) != _hash(tile, index % TILE_WIDTH):
                raise NotProvableError(origin, f"notice {index} is not what was sealed")
            found.append(record)
        return found

    def roots(
        self, origin: str, first: int, stops: Sequence[int], kept: str, keeps: Spans
    ) -> dict[int, bytes]:
        """The root over all records before each of `stops` (in order), by the log's tiles, once
        the records from `first` on, as far as they are there, and up to the last of `stops` were
        found to be what was sealed; and so those that table `kept` `keeps` of them.

        Raises `NotProvableError`.
        """
        last = stops[-1]
        signed = self._signed(origin, last + 1)
        begin = first // TILE_WIDTH * TILE_WIDTH
        try:
            tree = edge_of(begin, Tiles(self._client, origin))
        except ProofError as error:
            raise NotProvableError(origin, str(error)) from None
        roots: dict[int, bytes] = {}
        for start in range(begin, signed.size, _CHUNK):
            end = min(start + _CHUNK, signed.size)
            hashes = self._leaves(origin, start, end)
            span = max(start, first), min(end, last + 1)
            if span[0] < span[1]:
                self._rows(origin, store.RECORDS, span, start, hashes)
                if keeps.within(*span):
                    self._rows(origin, kept, span, start, hashes)
                self._progress(span[1] - span[0])
            place = start
            for stop in sorted({one for one in stops if start < one < end} | {end}):
                self._above(origin, tree.append(hashes[place - start : stop - start]))
                if stop in stops:
                    roots[stop] = tree.root()
                place = stop
        if tree.root() != signed.root:
            text = f"its tiles do not lead to the root that was signed for {signed.size} records"
            raise NotProvableError(origin, text)
        self._above(origin, tree.partial_tiles())
        return roots

    def _signed(self, origin: str, size: int) -> Checkpoint:
        """The log's first checkpoint over at least so many records."""
        found = store.covered(self._client, origin, size)
        if found is None:
            raise NotProvableError(origin, f"no checkpoint covers its first {size} records")
        try:
            text = found[1].rpartition("\n\n")[0] + "\n"
            if self._keys is not None:
                text = open_note(found[1], self._keys.get(origin, ()))[0]
            checkpoint = Checkpoint.parse(text)
        except NoteError as error:
            raise NotProvableError(origin, f"the checkpoint of size {found[0]}: {error}") from None
        if (checkpoint.origin, checkpoint.size) != (origin, found[0]):
            raise NotProvableError(origin, f"the checkpoint of size {found[0]} is another's")
        return checkpoint

    def _rows(
        self, origin: str, table: str, span: tuple[int, int], start: int, hashes: list[bytes]
    ) -> None:
        """The rows of a span are what the tiles say; `hashes` begin with leaf `start`."""
        for record in rows.read(self._client, table, origin, *span, chunk=_CHUNK):
            index = place_of(record)[1]
            if _leaf(record) != hashes[index - start]:
                raise NotProvableError(origin, f"record {index} is not what was sealed")

    def _leaves(self, origin: str, start: int, end: int) -> list[bytes]:
        """The leaf hashes from `start`, where a tile begins, up to `end`."""
        numbers = range(start // TILE_WIDTH, -(-end // TILE_WIDTH))
        tiles = self._tiles(origin, [(0, number) for number in numbers])
        hashes = []
        for number, data in zip(numbers, tiles, strict=True):
            width = min(end - number * TILE_WIDTH, TILE_WIDTH)
            if len(data) < width * HASH_BYTES:
                place = number * TILE_WIDTH + len(data) // HASH_BYTES
                raise NotProvableError(origin, f"its tiles lack the hash of record {place}")
            hashes += [data[n * HASH_BYTES : (n + 1) * HASH_BYTES] for n in range(width)]
        return hashes

    def _above(self, origin: str, tiles: Sequence[Tile]) -> None:
        """The tiles above the leaves are stored, and are what the leaves make them."""
        upper = [tile for tile in tiles if tile.level]
        stored = self._tiles(origin, [(tile.level, tile.index) for tile in upper])
        for tile, data in zip(upper, stored, strict=True):
            if not data.startswith(tile.data):
                text = f"tile {tile.index} of level {tile.level} is another, or gone"
                raise NotProvableError(origin, text)

    def _tiles(self, origin: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
        asked = [Place(*place) for place in places]
        return Tiles(self._client, origin)(asked)


def _leaf(record: Record) -> bytes:
    """The leaf's hash; empty for what no record could have left."""
    try:
        return leaf_hash(canonical(record))
    except (TypeError, ValueError):
        return b""


def _hash(data: bytes, number: int) -> bytes:
    return data[number * HASH_BYTES : (number + 1) * HASH_BYTES]
