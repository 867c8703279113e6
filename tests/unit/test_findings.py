"""Findings and break-glass: what people say changes their state, and nothing else does."""

import io
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import TestLog
from raised import HOSTILE, HOUR, NOON, finding, use
from rich.console import Console

from authz.cli.break_glass import show_uses
from authz.cli.findings import age, show_list, show_one
from authz.detect.break_glass import NO_REASON, UNREVIEWED, Uses, late, use_of, without_reason
from authz.detect.record import finding_record, key_of
from authz.record import notice
from authz.report.findings import find, find_one, fold, opinion
from authz.store import checkpoints
from authz.store import findings as stored
from authz.store.lookups import Window

NOW_MS = time.time_ns() // 1_000_000
ACTS = ("acknowledged", "explained", "confirmed")


@pytest.fixture
def log(tmp_path, database):
    log = TestLog(tmp_path, database)
    yield log
    log.close()
    log.writer_journal.close()


def keep(log, *records):
    log.append(log.written(list(records)))
    log.seal()


def placed(record, index):
    return record | {"origin": "test/receiver", "index": index, "sealed_at": NOON + index}


def said(act, on, index, by="officer"):
    return placed(opinion(act, on, "why", by, NOON), index)


def review(verdict="justified", by="officer", on="test/receiver@0", **more):
    return notice("break_glass_reviewed", NOON, {"by": by, "verdict": verdict}, records=[on]) | more


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from(("officer", "dr.alder")))))
def test_the_last_judgement_counts(acts):
    """A finding is as the last person who judged it says, whoever has only seen it since; what the
    person concerned says is shown and changes nothing."""
    raised = placed(finding(), 0)
    [one] = fold([raised], [])
    notices = [said(act, one, number, by) for number, (act, by) in enumerate(acts, 1)]
    [one] = fold([raised], notices)
    theirs = [act for act, by in acts if by == "officer"]
    final = [act for act in theirs if act != "acknowledged"]
    expected = final[-1] if final else "acknowledged" if theirs else "open"
    assert one.state == expected
    assert one.is_open == (expected in ("open", "acknowledged"))
    assert [(told.act, told.by) for told in one.said] == acts


@pytest.mark.parametrize("details", ["", "[]", "{}", '{"by":""}', '{"by":7}', "no json"])
def test_nobody_says_nothing(details):
    """A notice that does not say by whom it is closes no finding."""
    [one] = fold([placed(finding(), 0)], [])
    told = said("explained", one, 1) | {"details": details}
    assert fold([placed(finding(), 0)], [told])[0].state == "open"
    other = said("explained", one, 1) | {"records": ["test/receiver@7"]}
    assert fold([placed(finding(), 0)], [other])[0].state == "open"


def test_findings_from_the_log(log):
    """What was raised and said is read back from ClickHouse: by lane, person, time, and one by its
    place; rows that are there twice are told once."""
    other = {"subject": "n.hazel", "lane": "review", "rule": "off_hours"}
    keep(log, use(), finding(1), finding(2, **other), finding(3, subject="", source_ip="192.0.2.9"))
    first, second, third = find(log.client)
    assert [one.id for one in (first, second, third)] == [f"test/receiver@{n}" for n in (1, 2, 3)]
    keep(log, opinion("confirmed", first, "no reason", "officer", NOON + HOUR))
    keep(log, opinion("acknowledged", third, "looking", "officer", NOON + HOUR))
    log.client.execute("INSERT INTO audit_log SELECT * FROM audit_log WHERE kind != 'decision'")
    found = find(log.client)
    assert [one.state for one in found] == ["confirmed", "open", "acknowledged"]
    [told] = found[0].said
    assert (told.by, told.reason, told.time) == ("officer", "no reason", NOON + HOUR)
    assert told.record == "test/receiver@4"
    assert found[0].details == {"patients": 40}
    assert (found[2].subject, found[2].source_ip) == ("", "192.0.2.9")
    assert [one.id for one in find(log.client, subject="n.hazel")] == [second.id]
    assert [one.id for one in find(log.client, lane="act")] == [first.id, third.id]
    assert find(log.client, Window(since_us=4 * NOON)) == []
    assert find_one(log.client, "test/receiver", 1) == found[0]
    assert find_one(log.client, "test/receiver", 0) is None
    assert find_one(log.client, "test/receiver", 99) is None
    [decision] = stored.at(log.client, [("test/receiver", 0), ("nowhere", 0)])
    assert decision["decision_id"] == "d-0"
    assert stored.at(log.client, []) == []


def test_what_findings_name(log):
    """A place is that record; a decision id is the decision, or an access where there is none; what
    was sealed long after the finding, or is not there, is not shown."""
    ids = [f"{NOW_MS + n:012x}" for n in range(3)]
    one, two, three = (f"{i[:8]}-{i[8:]}-7abc-8def-0123456789ab" for i in ids)
    access = use(kind="access", decision_id=one)
    keep(log, access, use(decision_id=one), use(kind="access", decision_id=two), use(5))
    named = [one, two, three, "test/receiver@0", "test/receiver@9", "d-5"]
    found = stored.named(log.client, named, NOW_MS * 1000)
    told = {name: (record["kind"], record.get("index", 0)) for name, record in found.items()}
    assert told == {
        one: ("decision", 1), two: ("access", 2), "test/receiver@0": ("access", 0),
        "d-5": ("decision", 3),
    }  # fmt: skip
    assert set(stored.named(log.client, [one, two, three], NOW_MS * 1000)) == {one, two}
    assert stored.named(log.client, [one, "d-5"], 0) == {}
    assert stored.named(log.client, [], 0) == {}


def test_after(log):
    """What a webhook has not been sent is read in order, few at a time, and nothing beyond what is
    stored for certain."""
    assert stored.after(log.client, {}, 10) == []
    keep(log, *(finding(number) for number in range(5)), use())
    assert checkpoints.sizes(log.client) == {"test/receiver": 6}
    places = [record.get("index", 0) for record in stored.after(log.client, {}, 3)]
    assert places == [0, 1, 2]
    rest = stored.after(log.client, {"test/receiver": 2}, 3)
    assert [record["index"] for record in rest] == [3, 4]
    assert stored.after(log.client, {"test/receiver": 5}, 3) == []
    log.client.execute(
        "INSERT INTO audit_log SELECT * REPLACE (6 AS index) FROM audit_log WHERE index = 4"
    )
    assert stored.after(log.client, {"test/receiver": 5}, 3) == []


def test_break_glass_from_the_log(log):
    """Uses wait until somebody else has reviewed them; one that is late is raised once."""
    denied = use(3, allowed=False)
    keep(log, use(0), use(1), use(2, break_glass=False), denied, use(4))
    keep(log, review(), review(by="dr.fir", on="test/receiver@1"), review("maybe", on="x@1"))
    uses = Uses.of(stored.glass(log.client))
    assert [one.id for one in uses.waiting] == ["test/receiver@1", "test/receiver@4"]
    now = uses.waiting[-1].due(72)
    raised = late(uses, now, 72)
    assert [(one.rule, one.lane, one.records) for one in raised] == [
        (UNREVIEWED, "act", ("test/receiver@1",)), (UNREVIEWED, "act", ("test/receiver@4",)),
    ]  # fmt: skip
    assert (raised[0].subject, raised[0].tenant) == ("dr.fir", "lakeside")
    assert len({key_of(one) for one in raised}) == 2
    assert "Nobody has reviewed it within 72 hours" in raised[0].evidence
    keep(log, finding_record(raised[0]))
    assert find(log.client)[0].records == ("test/receiver@1",)
    assert [one.records for one in late(Uses.of(stored.glass(log.client)), now, 72)] == [
        ("test/receiver@4",)
    ]


@given(
    st.lists(st.integers(0, 100), max_size=8, unique=True),
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(("officer", "dr.fir"))), max_size=8),
    st.integers(0, 200),
)
def test_late(hours, reviewed, now):
    """Late is what nobody else has reviewed when its hours are over, and that alone, the oldest
    first; a told time has no part in it."""
    records = [
        placed(use(time=1), number) | {"sealed_at": NOON + at * HOUR}
        for number, at in enumerate(hours)
    ]
    reviews = [review(by=by, on=f"test/receiver@{number}") for number, by in reviewed]
    raised = late(Uses.of([*reviews, *records]), NOON + now * HOUR, 72)
    fine = {number for number, by in reviewed if by == "officer"}
    expected = sorted((at, n) for n, at in enumerate(hours) if at + 72 <= now and n not in fine)
    assert [one.records for one in raised] == [(f"test/receiver@{n}",) for _, n in expected]


@pytest.mark.parametrize(
    "reason", ["", " ", ",", "break-glass by physician: ", "break-glass by physician: ,", "-:-"]
)
def test_without_reason(reason):
    """Break-glass without a stated reason is raised at once."""
    raised = without_reason(use_of(placed(use(reason=reason), 3)))
    assert (raised.rule, raised.lane, raised.records) == (NO_REASON, "act", ("test/receiver@3",))


@pytest.mark.parametrize(
    "reason", ["unconscious", "a: b", "fell at 12:30", "意識不明", "x: 意識 :("]
)
def test_with_reason(reason):
    """A stated reason, in whatever words and script, is none."""
    assert without_reason(use_of(placed(use(reason=reason), 3))) is None


def shown_by(show, *arguments):
    out = io.StringIO()
    show(*arguments, Console(file=out, width=140, force_terminal=False))
    return out.getvalue()


@settings(max_examples=40)  # each draws four tables
@given(st.text(), st.sampled_from(["act", "review"]))
def test_text_cannot_steer_a_terminal(text, lane):
    """No text of a finding, of its records or of what people said reaches the terminal as more."""
    raised = placed(finding(), 0) | {"rule": text, "subject": text, "evidence": text, "lane": lane}
    raised |= {"origin": text, "details": json.dumps({"cause": text})}
    [one] = fold([raised], [])
    [one] = fold([raised], [said("explained", one, 1, text or "x") | {"reason": text}])
    record = placed(use(), 1) | dict.fromkeys(("subject", "reason", "path", "method"), text)
    record |= {"patients": [text], "origin": text}
    told = shown_by(show_one, one, [record])
    told += shown_by(show_list, [one], 0, NOON)
    told += shown_by(show_list, [replace(one, subject="", source_ip=text)], 0, NOON)
    told += shown_by(show_uses, Uses.of([record]).waiting, 72, NOON)
    assert all(c.isprintable() or c == "\n" for c in told)


def test_shown():
    """The list has age, lane, rule, person, evidence and state; one finding has its records, and
    tells which are not there."""
    [one] = fold([placed(finding(evidence="40 patients\nhidden"), 7)], [])
    [done] = fold([placed(finding(), 7)], [said("explained", one, 9)])
    told = shown_by(show_list, [one, done], 3, NOON + 3 * HOUR)
    for text in ("3 h ago", "act", "bulk_read", "dr.alder", "40 patients", "explained", "officer"):
        assert text in told
    assert "hidden" not in told
    assert "and 3 older findings" in told
    assert "1 open, 1 of them to act on now" in told
    hostile = placed(use(reason=HOSTILE, patients=[f"t{n}" for n in range(5)]), 0)
    told = shown_by(show_one, done, [hostile])
    assert "[red]a[/]\\x1b[31m\\u202e" in told
    assert "and 2 more" in told
    assert "1 of the 2 records that it names are not in the database" in told
    assert "explained by officer: why" in told
    assert "none waits" in shown_by(show_uses, [], 72, NOON)
    assert [age(n * 1_000_000) for n in (-5, 5, 60, 7200, 10**6)] == [
        "0 s", "5 s", "1 min", "2 h", "11 d"
    ]  # fmt: skip
