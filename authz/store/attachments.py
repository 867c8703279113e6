"""What records carry along, into tables of its own: sealed inputs and policies' archives.

A sealed input is a row under its record's (origin, index), written as records are: what is missing
of a range is inserted. A policy's archive is a row under its revision, inserted if no row has that
revision yet; should two receivers insert the same at the same moment, ReplacingMergeTree folds
their rows, which are the same but for `first_seen`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from authz.record import Entry, Record, is_policy, sealing_key_id
from authz.store.copies import Copies

_INSERT_SEALED = (
    "INSERT INTO sealed_originals"
    " (origin, index, sealed_at, decision_id, key_id, ciphertext) VALUES"
)
_INSERT_POLICIES = "INSERT INTO policies (revision, first_seen, text) VALUES"


@dataclass(frozen=True, slots=True)
class Attachments:
    """The attachments of a batch of one origin's records, by the table they belong to."""

    sealed: list[tuple[Record, bytes]]
    policies: dict[str, tuple[int, bytes]]  # by revision: when it was first seen, and its text

    @classmethod
    def of(cls, carried: Sequence[Entry]) -> "Attachments":
        """Of records with an attachment, in log order."""
        policies: dict[str, tuple[int, bytes]] = {}
        for record, text in carried:
            if is_policy(record):
                seen = (_int(record, "sealed_at"), text)
                policies.setdefault(str(record["policy_revision"]), seen)
        return cls([(r, text) for r, text in carried if not is_policy(r)], policies)


def put(
    copies: Copies, origin: str, found: Attachments, query_ids: Iterator[str], *, unclear: bool
) -> None:
    """Insert them, each statement under the next of `query_ids`; if it is `unclear` what an
    earlier attempt left, only those that are not there."""
    rows = found.sealed
    if rows and unclear:
        there = _indexes(copies.found, origin, rows)
        rows = [row for row in rows if _int(row[0], "index") not in there]
    if rows:
        copies.client.execute(
            _INSERT_SEALED,
            [
                (
                    origin, _int(r, "index"), _int(r, "sealed_at"), r.get("decision_id", ""),
                    sealing_key_id(ciphertext), ciphertext,
                )
                for r, ciphertext in rows
            ],
            query_id=next(query_ids),
        )  # fmt: skip
    if missing := found.policies.keys() - _revisions(copies.found, found.policies):
        copies.client.execute(
            _INSERT_POLICIES,
            [(revision, *found.policies[revision]) for revision in sorted(missing)],
            query_id=next(query_ids),
        )


def read_back(copies: Copies, origin: str, found: Attachments) -> None:
    """Raises `OSError` unless all of them are kept."""
    lost = len(found.sealed) - len(_indexes(copies.kept, origin, found.sealed))
    lost += len(found.policies.keys() - _revisions(copies.kept, found.policies))
    if lost:
        raise OSError(f"{lost} of the attachments inserted are not there")


_Look = Callable[[str, str, str, Mapping[str, Any]], set[Any]]


def _indexes(look: _Look, origin: str, rows: Sequence[tuple[Record, bytes]]) -> set[int]:
    """Which of the sealed inputs `rows`, in index order, are in the table."""
    if not rows:
        return set()
    wanted = {_int(record, "index") for record, _ in rows}
    first, last = rows[0][0], rows[-1][0]
    values: dict[str, Any] = {"origin": origin, "first": min(wanted), "last": max(wanted)}
    values |= {"from": _int(first, "sealed_at"), "to": _int(last, "sealed_at")}
    there = (
        "origin = %(origin)s AND index >= %(first)s AND index <= %(last)s"
        " AND sealed_at >= fromUnixTimestamp64Micro(%(from)s, 'UTC')"
        " AND sealed_at <= fromUnixTimestamp64Micro(%(to)s, 'UTC')"
    )
    return wanted & look("sealed_originals", "index", there, values)


def _revisions(look: _Look, wanted: Iterable[str]) -> set[str]:
    names = sorted(wanted)
    if not names:
        return set()
    return look("policies", "revision", "revision IN %(names)s", {"names": names})


def _int(record: Record, name: str) -> int:
    value = record.get(name, 0)
    assert isinstance(value, int)
    return value
