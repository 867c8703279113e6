"""Queries past authz go on record, each once, and nothing that somebody wrote in them does."""

import contextlib
import re
import time
import urllib.request
from types import SimpleNamespace

import clusters
import orjson
import programs
import pytest
import structlog
from clickhouse_driver import Client
from clickhouse_driver.clientinfo import ClientInfo
from clickhouse_driver.errors import ServerException
from clusters import SHARDS, OnEach
from logs import TestLog

from authz import config
from authz.journal.chain import split
from authz.journal.segments import JournalError
from authz.ledger import Signer
from authz.record import details_of
from authz.report import direct
from authz.serve import queries as taken_over
from authz.serve.queries import Queries
from authz.serve.writer import Writer
from authz.store import migrations, query_log
from authz.store.client import connect

DATABASE = "authz"
FILES = ("10-authz.xml", "20-authz-cluster.xml")
# Not the administrator, and neither authz nor anybody's: who looks without being asked.
_PERSON = ("SELECT ON authz.*", "SELECT ON system.one", "READ ON REMOTE",
           "CREATE TEMPORARY TABLE ON *.*", "CREATE TABLE, INSERT, SELECT ON other.*",
           "TABLE ENGINE ON *")  # fmt: skip
_USER = """<{name}>
  <password>{name}</password><networks><ip>127.0.0.1</ip></networks>
  <profile>default</profile><quota>default</quota><grants>{grants}</grants>
</{name}>"""
PEOPLE = "".join(
    _USER.format(name=name, grants="".join(f"<query>GRANT {one}</query>" for one in _PERSON))
    for name in ("person", "poor")
)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with clusters.start(tmp_path_factory.mktemp("servers"), *FILES, more=PEOPLE) as running:
        yield running


class Site:
    """A store with records in it, and what `authz watch` would put on record of it."""

    def __init__(self, urls, directory):
        self.urls, self.directory = urls, directory
        self.admin = OnEach(urls)
        for client in self.admin.clients:
            client.execute("DROP TABLE IF EXISTS other.mine, other.requests")
            client.execute("SYSTEM FLUSH LOGS")
            client.execute("TRUNCATE TABLE system.query_log")
        self.writer = None
        self.start()

    def start(self, user="watch"):
        """As a process that goes on in the directory."""
        if self.writer:
            self.writer.close()
            self.queries.close()
        options = {"store": as_user(user, self.urls[0]), "data_dir": self.directory}
        options["ext_authz"] = {"receiver": "127.0.0.1:1"}
        options["watch"] = {"own_users": ["receiver", "admin"]}
        options = config.load(None, options)
        self.writer = Writer(options)
        self.queries = Queries(options, self.writer)

    def take_over(self):
        for client in self.admin.clients:
            client.execute("SYSTEM FLUSH LOGS")
        self.queries.take_over()

    def looks(self):
        """All that is in the journal, in order."""
        reader = self.writer.journal.reader(1)
        payloads = reader.take(10_000)
        reader.close()
        records = [orjson.loads(split(payload)[0]) for payload in payloads]
        return [(record, details_of(record)) for record in records if record["event"] == "look"]

    def end(self):
        self.writer.close()
        self.queries.close()
        self.admin.close()


def as_user(name, url):
    return re.sub(r"admin:\w+@", f"{name}:{name}@", url)


@pytest.fixture(scope="module")
def filled(servers):
    """A database with records in it, on one server."""
    with connect(f"{servers.urls[0]}/default") as admin:
        admin.execute("CREATE DATABASE other")
    url = f"{servers.urls[0]}/authz"
    with connect(url) as admin:
        migrations.migrate(admin)
        rows = [("o", n, "decision", "dr.alder", ["k.token"]) for n in range(50)]
        admin.execute("INSERT INTO audit_log (origin, index, kind, subject, patients) VALUES", rows)
    return [url]


@pytest.fixture
def site(filled, tmp_path):
    """On one server, without what another test put on record."""
    with connect(filled[0]) as admin:
        admin.execute(
            "ALTER TABLE audit_log DELETE WHERE kind = 'notice' SETTINGS mutations_sync = 2"
        )
    made = Site(filled, tmp_path / "watch")
    yield made
    made.end()


@pytest.fixture
def person(site):
    """Somebody who has a user, with a client that is none of ours."""
    with Client.from_url(as_user("person", site.urls[0])) as client:
        yield client


# Each with what is told of it: the tables, and the text; no text where it failed.
_LOOKS = {
    "SELECT subject FROM audit_log WHERE has(patients, 'p-0042') /* p-0042 */": (
        ["authz.audit_log"], "SELECT subject FROM audit_log WHERE has(patients, ?) ",
    ),
    "SELECT count() FROM decisions": (
        ["authz.audit_log", "authz.decisions"], "SELECT count() FROM decisions",
    ),
    "SELECT 1 WHERE 'p-0042' IN (SELECT subject FROM audit_log)": (
        ["authz.audit_log", "system.one"], "SELECT ? WHERE ? IN (SELECT subject FROM audit_log)",
    ),
    "SELECT count() FROM merge(currentDatabase(), '^audit.log$')": (
        [], "SELECT count() FROM merge(currentDatabase(), ?)",
    ),
    "SELECT * FROM mergeTreeIndex(authz, audit_log)": (
        [], "SELECT * FROM mergeTreeIndex(authz, audit_log)",
    ),
    "EXPLAIN SELECT (SELECT any(subject) FROM audit_log)": (
        ["authz.audit_log", "system.one"], "EXPLAIN SELECT (SELECT any(subject) FROM audit_log)",
    ),
    "CREATE TABLE other.mine ENGINE = MergeTree ORDER BY () AS SELECT * FROM audit_log": (
        ["authz.audit_log", "other.mine"],
        "CREATE TABLE other.mine ENGINE = MergeTree ORDER BY () AS SELECT * FROM audit_log",
    ),
    "SELECT toUInt8((SELECT any(subject) FROM audit_log))": (
        ["authz.audit_log", "system.one"], "SELECT toUInt8((SELECT any(subject) FROM audit_log))",
    ),
    "SELECT nothing FROM audit_log WHERE subject = 'p-0042'": ([], None),
    "SELECT 'p-0042 FROM audit_log": ([], None),
    "INSERT INTO audit_log (origin) SELECT 'p-0042'": ([], None),
}  # fmt: skip
_NO_LOOKS = (
    "SELECT 1", "SELECT * FROM system.one", "SHOW CREATE TABLE audit_log", "DESCRIBE audit_log",
    "SELECT max(size) FROM checkpoints", "SELECT nothing FROM system.one",
    "CREATE TABLE other.requests (a UInt8) ENGINE = Memory", "SELECT * FROM numbers(3)",
)  # fmt: skip


def test_each_way_is_a_look(site, person):
    """Whatever way a query takes to the log, and whether it comes to an end: it is told, without
    what somebody wrote in it. One in which nothing of a record is, is none."""
    for query in (*_LOOKS, *_NO_LOOKS):
        with contextlib.suppress(ServerException):
            person.execute(query)
    site.take_over()
    looks = site.looks()
    told = [(it.get("tables", []), it.get("query")) for _, it in looks]
    assert told == list(_LOOKS.values())
    assert [bool(it.get("error")) for _, it in looks[-4:]] == [False, True, True, True]
    for record, it in looks:
        assert (record["subject"], record["source_ip"], it["times"]) == ("person", "127.0.0.1", 1)
        assert record["user_agent"] == "ClickHouse python-driver"
        assert "p-0042" not in str(record)


def test_over_http(servers, site):
    """Grafana and other programs ask over HTTP."""
    http = servers.running[0].http
    headers = {
        "X-ClickHouse-User": "person",
        "X-ClickHouse-Key": "person",
        "User-Agent": "Grafana/11",
    }
    request = urllib.request.Request(
        f"{http}/?database=authz", b"SELECT count() FROM audit_log", headers
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == b"50\n"

    def looks():
        """Over HTTP, the server notes a query in its log only after it has answered it."""
        site.take_over()
        return site.looks()

    [(record, it)] = programs.until(looks, 60)
    assert (record["user_agent"], it["rows"]) == ("Grafana/11", 1)


def test_whose_queries_are_ours(site):
    """authz's own are those by its users that say they are its: with another user's name, or
    without saying so, a query is a look."""
    with connect(as_user("receiver", site.urls[0])) as ours:
        ours.execute("SELECT count() FROM audit_log")
    with connect(as_user("person", site.urls[0])) as forged:
        forged.execute("SELECT count() FROM audit_log")
    with Client.from_url(as_user("receiver", site.urls[0])) as lent:
        lent.execute("SELECT count() FROM audit_log")
    site.take_over()
    assert {(record["subject"], it.get("claims", "")) for record, it in site.looks()} == {
        ("person", "authz"), ("receiver", ""),
    }  # fmt: skip


def test_what_a_client_says_hides_nothing(site, person, monkeypatch):
    """The same query id for several queries, a part of another's query, a time and a user of one's
    choice: each is told, as of the user who was signed in."""
    write = ClientInfo.write

    def forger(kind):
        def forged(info, *where):
            info.query_kind, info.initial_user, info.initial_query_id = kind, "receiver", "mine"
            info.initial_query_start_time_microseconds = 5
            write(info, *where)

        return forged

    kinds = (ClientInfo.QueryKind.INITIAL_QUERY, ClientInfo.QueryKind.SECONDARY_QUERY) * 2
    for kind in kinds:
        with monkeypatch.context() as patch:
            patch.setattr(ClientInfo, "write", forger(kind))
            person.execute(f"SELECT count() FROM audit_log WHERE index = {kind}", query_id="mine")
        site.take_over()
    assert [(record["subject"], it["times"]) for record, it in site.looks()] == [("person", 1)] * 4


def test_alike_within_seconds_is_one(site, person, monkeypatch):
    """A program that asks the same form often is one look, with how often, and how much it got; or
    a few, where it was very often."""
    monkeypatch.setattr(direct, "_MOST", 4)
    for number in range(10):
        person.execute(f"SELECT subject FROM audit_log WHERE index = {number}")
    person.execute("SELECT count() FROM audit_log")
    site.take_over()
    looks = site.looks()
    assert [it["times"] for _, it in looks] == [4, 4, 2, 1]
    assert sum(it["rows"] for _, it in looks) == 11
    assert len({key for _, it in looks for key in it["queries"]}) == 11
    assert all(record["time"] <= it["until"] for record, it in looks)


def test_nobody_switches_it_off(site, person):
    """Nobody keeps a query out of the embedded server's log, not even its administrator."""
    for client in (person, site.admin.clients[0]):
        for setting in (
            {"log_queries": 0},
            {"log_queries_probability": 0.0},
            {"log_queries_min_type": "EXCEPTION_WHILE_PROCESSING"},
        ):
            with pytest.raises(ServerException, match="should not be changed"):
                client.execute("SELECT 1", settings=setting)


class TestOnce:
    """Each is told once."""

    @pytest.fixture(autouse=True)
    def _asked(self, site, person):
        self.site = site
        for table in ("audit_log", "decisions", "accesses"):
            person.execute(f"SELECT count() FROM {table}")
        self.keys = self.taken()

    def taken(self):
        self.site.take_over()
        keys = [key for _, it in self.site.looks() for key in it["queries"]]
        assert len(keys) == len(set(keys)) == 3
        return set(keys)

    def test_by_one_process(self):
        assert self.taken() == self.keys

    def test_by_the_next(self):
        self.site.start()
        assert self.taken() == self.keys

    def test_whose_place_is_lost(self):
        """The journal has them, stored or not."""
        self.site.start()
        (self.site.directory / "queries.json").unlink()
        self.site.start()
        assert self.taken() == self.keys

    def test_whose_directory_is_lost(self, tmp_path):
        """They are in the log."""
        log = TestLog(tmp_path, self.site.urls[0])
        log.append([record for record, _ in self.site.looks()])
        log.seal()
        log.end()
        self.site.directory = tmp_path / "new"
        self.site.start()
        self.site.take_over()
        assert self.site.looks() == []

    def test_whose_place_cannot_be_kept(self, monkeypatch, person):
        """On disk in the journal, and not known to be: told all the same, and not again."""
        person.execute("SELECT count() FROM disclosures")

        def fails(*_):
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(taken_over, "replace_file", fails)
            self.site.take_over()
        assert len(self.site.looks()) == 4
        self.site.start()
        self.site.take_over()
        assert len(self.site.looks()) == 4

    def test_that_cannot_be_written(self, monkeypatch, person):
        """Not on disk: told when it can be."""
        person.execute("SELECT count() FROM disclosures")

        def fails(*_):
            raise JournalError("full")

        with monkeypatch.context() as patch:
            patch.setattr(self.site.writer.committer, "commit", fails)
            self.site.take_over()
        assert len(self.site.looks()) == 3
        self.site.take_over()
        assert len(self.site.looks()) == 4

    def test_while_some_are_on_their_way(self, tmp_path, monkeypatch, person):
        """What the journal has forgotten, and the store has not got yet, is waited for."""
        person.execute("SELECT count() FROM disclosures")
        self.site.start()
        other = Signer("test/other", bytes(32))  # in the same database as the one above
        writer, log = self.site.writer, TestLog(tmp_path, self.site.urls[0], signer=other)
        for seq, looks in ((5, 3), (6, 4)):
            chained = {"writer": writer.identity.writer, "writer_seq": seq}
            log.append([{"kind": "notice", "time": time.time_ns() // 1000, **chained}])
            log.seal()
            with monkeypatch.context() as patch:
                patch.setattr(writer, "journal", SimpleNamespace(first=7))
                self.site.take_over()
            assert len(self.site.looks()) == looks
        log.end()


def test_a_first_start(site, person, tmp_path):
    """It begins an hour before; and one whose directory is lost, where others were on record."""
    back = 3_660_000_000  # and by how much each look reads again
    person.execute("SELECT count() FROM decisions")
    site.queries._started = time.time_ns() // 1000 + back
    person.execute("SELECT count() FROM accesses")
    site.take_over()
    [(look, it)] = site.looks()
    assert it["query"] == "SELECT count() FROM accesses"
    log = TestLog(tmp_path, site.urls[0], signer=Signer("test/third", bytes(32)))
    log.append([look])
    log.seal()
    log.end()
    site.directory = tmp_path / "new"
    site.start()
    site.queries._started += back
    site.take_over()
    assert [it["query"] for _, it in site.looks()] == ["SELECT count() FROM decisions"]


def test_it_says_once_why_not(site, person):
    """Without the right to read it, or without a log, that is in watch's own log once; and when
    the right is there, it goes on by itself from the beginning."""
    person.execute("SELECT count() FROM audit_log")
    site.start("poor")
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            site.take_over()
        [said] = lines
        assert said["event"] == "queries past authz are not put on record"
        assert "GRANT SELECT ON system.query_log" in said["reason"]
    site.start()
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            site.take_over()
    assert [line["event"] for line in lines] == ["queries past authz are put on record"]
    assert len(site.looks()) == 1


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """The same over two shards."""
    with clusters.start(tmp_path_factory.mktemp("cluster"), *FILES, more=PEOPLE) as servers:
        for url in servers.urls:
            with connect(f"{url}/default") as admin:
                admin.execute("CREATE DATABASE other")
        urls = [f"{url}/authz" for url in servers.urls]
        each = OnEach(urls)
        migrations.migrate(each, SHARDS)
        rows = [(f"o{n}", n, "decision", "dr.alder") for n in range(50)]
        each.execute("INSERT INTO audit_log (origin, index, kind, subject) VALUES", rows)
        each.close()
        yield urls


@pytest.fixture
def cluster(spread, tmp_path, monkeypatch):
    monkeypatch.setattr(query_log, "_HELD_US", 0)
    made = Site(spread, tmp_path / "watch")
    yield made
    made.end()


def test_a_query_over_a_cluster_is_one(cluster):
    """Through any server, whatever other servers do of it: told once, as it was written. What is
    asked of the others by a table of somebody's own is told by what they did."""
    queries = [
        "SELECT count() FROM audit_log", "SELECT count() FROM requests",
        "SELECT count() FROM clusterAllReplicas('two', authz.audit_log_local)",
        "SELECT count() FROM cluster('two', merge('authz', '^audit.log_local$'))",
    ]  # fmt: skip
    for url in cluster.urls:
        with Client.from_url(as_user("person", url)) as person:
            for query in queries:
                [(count,)] = person.execute(query)
                assert count == 50
    for _ in range(2):
        cluster.take_over()
    texts = sorted((it["query"], it["rows"]) for _, it in cluster.looks())
    wanted = [
        re.sub(r"'[^']*'(, '[^']*')?", lambda m: "?.." if m[1] else "?", query) for query in queries
    ]
    assert texts == sorted((query, 2) for query in wanted)
    assert not any("part" in it for _, it in cluster.looks())
    with Client.from_url(as_user("person", cluster.urls[0])) as person:
        person.execute(
            "CREATE TABLE other.mine AS authz.audit_log_local"
            " ENGINE = Distributed('two', 'authz', 'audit_log_local')"
        )
        before = len(cluster.looks())
        elsewhere = {"prefer_localhost_replica": 0}
        [(count,)] = person.execute("SELECT count() FROM other.mine", settings=elsewhere)
    assert count == 50
    cluster.take_over()
    new = [it for _, it in cluster.looks()[before:]]
    assert {it["kind"] for it in new} == {"Create", "Select"}
    assert [it["times"] for it in new if "part" in it] == [2]
