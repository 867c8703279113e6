"""`authz doctor --clickhouse` on a real ClickHouse with the users and logs that we ship, and with
each of them made wrong."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import until
from rights import HERE, as_user, authz, shipped, users

from authz.doctor.database import RIGHTS, TTLS
from authz.store import embedded
from authz.store.client import connect

# A user for each right that is too much, and for each setting that keeps queries out of the log.
WIDE = {
    "deleter": "ALTER DELETE ON authz.audit_log",
    "inserter": "INSERT ON authz.checkpoints",
    "emptier": "TRUNCATE ON authz.*",
    "forgetter": "DROP TABLE ON system.query_log",
    "expirer": "ALTER TTL ON authz.tiles",
    "maker": "CREATE USER ON *.*",
    "actor": "IMPERSONATE ON admin",
    "giver": "ROLE ADMIN ON *.*",
    "sharer": "SELECT ON authz.audit_log WITH GRANT OPTION",
}
QUIET = {
    "off": "<log_queries>0</log_queries>",
    "seldom": "<log_queries_probability>0</log_queries_probability>",
    "slow": "<log_queries_min_query_duration_ms>5000</log_queries_min_query_duration_ms>",
    "errors": "<log_queries_min_type>EXCEPTION_BEFORE_START</log_queries_min_type>",
}
# A role of ours that grew.
GREW = "authz_feeds_cluster"


def others(*, but: str = "") -> list[str]:
    """Whoever else has a fault here, as if they were administrators."""
    names = {*WIDE, *QUIET, GREW} - {but}
    return [word for name in sorted(names) for word in ("--administrator", name)]


def faulty() -> str:
    """Users and profiles, as ClickHouse's file has them."""
    users = "".join(
        f"<{name}><password>x</password><profile>authz_logged</profile>"
        f"<grants><query>GRANT {right}</query></grants></{name}>"
        for name, right in WIDE.items()
    )
    users += "".join(
        f"<{name}><password>x</password><profile>{name}</profile>"
        f"<grants><query>GRANT SELECT ON authz.audit_log</query></grants></{name}>"
        for name in QUIET
    )
    profiles = "".join(f"<{name}>{setting}</{name}>" for name, setting in QUIET.items())
    grants = "".join(
        f"<query>GRANT {right}</query>"
        for right in ("INSERT ON authz.feed_people", "ALTER UPDATE ON authz.audit_log")
    )
    role = f"<{GREW}><grants>{grants}</grants></{GREW}>"
    return (
        f"<clickhouse><users>{users}</users><profiles>{profiles}</profiles>"
        f"<roles>{role}</roles></clickhouse>"
    )


@dataclass(frozen=True)
class Database:
    store: str

    def do(self, *statements: str) -> None:
        with connect(self.store) as client:
            for statement in statements:
                client.execute(statement)

    def look(self, *, but: str = "", user: str = "") -> tuple[int, list[dict[str, str]]]:
        """The exit code, and what is not well."""
        store = as_user(self.store, user) if user else self.store
        line = ("doctor", "--clickhouse", "--json", *others(but=but))
        code, output = authz({"AUTHZ_STORE": store}, *line)
        assert code in {0, 1, 3}, output
        return code, [one for one in json.loads(output)["findings"] if one["level"] != "ok"]

    def finds(self, level: str, words: str, *, but: str = "") -> dict[str, str]:
        """The one thing that is found to be wrong."""
        code, [finding] = self.look(but=but)
        assert (code, finding["level"]) == (1, level)
        assert words in finding["seen"], finding
        assert finding["why"]
        assert finding["mend"]
        return finding


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[Database]:
    home: Path = tmp_path_factory.mktemp("doctor")
    shipped(home, "logs.xml")
    with users(home, "10-authz.xml"):
        (home / "users.d" / "90-faulty.xml").write_text(faulty())
        server = embedded.start(home)
    try:
        assert authz({"AUTHZ_STORE": server.store}, "migrate")[0] == 0
        found = Database(server.store)
        found.do("SYSTEM FLUSH LOGS")
        yield found
    finally:
        server.stop()


def test_as_shipped(database):
    """With the users and the logs that we ship, nothing is to be mended."""
    assert database.look() == (0, [])


def test_the_page_has_the_same_queries():
    """What deploy/clickhouse/README.md shows is what is asked."""
    text = (HERE / "README.md").read_text()
    rights, _, goes = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert (rights, goes) == (RIGHTS.lstrip(), TTLS.lstrip())


@pytest.mark.thorough
@pytest.mark.parametrize("user", WIDE)
def test_rights_too_wide(database, user):
    """Whoever could change, remove or invent records is named, unless an administrator."""
    right = WIDE[user].partition(" ON ")[0]
    finding = database.finds("fail", f"{user} may {right}", but=user)
    assert f"REVOKE them from {user}" in finding["mend"]


def test_a_role_of_ours_that_grew(database):
    """authz's own roles may what they are for, and are named for anything beyond."""
    finding = database.finds("fail", f"{GREW} may ALTER UPDATE on authz.audit_log", but=GREW)
    assert "INSERT" not in finding["seen"]


def test_records_that_go_by_themselves(database):
    """A TTL on what must stay."""
    database.do("ALTER TABLE audit_log MODIFY TTL toDateTime(sealed_at) + INTERVAL 90 YEAR")
    try:
        assert "REMOVE TTL" in database.finds("fail", "audit_log has a TTL")["mend"]
    finally:
        database.do("ALTER TABLE audit_log REMOVE TTL")


@pytest.mark.parametrize(
    ("log", "change", "words"),
    [
        ("query_log", "MODIFY TTL event_date + INTERVAL 1 DAY", "query_log keeps 1 days"),
        ("query_log", "REMOVE TTL", "query_log has no TTL"),
        ("session_log", "MODIFY TTL event_date + INTERVAL 1 YEAR", "session_log keeps 365 days"),
    ],
)
def test_logs_of_the_server(database, log, change, words):
    """Its logs go too soon, or name people for ever."""
    right = {"query_log": "30 DAY", "session_log": "6 YEAR"}[log]
    database.do(f"ALTER TABLE system.{log} {change}")
    try:
        database.finds("warn", words)
    finally:
        database.do(f"ALTER TABLE system.{log} MODIFY TTL event_date + INTERVAL {right}")


def test_no_log_of_queries(database):
    """ClickHouse makes it anew when it next writes; until then there is none."""

    def missing() -> bool:
        database.do("DROP TABLE IF EXISTS system.query_log SYNC")
        _, found = database.look()
        return [one["seen"] for one in found] == ["there is no system.query_log"]

    assert until(missing, 60)
    database.do("SYSTEM FLUSH LOGS")
    assert database.look() == (0, [])


@pytest.mark.parametrize("user", QUIET)
def test_who_can_leave_the_log_of_queries(database, user):
    """A setting of a user's own that takes queries out of the log."""
    database.finds("warn", f"keep queries out of the log of queries: {user}", but=user)


def test_records_dropped_early(database):
    """A rule shorter than six years is told with the reason that was given for it."""
    details = json.dumps({"override": "trial, closed by contract"})
    database.do(
        f"INSERT INTO audit_log (kind, event, details) VALUES ('notice', 'expired', '{details}')"
    )
    try:
        database.finds("warn", "trial, closed by contract")
    finally:
        database.do("ALTER TABLE audit_log DELETE WHERE 1 SETTINGS mutations_sync = 2")


def test_a_receivers_clock(database):
    """A log sealed at a time that is still to come."""
    database.do(
        "INSERT INTO audit_log (kind, origin, sealed_at) VALUES ('notice', 'r', now() + 90)"
    )
    try:
        finding = database.finds("fail", "s ahead of ClickHouse's")
        assert finding["part"].endswith("log r")
    finally:
        database.do("ALTER TABLE audit_log DELETE WHERE 1 SETTINGS mutations_sync = 2")


def test_who_may_not_see(database):
    """A reader sees no rights of others: that is no verdict, and what it sees is told."""
    code, [finding] = database.look(user="reader")
    assert (code, finding["level"]) == (3, "unknown")
    assert "administrator" in finding["seen"]


def test_nobody_there():
    """A database that is away is said once."""
    code, [finding] = Database("clickhouse://u:p@127.0.0.1:9/x").look()
    assert (code, finding["level"]) == (3, "unknown")
    assert "does not answer" in finding["seen"]
