"""Reading the archived policies."""

from dataclasses import dataclass

from clickhouse_driver import Client

_FIND = (
    "SELECT revision, min(toUnixTimestamp64Micro(first_seen)), any(text) FROM policies"
    " WHERE startsWith(revision, %(prefix)s) GROUP BY revision ORDER BY revision LIMIT %(limit)s"
)

_OF_DECISION = (
    "SELECT DISTINCT policy_revision FROM audit_log"
    " WHERE decision_id = %(id)s AND policy_revision != '' ORDER BY policy_revision LIMIT 10"
)
_AT_PLACE = (
    "SELECT decision_id, policy_revision FROM audit_log"
    " WHERE origin = %(origin)s AND index = %(index)s LIMIT 1"
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


def of_decision(client: Client, decision_id: str) -> list[str]:
    """The revisions that the records of a decision name."""
    return [name for (name,) in client.execute(_OF_DECISION, {"id": decision_id})]


def of_record(client: Client, origin: str, index: int) -> list[str] | None:
    """The revision that a record names, or else its decision; None if there is no such record."""
    rows = client.execute(_AT_PLACE, {"origin": origin, "index": index})
    if not rows:
        return None
    [(decision_id, revision)] = rows
    if revision or not decision_id:
        return [revision] if revision else []
    return of_decision(client, decision_id)
