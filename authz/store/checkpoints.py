"""Checkpoints: of all logs, for the roster; of one's own, before anything is added; cosigned."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clickhouse_driver import Client

from authz.ledger import Checkpoint, NoteError, Verifier, open_note
from authz.record import text

# Names in hexadecimal digits: one that is no text, which nothing of ours wrote, is a name too.
_FIRST = "SELECT origin FROM checkpoints ORDER BY origin LIMIT 1"
_NEXT = "SELECT origin FROM checkpoints WHERE origin > unhex(%(hex)s) ORDER BY origin LIMIT 1"
_NEWEST = (
    "SELECT size, note, toUnixTimestamp64Micro(written_at) FROM checkpoints"
    " WHERE origin = unhex(%(hex)s) ORDER BY origin DESC, size DESC LIMIT 1"
)
_FROM = "SELECT note FROM checkpoints WHERE origin = %(origin)s AND size >= %(size)s"
_ROWS = (
    "SELECT min(index), max(index), count() FROM audit_log"
    " WHERE origin = %(origin)s AND index >= %(size)s"
)
_NOTE_CAP = 65_536


class Newest(NamedTuple):
    """A log's newest checkpoint. `written_at` is microseconds since the epoch, UTC."""

    origin: str
    size: int
    note: str
    written_at: int


def newest(client: Client) -> list[Newest]:
    """Of each log, as the rows have it. One is found by a step in the table's order: there are few
    logs, and a checkpoint of each second for years."""
    found = []
    rows = client.execute(_FIRST)
    while rows:
        [(origin,)] = rows
        name = (origin if isinstance(origin, bytes) else origin.encode()).hex()
        for size, note, at in client.execute(_NEWEST, {"hex": name}):
            found.append(Newest(text(origin, 1024), size, text(note, _NOTE_CAP), at))
        rows = client.execute(_NEXT, {"hex": name})
    return found


def sizes(client: Client) -> dict[str, int]:
    """Of each log, how many records are sealed, and so stored for certain: a checkpoint comes after
    its rows."""
    return {one.origin: one.size for one in newest(client)}


def foreign(client: Client, sealed: Checkpoint, keys: Sequence[Verifier]) -> str:
    """What the database holds of our own log that we never sealed, in words; empty if nothing.

    `sealed` is the newest checkpoint we signed: what is stored reaches at most up to it. `keys` are
    those that the log has or had.
    """
    values = {"origin": sealed.origin, "size": sealed.size}
    [(first, last, count)] = client.execute(_ROWS, values)
    if count:
        return f"rows {first} to {last}, and {sealed.size} records are sealed here"
    for checkpoint in _signed(client.execute(_FROM, values), keys):
        if checkpoint.size > sealed.size:
            return f"a checkpoint over {checkpoint.size} records, and {sealed.size} are sealed here"
        if checkpoint.root != sealed.root:
            return f"another checkpoint over {sealed.size} records"
    return ""


def add(client: Client, origin: str, size: int, note: str) -> None:
    """Another row of a size: the same checkpoint, with witnesses' cosignatures."""
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(origin, size, note)])


def _signed(rows: Iterable[tuple[str | bytes]], keys: Sequence[Verifier]) -> Iterable[Checkpoint]:
    """Those that bear our signature: the others tell nothing about who has our key."""
    for (note,) in rows:
        try:
            yield Checkpoint.parse(open_note(text(note, _NOTE_CAP), keys)[0])
        except NoteError:
            continue
