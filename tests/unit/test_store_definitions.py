"""A table or view that was put in the place of another is found."""

import pytest
from logs import TRUST, TestLog

from authz.verify import verify_store

LOOK = {"kind": "decision", "decision_id": "d", "allowed": True}


@pytest.fixture
def client(database, tmp_path):
    log = TestLog(tmp_path, database)
    log.append(log.written([log.identity.start_notice(1, "1"), LOOK]))
    log.seal()
    yield log.client
    log.end()


def found(client):
    report = verify_store(client, TRUST)
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.where) for finding in report.findings]


def test_as_made(client):
    """What the migrations made is what verification expects."""
    assert found(client) == []


@pytest.mark.parametrize(
    ("view", "query"),
    [
        ("requests", "SELECT * FROM audit_log WHERE kind = 'access' AND subject != 'me'"),
        ("decisions", "SELECT * FROM audit_log WHERE kind = 'decision' LIMIT 10"),
        ("notices", "SELECT * REPLACE ('' AS details) FROM audit_log WHERE kind = 'notice'"),
    ],
)
def test_view_that_hides(client, view, query):
    """A view that leaves out or changes what it is to show."""
    client.execute(f"CREATE OR REPLACE VIEW {view} AS {query}")
    assert found(client) == [("schema", view)]


def test_view_over_another_table(client):
    """A view over a copy that is not verified."""
    client.execute("CREATE TABLE other AS audit_log")
    client.execute("CREATE OR REPLACE VIEW accesses AS SELECT * FROM other WHERE kind = 'access'")
    assert found(client) == [("schema", "accesses")]


def test_table_for_a_view(client):
    """A table, filled once and never again, in a view's place."""
    client.execute("CREATE TABLE kept ENGINE = MergeTree ORDER BY index AS SELECT * FROM findings")
    client.execute("DROP VIEW findings")
    client.execute("RENAME TABLE kept TO findings")
    assert found(client) == [("schema", "findings")]


@pytest.mark.parametrize("table", ["audit_log", "checkpoints", "tiles", "feed_reasons"])
def test_view_for_a_table(client, table):
    """A view in the table's place, which may show the verifier one thing and others another."""
    client.execute(f"RENAME TABLE {table} TO hidden")
    client.execute(f"CREATE VIEW {table} AS SELECT * FROM hidden")
    assert ("schema", table) in found(client)


def test_feed_of_the_aggregates(client):
    """What feeds the aggregates counts other requests than it says."""
    client.execute("DROP VIEW activity_hourly_feed")
    client.execute(
        "CREATE MATERIALIZED VIEW activity_hourly_feed TO activity_hourly AS"
        " SELECT toStartOfHour(time) AS hour, tenant, subject, resource_type, action, allowed,"
        " count() AS decisions FROM audit_log WHERE kind = 'decision' AND subject != 'me'"
        " GROUP BY hour, tenant, subject, resource_type, action, allowed"
    )
    assert found(client) == [("schema", "activity_hourly_feed")]


def test_computed_column(client):
    """A column that is computed when it is read tells each reader what it likes."""
    client.execute("ALTER TABLE audit_log DROP COLUMN user_agent")
    client.execute("ALTER TABLE audit_log ADD COLUMN user_agent String ALIAS currentUser()")
    assert ("schema", "audit_log") in found(client)
