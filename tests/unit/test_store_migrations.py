"""A database that any older version made and filled is brought up to date, and still verifies.

tests/vectors/store/schema_N.json is what the last program with schema N ran and stored. What later
versions need is made here from the list of migrations itself.
"""

import base64
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from logs import SIGNER, TRUST, TestLog

from authz.errors import UsageError
from authz.ledger import Tree, leaf_hash
from authz.receiver.state import State
from authz.record import FIELDS, canonical
from authz.store import migrations
from authz.store.client import connect
from authz.store.layout import Layout
from authz.verify import verify_store

VECTORS = {
    int(path.stem.rpartition("_")[2]): json.loads(path.read_text())
    for path in (Path(__file__).parents[1] / "vectors" / "store").glob("schema_*.json")
}
OLDER = range(1, migrations.VERSION)
RECORDS = {1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4, 8: 4}  # the record's schema by the database's
PLAIN = Layout("")
_DEFAULTS = {"text": "", "int": 0, "time": 0, "bool": False, "texts": []}


@dataclass
class Old:
    """A log as a program with schema `version` stored it."""

    version: int
    records: list
    tiles: list
    checkpoints: list
    sealed: list = field(default_factory=list)
    policies: list = field(default_factory=list)

    def store(self, client):
        """Into a database that has the schema already."""
        names = [field.name for field in FIELDS if field.since <= RECORDS[self.version]]
        defaults = {field.name: _DEFAULTS[field.type] for field in FIELDS}
        columns = ", ".join(f"`{name}`" for name in names)
        values = [[r.get(name, defaults[name]) for name in names] for r in self.records]
        client.execute(f"INSERT INTO audit_log ({columns}) VALUES", values)
        client.execute("INSERT INTO tiles (origin, level, index, width, data) VALUES", self.tiles)
        client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", self.checkpoints)
        if self.sealed:
            sealed = (
                "INSERT INTO sealed_originals (origin, index, sealed_at, decision_id, ciphertext)"
            )
            client.execute(f"{sealed} VALUES", self.sealed)
        if self.policies:
            policies = "INSERT INTO policies (revision, first_seen, text) VALUES"
            client.execute(policies, self.policies)
        client.execute("INSERT INTO schema_versions (version) VALUES", [(self.version,)])


def stored(version):
    """What the vector of `version` holds: all that such a program wrote."""
    vector = VECTORS[version]
    return Old(
        version,
        vector["records"],
        [[*key, base64.b64decode(data)] for *key, data in vector["tiles"]],
        vector["checkpoints"],
        [[*key, base64.b64decode(data)] for *key, data in vector.get("sealed_originals", [])],
        vector.get("policies", []),
    )


def made(version, directory):
    """The like for any version: decisions with every field it has, by today's program."""
    log = TestLog(directory)
    values = {"text": "x", "int": 7, "time": 1_700_000_000_000_000, "bool": True, "texts": ["x"]}
    ours = (
        "origin index sealed_at writer writer_seq prev kind schema event sealed decided_by".split()
    )
    told = [f for f in FIELDS if f.since <= RECORDS[version] and f.name not in ours]
    decision = {f.name: values[f.type] for f in told} | {"kind": "decision", "schema": version}
    log.append(log.written([decision | {"decision_id": f"d{n}"} for n in range(20)]))
    batch = log.log.seal(100)
    records = [json.loads(leaf) for leaf in batch.leaves]
    tiles = [[SIGNER.name, t.level, t.index, len(t.hashes), t.data] for t in batch.tiles]
    log.end()
    return Old(version, records, tiles, [[SIGNER.name, len(records), batch.note]])


def run(client, version, until=None):
    """The statements of a migration, or the first few."""
    for statement in migrations.MIGRATIONS[version - 1](PLAIN)[:until]:
        client.execute(statement)


@pytest.fixture
def client(database):
    with connect(database) as client:
        yield client


@pytest.fixture(params=OLDER, ids=lambda version: f"schema {version}")
def old(request, client, tmp_path):
    """A database as each older version left it, with what stands in it."""
    for version in range(1, request.param + 1):
        run(client, version)
    found = made(request.param, tmp_path / "old")
    found.store(client)
    return found


@pytest.fixture(params=sorted(VECTORS), ids=lambda version: f"vector {version}")
def vector(request, client):
    """A database as a program of its time made it, statement by statement, and filled it."""
    for statement in VECTORS[request.param]["statements"]:
        client.execute(statement)
    client.execute(migrations.MIGRATIONS[0](PLAIN)[-1])
    found = stored(request.param)
    found.store(client)
    return found


def structure(client):
    """Tables and columns, with types, keys, codecs and indexes."""
    here = "database = currentDatabase()"
    columns = client.execute(
        "SELECT table, name, type, position, compression_codec, default_expression,"
        f" is_in_sorting_key FROM system.columns WHERE {here} ORDER BY table, position"
    )
    tables = client.execute(
        "SELECT name, engine, partition_key, sorting_key, replaceAll(as_select,"
        f" currentDatabase(), '') FROM system.tables WHERE {here} ORDER BY name"
    )
    indexes = client.execute(
        "SELECT table, name, type_full, expr, granularity FROM system.data_skipping_indices"
        f" WHERE {here} ORDER BY table, name"
    )
    return columns, tables, indexes


@pytest.fixture
def fresh(clickhouse):
    """The structure of a database that only this version made."""
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE fresh")
        try:
            with connect(clickhouse.store.rpartition("/")[0] + "/fresh") as client:
                migrations.migrate(client)
                yield structure(client)
        finally:
            admin.execute("DROP DATABASE fresh")


def test_every_version_has_its_vector():
    """Whoever adds a migration keeps what the version before it stored."""
    assert set(VECTORS) == set(OLDER)


def test_vectors_verify(vector, client):
    """After the migration every leaf of an old log is rebuilt as it was hashed, and what was kept
    beside it is what the records name."""
    assert migrations.migrate(client) == list(range(vector.version + 1, migrations.VERSION + 1))
    report = verify_store(client, TRUST)
    assert report.findings == []
    assert report.records == len(vector.records) > 0
    assert report.decisions == sum(one["kind"] == "decision" for one in vector.records)


@pytest.mark.thorough
def test_any_older_version_verifies(old, client, fresh):
    """From each version on: rows stay what they were, and the structure becomes a fresh one's."""
    assert migrations.migrate(client) == list(range(old.version + 1, migrations.VERSION + 1))
    report = verify_store(client, TRUST)
    assert report.findings == []
    assert report.records == len(old.records)
    assert structure(client) == fresh


def test_vectors_become_alike(vector, client, fresh):
    """So does that of a database that a program of the time made, its columns in the same order."""
    migrations.migrate(client)
    assert structure(client) == fresh


@pytest.mark.thorough
def test_log_goes_on(vector, client, database, tmp_path):
    """The receiver's next records, of the new schema, follow the old ones in the same log, and the
    views show what is new in them."""
    tree = Tree()
    tree.append(leaf_hash(canonical(record)) for record in vector.records)
    state = State(tree, vector.records[-1]["sealed_at"])
    (tmp_path / "state.json").write_bytes(state.to_json())
    log = TestLog(tmp_path, database, start=tree.size)
    sealed = hashlib.sha256(b"x").hexdigest()
    decision = {"kind": "decision", "decision_id": "d", "sealed": sealed}
    log.append_entries(log.written_entries([(decision, b"x")]))
    log.append([{"kind": "access", "decision_id": "e", "decided_by": "somebody"}])
    log.seal()
    log.end()
    for view, column, value in (
        ("decisions", "sealed", sealed),
        ("requests", "sealed", sealed),
        ("accesses", "decided_by", "somebody"),
        ("requests", "decided_by", "somebody"),
    ):
        query = f"SELECT {column} FROM {view} WHERE index >= {tree.size} AND {column} != ''"
        assert client.execute(query) == [(value,)], view
    report = verify_store(client, TRUST)
    assert report.findings == []
    assert report.records == tree.size + 2


@pytest.mark.thorough
def test_views_show_every_field(old, client):
    """Each view of a migrated database has all columns of the record, in order; requests also have
    whom their answers disclosed."""
    migrations.migrate(client)
    for view in (*migrations._KINDS, "requests"):
        columns = [name for name, *_ in client.execute(f"DESCRIBE {view}")]
        more = ["disclosed"] if view == "requests" else []
        assert columns == [*(field.name for field in FIELDS), *more], view


@pytest.mark.thorough
@pytest.mark.parametrize("version", range(1, migrations.VERSION + 1))
def test_interrupted_anywhere(client, tmp_path, version):
    """A migration that was cut off after any of its statements is repeated without harm to the
    rows, by hand from its beginning or by `migrate`."""
    for number in range(1, version):
        run(client, number)
    if version > 1:
        made(version - 1, tmp_path).store(client)
    for cut in range(len(migrations.MIGRATIONS[version - 1](PLAIN)) + 1):
        run(client, version, cut)
    assert migrations.migrate(client) == list(range(version, migrations.VERSION + 1))
    assert migrations.migrate(client) == []
    if version > 1:
        report = verify_store(client, TRUST)
        assert (report.findings, report.records) == ([], 20)


def test_repeated_migrations_do_nothing(client, tmp_path, fresh):
    """All migrations once more over a current database with rows leave it as it is."""
    for version in range(1, migrations.VERSION + 1):
        run(client, version)
    made(migrations.VERSION, tmp_path).store(client)
    for version in range(1, migrations.VERSION + 1):
        run(client, version)
    assert structure(client) == fresh
    assert verify_store(client, TRUST).findings == []


@pytest.mark.thorough
def test_many_at_once(database, clickhouse, fresh):
    """Processes that migrate one database at the same moment all come to its end."""

    def one(_):
        with connect(database) as client:
            return migrations.migrate(client)

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            applied = list(pool.map(one, range(8)))
        assert [] not in applied[:1]
        with connect(database) as client:
            assert structure(client) == fresh
            assert migrations.version(client) == migrations.VERSION
            for (name,) in client.execute("SHOW TABLES"):
                client.execute(f"DROP TABLE {name} SYNC")


def test_newer_is_refused(client):
    """A database of a newer program is left alone, and the mend is said."""
    migrations.migrate(client)
    newer = migrations.VERSION + 1
    client.execute("INSERT INTO schema_versions (version) VALUES", [(newer,)])
    before = structure(client)
    for attempt in (migrations.migrate, migrations.check):
        with pytest.raises(UsageError, match=f"schema {newer}, newer .* upgrade authz"):
            attempt(client)
    assert structure(client) == before


def test_command(database):
    """`authz migrate` says what it did, also as JSON, and does nothing the second time."""
    for applied in (list(range(1, migrations.VERSION + 1)), []):
        command = [sys.executable, "-m", "authz", "migrate", "--store", database, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {
            "version": migrations.VERSION,
            "applied": applied,
            "cluster": None,
        }


def test_old_state_is_read():
    """So is the state of a receiver that an older version left."""
    old = (
        b'{"size": 0, "edge": [], "sealed_at": 7, "writers": {"a": [5, "h"]}, "privacy_key_id": ""}'
    )
    assert State.from_json(old).sealed_at == 7
