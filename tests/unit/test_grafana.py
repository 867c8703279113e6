"""The Grafana dashboards: each query, asked of a ClickHouse as Grafana would ask it."""

import json
import re
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from dashboards import query_of, seconds
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from logs import SIGNER
from rights import as_user, serving

from authz.record import FIELDS, notice
from authz.store import migrations
from authz.store.client import QUERY_ERRORS, connect
from deploy.grafana.board import ALL
from deploy.grafana.build import BOARDS, DASHBOARDS, SOURCE, written

CHECKOUT = Path(__file__).parents[2]
HERE = CHECKOUT / "deploy" / "grafana"
README = (HERE / "README.md").read_text()
PAGE = (CHECKOUT / "docs" / "queries.md").read_text()

DAY = 86_400
DAYS = 75
NOW = int(time.time())
TODAY = NOW // DAY * DAY
TOKEN = "9646060d.YSybp6J96Qa6wHLkJm825w"  # as the documentation has it
HOSTILE = "o'neil\\' OR 1 = 1 -- \" %27 ${subject} \u00e9"
PEOPLE = {
    "dr.alder": "physician", "dr.birch": "physician", "n.reed": "nurse", "n.hazel": "nurse",
    HOSTILE: "nurse",
}  # fmt: skip
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]
PAGE_QUERIES = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def requests():
    """Decisions, their accesses, and whose data some answers held: of 75 days, and of just now."""
    number = 0
    for day in range(DAYS, -1, -1):
        for place, (subject, role) in enumerate(PEOPLE.items()):
            for n in range(2 + (day * 7 + place * 3) % 4):
                number += 1
                at = TODAY - day * DAY + 10 * 3600 + n * 60 if day else NOW - 600 - n
                request = {
                    "time": at, "subject": subject, "roles": [role, "staff"],
                    "tenant": ("lakeside", "hillside")[place % 2], "decision_id": f"d{number}",
                    "allowed": n % 4 < 3, "enforced": True, "purpose": "TREAT",
                    "reason": f"{role} on the care team" if n % 4 < 3 else "not on the care team",
                    "reason_code": "" if n % 4 < 3 else "denied", "method": "GET",
                    "path": "/fhir/Patient/{id}", "resource_type": "Patient", "action": "R",
                    "patients": [TOKEN if n == place == 0 else f"k.{(day * 5 + n) % 40}"],
                    "source_ip": f"10.1.{place}.7", "country": "NO", "writer_seq": number,
                    "writer": "ext-authz", "policy_revision": "r1", "principal": "spiffe://clinic",
                }  # fmt: skip
                yield request | {"kind": "decision"}
                answer = {"status": 200, "duration_us": 1000 + number, "upstream": "10.0.0.1:80"}
                yield request | answer | {"kind": "access", "writer": "envoy:e", "writer_seq": 0}
                if n == 1:
                    held = {"patients": [TOKEN], "details": '{"patients":1}', "complete": True}
                    yield request | held | {"kind": "disclosure", "status": 200}


def events():
    """What happens now and then."""
    alone = {
        "kind": "decision", "time": NOW - 3600, "subject": "n.reed", "roles": ["nurse"],
        "allowed": True, "enforced": True, "source_ip": "10.1.2.7", "path": "/fhir/Patient/{id}",
    }  # fmt: skip
    yield alone | {"decision_id": "no access"}
    yield alone | {"decision_id": "at night", "time": TODAY - DAY + 3 * 3600}
    yield alone | {"decision_id": "other role", "roles": ["auditor"], "time": TODAY - 2 * DAY}
    yield alone | {"decision_id": "new place", "source_ip": "198.51.100.3", "country": "SE"}
    yield alone | {
        "decision_id": "dry", "allowed": False, "enforced": False, "reason_code": "denied",
    }  # fmt: skip
    for n in range(2):
        yield alone | {
            "subject": "dr.birch", "roles": ["physician"], "decision_id": f"glass{n}",
            "break_glass": True, "patients": [TOKEN], "reason": "emergency", "time": NOW - 60 + n,
        }  # fmt: skip
    failed = {"kind": "access", "status": 401, "response_details": "jwt_authn_access_denied{x}"}
    for n in range(4):
        yield failed | {"time": NOW - 900 + n, "source_ip": "10.1.0.7", "writer": "envoy:e"}
    for n, lane in enumerate(("act", "act", "review")):
        yield {
            "kind": "finding", "event": "raised", "time": NOW - 800 + n, "subject": "n.reed",
            "rule": "off_hours", "lane": lane, "score_milli": 9500, "evidence": "at 03:00",
        }  # fmt: skip
    day = {"date": datetime.fromtimestamp(TODAY - DAY, UTC).date().isoformat()}
    for event, told in (
        ("gap", {"count": 3}), ("gap_closed", {"count": 1}), ("look", {"command": "lookup"}),
        ("interval_summary", {"decisions": 5, "matched": 4, "missing": 1}),
        ("watch_day", day | {"people": 4, "charts": 50, "unexplained": 5}),
        ("block", {"by": "m.rowan", "reason": "lost badge", "until": (NOW + 900) * 1_000_000}),
        ("policy_loaded", {"revision": "r1"}), ("receiver_started", {"origin": SIGNER.name}),
    ):  # fmt: skip
        record = notice(event, NOW - 500, told, rule="no_access" if "gap" in event else "")
        yield record | {"subject": "m.rowan", "reason": "asked by the patient", "patients": [TOKEN]}


RECORDS = sorted([*requests(), *events()], key=lambda record: record["time"])
for place, one in enumerate(RECORDS):
    one |= {"origin": SIGNER.name, "index": place}
DECISIONS = [record for record in RECORDS if record["kind"] == "decision"]
_EMPTY = {"text": "", "int": 0, "bool": False, "texts": [], "time": 0}


def said():
    """What people said of the first finding and of the first break-glass."""
    finding = next(one for one in RECORDS if one["kind"] == "finding")
    glass = next(one for one in RECORDS if one.get("break_glass"))
    for event, about, told in (
        ("finding_explained", finding, {"by": "m.rowan"}),
        ("break_glass_reviewed", glass, {"by": "m.rowan", "verdict": "justified"}),
    ):
        ids = [f"{about['origin']}@{about['index']}"]
        yield notice(event, NOW - 10, told, records=ids) | {"subject": about["subject"]}


def fill(client):
    migrations.migrate(client)
    later = [
        one | {"origin": SIGNER.name, "index": len(RECORDS) + place}
        for place, one in enumerate(said())
    ]
    rows = []
    for record in [*RECORDS, *later]:
        at = record["time"] * 1_000_000
        values = record | {"time": at, "sealed_at": at + 20_000}
        rows.append([values.get(field.name, _EMPTY[field.type]) for field in FIELDS])
    names = ", ".join(f"`{field.name}`" for field in FIELDS)
    client.execute(f"INSERT INTO audit_log ({names}) VALUES", rows)
    client.execute(
        "INSERT INTO checkpoints (origin, size, note, written_at) VALUES",
        [(SIGNER.name, len(rows), "", (NOW - 5) * 1_000_000)],
    )
    client.execute(
        "INSERT INTO feed_loads (version, expires, feed, rows, `by`, source)"
        " SELECT 'v1', now() + 86400, 'people', 1, 'm.rowan', 'people.csv'"
    )
    client.execute(
        "INSERT INTO feed_people (version, expires, subject, status, until)"
        " SELECT 'v1', now() + 86400, 'n.hazel', 'terminated', now() - 86400"
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A ClickHouse with these records, and the reader's user of deploy/clickhouse:
    (the administrator's URL, the reader's)."""
    with serving(tmp_path_factory.mktemp("grafana") / "clickhouse", "10-authz.xml") as server:
        with connect(server.store) as client:
            fill(client)
        yield server.store, as_user(server.store, "grafana")


@pytest.fixture(scope="module")
def reader(house):
    with connect(house[1]) as client:
        yield client


@pytest.fixture(scope="module")
def admin(house):
    with connect(house[0]) as client:
        yield client


def asked(client, board, panel, **values):
    """The answer to a panel's query: its columns' names, their types, and rows."""
    chosen = {"tenant": ALL, "subject": "n.reed", "patient": TOKEN} | values
    sql = query_of(board, panel, NOW, chosen)
    rows, columns = client.execute(sql, with_column_types=True)
    names, types = zip(*columns, strict=True)
    return names, types, rows


def panel_of(name, title):
    [found] = [
        (board, panel) for board, panel in PANELS if (board.name, panel.title) == (name, title)
    ]
    return found


def form(kind):
    """What one column is: a time, a number, or text."""
    kind = re.sub(r"^(?:Nullable|LowCardinality)\((.*)\)$", r"\1", kind)
    for name, begin in (("time", "Date"), ("number", "UInt|Int|Float"), ("text", "String")):
        if re.match(begin, kind):
            return name
    return kind


@pytest.mark.parametrize(
    ("board", "panel"), PANELS, ids=[f"{board.name}: {panel.title}" for board, panel in PANELS]
)
def test_answers_have_the_panels_form(reader, board, panel):
    """Each query is one the reader may ask; it finds rows, of the form that its panel shows."""
    names, types, rows = asked(reader, board, panel)
    forms = [form(one) for one in types]
    assert rows
    assert len(set(names)) == len(names)
    if panel.kind in ("series", "bars", "heat"):
        assert forms[0] == "time"
        assert forms[1:] == ["text", "number"] or set(forms[1:]) == {"number"}
        assert (names[1] == panel.by) == (forms[1] == "text")
        times = [row[0] for row in rows]
        assert times == sorted(times)  # else Grafana refuses to make series of them
        assert len({row[: forms.count("text") + 1] for row in rows}) == len(rows)
    elif panel.kind == "ranked":
        assert forms == ["text", "number"]
        assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    elif panel.kind == "number":
        assert (forms, len(rows)) == (["number"], 1)
    else:
        assert set(forms) <= {"time", "number", "text", "Bool"}
    same = all(value == value for row in rows for value in row)  # noqa: PLR0124 - NaN is not
    assert same, "there is a NaN"


@pytest.mark.parametrize(
    "board", [board for board in BOARDS if board.choices], ids=lambda b: b.name
)
def test_what_is_chosen_is_only_a_value(reader, board):
    """Whatever is chosen finds itself, letter by letter, or nothing: never more."""
    for panel in board.panels:
        nobody = asked(reader, board, panel, tenant=HOSTILE, subject="'", patient=HOSTILE)[2]
        if "percentencode" in panel.sql and panel.kind != "number":
            assert nobody == [], panel.title
    names, _, rows = asked(reader, *panel_of("person", "Timeline"), subject=HOSTILE)
    since = NOW - seconds("30d")
    own = [one for one in DECISIONS if one["subject"] == HOSTILE and one["time"] >= since]
    assert len(rows) == len(own)
    assert names[0] == "at"


def test_choices_are_there(reader):
    """A choice that is looked up finds the tenants; choosing one leaves out the others."""
    board, panel = panel_of("overview", "Requests")
    [choice] = board.choices
    tenants = [row[0] for row in reader.execute(choice.sql)]
    assert {"lakeside", "hillside"} <= set(tenants)
    counts = [asked(reader, board, panel, tenant=one)[2][0][0] for one in tenants]
    assert sum(counts) == asked(reader, board, panel)[2][0][0] > max(counts)


def test_who_looked(reader):
    """A patient's dashboard names everybody who asked for them or got their data, and how often."""
    told = defaultdict(set)
    for record in RECORDS:
        if TOKEN in record.get("patients", ()) and record["kind"] != "notice":
            told[record["subject"]].add(record["decision_id"])
    names, _, rows = asked(reader, *panel_of("patient", "Who looked"))
    places = names.index("who"), names.index("requests")
    assert {row[places[0]]: row[places[1]] for row in rows} == {
        subject: len(ids) for subject, ids in told.items()
    }
    glass = dict(zip(names, next(row for row in rows if row[0] == "dr.birch"), strict=True))
    assert glass["broken glass"] == 2


def test_usual(reader):
    """A person's patients of a day stand beside the median of their days before, and of their
    role's people that day."""
    seen = defaultdict(lambda: defaultdict(set))
    for record in RECORDS:
        if record.get("subject") in PEOPLE and record["kind"] != "finding":
            seen[record["subject"]][record["time"] // DAY].update(record.get("patients", ()))
    _, _, rows = asked(reader, *panel_of("person", "Patients a day"), subject="dr.alder")
    assert len(rows) > 25
    for at, patients, own, peers in rows:
        day = int(at.timestamp()) // DAY
        before = [len(seen["dr.alder"][one]) for one in sorted(seen["dr.alder"]) if one < day]
        assert patients == len(seen["dr.alder"][day])
        assert own == statistics.median(before[-60:])
        assert peers == statistics.median(
            len(seen[one][day]) for one in ("dr.alder", "dr.birch") if day in seen[one]
        )


def test_numbers_of_the_overview(reader):
    """Its first row counts what there is: explained findings and closed gaps are off it."""
    titles = ("Findings to act on", "Gaps not closed", "Unexplained, last day")
    found = [asked(reader, *panel_of("overview", title))[2][0][0] for title in titles]
    assert found == [1, 2, 0.1]
    since = (NOW - seconds("7d")) // 3600 * 3600
    counted = sum(one["time"] >= since for one in DECISIONS)
    assert asked(reader, *panel_of("overview", "Requests"))[2] == [(counted,)]


def test_the_reader_only_reads(reader):
    """Its user may neither change anything nor see what no dashboard shows."""
    for query in (
        "INSERT INTO checkpoints (origin, size, note) VALUES ('x', 1, '')",
        "ALTER TABLE audit_log DELETE WHERE true",
        "SELECT * FROM sealed_originals",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    ):
        with pytest.raises(QUERY_ERRORS):
            reader.execute(query)


@pytest.mark.parametrize("query", PAGE_QUERIES, ids=lambda query: query.split("\n")[0][:60])
def test_queries_of_the_page(admin, query):
    """Each query of docs/queries.md finds what it looks for."""
    assert admin.execute(query)


def test_the_json_is_up_to_date():
    """`python -m deploy.grafana` would write what is there."""
    there = {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert there == written()


@pytest.mark.parametrize("name", written())
def test_the_json_is_a_dashboard(name):
    """Grafana's own types take all of it, and drop nothing; panels lie side by side."""
    register_default_plugins()
    told = json.loads(written()[name])
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(told))) == told
    assert len({panel["id"] for panel in told["panels"]}) == len(told["panels"])
    places = [
        (x, y)
        for at in (panel["gridPos"] for panel in told["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) == 23


def test_provisioning():
    """The data source is the one that the dashboards name, and no file holds a secret."""
    [source] = yaml.safe_load((HERE / "provisioning/datasources/authz.yaml").read_text())[
        "datasources"
    ]
    assert (source["uid"], source["type"]) == (SOURCE.uid, SOURCE.type_val)
    assert all(re.fullmatch(r"\$\{\w+\}", one) for one in source["secureJsonData"].values())
    variables = re.findall(r"\$\{(\w+)\}", str(source))
    assert [name for name in variables if f"`{name}`" not in README] == []
    [provider] = yaml.safe_load((HERE / "provisioning/dashboards/authz.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] in README
