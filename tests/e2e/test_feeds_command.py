"""`authz feeds` against a real receiver: on record before it counts, and never in clear."""

import functools
import http.server
import json
import threading
import time

import pytest
from pages import FUNCTION, block
from programs import AUTHZ, run, until
from test_watch_command import bulk, findings, site, watching, write  # noqa: F401 - a fixture

from authz.record.privacy import load_key


@pytest.fixture
def feeds(site):  # noqa: F811 - the fixture
    """A directory of feeds, and the command with a key (made at the first use)."""
    directory, _, _, ours = site
    key = directory / "privacy.key"
    load_key(key)
    place = directory / "feeds"
    place.mkdir()
    now = time.strftime("%Y-%m-%d")
    (place / "people.csv").write_text(
        "subject,role,department,status\nn.gone,nurse,ward 3,terminated\nn.reed,nurse,ward 3,\n"
    )
    (place / "orders.csv").write_text(f"subject,patient,from,until\nn.reed,s3cret-7,{now},{now}\n")

    def command(*arguments, code=0, environment=None):
        line = [*AUTHZ, "feeds", *arguments]
        if arguments[0] == "load":
            line += ["--key", key, "--data-dir", directory / "loader"]
        done = run(line, ours, env=ours.environment | (environment or {}))
        assert done.returncode == code, done.stdout + done.stderr
        assert "s3cret-7" not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return place, command


def test_loaded_shown_and_gone_by(site, feeds):  # noqa: F811 - the fixture
    """What is loaded is on record, who did it included; `show` tells it; a watch without --feeds
    goes by it."""
    _, _, client, _ = site
    place, command = feeds
    told = json.loads(command("load", place, "--json"))
    assert [(one["feed"], one["rows"]) for one in told["loaded"]] == [("people", 2), ("orders", 1)]
    query = "SELECT details FROM notices WHERE event = 'feed_loaded' ORDER BY index"
    assert until(lambda: len(client.execute(query)) == 2, 20)
    recorded = [json.loads(details) for (details,) in client.execute(query)]
    assert [(one["feed"], one["rows"]) for one in recorded] == [("people", 2), ("orders", 1)]
    assert {one["version"] for one in recorded} == {one["version"] for one in told["loaded"]}
    assert recorded[0]["source"] == str(place / "people.csv")
    assert recorded[0]["by"]
    shown = json.loads(command("show", "--json"))["feeds"]
    assert {one["feed"] for one in shown} == {"people", "orders"}
    assert "people.csv" in command("show", environment={"COLUMNS": "500"})
    write(site, bulk("n.gone", 1, 0))
    with watching(site) as (_, lines):
        assert until(lambda: findings(client) and lines(), 30)
    assert {(row[0], row[1]) for row in findings(client)} == {("n.gone", "terminated")}
    assert "in place of" in command("load", place / "orders.csv")


@pytest.mark.thorough
def test_nothing_is_changed(site, feeds):  # noqa: F811 - the fixture
    """A load that cannot go on record, or that is wrong somewhere, leaves all as it was."""
    place, command = feeds
    away = {"AUTHZ_EXT_AUTHZ__RECEIVER": "127.0.0.1:1"}
    command("load", place, code=3, environment=away)
    (place / "orders.csv").write_text("subject,patient\nn.reed,s3cret-7\nn.reed,\n")
    assert "orders.csv, line 3: patient is empty" in command("load", place, code=2)
    assert json.loads(command("show", "--json")) == {"feeds": []}


@pytest.mark.thorough
def test_the_documented_sources(site, feeds):  # noqa: F811 - the fixture
    """A FHIR server, an export of one and a file on a server are loaded by the page's commands;
    practitioners and locations are called what the tables say."""
    directory, _, _, ours = site
    _, command = feeds
    (directory / "fhir.token").write_text("0123abcd")
    (directory / "fhir.token").chmod(0o600)
    (directory / "practitioners.csv").write_text("practitioner,subject\npr-1,n.reed\n")
    (directory / "locations.csv").write_text("location,department\nw3,ward 3\n")
    patient = {"subject": {"reference": "Patient/s3cret-7"}}
    who = {"reference": "Practitioner/pr-1"}
    stay = patient | {
        "resourceType": "Encounter", "status": "in-progress", "period": {"start": "2026-03-01"},
        "participant": [{"individual": who}],
        "location": [{"location": {"reference": "Location/w3"}}],
    }  # fmt: skip
    ordered = {"resourceType": "ServiceRequest", "status": "active", "authoredOn": "2026-03-01"}
    for place, content in (
        ("served/r4/Encounter", json.dumps(stay)),
        ("served/export-17.csv", "subject,patient\nn.reed,s3cret-7\n"),
        ("exported/ServiceRequest.ndjson", json.dumps(ordered | patient | {"requester": who})),
    ):
        (directory / place).parent.mkdir(parents=True, exist_ok=True)
        (directory / place).write_text(content)
    text = block("docs/detection.md", "authz feeds load 'https:")
    text = text.replace("/etc/authz", str(directory))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Silent, directory=directory / "served")
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        for name in ("fhir", "files"):
            text = text.replace(f"https://{name}.example/", here)
        given = {"AUTHZ_PRIVACY__KEY": str(directory / "privacy.key")}
        given["XDG_STATE_HOME"] = str(directory / "state")
        done = run(
            ["sh", "-eu", "-c", FUNCTION + text], ours, 120, cwd=directory,
            env=ours.environment | given,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "s3cret-7" not in done.stdout + done.stderr
    shown = json.loads(command("show", "--json"))["feeds"]
    assert {one["feed"] for one in shown} == {"encounters", "census", "orders"}
    rows = site[2].execute("SELECT kind, subject, department FROM feed_reasons")
    kinds = {("encounter", "n.reed", ""), ("census", "", "ward 3"), ("order", "n.reed", "")}
    assert set(rows) == kinds


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
