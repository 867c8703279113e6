"""Leaf and row are the same information, through a real ClickHouse."""

from random import Random

import pytest
from hostile import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.record import canonical
from authz.store import migrations, rows
from authz.store.client import connect


@pytest.fixture
def client(database):
    with connect(database) as client:
        migrations.migrate(client)
        yield client


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_rows_give_the_same_leaves(client, seed):
    """Whatever a record holds, the leaf rebuilt from the columns is the one that was hashed."""
    client.execute("TRUNCATE TABLE audit_log")
    random = Random(seed)
    records = [{**hostile(random), "origin": "o", "index": index} for index in range(400)]
    rows.insert(client, [canonical(record) for record in records])
    read = list(rows.read(client, "audit_log", "o", 0, len(records)))
    assert [canonical(record) for record in read] == [canonical(record) for record in records]


def test_rows_that_are_not_text(client):
    """Bytes that are no UTF-8, which nothing of ours writes, are read escaped and break nothing."""
    client.execute(
        "INSERT INTO audit_log (origin, index, subject, roles)"
        " SELECT 'o', 0, unhex('61ff62'), [unhex('fe')]"
    )
    [record] = rows.read(client, "audit_log", "o", 0, 1)
    assert record == {"origin": "o", "subject": "a\\xffb", "roles": ["\\xfe"]}


def test_migrations_repeat(client):
    """Migrating again does nothing, and says so."""
    assert migrations.version(client) == migrations.VERSION
    assert migrations.migrate(client) == []
