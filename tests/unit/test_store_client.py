"""Connections to ClickHouse."""

import pytest
from clickhouse_driver.defines import DEFAULT_PORT

from authz.store.client import connect


@pytest.mark.parametrize(
    ("url", "compressed"),
    [
        ("clickhouse://u:p@db.example:9000/audit", True),
        ("clickhouse://u:p@db.example/audit?secure=true", True),
        ("clickhouse://u:p@db.example/audit?compression=0", False),
        ("clickhouse://u:p@127.0.0.1:9000/audit", False),
        ("clickhouse://localhost", False),
        ("clickhouse://127.0.0.1/audit?compression=lz4", True),
    ],
)
def test_compressed_over_a_network(url, compressed):
    """What leaves the machine is compressed, unless the URL says otherwise."""
    connection = connect(url).connection
    assert bool(connection.compression) is compressed
    assert connection.hosts[0][1] in (DEFAULT_PORT, 9440)


def test_compressed_rows_are_the_same(clickhouse):
    """Rows come back as they went, over a compressed connection to a real server."""
    with connect(clickhouse.store + "?compression=lz4") as client:
        assert client.connection.compression
        text = [("x" * 100_000,), ("\0\n\u00e9",)]
        client.execute("CREATE TEMPORARY TABLE t (x String)")
        client.execute("INSERT INTO t (x) VALUES", text)
        assert sorted(client.execute("SELECT x FROM t")) == sorted(text)
