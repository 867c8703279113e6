"""Three tamperings on a copy of the log, and whether verification catches and places each."""

from dataclasses import dataclass

from authz.store.client import Client, connect
from authz.trust import TrustedLog
from authz.verify import Report, verify_store
from authz.verify.logs import State

_COPY = "authz_tampered"
_TABLES = ("audit_log", "checkpoints", "tiles", "policies", "sealed_originals")
_NOW = {"mutations_sync": 1}

# kind, what was done, the finding expected, its place
_Attempt = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Tampering:
    """What was done, and what verification said of it."""

    kind: str
    done: str
    caught: bool
    where: str
    said: str


def tamper(store: str, logs: list[TrustedLog], accepted: State) -> list[Tampering]:
    """Copy the database, spoil the copy in three ways, one after the other, and verify each.

    `accepted` is the state of an earlier verification. Raises `QUERY_ERRORS`.
    """
    origin = logs[0].origin
    size = accepted[origin]["size"]
    found = []
    with connect(store) as client, connect(store.rpartition("/")[0] + "/" + _COPY) as copy:
        for attempt in (_changed_row, _deleted_row, _deleted_tail):
            _copy(client)
            kind, done, expected, first = attempt(copy, origin, size)
            report = verify_store(copy, logs, dict(accepted))
            found.append(_judge(report, kind, done, expected, first))
        client.execute(f"DROP DATABASE {_COPY}")
    return found


def _copy(client: Client) -> None:
    client.execute(f"DROP DATABASE IF EXISTS {_COPY}")
    client.execute(f"CREATE DATABASE {_COPY}")
    for table in _TABLES:
        client.execute(f"CREATE TABLE {_COPY}.{table} AS {table}")
        client.execute(f"INSERT INTO {_COPY}.{table} SELECT * FROM {table}")  # noqa: S608 - names of ours


def _changed_row(copy: Client, origin: str, _size: int) -> _Attempt:
    """Somebody lets another person have looked."""
    query = (
        "SELECT index, subject FROM audit_log"
        " WHERE kind = 'access' AND allowed AND origin = %(origin)s ORDER BY index LIMIT 1"
    )
    [(index, subject)] = copy.execute(query, {"origin": origin})
    statement = (
        "ALTER TABLE audit_log UPDATE subject = 'dr.nobody'"
        " WHERE origin = %(origin)s AND index = %(index)s"
    )
    copy.execute(statement, {"origin": origin, "index": index}, settings=_NOW)
    return "changed_row", f"{subject} became dr.nobody in record {index}", "changed", index


def _deleted_row(copy: Client, origin: str, size: int) -> _Attempt:
    """Somebody makes one look disappear."""
    index = size // 2
    statement = "ALTER TABLE audit_log DELETE WHERE origin = %(origin)s AND index = %(index)s"
    copy.execute(statement, {"origin": origin, "index": index}, settings=_NOW)
    return "deleted_row", f"record {index} was deleted", "missing", index


def _deleted_tail(copy: Client, origin: str, size: int) -> _Attempt:
    """Somebody takes the log back to an earlier state: rows, tiles and checkpoints together."""
    query = "SELECT max(size) FROM checkpoints WHERE origin = %(origin)s AND size < %(size)s"
    [(before,)] = copy.execute(query, {"origin": origin, "size": size})
    values = {"origin": origin, "before": before}
    for statement in (
        "ALTER TABLE audit_log DELETE WHERE origin = %(origin)s AND index >= %(before)s",
        "ALTER TABLE checkpoints DELETE WHERE origin = %(origin)s AND size > %(before)s",
        "ALTER TABLE tiles DELETE WHERE origin = %(origin)s AND width < 256",
    ):
        copy.execute(statement, values, settings=_NOW)
    return "deleted_tail", f"everything from record {before} on was deleted", "rollback", before


def _judge(report: Report, kind: str, done: str, expected: str, first: int) -> Tampering:
    placed = [f for f in report.findings if f.kind == expected and f.first == first]
    shown = (placed or report.findings)[:1]
    where = shown[0].where if shown else ""
    said = f"{shown[0].kind}: {shown[0].text}" if shown else "nothing"
    return Tampering(kind, done, bool(placed), where, said)
