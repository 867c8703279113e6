"""Looks that went past authz: queries of the database, as its own log of queries tells them."""

from collections.abc import Iterator, Sequence

from authz.record import Record, clean
from authz.report.looks import look_notice
from authz.store.query_log import Query

COMMAND = "sql"
_MOST = 200  # queries in one notice
_NAMES = 50  # of tables, or functions


def notices(queries: Sequence[Query]) -> Iterator[Record]:
    """What `queries` are put on record as: those that one user asked in the same form from the same
    place are one look, with how often it was."""
    alike: dict[object, list[Query]] = {}
    for one in queries:
        form = (
            one.user, one.address, one.agent, one.os_user, one.kind, one.tables, one.functions,
            one.hash, one.code, one.ours, one.relayed,
        )  # fmt: skip
        alike.setdefault(form, []).append(one)
    for group in alike.values():
        for begin in range(0, len(group), _MOST):
            yield _notice(group[begin : begin + _MOST])


def _notice(group: Sequence[Query]) -> Record:
    one = group[0]
    told = {
        "kind": one.kind, "tables": one.tables[:_NAMES], "functions": one.functions[:_NAMES],
        "query": one.text, "hash": one.hash, "error": one.code, "os_user": one.os_user,
        "part": one.relayed, "claims": "authz" if one.ours else "",
        "read": sum(query.read for query in group), "rows": sum(query.told for query in group),
        "times": len(group), "until": max(query.began for query in group),
        "queries": [query.key for query in group],
    }  # fmt: skip
    first = min(query.began for query in group)
    details = {name: value for name, value in told.items() if value}
    record = look_notice(COMMAND, one.user, "", "", (), first, details)
    return record | clean({"source_ip": one.address, "user_agent": one.agent})
