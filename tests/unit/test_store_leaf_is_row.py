"""Leaf and row are the same information, through a real ClickHouse."""

from random import Random

import pytest
from hostile import TEXTS, hostile
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


@pytest.mark.thorough
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_rows_give_the_same_leaves(client, seed):
    """Whatever a record holds, the leaf rebuilt from the columns is the one that was hashed."""
    client.execute("TRUNCATE TABLE audit_log")
    random = Random(seed)
    records = [{**hostile(random), "origin": "o", "index": index} for index in range(400)]
    rows.insert(client, [canonical(record) for record in records])
    read = list(rows.read(client, "audit_log", "o", 0, len(records)))
    assert [canonical(record) for record in read] == [canonical(record) for record in records]


ESCAPES = st.text(
    st.sampled_from('\\/u0000bBeEfF"nx\x0b\x0e\x1b\x1f\x01\x7f\u2028\u2029é'), max_size=24
)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.lists(st.one_of(TEXTS, ESCAPES), min_size=100, max_size=100))
def test_the_database_writes_the_leaves(client, seed, texts):
    r"""It writes them byte for byte as they were hashed: text that looks like an escape
    (``\u000B``, five letters after a backslash) stays apart from what is escaped so."""
    client.execute("TRUNCATE TABLE audit_log")
    random = Random(seed)
    records = [{**hostile(random), "origin": "o", "index": index} for index in range(20)]
    records += [{"origin": "o", "subject": one, "roles": [one, "", one], "index": index}
                for index, one in enumerate(texts, 20)]  # fmt: skip
    sealed = [canonical(record) for record in records]
    rows.insert(client, sealed)
    indexes, written = rows.leaves(client, "o", 0, len(records))
    assert list(indexes) == list(range(len(records)))
    assert list(written) == sealed


@pytest.mark.parametrize(
    ("sealed", "there"),
    [("\\u000b", "\\u000B"), ("\x0b", "\\u000b"), ("\\u000b", "\x0b"), ("\u2028", "\\u2028"),
     ("/", "\\/"), ("\\/", "/"), ("\x01", "\\"), ("\ufffd", b"\xff"), ("\ufffd", b"\xed\xa0\x80")],
)  # fmt: skip
def test_no_text_is_written_as_another(client, sealed, there):
    """A value that somebody changed gives another leaf, however alike the two are when escaped."""
    made = there if isinstance(there, bytes) else there.encode()
    client.execute(
        "INSERT INTO audit_log (origin, index, subject) SELECT 'o', 1, unhex(%(hex)s)",
        {"hex": made.hex()},
    )
    _, [written] = rows.leaves(client, "o", 0, 2)
    assert written != canonical({"origin": "o", "index": 1, "subject": sealed})


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
