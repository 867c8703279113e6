"""Which rows are there, as far as the journal may be trimmed for it: not only here, but on most of
the servers that should have them.

On one server that is a look at the table. In a cluster rows come in at one server of their shard
and are fetched by the others, so the copies are looked at, each on its server: what any has is not
inserted again, and what most of them have is kept. That rests on no setting of the cluster's.
Servers that are away count as having nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from authz.store import layout
from authz.store.layout import Layout

_AWAY = {"skip_unavailable_shards": 1}


@dataclass(frozen=True, slots=True)
class Copies:
    """The servers on which a database's rows are to be."""

    client: Client
    form: Layout
    shards: tuple[int, ...] = ()
    """The shard of each server of the cluster, in the cluster's order."""

    def found(self, table: str, key: str, where: str, values: Mapping[str, Any]) -> set[Any]:
        """The `key` of rows that are on any server."""
        query = f"SELECT DISTINCT {key} FROM {self._source(table)} WHERE {where}"
        return {value for (value,) in self._ask(query, values)}

    def kept(self, table: str, key: str, where: str, values: Mapping[str, Any]) -> set[Any]:
        """The `key` of rows that most servers of their shard have."""
        query = f"SELECT DISTINCT key FROM ({self._kept(table, key, where)})"
        return {value for (value,) in self._ask(query, values)}

    def count_kept(self, table: str, key: str, where: str, values: Mapping[str, Any]) -> int:
        """How many there are of those."""
        query = f"SELECT uniqExact(key) FROM ({self._kept(table, key, where)})"
        return int(self._ask(query, values)[0][0])

    def stop(self, prefix: str) -> None:
        """Make sure that no query whose id begins with `prefix` is still under way.

        Raises `OSError` while one is on another server than ours.
        """
        self._ask(
            "KILL QUERY WHERE user = currentUser() AND startsWith(query_id, %(prefix)s) SYNC",
            {"prefix": prefix},
        )
        if self.form.cluster is None:
            return
        running = (
            f"SELECT count() FROM clusterAllReplicas('{self.form.cluster}', system.processes)"
            " WHERE user = currentUser() AND startsWith(initial_query_id, %(prefix)s)"
        )
        [(count,)] = self._ask(running, {"prefix": prefix})
        if count:
            raise OSError("an earlier insert is still under way in the cluster")

    def _kept(self, table: str, key: str, where: str) -> str:
        if self.form.cluster is None:
            return f"SELECT {key} AS key FROM {table} WHERE {where}"
        servers = list(range(1, len(self.shards) + 1))
        numbers = sorted(set(self.shards))
        most = [self.shards.count(number) // 2 + 1 for number in numbers]
        return (
            f"SELECT key FROM (SELECT {key} AS key, uniqExact(_shard_num) AS copies,"
            f" transform(_shard_num, {servers}, {list(self.shards)}) AS shard"
            f" FROM {self._source(table)} WHERE {where} GROUP BY key, shard)"
            f" WHERE copies >= transform(shard, {numbers}, {most})"
        )

    def _source(self, table: str) -> str:
        if self.form.cluster is None:
            return table
        # Here each server is a "shard" of its own, numbered in the cluster's order.
        place = f"'{self.form.cluster}', '{self.form.database}', '{table}_local'"
        return f"clusterAllReplicas({place})"

    def _ask(self, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        answer: list[tuple[Any, ...]] = self.client.execute(query, values, settings=_AWAY)
        return answer


def of(client: Client) -> Copies:
    """Those of `client`'s current database."""
    form = layout.of(client)
    if form.cluster is None:
        return Copies(client, form)
    shards = client.execute(
        "SELECT shard_num FROM system.clusters WHERE cluster = %(cluster)s"
        " ORDER BY shard_num, replica_num",
        {"cluster": form.cluster},
    )
    return Copies(client, form, tuple(number for (number,) in shards))
