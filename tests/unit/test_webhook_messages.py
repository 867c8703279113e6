"""What webhooks say: in each form, no more than it may."""

import contextlib
import datetime as dt
import http.client
import json
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import free_port, listens, program, until
from raised import NOON, finding
from slack_sdk.models.blocks import Block
from yarl import URL

from authz.detect.lanes import SHARES
from authz.report.messages import FORMS, SUMMARIES, Manner

NOW = dt.datetime.fromtimestamp(NOON / 1e6, dt.UTC)
PLACED = finding() | {"origin": "test/receiver", "index": 7}
OPEN = Manner(phi=True, link="https://console.example/findings/{id}")


def told(form, record=PLACED, manner=OPEN):
    return json.loads(json.dumps(FORMS[form](record, manner, NOW)))


@pytest.mark.parametrize("form", FORMS)
def test_no_phi_unless_allowed(form):
    """Without leave no message has the evidence or the details; with none for people either, not
    whom or what address it is about."""
    record = PLACED | {"source_ip": "192.0.2.9"}
    secret = ["0123abcd.token", "40 patients", "patients"]
    anybody = ["dr.alder", "192.0.2.9"]
    few = json.dumps(told(form, record, Manner(subjects=False)))
    assert [word for word in secret[:2] + anybody if word in few] == []
    usual = json.dumps(told(form, record, Manner()))
    assert [word for word in secret[:2] if word in usual] == []
    assert "dr.alder" in usual
    assert "test/receiver@7" in few
    assert "read many more patients' records than usual" in few
    assert "0123abcd.token" in json.dumps(told(form, record))


def test_every_rule_has_words():
    """What each rule finds is said in words that name nobody; a rule of tomorrow by its name."""
    told_rules = {
        "failed_authentications", "break_glass_no_reason", "break_glass_unreviewed",
        "tenant_volume",
    }  # fmt: skip
    assert set(SHARES) | told_rules == set(SUMMARIES)
    assert told("generic", PLACED | {"rule": "so_new"})["data"]["summary"] == "so new"


def test_generic():
    """The generic form has what the documentation says."""
    assert told("generic") == {
        "type": "authz.finding.raised",
        "timestamp": "2026-11-18T11:06:40+00:00",
        "data": {
            "id": "test/receiver@7", "time": "2026-11-18T11:06:40+00:00", "rule": "bulk_read",
            "lane": "act", "score": 6.25, "tenant": "lakeside", "subject": "dr.alder",
            "summary": "read many more patients' records than usual",
            "records": ["test/receiver@0", "test/receiver@1"],
            "evidence": PLACED["evidence"], "details": '{"patients":40}',
            "link": "https://console.example/findings/test%2Freceiver%407",
        },
    }  # fmt: skip


@given(st.text(), st.text(max_size=4096), st.booleans())
def test_slack_takes_it(text, evidence, phi):
    """Whatever a finding holds, Slack's own library has nothing against the blocks, and no text in
    it mentions anybody or becomes a link."""
    record = PLACED | {"subject": text, "rule": text, "tenant": text, "evidence": evidence}
    record |= {"lane": text}
    message = told("slack", record, Manner(phi=phi, link=OPEN.link))
    blocks = Block.parse_all(message["blocks"])
    assert len(blocks) == len(message["blocks"]) <= 50
    for block in blocks:
        block.validate_json()
    texts = [block.get("text") for block in message["blocks"]]
    texts += [field for block in message["blocks"] for field in block.get("fields", [])]
    assert {one["type"] for one in texts if one} == {"plain_text"}
    assert all(one["text"] for one in texts if one)
    assert not set("<>") & set(message["text"])


@given(st.text(max_size=50), st.booleans())
def test_alertmanager_form(text, phi):
    """Labels and annotations are texts that are not empty, times have a zone, the address is one;
    the same finding has the same labels whenever it is sent."""
    record = PLACED | {"subject": text, "rule": text, "tenant": text}
    [alert] = told("alertmanager", record, Manner(phi=phi, link=OPEN.link))
    assert set(alert) == {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
    for pairs in (alert["labels"], alert["annotations"]):
        assert all(isinstance(value, str) and value for value in pairs.values())
        assert all(name.isidentifier() for name in pairs)
    times = [dt.datetime.fromisoformat(alert[name]) for name in ("startsAt", "endsAt")]
    assert all(at.tzinfo for at in times)
    assert times[0] < times[1]
    assert URL(alert["generatorURL"]).host == "console.example"
    later = FORMS["alertmanager"](record, Manner(phi=phi), NOW + dt.timedelta(days=3))
    assert later[0]["labels"] == alert["labels"]


def test_alertmanager_takes_it(tmp_path):
    """Alertmanager itself takes what we post, shows it, and has it once if it comes twice."""
    path = program("prometheus-alertmanager", "prometheus-alertmanager")
    settings = tmp_path / "alertmanager.yml"
    settings.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    port = free_port()
    command = [path, f"--config.file={settings}", f"--storage.path={tmp_path / 'data'}",
               f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:
        try:
            assert until(lambda: listens(port), 30)
            now = dt.datetime.now(dt.UTC)
            record = PLACED | {"time": time.time_ns() // 1000 - 7_200_000_000}
            for manner in (OPEN, OPEN):
                _ask(port, "POST", FORMS["alertmanager"](record, manner, now))
            _ask(
                port,
                "POST",
                FORMS["alertmanager"](record | {"index": 8}, Manner(subjects=False), now),
            )
            shown = json.loads(_ask(port, "GET"))
        finally:
            server.kill()
    assert sorted(one["labels"]["finding"] for one in shown) == [
        "test/receiver@7", "test/receiver@8"
    ]  # fmt: skip
    assert {one["status"]["state"] for one in shown} <= {"active", "unprocessed"}


def _ask(port, method, message=None):
    """What the API answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"}
        connection.request(method, "/api/v2/alerts", json.dumps(message), headers)
        answer = connection.getresponse()
        text = answer.read()
    assert answer.status == 200, text
    return text
