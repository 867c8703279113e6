"""Reading the archived policies."""

from dataclasses import dataclass

from clickhouse_driver import Client

_FIND = (
    "SELECT revision, min(toUnixTimestamp64Micro(first_seen)), any(text) FROM policies"
    " WHERE startsWith(revision, %(prefix)s) GROUP BY revision ORDER BY revision LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A row of `policies`: what is said to be the archive of `revision`."""

    revision: str
    first_seen_us: int
    text: bytes


def find(client: Client, prefix: str, limit: int) -> list[StoredPolicy]:
    """Those whose revision begins with `prefix`, at most `limit`."""
    values = {"prefix": prefix, "limit": limit}
    rows = client.execute(_FIND, values, settings={"strings_as_bytes": True})
    return [StoredPolicy(name.decode(), seen, text) for name, seen, text in rows]
