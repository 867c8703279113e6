"""`authz feeds` against a real receiver: on record before it counts, and never in clear."""

import json
import time

import pytest
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
    assert "people.csv" in command("show").replace("\n", "")
    write(site, bulk("n.gone", 1, 0))
    with watching(site) as (_, lines):
        assert until(lambda: findings(client) and lines(), 30)
    assert {(row[0], row[1]) for row in findings(client)} == {("n.gone", "terminated")}
    assert "in place of" in command("load", place / "orders.csv")


def test_nothing_is_changed(site, feeds):  # noqa: F811 - the fixture
    """A load that cannot go on record, or that is wrong somewhere, leaves all as it was."""
    place, command = feeds
    away = {"AUTHZ_EXT_AUTHZ__RECEIVER": "127.0.0.1:1"}
    command("load", place, code=3, environment=away)
    (place / "orders.csv").write_text("subject,patient\nn.reed,s3cret-7\nn.reed,\n")
    assert "orders.csv, line 3: patient is empty" in command("load", place, code=2)
    assert json.loads(command("show", "--json")) == {"feeds": []}
