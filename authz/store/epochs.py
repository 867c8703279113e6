"""What is left of a log that has ended: where the one that follows it goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from authz.ledger import Checkpoint, NoteError
from authz.record import Record
from authz.store import rows
from authz.store.lease import Claims
from authz.store.tiles import newest_checkpoint

_LAST = (
    "SELECT toUnixTimestamp64Micro(max(sealed_at)), max(index) FROM audit_log"
    " WHERE origin = %(origin)s AND index < %(size)s"
)
_WRITERS = (
    "SELECT argMax(index, writer_seq) AS newest FROM audit_log WHERE origin = %(origin)s"
    " AND index < %(size)s AND writer_seq > 0 GROUP BY writer ORDER BY newest"
)
_BLOCKS = (
    "SELECT DISTINCT index FROM audit_log WHERE origin = %(origin)s AND index < %(size)s"
    " AND (kind = 'finding' AND event = 'raised' OR kind = 'notice'"
    " AND event IN ('block', 'unblock', 'finding_explained', 'finding_confirmed')) ORDER BY index"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A log's newest stored checkpoint and its note; when its last record was sealed; the newest
    record of each writer, and all that blocked or unblocked somebody or said that there is a
    finding on them, in order."""

    checkpoint: Checkpoint
    note: str
    sealed_at: int
    newest: Sequence[Record]
    blocking: Sequence[Record]


def at_work(client: Client, origin: str) -> str:
    """Who has the log's lease still, if anybody has."""
    claims, now = Claims(client, origin).claims()
    return next((claim.who for claim in claims if claim.until > now), "")


def read(client: Client, origin: str) -> Ended | None:
    """None if `origin` has no checkpoint over records that are there."""
    found = newest_checkpoint(client, origin)
    if found is None:
        return None
    try:
        checkpoint = Checkpoint.parse(found[1])
    except NoteError:
        return None
    values = {"origin": origin, "size": checkpoint.size}
    [(sealed_at, last)] = client.execute(_LAST, values)
    if (checkpoint.origin, last + 1) != (origin, checkpoint.size):
        return None

    def named(query: str) -> list[Record]:
        places = [index for (index,) in client.execute(query, values)]
        found = (rows.read(client, "audit_log", origin, index, index + 1) for index in places)
        return [next(records) for records in found]

    return Ended(checkpoint, found[1], sealed_at, named(_WRITERS), named(_BLOCKS))
