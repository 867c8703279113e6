"""What was asked of the database past authz, by the server's own log of queries.

ClickHouse writes ``system.query_log`` some seconds after a query has ended; on a cluster each
server has its own. Errors are `authz.store.client.QUERY_ERRORS`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from authz.store import layout
from authz.store.client import LOG_COMMENT, Client
from authz.store.lookups import as_text

_OVERLAP_US = 60_000_000  # a server writes what ended about the same time in any order
_FIRST_US = 2 * 86_400_000_000  # before all logs, and there is a day before it
_HELD_US = 30_000_000  # parts wait so long for the query that they are of
# Tables in which nothing is of a record.
_PLAIN = ("checkpoints", "leases", "schema_versions", "tiles")

_COLUMNS = "SELECT name FROM system.columns WHERE database = 'system' AND table = 'query_log'"
_TABLES = (
    "SELECT name FROM system.tables WHERE database = currentDatabase() AND name NOT IN %(plain)s"
)
_SERVER = "concat(hostName(), ':', toString(tcpPort()))"  # two of one host differ in their port
_SERVERS = f"SELECT {_SERVER}, toUnixTimestamp64Micro(now64(6)) FROM {{one}}"
# By the log's index: its days are those of each server's own time zone.
_SINCE = (
    "event_date >= toDate(toDateTime(intDiv(%(least)s, 1000000))) - 1"
    " AND event_time >= toDateTime(intDiv(%(least)s, 1000000))"
)
_NEWEST = (
    f"SELECT {_SERVER} AS server, toUnixTimestamp64Micro(max(event_time_microseconds))"
    f" FROM {{log}} WHERE {_SINCE} GROUP BY server"
)
# Tables that are asked for by a function (`merge`, `cluster`) are told by the rights that it took.
# Of what failed before it began neither is told, and the error may have shown something.
_TOUCHES = (
    "(arrayExists(name -> startsWith(name, %(prefix)s) AND name NOT IN %(plain)s,"
    " arrayMap(name -> replaceAll(name, '`', ''), tables))"
    " OR notEmpty(used_table_functions) AND arrayExists("
    "right -> position(replaceAll(right, '`', ''), %(right)s) > 0, {rights})"
    " OR type = 'ExceptionBeforeStart' AND match(query, %(names)s)"
    " AND (current_database = %(database)s OR position(query, %(database)s) > 0))"
)
# A part of a query, asked by another server of the cluster: only of these nobody was authenticated.
# It is left out where the query itself is told: where that id was used once, since an id is its
# asker's choice (as is most of what a client says, so that none of it makes a query's key).
_RELAYED = "(NOT is_initial_query AND authenticated_user = '')"
_ASKED = (
    f"SELECT user, query_id, address, port FROM {{log}} WHERE {_SINCE} AND NOT {{relayed}}"
    " GROUP BY user, query_id, address, port"
    f" HAVING uniqExact(query_start_time_microseconds) = 1 AND countIf({_TOUCHES}) > 0"
)
_WHO = "if(authenticated_user = '', user, authenticated_user)"
_KEY = (
    f"lower(substring(hex(SHA256(toString(({_SERVER}, user, query_id,"
    " toUnixTimestamp64Micro(query_start_time_microseconds))))), 1, 32))"
)
# Without a value that somebody wrote, which may be a patient's number. Data may follow an INSERT,
# and what failed before it began may be anything.
_TEXT = (
    "multiIf(type = 'ExceptionBeforeStart', '', query_kind = 'Insert',"
    " replaceRegexpOne(normalizeQuery(query), '(?is)\\\\b(values|format)\\\\b.*', ''),"
    " normalizeQuery(query))"
)
_QUERIES = (
    f"SELECT {_KEY}, toUnixTimestamp64Micro(query_start_time_microseconds), toBool({{relayed}}),"
    " {who} AS who, replaceOne(toString(address), '::ffff:', ''),"
    " if(client_name = '', http_user_agent, client_name), os_user, query_kind,"
    " arraySort(arrayFilter(name -> NOT startsWith(name, '_'), tables)),"
    f" arraySort(used_table_functions), leftUTF8({_TEXT}, %(most)s),"
    " toString(normalized_query_hash), read_rows, result_rows, exception_code,"
    " toBool(log_comment = %(comment)s)"
    f" FROM {{log}} WHERE {_SINCE} AND event_time_microseconds >= fromUnixTimestamp64Micro(toInt64("
    f"transform({_SERVER}, %(servers)s, %(from)s, %(least)s)))"
    " AND type != 'QueryStart' AND query_kind != 'Show'"
    " AND NOT (user IN %(own)s AND who IN %(own)s AND log_comment = %(comment)s)"
    f" AND {_TOUCHES} AND NOT ({{relayed}} AND"
    " (toUnixTimestamp64Micro(event_time_microseconds) > %(held)s"
    f" OR (user, initial_query_id, initial_address, initial_port) GLOBAL IN ({_ASKED})))"
    " ORDER BY event_time_microseconds"
)
_TEXT_CAP = 4000
# What a server that is away has, it still has when it is back.
_SETTINGS = {"skip_unavailable_shards": 1}


@dataclass(frozen=True, slots=True)
class Query:
    """A query that touched the log's tables, when it had ended."""

    key: str
    """Names it."""
    began: int
    """Microseconds since the epoch, UTC."""
    relayed: bool
    """A part of one that is not told itself."""
    user: str
    address: str
    agent: str
    """As the client says, like `os_user`."""
    os_user: str
    kind: str
    tables: tuple[str, ...]
    functions: tuple[str, ...]
    """Of tables."""
    text: str
    """Normalized: without values. Empty if it failed before it began."""
    hash: str
    """ClickHouse's ``normalized_query_hash``."""
    read: int
    told: int
    """How many rows it read, and returned or wrote."""
    code: int
    """Of the error it ended with; 0: none."""
    ours: bool
    """It says that it is authz's."""


class QueryLog:
    """The log of queries of `client`'s server, or of its cluster's. `own` are users whom only
    authz's processes have: what these ask as such is left out."""

    def __init__(self, client: Client, own: Sequence[str]) -> None:
        self._client = client
        form = layout.of(client)
        self._cluster = form.cluster
        self._columns = {name for (name,) in client.execute(_COLUMNS)}
        names = [name for (name,) in client.execute(_TABLES, {"plain": _PLAIN})]
        own_tables = [f"{form.database}.{name}{end}" for name in _PLAIN for end in ("", "_local")]
        self._values: dict[str, object] = {
            "prefix": f"{form.database}.", "right": f" ON {form.database}.", "plain": own_tables,
            "database": form.database, "names": rf"\b({'|'.join(names) or 'audit_log'})\b",
            "own": list(own), "comment": LOG_COMMENT, "most": _TEXT_CAP,
        }  # fmt: skip

    @property
    def readable(self) -> bool:
        """Whether there is one, and this user may read it."""
        return bool(self._columns)

    def reached(self, known: Mapping[str, int], begin: int) -> dict[str, int]:
        """For each server that answers, the time up to which its log is written; what is `known`
        stays so where nothing was written since, and `begin` where nothing is known."""
        found = self._ask(_SERVERS.format(one=self._of("numbers(1)")), {})
        now = {as_text(server): int(time) for server, time in found}
        least = {"least": _least(known.get(server, begin) for server in now)}
        written = self._ask(_NEWEST.format(log=self._of("system.query_log")), least)
        newest = {as_text(server): int(time) for server, time in written}
        # A clock that was ahead, and is right again, must not have its server waited for.
        return {
            server: min(max(newest.get(server, 0), known.get(server, begin)), time)
            for server, time in now.items()
        }

    def ended(self, since: Mapping[str, int], reached: Mapping[str, int]) -> Iterator[Query]:
        """The queries that are in each server's log since then, and some that were before, each
        once. A part of one that came in the last moments is left for later."""
        since = {server: max(time - _OVERLAP_US, 0) for server, time in since.items()}
        log, there = self._of("system.query_log"), self._columns
        forms = {
            "rights": "used_privileges" if "used_privileges" in there else "['']",
            "relayed": _RELAYED if "authenticated_user" in there else "false",
            "who": _WHO if "authenticated_user" in there else "user",
        }
        values = {
            "least": _least(since.values()), "servers": list(since) or [""],
            "from": list(since.values()) or [0], "held": max(reached.values()) - _HELD_US,
        }  # fmt: skip
        query = _QUERIES.format(log=log, **forms)
        rows = self._client.execute_iter(query, self._values | values, settings=_SETTINGS)
        for row in rows:
            yield Query(*map(_value, row))

    def _of(self, table: str) -> str:
        return table if self._cluster is None else f"clusterAllReplicas('{self._cluster}', {table})"

    def _ask(self, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._client.execute(query, values, settings=_SETTINGS)
        return found


def _least(times: Iterable[int]) -> int:
    return max(min(times, default=0), _FIRST_US)


def _value(value: Any) -> Any:
    value = as_text(value)
    return tuple(value) if isinstance(value, list) else value


def on_record(client: Client, keys: Sequence[str], since_us: int) -> set[str]:
    """Those of `keys` that notices sealed since then tell of."""
    query = (
        "SELECT DISTINCT key FROM (SELECT arrayJoin(JSONExtract(details, 'queries',"
        " 'Array(String)')) AS key FROM notices WHERE event = 'look'"
        " AND sealed_at >= fromUnixTimestamp64Micro(%(since)s, 'UTC')) WHERE key IN %(keys)s"
    )
    found = client.execute(query, {"keys": list(keys), "since": since_us})
    return {key for (key,) in found}


def newest(client: Client) -> int:
    """When the last query began of which a notice tells; 0 if none does."""
    query = (
        "SELECT max(JSONExtractUInt(details, 'until')) FROM notices WHERE event = 'look'"
        " AND JSONExtractString(details, 'command') = 'sql'"
    )
    return int(client.execute(query)[0][0])
