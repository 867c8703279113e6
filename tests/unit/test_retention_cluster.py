"""What expires over a cluster (played as tests/clusters.py says), by the documented rights."""

from contextlib import closing

import clusters
import pytest
from clusters import SHARDS, OnEach
from old_logs import NOW, Clock, OldLog, apply, checked, left, us
from rights import as_user

from authz.ledger import Signer
from authz.retention import Hold, hold_notice
from authz.store import migrations
from authz.store.client import QUERY_ERRORS, connect

pytestmark = pytest.mark.thorough

DATABASE = "authz"
USERS = ("10-authz.xml", "20-authz-cluster.xml")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with clusters.start(tmp_path_factory.mktemp("cluster"), *USERS) as running:
        yield running


@pytest.fixture
def urls(servers):
    """Both servers' URLs, the database there and empty."""
    for url in servers.urls:
        with connect(f"{url}/default") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} SYNC")
            admin.execute(f"CREATE DATABASE {DATABASE}")
    return [f"{url}/{DATABASE}" for url in servers.urls]


def signers(client):
    """Two logs that the cluster keeps on different shards."""
    found = {}
    for number in range(20):
        name = f"test/receiver-{number}"
        [(shard,)] = client.execute(f"SELECT cityHash64('{name}') % 2")
        found.setdefault(shard, Signer(name, bytes([number]) * 32))
    return [found[0], found[1]]


@pytest.mark.parametrize("cluster", [None, SHARDS])
def test_the_documented_user(urls, tmp_path, monkeypatch, cluster):
    """With the rights that deploy/clickhouse gives, months expire on every shard, also where one
    keeps nothing of them; what is held stays, and the user can do nothing else."""
    clock = Clock(monkeypatch)
    made = []
    with (
        closing(OnEach(urls)) as admin,
        closing(OnEach([as_user(url, "retention") for url in urls])) as mine,
    ):
        migrations.migrate(admin, cluster)
        for signer in signers(admin):
            directory = tmp_path / signer.name.replace("/", "-")
            directory.mkdir()
            made.append(OldLog(directory, urls[0], clock, signer))
        first, second = made
        first.fill()
        second.fill(times=[us(2020, 10, 1), us(2026, 11, 1)])
        names = [log.signer.name for log in made]
        first.tell(hold_notice(Hold("hold-1", "case", "officer", subject="dr.elm"), NOW))
        was = {name: left(admin, name) for name in names}
        outcome = apply(first, client=mine)
        assert outcome.months == [201903, 202010]
        gone = {one.origin: one.dropped for one in outcome.logs}
        assert min(gone.values()) > 20
        assert {name: len(was[name] - left(admin, name)) for name in names} == gone
        checked(mine, *names)
        assert apply(first, client=mine).nothing
        apply(first, client=mine, now=us(2100, 1, 1))
        checked(mine, *names)
        for client in admin.clients:
            assert client.execute("SHOW TABLES LIKE 'expiring%'") == []
        for statement in (
            "TRUNCATE TABLE audit_log",
            "DROP TABLE tiles",
            "ALTER TABLE tiles DELETE WHERE 1",
            "ALTER TABLE checkpoints DROP PARTITION tuple()",
            "INSERT INTO tiles (origin) VALUES ('x')",
            "CREATE TABLE other (a UInt8) ENGINE = Memory",
        ):
            with pytest.raises(QUERY_ERRORS, match="Not enough privileges"):
                mine.clients[0].execute(statement)
    for log in made:
        log.end()
