"""A look-up names what explains each request, from the feeds that are loaded."""

import io
import time
from datetime import UTC, datetime

import pytest
from rich.console import Console
from test_lookup import KEY, NOON, OLD, decision, disclosure, stored, tokens

from authz.cli.lookup import show
from authz.detect.feeds import AFTER_US, BEFORE_US
from authz.errors import UnavailableError
from authz.report import look_up
from authz.store.feeds import END, Loading

MINUTE = 60_000_000


@pytest.fixture
def reasons(log):
    """Loads a feed: rows as the store has them, the patient by their identifier."""

    def load(feed, *rows, key=KEY):
        loading = Loading(log.client, int(time.time()) + 3600)
        loading.begin(feed)
        kind = {"care_team": "care_team", "census": "census"}.get(feed, feed[:-1])
        made = rows
        if feed != "people":
            made = [
                (who, ward, key.token(patient), kind, since, until, f"{feed}.csv")
                for who, ward, patient, since, until in rows
            ]
        if made:
            loading.add(feed, made)
        loading.commit("me", {feed: f"{feed}.csv"})
        return loading

    return load


def shown(found, *, several=False):
    out = io.StringIO()
    show(found, Console(file=out, width=200, force_terminal=False), several=several)
    return out.getvalue()


def day(us):
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d")


def test_each_request_is_explained_or_not(log, reasons):
    """By name and time; where no feed is loaded nothing is said."""
    stored(log, [
        decision(1, patients=["p"]), decision(2, NOON + 1, ["p"], subject="dr.elm"),
        decision(3, NOON + 2, ["p"], subject="n.reed"), disclosure(4, ["p", "q"], NOON + 3),
    ])  # fmt: skip
    found = look_up(log.client, tokens("p"))
    assert found.feeds == ()
    assert "explain" not in shown(found)
    begin = NOON - 24 * 60 * MINUTE
    reasons("appointments", ("dr.alder", "", "p", begin, NOON + MINUTE),
            ("dr.elm", "", "q", NOON, NOON))  # fmt: skip
    reasons("people", ("n.reed", "nurse", "ward 3", "", "", "", "active", 0),
            ("dr.elm", "physician", "ward 4", "", "", "", "active", 0))  # fmt: skip
    reasons("census", ("", "ward 3", "p", NOON - MINUTE, END))
    found = look_up(log.client, tokens("p"))
    assert found.feeds == ("appointments", "census")
    told = [[(one.kind, one.since, one.until) for one in r.explained] for r in found.requests]
    meeting = ("appointment", begin, NOON + MINUTE)
    assert told == [[meeting], [], [("census", NOON - MINUTE, 0)], [meeting]]
    text = shown(found)
    assert f"explained by: appointment, {day(begin)} to {day(NOON)}" in text
    assert f"explained by: department census, since {day(NOON)}" in text
    assert text.count("nothing known explains it") == 1
    request = found.to_json()["requests"][0]
    assert list(request["explained"]) == [
        {
            "patient": 1, "kind": "appointment", "since": begin, "until": NOON + MINUTE,
            "source": "appointments.csv",
        }
    ]  # fmt: skip
    assert found.to_json()["feeds"] == ("appointments", "census")


def test_a_day_before_and_three_after(log, reasons):
    """As detection has it; and of two reasons the one that held is named."""
    reasons("orders", ("dr.alder", "", "p", NOON, NOON + MINUTE))
    times = (NOON - BEFORE_US - 1, NOON - BEFORE_US, NOON + MINUTE + AFTER_US)
    times += (NOON + MINUTE + AFTER_US + 1,)
    stored(log, [decision(n, at, ["p"]) for n, at in enumerate(times)])
    found = look_up(log.client, tokens("p"))
    assert [len(request.explained) for request in found.requests] == [0, 1, 1, 0]
    reasons("care_team", ("dr.alder", "", "p", 0, END))
    found = look_up(log.client, tokens("p"))
    assert [r.explained[0].kind for r in found.requests] == ["care_team"] * 4
    assert "explained by: care team\n" in "\n".join(
        cell.strip() + "\n" for cell in shown(found).split("│")
    )


def test_several_patients_and_keys(log, reasons):
    """Of several patients each has their own explanation; a load under another key than the
    records' is found as the records are."""
    stored(log, [disclosure(1, ["p", "q"], NOON)])
    reasons("orders", ("dr.alder", "", "q", NOON, NOON), key=OLD)
    found = look_up(log.client, tokens("p", "q", keys=(KEY, OLD)))
    [request] = found.requests
    assert [one.patient for one in request.explained] == [2]
    text = shown(found, several=True)
    assert "patient 1 nothing known explains it" in text
    assert "patient 2 explained by: order" in text


def test_half_a_load_explains_nothing(log, reasons):
    """Where rows of a load are missing nobody is told that nothing explains it."""
    stored(log, [decision(1, patients=["p"])])
    version = reasons("orders", *[("dr.alder", "", f"p{n}", 0, END) for n in range(3)]).versions
    log.client.execute(
        "DELETE FROM feed_reasons WHERE version = %(version)s AND patient = %(token)s",
        {"version": version["orders"], "token": KEY.token("p1")},
    )
    with pytest.raises(UnavailableError, match="not all rows of the feed orders"):
        look_up(log.client, tokens("p"))
