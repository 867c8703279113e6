"""What a log's proofs are made of: its tiles, checkpoints and records, as the database has them.

Nothing is trusted here: whoever makes a proof verifies it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from authz.ledger import HASH_BYTES, Place
from authz.record import canonical, text
from authz.store import rows

# A checkpoint may be there once more with the signatures of witnesses.
_SIGNATURES = "countSubstrings(note, '\\n\N{EM DASH} ')"
_NEWEST = (
    f"SELECT size, argMax(note, {_SIGNATURES}) FROM checkpoints WHERE origin = %(origin)s"
    " AND size = (SELECT size FROM checkpoints WHERE origin = %(origin)s"
    " ORDER BY origin DESC, size DESC LIMIT 1) GROUP BY size"
)
_LOOKED_AT = 1000  # checkpoints: some minutes, long enough for witnesses to have signed one
_BEST = (
    "SELECT size, note FROM (SELECT size, note FROM checkpoints WHERE origin = %(origin)s"
    f" AND size > %(index)s ORDER BY origin DESC, size DESC LIMIT {_LOOKED_AT})"
    f" ORDER BY {_SIGNATURES} DESC, size DESC LIMIT 1"
)
_TILES = (
    "SELECT level, index, data FROM tiles WHERE origin = %(origin)s"
    " AND (level, index) IN %(places)s"
)
_RECORDS = (
    "SELECT origin, index, kind FROM audit_log WHERE decision_id = %(id)s"
    " AND kind IN ('decision', 'access', 'disclosure') ORDER BY sealed_at, origin, index"
    " LIMIT 1000"
)
_NOTE_CAP = 65_536


@dataclass(frozen=True, slots=True)
class Tiles:
    """A reader of a log's tiles: what `authz.ledger.proofs` makes proofs out of."""

    client: Client
    origin: str

    def __call__(self, places: Sequence[Place]) -> list[bytes]:
        """The tiles' data, each as wide as it is kept; empty for one that is not there."""
        asked = [(place.level, place.index) for place in places]
        if not asked:
            return []  # the database takes no empty list
        found = dict.fromkeys(asked, b"")
        values = {"origin": self.origin, "places": asked}
        options = {"strings_as_bytes": True}
        for level, index, data in self.client.execute(_TILES, values, settings=options):
            # Narrower and older selves are there until they are merged.
            if len(data) > len(found[level, index]) and len(data) % HASH_BYTES == 0:
                found[level, index] = data
        return [found[place] for place in asked]


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """Where a record stands, and its kind."""

    origin: str
    index: int
    kind: str

    def __str__(self) -> str:
        return f"{self.origin}@{self.index}"


def newest_checkpoint(client: Client, origin: str) -> tuple[int, str] | None:
    """The log's newest checkpoint, with the most signatures there are: its size and its note."""
    return _first(client, _NEWEST, {"origin": origin})


def best_checkpoint(client: Client, origin: str, index: int) -> tuple[int, str] | None:
    """Of the log's newest checkpoints that are over `index`, the one with the most signatures."""
    return _first(client, _BEST, {"origin": origin, "index": index})


def _first(client: Client, query: str, values: dict[str, object]) -> tuple[int, str] | None:
    for size, note in client.execute(query, values):
        return size, text(note, _NOTE_CAP)
    return None


def leaves(client: Client, origin: str, first: int, end: int) -> dict[int, set[bytes]]:
    """The leaves of a range by index, rebuilt from the rows: of an index one, or none, or several
    where somebody put more. A row that no leaf was ever like is left out."""
    found: dict[int, set[bytes]] = {}
    for record in rows.read(client, "audit_log", origin, first, end):
        with contextlib.suppress(TypeError, ValueError):
            found.setdefault(int(record.get("index", 0)), set()).add(canonical(record))  # type: ignore[arg-type]
    return found


def records_of(client: Client, decision_id: str) -> list[Found]:
    """The records of one request, the oldest first."""
    found = client.execute(_RECORDS, {"id": decision_id})
    return [Found(text(origin, 1024), index, text(kind, 64)) for origin, index, kind in found]
