"""The users of deploy/clickhouse: each process's own commands run as them, each right is needed for
that, and none can do more."""

import re

import pytest
from clickhouse_driver.errors import ServerException
from clickhouse_house import FILES, TENANTS, WHY, house
from rights import HERE, as_user, names, told_by_server, told_in_sql

from authz.store.client import connect

pytestmark = pytest.mark.thorough

__all__ = ["house"]  # the fixture

USERS = names(*FILES)
# By readonly, allow_ddl, a constraint; for want of a right, of a role.
REFUSED = {164, 392, 452, 497, 512}

LOG = {"audit_log", "accesses", "decisions", "disclosures", "findings", "notices", "requests"}
LOG |= {"checkpoints", "schema_versions"}
PROOF = {"tiles", "policies", "sealed_originals"}
USUAL = {"activity_hourly", "baseline_daily", "baselines"}
REASONS = {"feed_loads", "feed_people", "feed_reasons"}
STORED = {"audit_log", "checkpoints", "policies", "sealed_originals", "leases"}
FEEDS = REASONS | {"feed_patients"}
# What each user may read, and where it may insert: the table of docs/clickhouse.md.
READS = {
    "receiver": STORED | {"schema_versions"},
    "reader": LOG | PROOF | USUAL | REASONS,
    "auditor": LOG | PROOF,
    "watch": LOG | FEEDS,
    "feeds": FEEDS | {"schema_versions"},
    "grafana": LOG | USUAL,
    "retention": LOG | PROOF,
    "migrator": {"audit_log", "activity_hourly", "baseline_daily", "schema_versions"},
    "backup": set(),
    "reader_lakeside": LOG | USUAL | {"tiles", "feed_loads"},
}
INSERTS = {
    "receiver": STORED | {"tiles"},
    "feeds": FEEDS,
    "retention": {"audit_log", "sealed_originals"},
    "migrator": {"activity_hourly", "baseline_daily", "schema_versions"},
}
SYSTEM = {
    "receiver": {"processes"},  # of its own queries: a row policy
    "reader": {"detached_parts", "parts"},
    "auditor": {"detached_parts"},
    "retention": {"detached_parts"},
    "grafana": {"parts"},
    "watch": {"query_log"},
}
# What is tried besides, and who may.
TRIED = {
    "ALTER TABLE audit_log UPDATE subject = 'nobody' WHERE 1": (),
    "ALTER TABLE audit_log DELETE WHERE 0": ("retention",),
    "ALTER TABLE audit_log DROP PARTITION 190001": ("retention",),
    "ALTER TABLE audit_log DETACH PARTITION 190001": ("retention",),
    "ALTER TABLE audit_log MODIFY TTL toDateTime(sealed_at) + INTERVAL 1 DAY": (),
    "ALTER TABLE audit_log DROP COLUMN subject": (),
    "ALTER TABLE audit_log MODIFY COLUMN subject String ALIAS 'nobody'": (),
    "ALTER TABLE checkpoints DELETE WHERE 1": (),
    "ALTER TABLE tiles UPDATE data = '' WHERE 1": (),
    "TRUNCATE TABLE audit_log": (),
    "DROP TABLE audit_log": (),
    "DROP DATABASE authz": (),
    "DETACH TABLE audit_log": (),
    "RENAME TABLE audit_log TO other": (),
    "EXCHANGE TABLES audit_log AND tiles": (),
    "OPTIMIZE TABLE audit_log": (),
    "CREATE TABLE other (a UInt8) ENGINE = Memory": (),
    "CREATE TABLE other_rows (a UInt8) ENGINE = MergeTree ORDER BY a": ("migrator",),
    "CREATE TABLE expiring_other (a UInt8) ENGINE = Memory": (),
    "CREATE TABLE other ENGINE = File(TSV)": (),
    "CREATE OR REPLACE VIEW other_view AS SELECT 1": ("migrator",),
    "CREATE MATERIALIZED VIEW other_feed ENGINE = Memory AS SELECT * FROM audit_log": (),
    "CREATE TEMPORARY TABLE other (a UInt8)": (),
    "CREATE DATABASE other": (),
    "CREATE DICTIONARY other (a UInt64) PRIMARY KEY a SOURCE(NULL()) LAYOUT(FLAT())": (),
    "CREATE FUNCTION other AS a -> a": (),
    "CREATE NAMED COLLECTION other AS a = 1": (),
    "CREATE USER other": (),
    "CREATE ROLE other": (),
    "CREATE ROW POLICY other ON audit_log USING 1 TO ALL": (),
    "GRANT SELECT ON authz.* TO authz_backup": (),
    "GRANT authz_receiver TO backup": (),
    "SET ROLE authz_migrator": ("migrator",),
    "SHOW ACCESS": (),
    "SYSTEM SHUTDOWN": (),
    "SYSTEM STOP MERGES audit_log": (),
    "SYSTEM FLUSH LOGS": (),
    "BACKUP TABLE system.users TO File('stolen')": (),
    "BACKUP DATABASE authz TO File('/tmp/stolen')": (),
    "RESTORE TABLE audit_log AS other FROM File('stolen')": (),
    "SELECT * FROM file('/etc/passwd', LineAsString)": (),
    "INSERT INTO FUNCTION file('/tmp/stolen', TSV, 'a String') SELECT 'a'": (),
    "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)": (),
    "INSERT INTO FUNCTION url('http://127.0.0.1:1/', TSV, 'a String') SELECT 'a'": (),
    "SELECT * FROM s3('http://127.0.0.1:1/bucket/key', CSV, 'a String')": (),
    "SELECT * FROM remote('127.0.0.1', system, one)": (),
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')": (),
    "SELECT * FROM executable('other', TSV, 'a String')": (),
    "SELECT addressToLine(1)": (),
}  # fmt: skip


def granted(admin):
    """Each right of the roles that our users have: (role, right, of what). What is a whole database
    ends with a dot."""
    of = "if(access_object != '', access_object, concat(database, '.', ifNull(table, '')))"
    query = "SELECT role_name, toString(access_type), %s FROM system.grants WHERE role_name LIKE"
    return set(admin.execute(query % of + " 'authz\\_%%'"))


def used(admin, users, until_us):
    """The rights that the queries of `users` have needed until then: (right, of what)."""
    admin.execute("SYSTEM FLUSH LOGS")
    found = admin.execute(
        "SELECT DISTINCT arrayJoin(used_privileges) FROM system.query_log WHERE user IN %(users)s"
        " AND toUnixTimestamp64Micro(event_time_microseconds) <= %(until)s",
        {"users": users, "until": until_us},
    )
    rights = set()
    for (text,) in found:
        names, _, what = re.sub(r"\([^)]*\)", "", text).partition(" ON ")
        rights |= {(name, what) for name in names.split(", ")}
    return rights


def test_the_commands_as_their_users(house):
    """What the processes and commands do is done, and nothing that they ask was refused."""
    with connect(house.store) as admin:
        admin.execute("SYSTEM FLUSH LOGS")
        refused = admin.execute(
            "SELECT user, query, exception FROM system.query_log WHERE exception_code = 497"
            " AND user IN %(users)s"
            " AND toUnixTimestamp64Micro(event_time_microseconds) <= %(until)s",
            {"users": USERS, "until": house.done_us},
        )
    assert refused == []


def test_every_right_is_needed(house):
    """No role has a right that none of its users' commands needs."""
    with connect(house.store) as admin:
        users = dict(
            admin.execute(
                "SELECT granted_role_name, groupArray(user_name) FROM system.role_grants"
                " WHERE isNotNull(user_name) GROUP BY granted_role_name"
            )
        )
        rights = {role: used(admin, users[role], house.done_us) for role in users}
        spare = {
            (role, right, what)
            for role, right, what in granted(admin)
            if not any(right == one and of.startswith(what) for one, of in rights[role])
        }
    assert spare == set()


@pytest.mark.parametrize("user", USERS)
def test_who_reads_what(house, user):
    """Each user reads the tables that it is for, and inserts where it is to, and nowhere else."""
    with connect(house.store) as admin:
        tables = {name for (name,) in admin.execute("SHOW TABLES") if "_feed" not in name}
        columns = {table: admin.execute(f"DESCRIBE {table}")[0][0] for table in tables}
    with connect(as_user(house.store, user)) as client:
        reads = {one for one in tables if may(client, f"SELECT {columns[one]} FROM {one} LIMIT 0")}
        inserts = {
            one for one in tables if may(client, f"INSERT INTO {one} ({columns[one]}) VALUES", [])
        }
        system = ("users", "query_log", "processes", "parts", "detached_parts", "clusters", "disks")
        sees = {one for one in system if may(client, f"SELECT * FROM system.{one} LIMIT 0")}
    assert reads == READS[user]
    assert inserts == INSERTS.get(user, set())
    assert sees == SYSTEM.get(user, set())


def may(client, statement, *values):
    """Whether it is done, or refused for want of a right."""
    try:
        client.execute(statement, *values)
    except ServerException as error:
        if error.code not in REFUSED:
            raise
        return False
    return True


@pytest.mark.parametrize("user", USERS)
def test_nobody_can_do_more(house, user):
    """What is none of a user's business is refused, to every one of them."""
    statements = [one for one, who in TRIED.items() if user not in who]
    with connect(as_user(house.store, user)) as client:
        done = [one for one in statements if may(client, one)]
    assert done == []


def test_who_may_is_not_refused(house):
    """The other half: what stands in the table as somebody's is something that they can do."""
    with connect(house.store) as admin:
        for statement, who in TRIED.items():
            for user in who:
                with connect(as_user(house.store, user)) as client:
                    assert may(client, statement), (user, statement)
        admin.execute("DROP TABLE other_rows SYNC")
        admin.execute("DROP VIEW other_view")


def test_nobody_stops_anothers_query(house):
    """The receiver sees its own queries and no other's, so it can end none but those."""
    with connect(house.store) as admin, connect(as_user(house.store, "receiver")) as client:
        slow = admin.execute_iter(
            "SELECT sleepEachRow(0.1) FROM numbers(10000)", settings={"max_block_size": 1}
        )
        assert next(slow) == (0,)
        assert client.execute("SELECT DISTINCT user FROM system.processes") == [("receiver",)]
        assert client.execute("KILL QUERY WHERE user != 'receiver' SYNC") == []
        assert next(slow) == (0,)


@pytest.mark.parametrize("user", USERS)
def test_limits_stay(house, user):
    """Nobody lifts a limit of the profile that they have, nor takes it for none (0)."""
    with connect(house.store) as admin:
        limits = admin.execute(
            "SELECT setting_name, toUInt64OrZero(ifNull(max, '')) FROM"
            " system.settings_profile_elements WHERE profile_name IN"
            " (SELECT inherit_profile FROM system.settings_profile_elements"
            "  WHERE user_name = %(user)s UNION ALL SELECT 'authz_logged') AND setting_name != ''",
            {"user": user},
        )
    assert {"log_queries", "log_queries_min_type"} < {name for name, _ in limits}
    with connect(as_user(house.store, user)) as client:
        for name, most in limits:
            [(now,)] = client.execute("SELECT getSetting(%(name)s)", {"name": name})
            others = {"'QUERY_FINISH'"} if now == "QUERY_START" else {0, int(most) + 1} - {int(now)}
            for value in others:
                assert not may(client, f"SET {name} = {value}"), (name, value)


def test_one_tenants_reader(house):
    """Sees that tenant's records in the table, in every view and in the aggregates; nothing of
    another tenant, and no record that has none."""
    with connect(house.store) as admin, connect(as_user(house.store, "reader_lakeside")) as client:
        for table in ("audit_log", "activity_hourly", "baseline_daily", *views(admin)):
            tenants = dict(admin.execute(f"SELECT tenant, count() FROM {table} GROUP BY tenant"))
            found = client.execute(f"SELECT tenant, count() FROM {table} GROUP BY tenant")
            if table == "notices":
                assert (set(tenants), found) == ({""}, [])
                continue
            assert set(tenants) == set(TENANTS), table
            assert found == [("lakeside", tenants["lakeside"])], table
        whole = "SELECT count() FROM audit_log"
        assert client.execute(whole) < admin.execute(whole)


def test_one_tenants_reader_by_commands(house):
    """A tenant looks up and proves its own; another's are not there for it."""
    told = ("--data-dir", house.directory / "tenant", *WHY)
    code, output = house.run("reader_lakeside", "lookup", "--patient", "p-hillside", *told)
    assert (code, "dr.hillside" in output) == (1, False), output
    other = (house.place("hillside"), "-o", house.directory / "other")
    code, output = house.run("reader_lakeside", "prove", *other, *told)
    assert (code, "there is no record" in output) == (1, True), output


def views(admin):
    """The views that people query."""
    query = "SELECT name FROM system.tables WHERE database = 'authz' AND engine = 'View'"
    return [name for (name,) in admin.execute(query)]


@pytest.mark.parametrize(
    "trick",
    [
        "SELECT count() FROM audit_log WHERE throwIf(tenant = 'hillside', 'seen') = 0",
        "SELECT count() FROM audit_log PREWHERE throwIf(tenant = 'hillside', 'seen') = 0",
        "SELECT countIf(tenant != 'lakeside') FROM merge('authz', '^(audit_log|decisions)$')",
        "SELECT count() FROM requests WHERE has(disclosed, 'nobody') OR tenant != 'lakeside'",
    ],
)
def test_no_way_around(house, trick):
    """Conditions are asked of a tenant's own records only."""
    with connect(as_user(house.store, "reader_lakeside")) as client:
        [(count,)] = client.execute(trick)
        assert (count > 0) == ("throwIf" in trick)
        assert not may(client, "SELECT count() FROM mergeTreeIndex('authz', 'audit_log')")


def test_others_see_all(house):
    """A tenant's policy takes nothing from anybody else."""
    with connect(house.store) as admin:
        whole = admin.execute("SELECT count() FROM audit_log WHERE tenant != ''")
    for user in ("reader", "auditor", "watch", "grafana", "receiver", "retention"):
        with connect(as_user(house.store, user)) as client:
            assert client.execute("SELECT count() FROM audit_log WHERE tenant != ''") == whole


def test_both_forms_say_the_same(house):
    """What the server has of the files in users.d is what the SQL files say."""
    with connect(house.store) as admin:
        said = told_in_sql(admin, "roles.sql", "limits.sql", "users.sql", "tenant.sql")
        had = told_by_server(admin)
    assert said - had == had - said == set()


def test_the_pages_queries(house):
    """Who can change what must stay is the administrator alone; the log of queries is named."""
    text = (HERE / "README.md").read_text()
    wide, _, goes = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    with connect(house.store) as admin:
        assert {who for who, *_ in admin.execute(wide)} == {"admin"}
        admin.execute("SYSTEM FLUSH LOGS")
        assert admin.execute(goes) == [("system", "query_log", "event_date + toIntervalDay(7)")]


def test_verify_sees_the_definitions(house):
    """The auditor's user reads no aggregate, and sees all the same that something else feeds it."""
    with connect(house.store) as admin:
        [(create,)] = admin.execute("SHOW CREATE TABLE activity_hourly_feed")
        admin.execute("DROP VIEW activity_hourly_feed")
        try:
            admin.execute(create.replace("kind = 'decision'", "kind = 'decision' AND allowed"))
            code, output = house.run("auditor", "verify", "--trust", house.trust, "--json")
        finally:
            admin.execute("DROP VIEW activity_hourly_feed")
            admin.execute(create)
    assert code == 1
    assert "activity_hourly_feed" in output
