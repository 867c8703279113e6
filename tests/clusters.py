"""Two embedded ClickHouse servers, and a migration of them as one cluster.

The engine in the wheel has ClickHouse's clusters, Distributed tables and Keeper's client, but not
Keeper itself, the queue of ON CLUSTER, or the exchange of parts between replicas. So three things
are played here, and nothing else: ON CLUSTER is this loop over the servers; a Replicated engine is
the engine that it replicates; and what replication would copy, a test copies.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rights import configured, users

from authz.store import embedded
from authz.store.client import connect

SHARDS = "two"  # each server is a shard
REPLICAS = "twin"  # both are the replicas of one shard

_CLUSTER = """<{name}><secret>between servers</secret>{shards}</{name}>"""
_SHARD = "<shard><internal_replication>true</internal_replication>{replicas}</shard>"
_REPLICA = "<replica><host>127.0.0.1</host><port>{port}</port></replica>"

_MORE = """<remote_servers>{clusters}</remote_servers>
<zookeeper><implementation>testkeeper</implementation></zookeeper>
<macros><shard>{number}</shard><replica>server{number}</replica></macros>
"""
_ON_CLUSTER = re.compile(r" ON CLUSTER '\w+'")
_REPLICATED = re.compile(r"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?")


@dataclass(frozen=True)
class Servers:
    """The administrators' URLs of both servers, without a database."""

    urls: tuple[str, ...]
    running: tuple[embedded.Embedded, ...]


def played(statement: str) -> str:
    """A cluster's statement as one server of it can run it."""
    return _REPLICATED.sub(r"\1(", _ON_CLUSTER.sub("", statement))


class OnEach:
    """A connection to the first server, which runs what is ON CLUSTER on all."""

    def __init__(self, urls):
        self.clients = [connect(url) for url in urls]

    def execute(self, query, *args, **kwargs):
        first, *others = self.clients
        if " ON CLUSTER " in query or "INSERT INTO schema_versions" in query:
            query = played(query)
            for other in others:
                if "INSERT" not in query or other.execute("EXISTS schema_versions") == [(1,)]:
                    other.execute(query, *args, **kwargs)
        return first.execute(query, *args, **kwargs)

    def close(self):
        for client in self.clients:
            client.disconnect()


@contextmanager
def start(directory: Path, *files: str, more: str = "") -> Iterator[Servers]:
    """Both servers, each knowing the clusters, with a Keeper of its own in memory; and the users of
    `files` of deploy/clickhouse/users.d, whose passwords are their names, and of `more`."""
    ports = [_free_port() for _ in range(2)]
    replicas = [_REPLICA.format(port=port) for port in ports]
    shards = {SHARDS: [_SHARD.format(replicas=replica) for replica in replicas]}
    shards[REPLICAS] = [_SHARD.format(replicas="".join(replicas))]
    known = [_CLUSTER.format(name=name, shards="".join(each)) for name, each in shards.items()]
    running: list[embedded.Embedded] = []
    try:
        for number, port in enumerate(ports, 1):
            home = directory / str(number)
            configured(home, cluster=_MORE.format(clusters="".join(known), number=number))
            with users(home, *files, more=more):
                running.append(embedded.start(home, tcp=port))
        urls = tuple(server.store.rpartition("/")[0] for server in running)
        yield Servers(urls, tuple(running))
    finally:
        for server in running:
            server.process.kill()  # a clean stop waits for the connections between them
            server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
