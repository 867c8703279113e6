"""The users of deploy/clickhouse by SQL, made by the page's own commands, and what quotas stop.

No ClickHouse that a test can have keeps users that are made by SQL: the wheel's keeps them in files
alone, Debian's is older than roles. So this one has those of the files, which have the same names:
then each statement finds what it names, and all that is left is to write.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from clickhouse_client import statements
from clickhouse_driver.errors import ServerException
from programs import CHECKOUT
from rights import HERE, as_user, names, users

from authz.store import embedded
from authz.store.client import connect

SINGLE = "10-authz.xml"
TENANT = "30-authz-tenant.xml"
FILES = (SINGLE, "20-authz-cluster.xml", TENANT, "40-authz-tenant-cluster.xml")
# An administrator who may change what profiles say, as on a server of its own.
FREE = '<profiles><default><constraints remove="1"/></default></profiles>'
# Less than in the files, for the sake of time; and for years, so that no hour ends in a test.
LESS = {
    "<queries>20000<": "<queries>20<",
    "<errors>1000<": "<errors>5<",
    "<execution_time>3600<": "<execution_time>1<",
    "<duration>3600<": "<duration>1000000000<",
}
# ClickHouse counts no query that asks nothing of a table.
ASKED = "SELECT count() FROM system.databases"
REFUSED = 201


def blocks(heading):
    """The commands under a heading of the page."""
    section = (HERE / "README.md").read_text().partition(f"\n## {heading}\n")[2]
    section = section.partition("\n## ")[0]
    return re.findall(r"^```text\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With users as files, and a second tenant's by the page's command."""
    home = tmp_path_factory.mktemp("clickhouse")
    with users(home, *FILES), pytest.MonkeyPatch.context() as patch:
        place = home / "users.d"
        (place / "free.xml").write_text(f"<clickhouse>{FREE}</clickhouse>")
        for file in (SINGLE, TENANT):
            text = (place / file).read_text()
            for old, new in LESS.items():
                assert old in text
                text = text.replace(old, new)
            (place / file).write_text(text)
        subprocess.run(["sh", "-euc", blocks("A tenant's reader")[1]], check=True, cwd=place)
        patch.setenv("AUTHZ_READER_HILLSIDE_SHA256", sha256("reader_hillside"))
        started = embedded.start(home)
    yield started
    started.stop()


@pytest.fixture
def shell(server, tmp_path):
    """Runs a command in a copy of deploy/clickhouse as the administrator, who is `named` in the
    environment or by the command."""
    client = tmp_path / "bin" / "clickhouse-client"
    client.parent.mkdir()
    program = CHECKOUT / "tests" / "clickhouse_client.py"
    client.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    client.chmod(0o755)
    shutil.copytree(HERE, tmp_path / "clickhouse")
    admin = urlsplit(server.store)
    environment = {
        "PATH": f"{client.parent}:/usr/bin:/bin", "CLICKHOUSE_PASSWORD": admin.password,
        "HOST": admin.hostname, "PORT": str(admin.port),
    }  # fmt: skip

    def run(command, place=".", named=True, **more):
        if named:
            more |= {"CLICKHOUSE_HOST": admin.hostname, "CLICKHOUSE_PORT": str(admin.port)}
            more |= {"CLICKHOUSE_USER": admin.username}
        return subprocess.run(
            ["sh", "-euc", command], cwd=tmp_path / "clickhouse" / place, env=environment | more,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def taken(done, *files):
    """The users that would have been made, when that is all that was refused of these files."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(len(statements(HERE / "sql" / file)) for file in files)
    return {line.split("`")[1] for line in lines if line.startswith("insert user ")}


def logged(server, *texts):
    """Whether one of these is in ClickHouse's own log of queries."""
    with connect(server.store) as admin:
        admin.execute("SYSTEM FLUSH LOGS")
        query = (
            "SELECT count() > 0 FROM system.query_log WHERE query NOT LIKE '%%multiSearchAny%%'"
            " AND multiSearchAny(concat(query, exception), %(texts)s)"
        )
        return admin.execute(query, {"texts": list(texts)}) == [(1,)]


def test_the_pages_commands(server, shell):
    """Each statement is taken, by a database that they made, and the log of queries has no hash."""
    (block,) = blocks("Users by SQL")
    commands = re.sub(r"^authz migrate .*\n", "", block, flags=re.MULTILINE)
    hashes = {name.upper(): sha256(name) for name in names(SINGLE) if name != "receiver"}
    with connect(server.store.replace("/authz", "/default")) as admin:
        admin.execute("DROP DATABASE authz")
        done = shell(commands, **hashes)
        assert admin.execute("EXISTS DATABASE authz") == [(1,)]
    assert taken(done, "roles.sql", "limits.sql", "users.sql") == set(names(SINGLE))
    assert logged(server, "CREATE USER IF NOT EXISTS reader ")
    assert not logged(server, *hashes.values())


def test_a_tenants_commands(shell):
    done = shell(blocks("A tenant's reader")[0], "sql", HILLSIDE=sha256("reader_hillside"))
    assert taken(done, "tenant.sql") == {"reader_hillside"}
    assert "insert row policy `reader_hillside ON authz.audit_log`\n" in done.stdout


def test_a_clusters_statements(shell):
    """The same of what a database that was made for a cluster wants besides."""
    files = ("cluster.sql", "tenant-cluster.sql")
    done = shell(
        f"clickhouse-client --database authz --queries-file {' '.join(files)}"
        f" --param_reader_lakeside {sha256('reader_lakeside')}",
        "sql",
    )
    assert taken(done, *files) == {"reader_lakeside"}


def test_users_script(server, shell, tmp_path):
    """It takes the passwords out of their files, and the client's options from its line."""
    passwords = tmp_path / "passwords"
    passwords.mkdir()
    for name in names(SINGLE):
        (passwords / f"{name}.password").write_text(f"{name}\n")
    command = f'./users.sh {passwords} --host "$HOST" --port "$PORT" --user admin'
    done = shell(command, named=False)
    assert taken(done, "roles.sql", "limits.sql", "users.sql") == set(names(SINGLE))
    assert not logged(server, *map(sha256, names(SINGLE)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"migrator": "its-password"}, "Cannot read password hash in hex"),
        ({"migrator": ""}, "has length 0"),
        ({"receiver": "its-password"}, "Substitution `migrator` is not set"),
    ],
)
def test_no_user_without_a_hash(server, given, says):
    """A password in the place of its hash makes no user, and is not in the log of queries."""
    statement = statements(HERE / "sql" / "users.sql")[0]
    store = f"{server.store}?server_side_params=1"
    with connect(store) as admin, pytest.raises(ServerException, match=says):
        admin.execute(statement, given)
    assert not logged(server, "its-password")


def answers(server, user, query, times):
    """The codes of the errors that a user's query is answered with, 0 for none; each time over a
    connection of its own."""
    codes = []
    for _ in range(times):
        with connect(as_user(server.store, user)) as client:
            try:
                client.execute(query)
            except ServerException as error:
                codes.append(error.code)
            else:
                codes.append(0)
    return codes


def usage(server, user, *columns):
    """What the server says of a user's quota."""
    with connect(server.store) as admin:
        query = f"SELECT {', '.join(columns)} FROM system.quotas_usage WHERE quota_key = %(user)s"
        [row] = admin.execute(query, {"user": user})
    return row


def test_so_many_queries(server):
    """Grafana has so many, over all connections, and then none; nobody else pays for it."""
    assert answers(server, "grafana", ASKED, 22) == [0] * 20 + [REFUSED] * 2
    queries, most = usage(server, "grafana", "queries", "max_queries")
    assert queries > most == 20
    assert answers(server, "reader", ASKED, 1) == [0]


def test_so_many_errors(server):
    """After so many errors of a tenant's, what would be answered is refused too."""
    assert answers(server, "reader_lakeside", ASKED, 1) == [0]
    assert answers(server, "reader_lakeside", "SELECT nothing FROM nowhere", 6) == [60] * 6
    assert answers(server, "reader_lakeside", ASKED, 1) == [REFUSED]
    errors, most = usage(server, "reader_lakeside", "errors", "max_errors")
    assert errors > most == 5


def test_so_much_time(server):
    """A tenant's rows may take so long in all, and the answer that is over that is broken off. Of
    one that has a single block ClickHouse counts no time: what bounds that is the profile."""
    with connect(server.store) as admin:
        columns = "(tenant String) ENGINE = MergeTree ORDER BY () SETTINGS index_granularity = 10"
        admin.execute(f"CREATE TABLE audit_log {columns}")
        admin.execute("INSERT INTO audit_log SELECT 'hillside' FROM numbers(70)")
    slow = "sleepEachRow(0.01) FROM audit_log SETTINGS max_block_size = 10"
    summed = slow.replace("sleepEachRow(0.01)", "sum(sleepEachRow(0.01))")
    assert answers(server, "reader_hillside", f"SELECT {summed}", 2) == [0, 0]
    assert answers(server, "reader_hillside", f"SELECT {slow}", 3) == [0, REFUSED, REFUSED]
    seconds, most = usage(server, "reader_hillside", "execution_time", "max_execution_time")
    assert seconds > most == 1


def test_others_are_counted(server):
    """Nothing refuses those who must not be stopped, and what they asked is counted."""
    assert answers(server, "receiver", ASKED, 30) == [0] * 30
    queries, *bounds = usage(
        server, "receiver", "queries", "max_queries", "max_errors", "max_execution_time"
    )
    assert (queries >= 30, bounds) == (True, [None] * 3)
