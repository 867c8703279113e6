"""The schema over a cluster: two servers, played as tests/clusters.py says."""

import hashlib
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import clusters
import pytest
from clusters import REPLICAS, SHARDS, OnEach
from logs import SIGNER, TestLog
from pages import FUNCTION, block
from rights import as_user, told_by_server, told_in_sql
from test_store_writer import Proxy, written

from authz.errors import UsageError
from authz.journal.chain import policy_notice
from authz.ledger import Signer
from authz.record import FIELDS
from authz.report import look_up
from authz.store import checkpoints, feeds, layout, migrations
from authz.store.accounts import Accounted
from authz.store.client import QUERY_ERRORS, connect
from authz.store.layout import Layout
from authz.store.lease import Claims, Lease
from authz.store.lookups import EVER, Window
from authz.store.policies import find
from authz.store.sealed import read_sealed
from authz.store.writer import StoreWriter, stop_running
from authz.trust import TrustedLog
from authz.verify import verify_store

pytestmark = pytest.mark.thorough

DATABASE = "authz"
ROUNDS = 12
EPOCH = 600 * 1_000_000  # before all that is sealed
EVERYWHERE = {"schema_versions", "leases", *(table.name for table in feeds.TABLES)}
USERS = (
    "10-authz.xml", "20-authz-cluster.xml", "30-authz-tenant.xml", "40-authz-tenant-cluster.xml"
)  # fmt: skip


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


@pytest.fixture
def admin(urls):
    each = OnEach(urls)
    yield each
    each.close()


def structure(client):
    """Tables and columns, as far as two servers of a cluster are alike."""
    return client.execute(
        "SELECT table, name, type, position, compression_codec FROM system.columns"
        f" WHERE database = '{DATABASE}' ORDER BY table, position"
    ), client.execute(
        "SELECT name, engine, engine_full, as_select FROM system.tables"
        f" WHERE database = '{DATABASE}' ORDER BY name"
    )


def every_statement(form):
    return [statement for migration in migrations.MIGRATIONS for statement in migration(form)]


def signers(client):
    """Two logs that the cluster keeps on different shards."""
    found = {}
    for number in range(20):
        name = f"test/receiver-{number}"
        [(shard,)] = client.execute(f"SELECT cityHash64('{name}') % 2")
        found.setdefault(shard, Signer(name, bytes([number]) * 32))
    return [found[0], found[1]]


@pytest.fixture
def log_in(tmp_path):
    """Makes logs, and closes them."""
    made = []

    def make(url, signer=SIGNER):
        directory = tmp_path / signer.name.replace("/", "-")
        directory.mkdir()
        made.append(TestLog(directory, url, signer=signer))
        return made[-1]

    yield make
    for log in made:
        log.end()


def test_statements_are_clickhouse(admin):
    """ClickHouse reads every statement as it is, ON CLUSTER included, and as what it is meant."""
    for statement in every_statement(Layout(DATABASE, SHARDS)):
        rows = admin.clients[0].execute(f"EXPLAIN AST {statement}")
        if rows[0][0].startswith("InsertQuery"):  # by the Distributed tables
            assert f"INSERT INTO `{DATABASE}`." in statement
            continue
        assert rows[0][0].startswith(("CreateQuery", "AlterQuery")), statement
        assert f" ON CLUSTER '{SHARDS}'" in statement


def test_replicated_tables_are_accepted(admin):
    """Each table that keeps rows is replicated within its shard under a place of its own; a few
    small ones are the same on all servers."""
    made = [s for s in every_statement(Layout(DATABASE, SHARDS)) if "Replicated" in s]
    client = admin.clients[1]
    for statement in made:
        client.execute(clusters._ON_CLUSTER.sub("", statement))
    found = client.execute(
        "SELECT table, zookeeper_path, replica_name FROM system.replicas ORDER BY table"
    )
    path = f"/clickhouse/tables/2/{DATABASE}/"
    plain = "\n".join(every_statement(Layout(DATABASE)))
    tables = set(re.findall(r"^CREATE TABLE IF NOT EXISTS (\w+)", plain, re.MULTILINE))
    of_shard = [(f"{t}_local", f"{path}{t}_local", "server2") for t in tables - EVERYWHERE]
    of_all = [(t, f"/clickhouse/tables/all/{DATABASE}/{t}", "2-server2") for t in EVERYWHERE]
    assert found == sorted([*of_shard, *of_all])
    for (table,) in client.execute("SELECT table FROM system.replicas"):
        [(text,)] = client.execute(f"SHOW CREATE TABLE {table}")
        assert "'{replica}'" in text or "'{shard}-{replica}'" in text, "a new server's is its own"
        assert "fsync_after_insert = 1" in text


def test_two_logs_over_two_shards(admin, urls, log_in):
    """Each log is whole on one shard, written through either server; every view and check sees
    both, from either server, and a request whose decision and access are in two logs is one."""
    assert migrations.migrate(admin, SHARDS) == list(range(1, migrations.VERSION + 1))
    ours = signers(admin)
    logs = [log_in(url, signer) for url, signer in zip(reversed(urls), ours, strict=True)]
    for number, log in enumerate(logs):
        entries = []
        for n in range(30):
            sealed = b"0123abcd." + bytes([number, n]) * 40
            decision = {"kind": "decision", "decision_id": f"{number}-{n}", "allowed": n % 2 == 0}
            digest = hashlib.sha256(sealed).hexdigest()
            entries.append((decision | {"sealed": digest, "time": 10**15, "subject": "p"}, sealed))
        text = b"package a"
        entries.append(policy_notice(1, hashlib.sha256(text).hexdigest(), text))
        log.append_entries(log.written_entries(entries))
        # Half of the other log's requests are told to this one.
        access = {"kind": "access", "time": 10**15, "status": 200, "allowed": True, "upstream": "u"}
        access["subject"] = "p"
        access["decided_by"] = logs[1 - number].identity.writer
        told = range(0, 30, 2)
        log.append([access | {"decision_id": f"{1 - number}-{n}"} for n in told])
        log.seal()
        log.restart()
        log.append([{"kind": "notice", "event": "more"}] * 5)
        log.seal()
    trust = [TrustedLog(signer.name, (signer.verifier,)) for signer in ours]
    for number, client in enumerate(admin.clients):
        count = "SELECT origin, count() FROM {} GROUP BY origin"
        here = dict(client.execute(count.format("audit_log_local")))
        assert here == {ours[number].name: 51}, "the other log is on the other server"
        for table in ("checkpoints", "tiles", "sealed_originals"):
            assert set(dict(client.execute(count.format(f"{table}_local")))) == set(here), table
        assert client.execute("SELECT count() FROM audit_log") == [(102,)]
        assert client.execute("SELECT count() FROM decisions") == [(60,)]
        assert client.execute("SELECT count(), uniqExact(decision_id) FROM requests") == [(60, 60)]
        assert client.execute("SELECT countIf(kind = 'access') FROM requests") == [(30,)]
        assert client.execute("SELECT sum(decisions) FROM activity_hourly") == [(60,)]
        assert client.execute("SELECT count() FROM policies") == [(1,)]
        assert client.execute("SELECT max(version) FROM schema_versions") == [(migrations.VERSION,)]
        migrations.check(client)
        ids = [f"{number}-{n}" for number in range(2) for n in range(30)]
        halves = Counter(r["kind"] for r in Accounted(client, ours[0].name).search(ids, EPOCH))
        assert halves == {"decision": 60, "access": 30}
        inputs = [row.decision for row in read_sealed(client, 0, 2**52, 100)]
        assert len(inputs) == 60
        assert None not in inputs
        assert len(find(client, "", 10)) == 1
        assert [one.size for one in checkpoints.newest(client)] == [51, 51]
        report = verify_store(client, trust)
        assert [log.findings for log in report.logs] == [[], []]
        assert (report.records, report.decisions, report.gaps) == (102, 60, {})


def test_who_saw_a_patient_in_all_logs(admin, urls, log_in):
    """A request whose decision, access and disclosure are in logs on different shards is one, from
    whichever server it is asked for, whole or in part."""
    migrations.migrate(admin, SHARDS)
    first, second = (log_in(*pair) for pair in zip(urls, signers(admin), strict=True))
    said = {"decision_id": "d", "time": 10**15, "subject": "p", "allowed": True, "enforced": True}
    seen = {"kind": "disclosure", "decision_id": "d", "time": 10**15, "patients": ["k.one"]}
    alone = {"kind": "access", "time": 10**15 + 1, "patients": ["k.one"], "status": 401}
    first.append([said | {"kind": "decision"}, seen, alone])
    second.append([said | {"kind": "access", "upstream": "u", "status": 200}, seen])
    first.seal()
    second.seal()
    for client in admin.clients:
        for window, more in ((EVER, 0), (Window(1, 2**52), 0), (EVER, 1)):
            found = look_up(client, [["k.one"]], window, limit=2 - more)
            assert (found.total, found.more, found.other_keys) == (2, more, ())
            assert found.requests[-1].outcome == "rejected"
            assert more or len(found.requests[0].records) == 4


def test_stored_twice_is_there_once(admin, urls, log_in):
    """A receiver that forgot how far it was, and one that speaks to another server, insert nothing
    again."""
    migrations.migrate(admin, SHARDS)
    log = log_in(urls[0])
    log.append_entries(log.written_entries([({"kind": "decision", "decision_id": "d"}, b"")] * 20))
    batch = log.log.seal(100)
    for url in (*urls, *urls):
        log.store = url
        log.restart()
        log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
    counted = admin.execute("SELECT count(), uniqExact(index) FROM audit_log")
    assert counted == [(20, 20)]


def test_cut_at_every_point(admin, urls, log_in):
    """Cut before, during or after any statement and tried again, each row is there once: what the
    server passes on to the log's own shard is not forgotten."""
    migrations.migrate(admin, SHARDS)
    proxy = Proxy(urlsplit(urls[0]).port)
    client = connect(urls[0].replace(f":{urlsplit(urls[0]).port}/", f":{proxy.port}/"))
    [signer] = [signer for signer in signers(admin) if _elsewhere(admin, signer)]
    log = log_in(urls[0], signer)
    writer = StoreWriter(client, signer.name)
    cuts = 0
    for attempt in range(ROUNDS):
        log.append_entries(written(log, attempt))
        batch = log.log.seal(1000)
        direction = ("up", "down")[attempt % 2]
        setattr(proxy, direction, 1 + attempt * (700 if direction == "up" else 150))
        for _ in range(10):
            try:
                writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
                break
            except QUERY_ERRORS:
                cuts += 1
                proxy.up = proxy.down = None
        proxy.up = proxy.down = None
        log.log.finish(batch)
    client.disconnect()
    proxy.close()
    each = ROUNDS * 30
    counted = admin.execute("SELECT count(), uniqExact(index) FROM audit_log")
    assert counted == [(each, each)]
    assert admin.clients[1].execute("SELECT count() FROM audit_log_local") == [(each,)]
    kept = "SELECT count(), uniqExact(index) FROM sealed_originals"
    assert admin.execute(kept) == [(ROUNDS * 10, ROUNDS * 10)]
    report = verify_store(admin.clients[0], [TrustedLog(signer.name, (signer.verifier,))])
    assert (report.findings, report.logs[0].doubles) == ([], 0)
    assert cuts > ROUNDS // 2, "the test did cut"


def _elsewhere(admin, signer):
    """Whether the log is not kept by the first server."""
    return admin.execute(f"SELECT cityHash64('{signer.name}') % 2") == [(1,)]


def test_another_shard_is_away(tmp_path, log_in):
    """A log goes on while another shard's only server is gone; who would read all of them is told,
    instead of getting a part."""
    with clusters.start(tmp_path / "servers") as servers:
        urls = [f"{url}/{DATABASE}" for url in servers.urls]
        each = OnEach(urls)
        migrations.migrate(each, SHARDS)
        here = signers(each)[0]
        log = log_in(urls[0], here)
        servers.running[1].process.kill()
        servers.running[1].process.wait()
        for _ in range(2):
            log.append([{"kind": "access"}] * 3)
            log.seal()
            log.restart()
        assert each.clients[0].execute("SELECT count() FROM audit_log_local") == [(6,)]
        with pytest.raises(QUERY_ERRORS):
            verify_store(each.clients[0], [TrustedLog(here.name, (here.verifier,))])
        each.close()


def replicate(admin, source, target, table):
    """What replication does: the rows of one server, at the other."""
    rows = admin.clients[source].execute(f"SELECT * FROM {table}_local")
    admin.clients[target].execute(f"INSERT INTO {table}_local VALUES", rows)


def test_kept_is_on_most_replicas(admin, urls, log_in):
    """A batch counts as stored when most servers of the shard have it; what one has already, be it
    the other one, is not inserted again."""
    migrations.migrate(admin, REPLICAS)
    log = log_in(urls[1])
    sealed = b"0123abcd.sealed"
    decision = {"kind": "decision", "sealed": hashlib.sha256(sealed).hexdigest()}
    text = b"package a"
    log.append_entries(
        log.written_entries([
            (decision | {"decision_id": "d"}, sealed),
            ({"kind": "decision", "decision_id": "e"}, b""),
            policy_notice(1, hashlib.sha256(text).hexdigest(), text),
        ])
    )  # fmt: skip
    batch = log.log.seal(100)

    def put():
        log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)

    for _ in range(2):
        with pytest.raises(OSError, match="3 of the rows inserted are not there"):
            put()
    assert [c.execute("SELECT count() FROM audit_log_local") for c in admin.clients] == [
        [(3,)], [(0,)],
    ]  # fmt: skip
    replicate(admin, 0, 1, "audit_log")
    with pytest.raises(OSError, match="2 of the attachments inserted are not there"):
        put()
    replicate(admin, 0, 1, "sealed_originals")
    replicate(admin, 0, 1, "policies")
    put()
    # The first server loses its disk: the other one's copies are found, and are too few.
    for table in ("audit_log", "sealed_originals", "policies"):
        admin.clients[0].execute(f"TRUNCATE TABLE {table}_local")
    log.restart()
    with pytest.raises(OSError, match="3 of the rows inserted are not there"):
        put()
    assert admin.clients[0].execute("SELECT count() FROM audit_log_local") == [(0,)]


def test_waits_for_an_insert_elsewhere(admin, urls, log_in):
    """While an insert of the same log is under way on another server, nothing is inserted."""
    migrations.migrate(admin, SHARDS)
    log = log_in(urls[0])
    log.append([{"kind": "access"}])
    batch = log.log.seal(100)

    def put():
        log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)

    query_id = f"authz:{SIGNER.name}:0-1:0"
    with connect(urls[1]) as other, ThreadPoolExecutor(1) as pool:
        insert = f"INSERT INTO audit_log (origin) SELECT '{SIGNER.name}' FROM numbers(1000) WHERE"
        running = pool.submit(
            other.execute, f"{insert} sleepEachRow(1)", query_id=query_id,
            settings={"max_block_size": 1},
        )  # fmt: skip
        here = f"SELECT count() FROM system.processes WHERE query_id = '{query_id}'"
        while admin.clients[1].execute(here) == [(0,)]:
            pass
        with pytest.raises(OSError, match="still under way"):
            put()
        assert admin.execute("SELECT count() FROM audit_log") == [(0,)]
        admin.clients[1].execute(f"KILL QUERY WHERE query_id = '{query_id}' SYNC")
        assert isinstance(running.exception(), QUERY_ERRORS)
    put()
    assert admin.execute("SELECT count() FROM audit_log") == [(1,)]


@pytest.mark.parametrize("version", range(1, migrations.VERSION + 1))
def test_interrupted_anywhere(admin, version):
    """Cut off after any statement, a cluster's migration is repeated in the same form, whether or
    not the cluster is named again."""
    form = Layout(DATABASE, SHARDS)
    for number in range(1, version):
        for statement in migrations.MIGRATIONS[number - 1](form):
            admin.execute(statement)
        admin.execute("INSERT INTO schema_versions (version) VALUES", [(number,)])
    statements = migrations.MIGRATIONS[version - 1](form)
    for cut in range(len(statements) + 1):
        for statement in statements[:cut]:
            admin.execute(statement)
    assert migrations.migrate(admin) == list(range(version, migrations.VERSION + 1))
    assert migrations.migrate(admin, SHARDS) == []
    first, second = (structure(client) for client in admin.clients)
    assert first == second
    assert layout.of(admin) == form


def test_the_first_statement_tells_the_form(admin):
    """From its first table on, a database knows that it is a cluster's."""
    form = Layout(DATABASE, SHARDS)
    for statement in migrations.MIGRATIONS[0](form)[:2]:
        admin.execute(statement)
    assert layout.of(admin) == form


def test_a_server_that_joined(admin):
    """A server that the cluster has got since gets the tables as they are by now, by the same
    command; the others stay as they are."""
    migrations.migrate(admin, SHARDS)
    before = structure(admin.clients[0])
    admin.clients[1].execute(f"DROP DATABASE {DATABASE} SYNC")
    assert migrations.migrate(admin) == [], "nothing is done unasked"
    assert admin.clients[1].execute(f"EXISTS DATABASE {DATABASE}") == [(0,)]
    assert migrations.migrate(admin, SHARDS) == []
    assert [structure(client) for client in admin.clients] == [before, before]


def test_an_old_cluster_with_a_server_that_joined(admin):
    """The new server gets them before what is newer is added on all."""
    form = Layout(DATABASE, SHARDS)
    for statement in migrations.MIGRATIONS[0](form):
        admin.execute(statement)
    admin.execute("INSERT INTO schema_versions (version) VALUES", [(1,)])
    admin.clients[1].execute(f"DROP DATABASE {DATABASE} SYNC")
    assert migrations.migrate(admin) == list(range(2, migrations.VERSION + 1))
    first, second = (structure(client) for client in admin.clients)
    assert first == second
    columns = [name for name, *_ in admin.execute("DESCRIBE requests")]
    assert columns == [*(field.name for field in FIELDS), "disclosed"]


def test_a_time_to_live(admin):
    """The page's statement is ClickHouse's, and gives every server's table one."""
    migrations.migrate(admin, SHARDS)
    statement = block("docs/scaling.md", "ALTER TABLE").replace("NAME", f"'{SHARDS}'")
    [(read, *_), *_] = admin.clients[0].execute(f"EXPLAIN AST {statement}")
    assert read.startswith("AlterQuery")
    admin.execute(statement)
    for client in admin.clients:
        [(create,)] = client.execute("SHOW CREATE TABLE sealed_originals_local")
        assert "TTL toDateTime(sealed_at) + toIntervalYear(2)" in create
    migrations.check(admin.clients[0])


def test_the_form_stays(admin):
    """A database that was made for one server does not become a cluster's, nor one cluster's
    another's; a cluster that ClickHouse does not know is named with those it knows."""
    with pytest.raises(UsageError, match=r"--cluster nowhere: .* has no such cluster; it has tw"):
        migrations.migrate(admin, "nowhere")
    assert admin.execute("SHOW TABLES") == []
    migrations.migrate(admin)
    with pytest.raises(UsageError, match=f"--cluster {SHARDS}: .* was made for one server"):
        migrations.migrate(admin, SHARDS)
    assert not [name for (name,) in admin.execute("SHOW TABLES") if name.endswith("_local")]
    for client in admin.clients:
        client.execute(f"DROP DATABASE {DATABASE} SYNC")
        client.execute(f"CREATE DATABASE {DATABASE}")
    migrations.migrate(admin, SHARDS)
    with pytest.raises(UsageError, match=f"--cluster {REPLICAS}: .* was made for cluster {SHARDS}"):
        migrations.migrate(admin, REPLICAS)


@pytest.mark.parametrize("cluster", [None, SHARDS])
def test_the_documented_users(admin, urls, log_in, cluster):
    """With the rights that deploy/clickhouse gives them, one user migrates, and the receiver's
    stores a log whose schema is current, and can change nothing."""
    with closing(OnEach([as_user(url, "migrator") for url in urls])) as migrator:
        assert migrations.migrate(migrator, cluster) == list(range(1, migrations.VERSION + 1))
        assert migrations.migrate(migrator, cluster) == []
    url = as_user(urls[0], "receiver")
    with connect(url) as client:
        assert migrations.migrate(client) == []
        for statement in (
            "ALTER TABLE audit_log DELETE WHERE 1",
            "TRUNCATE TABLE audit_log",
            "DROP TABLE audit_log",
            "CREATE TABLE other (a UInt8) ENGINE = Memory",
            "INSERT INTO schema_versions (version) VALUES (99)",
            "SELECT * FROM file('/etc/passwd')",
        ):
            with pytest.raises(
                QUERY_ERRORS, match=r"Not enough privileges|DDL queries are prohibit"
            ):
                client.execute(statement)
        lease = Lease(Claims(client, SIGNER.name), "holder", "who")
        assert lease.take() is None
        lease.renew()
        lease.release()
        stop_running(client, SIGNER.name)
        books = Accounted(client, SIGNER.name)
        assert list(books.search(["d"], EPOCH)) == books.told() == books.under_way() == []
        assert books.newest(["w"]) == {}
        assert books.away() == ({}, set())
        assert checkpoints.newest(client) == []
    log = log_in(url)
    assert checkpoints.foreign(log.client, log.log.sealed, SIGNER.verifier) == ""
    text = b"package a"
    sealed = b"0123abcd.sealed"
    decision = {"kind": "decision", "sealed": hashlib.sha256(sealed).hexdigest()}
    for _ in range(2):
        log.append_entries(
            log.written_entries([
                (decision, sealed), policy_notice(1, hashlib.sha256(text).hexdigest(), text),
            ])
        )  # fmt: skip
        log.seal()
        log.restart()
    report = verify_store(
        admin.clients[1 if cluster else 0], [TrustedLog(SIGNER.name, (SIGNER.verifier,))]
    )
    assert (report.findings, report.records) == ([], 4)
    assert admin.execute("SELECT sum(decisions) FROM activity_hourly") == [(2,)]


def test_readers_over_shards(admin, urls, log_in):
    """Readers of a cluster need its tables, and neither temporary tables nor remote(); a tenant's
    sees that tenant's records of all shards, in every view and in the aggregates."""
    migrations.migrate(admin, SHARDS)
    said = {
        "subject": "p",
        "time": 10**15,
        "allowed": True,
        "enforced": True,
        "patients": ["k.one"],
    }
    for number, log in enumerate(map(log_in, urls, signers(admin))):
        for tenant in ("lakeside", "hillside", ""):
            request = said | {"tenant": tenant, "decision_id": f"{number}{tenant}"}
            for kind in ("decision", "access", "disclosure", "finding"):
                log.append([request | {"kind": kind}])
        log.seal()
    trust = [TrustedLog(signer.name, (signer.verifier,)) for signer in signers(admin)]
    with connect(as_user(urls[0], "reader")) as client:
        assert look_up(client, [["k.one"]], EVER, limit=10).total == 6
        assert client.execute("SELECT count() FROM requests") == [(6,)]
        assert client.execute("SELECT sum(requests) FROM baselines") == [(6,)]
    with connect(as_user(urls[1], "auditor")) as client:
        assert verify_store(client, trust).findings == []
        with pytest.raises(QUERY_ERRORS, match="READ ON REMOTE"):
            client.execute("SELECT * FROM remote('127.0.0.1', system.one)")
    for url in urls:
        with connect(as_user(url, "reader_lakeside")) as client:
            for table in ("accesses", "decisions", "disclosures", "findings", "requests"):
                found = client.execute(f"SELECT tenant, count() FROM {table} GROUP BY tenant")
                assert found == [("lakeside", 2)], table
            for table in ("audit_log", "activity_hourly", "baseline_daily", "baselines"):
                found = client.execute(f"SELECT DISTINCT tenant FROM {table}")
                assert found == [("lakeside",)], table


def test_both_forms_say_the_same(admin):
    """What the servers have of the files in users.d is what the SQL files say for a cluster."""
    files = ("roles.sql", "limits.sql", "users.sql", "cluster.sql", "tenant-cluster.sql")
    said, had = told_in_sql(admin.clients[0], *files), told_by_server(admin.clients[0])
    assert said - had == had - said == set()


def test_command(urls):
    """`authz migrate --cluster` names what is wrong and its exit code; this server cannot do the
    rest: it has no queue for ON CLUSTER."""

    def ran(cluster):
        """By the page's command."""
        text = block("docs/scaling.md", "authz migrate")
        text = re.sub(r"clickhouse://\S+", urls[0], text).replace("NAME", cluster)
        command = ["sh", "-eu", "-c", FUNCTION + text]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = ran("nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("authz: --cluster nowhere: ClickHouse's <remote_servers> has no")
    done = ran(SHARDS)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Replicated DDL queries are disabled" in done.stderr
    assert "Stack trace" not in done.stderr
