"""The log as ``authz watch`` reads it: what is new, in order."""

from collections.abc import Iterator

from authz.record import Record
from authz.store import rows
from authz.store.client import Client

_SINCE = (
    "SELECT min(index) FROM audit_log WHERE origin = %(origin)s"
    " AND sealed_at >= fromUnixTimestamp64Micro(%(since)s)"
)
_KEYS = (
    "SELECT JSONExtractString(details, 'key') FROM findings"
    " WHERE sealed_at >= fromUnixTimestamp64Micro(%(since)s)"
)
DAY = "watch_day"
"""The event of a notice that says how a day was that is over."""
_DAY = f"SELECT max(JSONExtractUInt(details, 'day')) FROM notices WHERE event = '{DAY}'"


def first_since(client: Client, origin: str, since_us: int) -> int:
    """The index of the first record sealed from then on; 0 if there is none."""
    [(index,)] = client.execute(_SINCE, {"origin": origin, "since": since_us})
    return int(index)


def following(client: Client, origin: str, first: int, end: int) -> Iterator[Record]:
    """The records from `first` to `end`, in index order."""
    return rows.read(client, "audit_log", origin, first, end)


def told(client: Client, since_us: int) -> set[str]:
    """The keys of findings that are on record since then."""
    return {key for (key,) in client.execute(_KEYS, {"since": since_us})}


def told_day(client: Client) -> int:
    """The newest day that is on record as over, since the epoch; 0 for none."""
    [(day,)] = client.execute(_DAY)
    return int(day)
