"""How the schema lies in a database: as plain tables of one server, or over a cluster.

In a cluster a table is two: ``NAME_local``, replicated among the servers of a shard, and ``NAME``,
the Distributed table in front of it, so every statement says NAME in both forms. Rows are spread by
their log: a log stays on one shard, in index order. Which form a database has is read from the
database (`of`), so that nobody has to say it twice, or can say it wrongly.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from authz.errors import UsageError

# The journal is trimmed on the strength of what ClickHouse says it has: it must be on disk, also
# where a replica fetched it. A merge drops its sources minutes later, when the result is on disk.
_SYNCED = "fsync_after_insert = 1, fsync_part_directory = 1"
_FETCHED = "min_compressed_bytes_to_fsync_after_fetch = 1"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Table:
    """A table in both forms."""

    name: str
    columns: Sequence[str]
    engine: str
    """MergeTree or one of its family, with its arguments."""
    order: str
    indexes: Sequence[str] = ()
    shard: str = "cityHash64(origin)"
    """What decides a row's shard; empty where rows come to the local tables only."""
    settings: Sequence[str] = ()
    """Of the table when it is made: one that is there already keeps its own."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Puts a schema's statements in the form of `cluster`, or in that of one server (None)."""

    database: str
    cluster: str | None = None

    def begin(self) -> list[str]:
        """The database itself, where a cluster's other servers do not have it yet."""
        return [f"CREATE DATABASE IF NOT EXISTS `{self.database}`{self._on}"] if self._on else []

    def table(self, table: Table) -> list[str]:
        """What creates `table`. The name that people use comes first: a repeat knows the form."""
        return [*self.front_of(table), self.rows_of(table)]

    def front_of(self, table: Table) -> list[str]:
        """What statements name, where that is not the table that keeps the rows."""
        if self.cluster is None:
            return []
        shard = f", {table.shard}" if table.shard else ""
        place = f"'{self.cluster}', '{self.database}', '{table.name}_local'{shard}"
        return [self._create(self.name(table.name), table.columns, f"Distributed({place})")]

    def rows_of(self, table: Table) -> str:
        """The table that keeps the rows: of a cluster, those of one shard."""
        path = f"/clickhouse/tables/{{shard}}/{self.database}/{table.name}_local"
        return self._kept(self.rows(table.name), table, path, "{replica}")

    def copied(self, table: Table) -> str:
        """A small table that every server of a cluster has a whole copy of."""
        path = f"/clickhouse/tables/all/{self.database}/{table.name}"
        return self._kept(self.name(table.name), table, path, "{shard}-{replica}")

    def like(self, table: str, new: str, engines: Mapping[str, str]) -> list[str]:
        """What creates `new`, empty, as `table` is by now; `engines` are those of its tables, as
        ``system.tables`` has them in full."""
        rows = f"{table}_local" if self.cluster is not None else table
        new_rows = f"{new}_local" if self.cluster is not None else new
        path = engines[rows].replace(f"/{rows}'", f"/{new_rows}'")  # of a replicated one
        created = [f"CREATE TABLE {self.rows(new)}{self._on} AS {self.rows(table)} ENGINE = {path}"]
        if self.cluster is not None:
            engine = engines[table].replace(f"'{rows}'", f"'{new_rows}'")
            create = f"CREATE TABLE {self.name(new)}{self._on} AS {self.name(table)}"
            created.append(f"{create} ENGINE = {engine}")
        return created

    def drop(self, table: str) -> list[str]:
        """What drops a table of `like`."""
        names = dict.fromkeys((self.name(table), self.rows(table)))
        return [f"DROP TABLE IF EXISTS {name}{self._on} SYNC" for name in names]

    def alter_columns(self, table: str, changes: Sequence[str]) -> list[str]:
        """Columns come first where the rows are, then in front of them."""
        altered = [self.alter_rows(table, ", ".join(changes))]
        if self.cluster is not None:
            altered.append(f"ALTER TABLE {self.name(table)}{self._on} {', '.join(changes)}")
        return altered

    def alter_rows(self, table: str, change: str) -> str:
        """How rows are kept: codecs, indexes, settings."""
        return f"ALTER TABLE {self.rows(table)}{self._on} {change}"

    def view(self, create: str, name: str, query: str) -> str:
        """A view; `create` is ``CREATE ... VIEW``."""
        return f"{create} {self.name(name)}{self._on} AS {query}"

    def feed(self, name: str, table: str, query: str) -> str:
        """A materialized view that adds to the rows of `table` on the server where rows come in."""
        create = f"CREATE MATERIALIZED VIEW IF NOT EXISTS {self.name(name)}{self._on}"
        return f"{create}\nTO {self.rows(table)} AS {query}"

    def repeated(self, created: str) -> str:
        """`created`, a CREATE as the server tells it, for those of the cluster's servers that have
        not run it."""
        again = rf"CREATE \1 IF NOT EXISTS \2{self._on}"
        return re.sub(r"^CREATE (TABLE|VIEW|MATERIALIZED VIEW) (\S+)", again, created, count=1)

    def name(self, table: str) -> str:
        """The name that statements use. A cluster's servers do not know our session's database."""
        return table if self.cluster is None else f"`{self.database}`.{table}"

    def rows(self, table: str) -> str:
        """The table that keeps the rows."""
        return table if self.cluster is None else f"{self.name(table)}_local"

    @property
    def not_in_other(self) -> str:
        """NOT IN, of a query on a table within a query on it: rows of all shards are meant."""
        return "NOT IN" if self.cluster is None else "GLOBAL NOT IN"

    @property
    def in_other(self) -> str:
        """The same for IN."""
        return "IN" if self.cluster is None else "GLOBAL IN"

    @property
    def any_join_other(self) -> str:
        """The same for a join that adds at most one row of the other query."""
        return "ANY LEFT JOIN" if self.cluster is None else "GLOBAL ANY LEFT JOIN"

    @property
    def _on(self) -> str:
        return "" if self.cluster is None else f" ON CLUSTER '{self.cluster}'"

    def _kept(self, name: str, table: Table, path: str, replica: str) -> str:
        inside = [*table.columns, *table.indexes]
        if self.cluster is None:
            settings = ", ".join((*table.settings, _SYNCED))
            return self._create(name, inside, f"{table.engine}\n{table.order}\nSETTINGS {settings}")
        family, _, arguments = table.engine.partition("(")
        own = f", {arguments}" if arguments else ")"
        engine = f"Replicated{family}('{path}', '{replica}'{own}"
        settings = ", ".join((*table.settings, _SYNCED, _FETCHED))
        return self._create(name, inside, f"{engine}\n{table.order}\nSETTINGS {settings}")

    def _create(self, name: str, inside: Sequence[str], engine: str) -> str:
        lines = ",\n  ".join(inside)
        return f"CREATE TABLE IF NOT EXISTS {name}{self._on} (\n  {lines}\n) ENGINE = {engine}"


def of(client: Client, wanted: str | None = None) -> Layout:
    """The form of `client`'s current database; for an empty one, that of the cluster `wanted`.

    Raises `UsageError` if the database has another form than `wanted`, or the server knows no such
    cluster: what was made for one server is never turned into a cluster's in passing.
    """
    query = (
        "SELECT name, currentDatabase(), engine, engine_full FROM system.tables"
        " WHERE database = currentDatabase() AND name IN ('audit_log', 'schema_versions')"
        " ORDER BY name"
    )
    found = client.execute(query)
    if not found:
        [(database,)] = client.execute("SELECT currentDatabase()")
        return Layout(database, None if wanted is None else _known(client, database, wanted))
    _, database, engine, full = found[0]
    cluster = None
    if engine == "Distributed":
        cluster = full.partition("(")[2].partition(",")[0].strip("'")
    if wanted is not None and cluster != wanted:
        made = "one server" if cluster is None else f"cluster {cluster}"
        raise UsageError(
            f"--cluster {wanted}: the schema of database {database} was made for {made}, and stays"
            " so; give --store another database for the cluster, and have receivers write there"
        )
    return Layout(database, cluster)


def _known(client: Client, database: str, cluster: str) -> str:
    """`cluster`, if the server knows it and both names can be written into a schema."""
    names = [name for (name,) in client.execute("SELECT DISTINCT cluster FROM system.clusters")]
    if cluster not in names:
        told = ", ".join(sorted(names)) or "none"
        raise UsageError(
            f"--cluster {cluster}: ClickHouse's <remote_servers> has no such cluster; it has {told}"
        )
    for option, name in (("--cluster", cluster), ("--store: database", database)):
        if not _NAME.fullmatch(name):
            raise UsageError(f"{option} {name!r}: want letters, digits, _ . or -")
    return cluster
