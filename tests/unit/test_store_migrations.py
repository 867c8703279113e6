"""A database that an older version made and filled is brought up to date, and still verifies.

tests/vectors/store/schema_1.json is what the last program with schema 1 ran and stored.
"""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from logs import SIGNER, TRUST, TestLog

from authz.ledger import Tree, leaf_hash
from authz.receiver.sequence import State
from authz.record import FIELDS, canonical
from authz.store import migrations
from authz.store.client import connect
from authz.verify import verify_store

VECTORS = Path(__file__).parents[1] / "vectors" / "store"
OLD = json.loads((VECTORS / "schema_1.json").read_text())


@pytest.fixture
def client(database):
    """The database as schema 1 left it."""
    with connect(database) as client:
        for statement in [migrations._VERSIONS, *OLD["statements"]]:
            client.execute(statement)
        client.execute("INSERT INTO schema_versions (version) VALUES", [(1,)])
        names = [field.name for field in FIELDS if field.since == 1]
        assert sorted(names) == sorted(OLD["columns"])
        columns = ", ".join(f"`{name}`" for name in names)
        empty = {"text": "", "int": 0, "time": 0, "bool": False, "texts": []}
        defaults = {field.name: empty[field.type] for field in FIELDS}
        values = [[r.get(name, defaults[name]) for name in names] for r in OLD["records"]]
        client.execute(f"INSERT INTO audit_log ({columns}) VALUES", values)
        tiles = [[*key, base64.b64decode(data)] for *key, data in OLD["tiles"]]
        client.execute("INSERT INTO tiles (origin, level, index, width, data) VALUES", tiles)
        client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", OLD["checkpoints"])
        yield client


def structure(client):
    """Tables and columns, with types, keys and codecs."""
    columns = client.execute(
        "SELECT table, name, type, position, compression_codec, is_in_sorting_key"
        " FROM system.columns WHERE database = currentDatabase() ORDER BY table, position"
    )
    tables = client.execute(
        "SELECT name, engine, partition_key, sorting_key, replaceAll(create_table_query,"
        " currentDatabase(), '') FROM system.tables WHERE database = currentDatabase()"
        " ORDER BY name"
    )
    return columns, [table for table in tables if not table[0].startswith(".inner")]


def test_old_log_verifies(client):
    """After the migration every leaf of the old log is rebuilt as it was hashed."""
    assert migrations.migrate(client) == list(range(2, migrations.VERSION + 1))
    report = verify_store(client, TRUST)
    assert report.findings == []
    assert report.records == len(OLD["records"]) == 26
    assert report.decisions == 12


def test_log_goes_on(client, database, tmp_path):
    """The receiver's next records, of the new schema, follow the old ones in the same log, and the
    views show what is new in them."""
    tree = Tree()
    tree.append(leaf_hash(canonical(record)) for record in OLD["records"])
    state = State(tree, OLD["records"][-1]["sealed_at"])
    (tmp_path / "state.json").write_bytes(state.to_json())
    log = TestLog(tmp_path, database, start=tree.size)
    sealed = hashlib.sha256(b"x").hexdigest()
    decision = {"kind": "decision", "decision_id": "d", "sealed": sealed}
    log.append_entries(log.written_entries([(decision, b"x")]))
    log.seal()
    log.close()
    log.writer_journal.close()
    for view in ("decisions", "requests"):
        query = f"SELECT sealed FROM {view} WHERE index = {tree.size}"
        assert client.execute(query) == [(sealed,)], view
    report = verify_store(client, TRUST)
    assert report.findings == []
    assert report.records == tree.size + 1


def test_old_and_new_databases_are_alike(client, clickhouse):
    """A migrated database has the structure of a fresh one, columns in the same order."""
    migrations.migrate(client)
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE fresh")
        try:
            with connect(clickhouse.store.rpartition("/")[0] + "/fresh") as fresh:
                migrations.migrate(fresh)
                assert structure(client)[0] == structure(fresh)[0]
                [mine, theirs] = [
                    [table[:4] for table in structure(each)[1]] for each in (client, fresh)
                ]
                assert mine == theirs
        finally:
            admin.execute("DROP DATABASE fresh")


@pytest.mark.parametrize("number", range(len(migrations.MIGRATIONS)))
def test_interrupted_anywhere(client, number):
    """A migration that was cut off after any of its statements is repeated without harm."""
    before = migrations.MIGRATIONS[:number]
    for statements in before:
        for statement in statements():
            client.execute(statement)
    for end in range(len(migrations.MIGRATIONS[number]()) + 1):
        for statement in migrations.MIGRATIONS[number]()[:end]:
            client.execute(statement)
    migrations.migrate(client)
    assert migrations.migrate(client) == []
    assert verify_store(client, TRUST).findings == []


def test_old_state_is_read():
    """So is the state of a receiver that an older version left."""
    old = (
        b'{"size": 0, "edge": [], "sealed_at": 7, "writers": {"a": [5, "h"]}, "privacy_key_id": ""}'
    )
    assert State.from_json(old).sealed_at == 7
    assert SIGNER.name == OLD["checkpoints"][0][0]
