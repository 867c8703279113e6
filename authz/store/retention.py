"""What expires, as ClickHouse has it: rows by month, what of them is kept, and how the rest goes.

Rows expire by partition. The rows of a month that stay are first set aside in a table of its own
(`Kept`); then the month is replaced by them, or dropped where none stay. For ClickHouse that is one
step: at no moment are the rows that stay not there. What is set aside is each run's own, so that of
two runs at a time neither replaces a month by what the other is still setting aside.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.record import Record, text
from authz.retention import EVENTS, KEPT_EVENTS, Hold, Spans
from authz.store import copies, layout, rows

RECORDS, SEALED = "audit_log", "sealed_originals"
_PREFIX = "expiring_"
_BEFORE = "sealed_at < fromUnixTimestamp64Micro(%(before)s, 'UTC')"
_COPIED_SECONDS = 60
_LEFT_SECONDS = 86_400  # after which no run is still under way
# The text of a query holds what is on hold: 16 MiB, where ClickHouse's own bound is 256 KiB.
_LONG = {"max_query_size": 16 << 20, "max_partitions_per_insert_block": 0}
# On a cluster a month may be replaced on a shard that keeps none of it. Servers that have no such
# setting do it without.
_ALSO_EMPTY = {"allow_replace_partition_from_empty_source": 1}


def read_notices(client: Client) -> Iterator[Record]:
    """What writers told of holds and of what has expired, in all logs, in log order."""
    condition = "kind = 'notice' AND writer_seq > 0 AND event IN %(events)s"
    return rows.select(client, condition, {"events": EVENTS})


def now(client: Client) -> int:
    """The server's clock, in microseconds."""
    return int(client.execute("SELECT toUnixTimestamp64Micro(now64(6))")[0][0])


def by_month(client: Client, table: str, before_us: int) -> dict[int, int]:
    """How many rows of `table` each month before then has."""
    query = f"SELECT toYYYYMM(sealed_at) AS month, count() FROM {table} WHERE {_BEFORE}"
    counted = f"{query} GROUP BY month ORDER BY month"
    by_parts = {"optimize_use_projections": 1}  # what the server keeps of each part tells it
    return dict(client.execute(counted, {"before": before_us}, settings=by_parts))


def present(client: Client, before_us: int) -> dict[str, Spans]:
    """Of each log the records that were sealed before then and are there."""
    return _spans(client, RECORDS, _BEFORE, {"before": before_us})


def later(client: Client, before_us: int) -> dict[str, int]:
    """Of each log the first record that was sealed at that time or after."""
    query = f"SELECT origin, min(index) FROM {RECORDS} WHERE NOT ({_BEFORE}) GROUP BY origin"
    found = client.execute(query, {"before": before_us})
    return {text(origin, 1024): first for origin, first in found}


def covered(client: Client, origin: str, size: int) -> tuple[int, str] | None:
    """The log's first checkpoint of at least that size, with its note."""
    query = (
        "SELECT size, note FROM checkpoints WHERE origin = %(origin)s AND size >= %(size)s"
        " ORDER BY size LIMIT 1"
    )
    for found, note in client.execute(query, {"origin": origin, "size": size}):
        return found, text(note, 65_536)
    return None


def stored(client: Client, origin: str, writer: str, seq: int, first: int) -> int | None:
    """The index of a writer's record that came after record `first`, once it is stored under a
    checkpoint."""
    query = (
        f"SELECT index FROM {RECORDS} WHERE origin = %(origin)s AND index >= %(first)s"
        " AND writer = %(writer)s AND writer_seq = %(seq)s"
        " AND index < (SELECT max(size) FROM checkpoints WHERE origin = %(origin)s)"
    )
    values = {"origin": origin, "writer": writer, "seq": seq, "first": first}
    found = client.execute(query, values)
    return found[0][0] if found else None


@dataclass(frozen=True, slots=True)
class Keeping:
    """What does not expire: what is held, the notices that the rest cannot be understood without,
    each log's very first record, and in each log of `ends` all from that index on."""

    holds: Sequence[Hold]
    ends: Mapping[str, int]

    def records(self, form: layout.Layout, values: dict[str, Any]) -> str:
        """The condition on `audit_log`; its `values` are added."""
        values["kept_events"] = KEPT_EVENTS
        parts = ["(kind = 'notice' AND event IN %(kept_events)s)", "index = 0"]
        for number, (origin, end) in enumerate(self.ends.items()):
            values |= {f"origin{number}": origin, f"end{number}": end}
            parts.append(f"(origin = %(origin{number})s AND index >= %(end{number})s)")
        if held := self._held(values):
            parts += [held, self._requests(form, held)]
        return " OR ".join(parts)

    def sealed(self, form: layout.Layout, values: dict[str, Any]) -> str:
        """The condition on `sealed_originals`: the inputs of requests that are held."""
        held = self._held(values)
        return self._requests(form, held) if held else "false"

    def _held(self, values: dict[str, Any]) -> str:
        parts = []
        for number, hold in enumerate(self.holds):
            if hold.subject:
                values[f"subject{number}"] = hold.subject
                parts.append(f"subject = %(subject{number})s")
            if hold.patients:
                values[f"patients{number}"] = list(hold.patients)
                parts.append(f"hasAny(patients, %(patients{number})s)")
                parts.append(f"resource_id IN %(patients{number})s")
            if hold.until_us:
                values |= {f"since{number}": hold.since_us, f"until{number}": hold.until_us}
                since = f"fromUnixTimestamp64Micro(%(since{number})s, 'UTC')"
                until = f"fromUnixTimestamp64Micro(%(until{number})s, 'UTC')"
                parts += [f"({t} >= {since} AND {t} < {until})" for t in ("sealed_at", "time")]
        return f"({' OR '.join(parts)})" if parts else ""

    def _requests(self, form: layout.Layout, held: str) -> str:
        """All records of a request one of whose records is held."""
        ids = f"SELECT decision_id FROM {form.name(RECORDS)} WHERE decision_id != '' AND {held}"
        return f"(decision_id != '' AND decision_id {form.in_other} ({ids}))"


class Kept:
    """The rows of `table` that stay, of the months before `before_us`: `begin`, then `replace` each
    month, then `end`."""

    def __init__(self, client: Client, table: str, before_us: int) -> None:
        self.name = f"{_PREFIX}{table}_{secrets.token_hex(4)}"
        self.before_us = before_us
        self.months: dict[int, int] = {}  # how many rows of each stay
        self._client = client
        self.table = table
        self._form = layout.of(client)

    def begin(self, keeping: Keeping) -> None:
        """Set them aside."""
        for statement in self._form.like(self.table, self.name, self._engines()):
            self._client.execute(statement)
        values: dict[str, Any] = {"before": self.before_us}
        condition = keeping.records if self.table == RECORDS else keeping.sealed
        query = (
            f"INSERT INTO {self._form.name(self.name)} SELECT * FROM {self._form.name(self.table)}"
            f" WHERE {_BEFORE} AND ({condition(self._form, values)})"
        )
        self._client.execute(query, values, settings=_LONG)
        self._wait_for_copies()
        self.months = by_month(self._client, self.name, self.before_us)

    def spans(self) -> dict[str, Spans]:
        """Of each log the records that are set aside."""
        return _spans(self._client, self.name, "true", {})

    def replace(self, month: int) -> None:
        """What is set aside of `month` is from now on all that there is of it."""
        change = f"REPLACE PARTITION {month} FROM {self._form.rows(self.name)}"
        if not self.months.get(month):
            change = f"DROP PARTITION {month}"
        settings = _ALSO_EMPTY if self._form.cluster else {}
        self._client.execute(self._form.alter_rows(self.table, change), settings=settings)

    def end(self) -> None:
        for statement in self._form.drop(self.name):
            self._client.execute(statement)

    def _engines(self) -> dict[str, str]:
        query = (
            "SELECT name, engine_full FROM system.tables"
            " WHERE database = currentDatabase() AND name IN %(names)s"
        )
        names = (self.table, f"{self.table}_local")
        return dict(self._client.execute(query, {"names": names}))

    def _wait_for_copies(self) -> None:
        """Until each server of a shard has what any of them has: whichever replaces a month takes
        what it has itself. Raises `OSError`."""
        cluster = self._form.cluster
        if cluster is None:
            return
        place = f"'{cluster}', '{self._form.database}', '{self.name}_local'"
        query = f"SELECT _shard_num, count() FROM clusterAllReplicas({place}) GROUP BY _shard_num"
        servers = copies.of(self._client).shards
        until = time.monotonic() + _COPIED_SECONDS
        while True:
            found = dict(self._client.execute(query))
            counts = {(shard, found.get(server, 0)) for server, shard in enumerate(servers, 1)}
            if len(counts) == len(set(servers)):
                return
            if time.monotonic() > until:
                raise OSError("some of a shard's servers have not fetched the rows to be kept")
            time.sleep(0.5)


def clear(client: Client) -> None:
    """Drop what runs that were cut off have left."""
    query = (
        "SELECT DISTINCT replaceRegexpOne(name, '_local$', '') FROM system.tables"
        " WHERE database = currentDatabase() AND startsWith(name, %(prefix)s)"
        " AND metadata_modification_time < now() - %(seconds)s"
    )
    form = layout.of(client)
    for (name,) in client.execute(query, {"prefix": _PREFIX, "seconds": _LEFT_SECONDS}):
        for statement in form.drop(name):
            client.execute(statement)


def _spans(
    client: Client, table: str, condition: str, values: Mapping[str, Any]
) -> dict[str, Spans]:
    """Of each log which indexes the rows have. Consecutive ones have one distance from their
    number in the log."""
    query = (
        "SELECT origin, min(place), max(place) + 1 FROM (SELECT origin, index AS place,"
        " toInt64(index) - toInt64(row_number() OVER (PARTITION BY origin ORDER BY index)) AS run"
        f" FROM (SELECT DISTINCT origin, index FROM {table} WHERE {condition}))"
        " GROUP BY origin, run ORDER BY origin, min(place)"
    )
    found: dict[str, list[tuple[int, int]]] = {}
    for origin, first, end in client.execute(query, dict(values)):
        found.setdefault(text(origin, 1024), []).append((first, end))
    return {origin: Spans(tuple(pairs)) for origin, pairs in found.items()}
