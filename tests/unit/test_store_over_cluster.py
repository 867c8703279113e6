"""Each question of the console, of reports, exports and dashboards over two shards as on one
server: of the same records, the same answer."""

import re
from collections import Counter
from dataclasses import replace

import clusters
import pytest
from clusters import SHARDS, OnEach
from logs import SIGNER
from test_grafana import (
    _EMPTY,
    DAY,
    NOW,
    PAGE_QUERIES,
    PANELS,
    RECORDS,
    TOKEN,
    asked,
    said,
)

from authz.record import FIELDS, notice, place_of
from authz.report import kinds
from authz.report.kinds import Frame
from authz.store import (
    checkpoints,
    exports,
    findings,
    lookups,
    migrations,
    pages,
    policies,
    query_log,
    timelines,
    watched,
)
from authz.store.client import connect
from authz.store.exports import Selection
from authz.store.lookups import EVER, Window
from authz.store.pages import ANY, Filters

pytestmark = pytest.mark.thorough

NOW_US = NOW * 1_000_000
LATELY = Window((NOW - 40 * DAY) * 1_000_000)
FILES = ("10-authz.xml", "20-authz-cluster.xml")
USERS = ("reader", "grafana")
OF_ONE_SERVER = "system.parts"  # what a query on it tells is of no cluster


def spread(other):
    """The records, every second one in the log `other`, each pair of a request's in both."""
    sizes, moved, rows = Counter(), {}, []
    looked = notice("look", NOW - 5, {"command": "sql", "queries": ["one", "two"]})
    for number, record in enumerate([*RECORDS, *said(), looked]):
        origin = (SIGNER.name, other)[number % 2]
        one = record | {"origin": origin, "index": sizes[origin]}
        one |= {"records": [moved[place] for place in record.get("records", ())]}
        moved[place_of(record)] = place_of(one)
        sizes[origin] += 1
        at = one["time"] * 1_000_000
        values = one | {"time": at, "sealed_at": at + 20_000}
        rows.append([values.get(field.name, _EMPTY[field.type]) for field in FIELDS])
    return rows, sizes


def fill(client, each, rows, sizes):
    """`client` sees all servers, `each` is one."""
    names = ", ".join(f"`{field.name}`" for field in FIELDS)
    client.execute(f"INSERT INTO audit_log ({names}) VALUES", rows)
    client.execute(
        "INSERT INTO checkpoints (origin, size, note, written_at) VALUES",
        [(origin, size, "", (NOW - 5) * 1_000_000) for origin, size in sizes.items()],
    )
    client.execute("INSERT INTO tiles (origin, level, index, width, data) VALUES",
                   [(origin, 0, 0, 1, "x" * 32) for origin in sizes])  # fmt: skip
    client.execute("INSERT INTO policies (revision, first_seen, text) VALUES",
                   [("r1", NOW_US, "package a")])  # fmt: skip
    for one in each:
        one.execute(
            "INSERT INTO feed_loads (version, expires, feed, rows, `by`, source)"
            " SELECT 'v1', now() + 86400, 'people', 1, 'm.rowan', 'people.csv'"
        )
        one.execute(
            "INSERT INTO feed_people (version, expires, subject, status, until)"
            " SELECT 'v1', now() + 86400, 'n.hazel', 'terminated', toStartOfDay(now())"
        )


def now_is(sql):
    """The question, asked of all at one moment."""
    return sql.replace("now64(6)", f"toDateTime64({NOW}, 6)").replace("now()", f"toDateTime({NOW})")


def same(rows):
    """Whatever their order; the driver gives a Bool as either type."""
    return Counter(repr(row).replace("True", "1").replace("False", "0") for row in rows)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The records on one server and over both: (a client of the one, one of each of the others),
    by user."""
    with clusters.start(tmp_path_factory.mktemp("cluster"), *FILES) as servers:
        urls = [f"{url}/authz" for url in servers.urls]
        alone = f"{servers.urls[0]}/alone"
        each = OnEach(urls)
        each.clients[0].execute("CREATE DATABASE alone")
        [other] = each.execute(
            "SELECT concat('test/receiver-', toString(number)) AS name FROM numbers(50)"
            f" WHERE cityHash64(name) % 2 != cityHash64('{SIGNER.name}') % 2 LIMIT 1"
        )[0]
        filled = spread(other)
        with connect(alone) as one:
            migrations.migrate(one)
            fill(one, [one], *filled)
            migrations.migrate(each, SHARDS)
            fill(each, each.clients, *filled)
            users = {
                name: [connect(re.sub(r"admin:\w+@", f"{name}:{name}@", url)) for url in urls]
                for name in USERS
            }
            here = [one.execute("SELECT count() FROM audit_log_local") for one in each.clients]
            assert sorted(here) == sorted([(size,)] for size in filled[1].values())
            yield one, users, list(filled[1])
            for clients in users.values():
                for client in clients:
                    client.disconnect()
        each.close()


FRAME = Frame(LATELY, NOW_US, "me", "Lakeside")
QUESTIONS = {
    "search": lambda c, _: pages.search(c, ANY, EVER, 50),
    "search by patient": lambda c, _: pages.search(c, Filters(patients=(TOKEN,)), LATELY, 50),
    "search by person": lambda c, _: pages.search(c, Filters(subject="n.reed"), LATELY, 20),
    "request": lambda c, logs: [pages.request(c, o, n) for o in logs for n in range(50, 53)],
    "overview": lambda c, _: pages.overview(c, NOW_US),
    "a person's days": lambda c, _: pages.person_days(c, "dr.alder"),
    "habits": lambda c, _: pages.habits(c, "n.hazel"),
    "patients of": lambda c, _: pages.patients_of(c, "n.hazel", LATELY, 50),
    "roles": lambda c, _: pages.roles_in_use(c),
    "people in": lambda c, _: pages.people_in(c, "nurse", 10),
    "policy changes": lambda c, _: pages.policy_changes(c, NOW_US, 10),
    "minutes": lambda c, _: timelines.minutes(c, NOW_US, 60),
    "a person's timeline": lambda c, _: timelines.of_person(c, "dr.alder", [TOKEN], LATELY),
    "a patient's timeline": lambda c, _: timelines.of_patient(c, [TOKEN], LATELY),
    "accounting": lambda c, _: kinds.disclosures(c, FRAME, "p", [TOKEN]),
    "access report": lambda c, _: kinds.patient_access(
        c, FRAME, "p", [TOKEN], 1000, for_patient=False
    ),
    "breach list": lambda c, _: kinds.breach(c, FRAME, "dr.alder"),
    "activity report": lambda c, _: kinds.activity(c, FRAME, "n.reed", 100),
    "periodic review": lambda c, _: kinds.review(c, FRAME, 72),
    "keys": lambda c, _: lookups.other_keys(c, [], EVER),
    "exports": lambda c, logs: [
        leaf
        for log in logs
        for some in exports.leaves(c, log, 2000, Selection(LATELY, Filters(subject="n.reed")))
        for leaf in some.leaves
    ],
    "findings": lambda c, _: (findings.raised(c), findings.said(c, 0), findings.glass(c)),
    "findings to tell": lambda c, _: findings.after(c, {}, 10),
    "what watch reads": lambda c, logs: (
        checkpoints.sizes(c), watched.told(c, 0), watched.told_day(c),
        [watched.first_since(c, log, LATELY.since_us) for log in logs],
        [list(watched.following(c, log, 10, 30)) for log in logs],
    ),
    "policies": lambda c, logs: (
        policies.find(c, "", 10), policies.of_decision(c, "d3"),
        [policies.of_record(c, log, 3) for log in logs],
    ),
    "queries on record": lambda c, _: query_log.on_record(c, ["two", "three"], 0),
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_pages_reports_and_exports(house, question):
    """From whichever server, with a reader's rights."""
    alone, users, logs = house
    ask = QUESTIONS[question]
    answer = ask(alone, logs)
    assert answer
    for client in users["reader"]:
        assert ask(client, logs) == answer


@pytest.mark.parametrize(
    ("board", "panel"), PANELS, ids=[f"{board.name}: {panel.title}" for board, panel in PANELS]
)
def test_dashboards(house, board, panel):
    """With the rights of Grafana's user."""
    alone, users, _ = house
    panel = replace(panel, sql=now_is(panel.sql))
    names, types, rows = asked(alone, board, panel)
    assert rows
    for client in users["grafana"]:
        told = asked(client, board, panel)
        assert told[:2] == (names, types)
        assert same(told[2]) == same(rows) or OF_ONE_SERVER in panel.sql


_SPREAD_QUERIES = [query for query in PAGE_QUERIES if OF_ONE_SERVER not in query]


@pytest.mark.parametrize("query", _SPREAD_QUERIES, ids=lambda query: query.split("\n")[0][:60])
def test_queries_of_the_page(house, query):
    """With a reader's rights."""
    alone, users, _ = house
    rows = alone.execute(now_is(query))
    for client in users["reader"]:
        assert same(client.execute(now_is(query))) == same(rows)
