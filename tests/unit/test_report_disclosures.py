"""The accounting of disclosures: what is in it, what is left out, what is hidden."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lookup_shown import FOUND, NOW, REQUEST

from authz.record import details_of
from authz.report.completeness import Completeness
from authz.report.disclosures import (
    account,
    document,
    earliest,
    gave_away,
    suspended,
    to_json,
    without_suspended,
)
from authz.report.entries import corrected, entered, entries, withdrawn
from authz.report.people import Person
from authz.report.purposes import LEFT_OUT, in_words
from authz.store.lookups import EVER, Window

DAY = 86_400_000_000
RESTS_ON = Completeness(NOW, (), {}, 1, 0, ())


def request(number=0, **more):
    at = NOW - (100 - number) * DAY
    usual = {"time": at, "purpose": "HRESCH", "records": (f"a/b/{number}",), "status": 200}
    return replace(REQUEST, **(usual | more))


def fax(recipient="County Court, Riverside", number=0, purpose="HLEGAL", **more):
    """A disclosure that was made outside, as the log has it."""
    told = {
        "recipient": recipient, "address": "1 Court Street", "description": "letter",
        "purpose": purpose, "date": NOW - (50 - number) * DAY,
    }  # fmt: skip
    record = entered(["k.t"], "me", "subpoena", NOW, told | more)
    return record | {"origin": "a/b", "index": 1000 + number, "sealed_at": NOW}


def suspension(agency, until, *, index=2000, oral=False):
    details = {"agency": agency, "until": until, "oral": oral}
    record = suspended(["k.t"], "me", "statement", NOW, details)
    return record | {"origin": "a/b", "index": index, "sealed_at": NOW + index}


def correction(place, number=0, why="wrong court", **more):
    """Of what is entered at `place`; without `more` it is withdrawn."""
    told = details_of(fax()) | more
    make = corrected if more else withdrawn
    record = make(f"a/b@{place}", ["k.t"], "me", why, NOW - 3 * DAY, told if more else {})
    return record | {"origin": "a/b", "index": 1500 + number, "sealed_at": NOW}


def day(ago):
    return datetime.fromtimestamp(NOW / 1e6 - ago * 86_400, UTC).strftime("%Y-%m-%d")


def accounted(requests=(), notices=(), people=None, window=EVER, now=NOW, **more):
    return account(requests, notices, people or {}, window, now, **more)


def shown(found, *, with_suspended=False):
    """All that anybody is shown."""
    made = document(found, RESTS_ON, [("Patient", "p")], "", with_suspended=with_suspended)
    return str(made) + json.dumps(to_json(found, with_suspended=with_suspended))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("TREAT", "treatment"), ("ETREAT", "treatment"), ("BTG", "treatment"),
        ("COC", "treatment"), ("HPAYMT", "payment"), ("CLMATTCH", "payment"),
        ("ELIGVER", "payment"), ("HOPERAT", "operations"), ("HQUALIMP", "operations"),
        ("TRAIN", "operations"), ("hcompl", "operations"), ("PATRQT", "patient"),
    ],
)  # fmt: skip
def test_left_out(code, why):
    """Treatment, payment and operations, what is under them, and what patients got are counted, by
    whatever way they came, and not listed."""
    found = accounted([request(purpose=code)], [fax(purpose=code)])
    assert (found.listed, found.left_out) == ((), {why: 2})
    assert "2 " in shown(found)


@pytest.mark.parametrize(
    "code",
    [*"HRESCH PUBHLTH HLEGAL GOV MILCDM MILDCRG DONAT HDECD FAMRQT treatment".split(), ""],
)
def test_listed(code):
    """Research, courts and whatever else 164.512 tells of is listed, and so is what has no purpose
    or one that only looks like one."""
    found = accounted([request(purpose=code)], [fax(purpose=code)])
    assert (len(found.listed), found.left_out) == (2, {})
    assert (in_words(code) or "(not stated)") in shown(found)


@pytest.mark.parametrize(
    ("more", "gave"),
    [
        ({}, True),
        ({"action": "E", "known": ("answer",), "outcome": "dry-run"}, True),
        ({"outcome": "unasked"}, True),
        ({"action": "U", "known": ("answer",)}, True),
        ({"action": "U"}, False),
        ({"action": "C"}, False),
        ({"outcome": "denied"}, False),
        ({"outcome": "rejected"}, False),
        ({"answered": False}, False),
        ({"status": 404}, False),
        ({"status": 0}, True),
    ],
)
def test_what_gave_data_away(more, gave):
    """Answers that held data, and reads that were answered: not denials, failures, nor writes."""
    one = request(**more)
    assert gave_away(one) is gave
    assert len(accounted([one]).listed) == gave


def test_several_to_one_recipient_are_one_line():
    """The first in full, how many, and the last; another purpose or recipient is another line."""
    found = accounted(
        [request(3), request(1, resource_type="Observation"), request(2, roles=("analyst",)),
         request(5, purpose="PUBHLTH"), request(4, subject="a.elm")],
        [fax(), fax("COUNTY COURT  Riverside.", 7), fax("Other Court", 1)],
    )  # fmt: skip
    told = [(one.first.recipient, one.count, one.last - one.first.time) for one in found.listed]
    assert told == [
        ("dr.alder, physician", 3, 2 * DAY), ("a.elm, physician", 1, 0),
        ("dr.alder, physician", 1, 0), ("County Court, Riverside", 2, 7 * DAY),
        ("Other Court", 1, 0),
    ]  # fmt: skip
    assert found.listed[0].first.description == "Observation (read)"
    [section, _] = document(found, RESTS_ON, [], "", with_suspended=False).sections
    assert section.title == "Disclosures: 8"
    assert "3 times" in section.rows[0][0]
    each = accounted([request(3), request(1)], [fax(), fax(number=7)], summarise=False)
    assert [one.count for one in each.listed] == [1, 1, 1, 1]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["HRESCH", "GOV", "TREAT"]),
                          st.integers(0, 90)), max_size=20))  # fmt: skip
def test_no_disclosure_is_lost(made):
    """However many there are of whatever kind, each is counted once: listed, or left out."""
    requests = [request(day, subject=who, purpose=why) for who, why, day in made]
    found = accounted(requests)
    assert sum(one.count for one in found.listed) + sum(found.left_out.values()) == len(made)
    kept = {(who, why) for who, why, _ in made if why not in LEFT_OUT}
    assert len(found.listed) == len(kept)
    for one in found.listed:
        own = [r.time for r in requests
               if (r.subject, r.purpose) == (one.first.known_as[0], one.first.purpose)]  # fmt: skip
        assert (one.first.time, one.last, one.count) == (min(own), max(own), len(own))


def test_names_and_addresses():
    """Where names and addresses are known they are told, with the name in the log."""
    people = {"dr.alder": Person("dr.alder", "A. Alder", "2 Elm Street")}
    [one] = accounted([request()], people=people).listed
    assert one.first.recipient == "A. Alder (dr.alder), physician"
    assert one.first.address == "2 Elm Street"
    assert "(address not known)" in shown(accounted([request()]))
    nobody = accounted([request(subject="", roles=())])
    assert nobody.listed[0].first.recipient == "(not identified) from 192.0.2.7"


def test_the_time_of_what_was_entered():
    """It counts when it was disclosed, whenever it was entered."""
    window = Window(NOW - 50 * DAY, NOW - 40 * DAY)
    notices = [fax(str(day), number=day) for day in (-1, 0, 9, 10)]
    assert [one.first.recipient for one in accounted((), notices, window=window).listed] == [
        "0", "9"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("now", "first"),
    [((2026, 11, 26), (2020, 11, 26)), ((2024, 2, 29), (2018, 2, 28))],
)
def test_six_years(now, first):
    """An accounting goes back six years to the day."""
    at = int(datetime(*now, 13, 5, tzinfo=UTC).timestamp()) * 1_000_000
    assert datetime.fromtimestamp(earliest(at) / 1e6, UTC) == datetime(*first, tzinfo=UTC)


COURT, ALDER = "County Court, Riverside", "dr.alder, physician"


@pytest.mark.parametrize(
    ("agency", "hidden", "left"),
    [
        ("County Court", COURT, ALDER), ("county  court,", COURT, ALDER),
        ("Riverside", COURT, ALDER), ("lakeside", ALDER, COURT), ("dr alder", ALDER, COURT),
    ],
)  # fmt: skip
def test_suspended(agency, hidden, left):
    """While it is in force nothing shows what was disclosed to the agency, nor that it is hidden;
    the operator sees it where they ask for that, and the patient once it is over."""
    notices = [fax(), suspension(agency, NOW + 1)]
    found = accounted([request()], notices)
    assert [one.first.recipient for one in found.listed] == [left]
    assert [one.first.recipient for one in found.suspended] == [hidden]
    without = accounted([request()], ()) if left == ALDER else accounted((), [fax()])
    assert shown(found) == shown(without)
    assert hidden not in shown(found)
    internal = shown(found, with_suspended=True)
    assert hidden in internal
    assert "INTERNAL" in internal
    after = accounted([request()], notices, now=NOW + 1)
    assert {one.first.recipient for one in after.listed} == {hidden, left}


def test_the_access_report_for_the_patient():
    """Neither a request of the agency's nor its part of the counts is in what the patient gets."""
    requests = (request(), request(1, subject="det.moss", tenant="Riverside Police"))
    found = replace(FOUND, requests=requests, total=2, people=2)
    kept = without_suspended(found, [suspension("Riverside Police", NOW + 1)], {}, NOW)
    assert (kept.requests, kept.total, kept.people) == (requests[:1], 1, 1)
    assert without_suspended(found, [suspension("Riverside Police", NOW)], {}, NOW) is found


def test_suspended_says_nothing_in_counts():
    """What is left out anyway is not counted either where it is suspended."""
    notices = [fax(purpose="HOPERAT"), suspension("County Court", NOW + 1)]
    assert accounted((), notices).left_out == {}


@pytest.mark.parametrize("agency", ["Count", "Court Riverside County", "ounty Court", "Police"])
def test_not_suspended(agency):
    """Part of a word, or other words, are another's name."""
    assert accounted((), [fax(), suspension(agency, NOW + 1)]).suspended == ()


def test_the_newest_suspension_counts():
    """A suspension is shortened, or ended, by another of the same agency."""
    ended = [fax(), suspension("County Court", NOW + DAY), suspension("COUNTY court", NOW, index=3)]
    assert len(accounted((), ended).listed) == 1
    longer = [fax(), suspension("County Court", NOW), suspension("County Court", NOW + 5, index=3)]
    assert accounted((), longer).listed == ()


def test_corrected():
    """What is right is listed in its place, with a note that says when and why; the last that was
    said counts, whether it names the entry or a correction of it."""
    said = [
        fax(), correction(1000, recipient="Family Court"), fax("Clinic", 3),
        correction(1500, 1, "wrong day too", recipient="Family Court", date=NOW - 60 * DAY),
    ]  # fmt: skip
    found = accounted((), said)
    assert [(one.first.recipient, one.first.time) for one in found.listed] == [
        ("Family Court", NOW - 60 * DAY), ("Clinic", NOW - 47 * DAY),
    ]  # fmt: skip
    assert found.listed[0].first.records == ("a/b@1000", "a/b@1500", "a/b@1501")
    [listed, notes, _] = document(found, RESTS_ON, [], "", with_suspended=False).sections
    assert listed.title == "Disclosures: 2"
    assert [row[0][-1] for row in listed.rows] == ["note 1", day(47)]
    said = ("note 1", "corrected", (day(3), day(3)), ("wrong court", "wrong day too"))
    assert notes.rows == (said,)
    assert COURT not in shown(found)


def test_withdrawn():
    """It is not listed any more, and a note says what was, and why it is not; unless nobody was
    told of it anyway. What is corrected after that is listed again."""
    found = accounted((), [fax(), correction(1000, why="another patient's")])
    assert found.listed == ()
    [_, notes, _] = document(found, RESTS_ON, [], "", with_suspended=False).sections
    [row] = notes.rows
    assert row[1] == f"withdrawn: what was listed of {day(50)}, to County Court, Riverside"
    assert row[3] == ("another patient's",)
    for_treatment = accounted((), [fax(purpose="TREAT"), correction(1000)])
    assert (for_treatment.left_out, for_treatment.withdrawn) == ({}, ())
    again = [fax(), correction(1000), correction(1000, 1, recipient="Family Court")]
    assert [one.first.recipient for one in accounted((), again).listed] == ["Family Court"]


@pytest.mark.parametrize("place", [1001, 2000, 1500])
def test_corrects_nothing(place):
    """A correction of what is no entry of this patient, or of itself, changes nothing."""
    said = [fax(), suspension("Police", NOW), correction(place, recipient="Family Court")]
    assert accounted((), said).listed == accounted((), [fax()]).listed
    assert set(entries(said)) == {"a/b@1000"}


@pytest.mark.parametrize("said", [[correction(1000)], [correction(1000, recipient="Clinic")]])
def test_a_correction_tells_of_no_suspended_agency(said):
    """What was entered for an agency that is not to be told of leaves no note in its correction."""
    notices = [fax(), *said, suspension("County Court", NOW + 1)]
    found = accounted((), notices)
    assert "note" not in shown(found).replace("notes=", "")
    assert "wrong court" not in shown(found)
    assert "1500" not in shown(found)
    assert len(found.listed) == (details_of(said[0]).get("recipient") == "Clinic")
    after = shown(accounted((), notices, now=NOW + 1))
    assert "wrong court" in after


def test_notices_that_others_made():
    """A notice that does not say what `enter` and `suspend` say is passed over."""
    odd = [fax() | {"details": text} for text in ("", "[]", "{", '{"recipient":1,"date":"x"}')]
    odd += [suspension("x", 1) | {"details": text} for text in ("", '{"agency":7,"until":[]}')]
    odd += [correction(1000) | {"records": []}, correction(1000, date=1) | {"details": "[]"}]
    assert accounted((), odd) == accounted()
