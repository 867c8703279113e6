"""Sealed inputs, with the decisions that were made on them: the newest first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

_CHUNK = 1000

_SEALED = """SELECT decision_id, ciphertext FROM sealed_originals
WHERE sealed_at >= fromUnixTimestamp64Micro(%(since)s, 'UTC')
  AND sealed_at < fromUnixTimestamp64Micro(%(until)s, 'UTC')
  AND decision_id < %(before)s
ORDER BY decision_id DESC LIMIT 1 BY decision_id LIMIT %(limit)s"""

# Of a decision that was recorded more than once, the first is the policy's.
_NAMES = "allowed reason reason_code subject roles method resource_type path hash".split()
_DECISIONS = """SELECT decision_id, allowed, reason, reason_code, subject, roles, method,
  resource_type, path, sealed AS hash
FROM audit_log WHERE kind = 'decision' AND decision_id IN %(ids)s
ORDER BY origin, index LIMIT 1 BY decision_id"""


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A sealed input; its decision's values, or None if no decision of its id is on record."""

    decision_id: str
    ciphertext: bytes
    decision: Mapping[str, Any] | None
    """`hash` is the ciphertext's SHA-256 by the record, or empty."""


def read_sealed(client: Client, since_us: int, until_us: int, limit: int) -> Iterator[SealedRow]:
    """At most `limit` of those that were sealed from `since_us` to before `until_us`."""
    before, left = "\x7f", limit  # ids are UUIDs: every one sorts below
    while left > 0:
        wanted = min(left, _CHUNK)
        values = {"since": since_us, "until": until_us, "limit": wanted, "before": before}
        rows = client.execute(_SEALED, values)
        decisions = _decisions(client, [row[0] for row in rows])
        for decision_id, ciphertext in rows:
            yield SealedRow(decision_id, _bytes(ciphertext), decisions.get(decision_id))
        left -= len(rows)
        if len(rows) < wanted:
            return
        before = rows[-1][0]


def _decisions(client: Client, ids: list[str]) -> dict[str, dict[str, Any]]:
    if not ids:
        return {}
    rows = client.execute(_DECISIONS, {"ids": ids})
    return {row[0]: dict(zip(_NAMES, row[1:], strict=True)) for row in rows}


def _bytes(value: str | bytes) -> bytes:
    """The driver gives text for bytes that happen to be UTF-8."""
    return value.encode() if isinstance(value, str) else value
