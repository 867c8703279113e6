"""Into ClickHouse exactly once, without trusting its deduplication.

A batch is rows `first` to `end` of one origin. After an answer that is not a clear yes, whatever
query may still be running is stopped, the range is read back from where it is to be (`copies`), and
only what is missing is inserted; so it is with the records' attachments. Tiles and checkpoints may
be written twice: the same row again is harmless.
"""

import itertools
from collections.abc import Callable, Sequence

from clickhouse_driver import Client

from authz.ledger import Tile
from authz.record import Entry
from authz.store import attachments, copies, rows
from authz.store.client import QUERY_ERRORS


class StoreWriter:
    """Writes one origin's log. Blocking; for one thread. Errors are `client.QUERY_ERRORS`.

    `check` is called before each statement that adds something, and raises one to prevent it.
    """

    def __init__(
        self, client: Client, origin: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._origin = origin
        self._check = check
        self._attempts = itertools.count()
        self._copies: copies.Copies  # as of the last time that it was unclear what is there
        self._unclear = True  # an earlier process may have left an insert running

    def put(
        self, first: int, leaves: Sequence[bytes], tiles: Sequence[Tile], note: str,
        carried: Sequence[Entry],
    ) -> None:  # fmt: skip
        """Store a batch: the rows of `leaves` (from index `first`), then what their records
        `carried` along, then tiles, then checkpoint.

        Returns once all of it has been read back. Safe to repeat after any error.
        """
        end = first + len(leaves)
        found = attachments.Attachments.of(carried)
        ids = (f"{_prefix(self._origin)}{first}-{end}:{number}" for number in self._attempts)
        try:
            if self._unclear:
                self._copies = copies.of(self._client)
                self._copies.stop(_prefix(self._origin))
            self._check()
            self._put_rows(first, end, leaves, next(ids))
            self._check()
            attachments.put(self._copies, self._origin, found, ids, unclear=self._unclear)
            self._check()
            self._put_tiles(tiles)
            self._check()
            self._put_checkpoint(end, note)
            self._read_back(first, end)
            attachments.read_back(self._copies, self._origin, found)
        except QUERY_ERRORS:
            self._unclear = True
            self._client.disconnect()
            raise
        self._unclear = False

    def _put_rows(self, first: int, end: int, leaves: Sequence[bytes], query_id: str) -> None:
        if self._unclear:
            present = rows.indexes(self._copies, self._origin, first, end)
            leaves = [leaf for index, leaf in enumerate(leaves, first) if index not in present]
        if leaves:
            rows.insert(self._client, leaves, query_id)

    def _put_tiles(self, tiles: Sequence[Tile]) -> None:
        if tiles:
            self._client.execute(
                "INSERT INTO tiles (origin, level, index, width, data) VALUES",
                [(self._origin, t.level, t.index, len(t.hashes), t.data) for t in tiles],
            )

    def _put_checkpoint(self, size: int, note: str) -> None:
        self._client.execute(
            "INSERT INTO checkpoints (origin, size, note) VALUES", [(self._origin, size, note)]
        )

    def _read_back(self, first: int, end: int) -> None:
        present = rows.count(self._copies, self._origin, first, end)
        if present != end - first:
            raise OSError(f"{end - first - present} of the rows inserted are not there")


def stop_running(client: Client, origin: str) -> None:
    """Make sure no insert into `origin`'s log is still under way.

    Raises `OSError` while one is on another server of a cluster than ours.
    """
    copies.of(client).stop(_prefix(origin))


def _prefix(origin: str) -> str:
    return f"authz:{origin}:"
