"""Reports and exports that people take out of the console: what they say, and what is on record."""

import io
import re
import zipfile

import httpx2 as httpx
import orjson
import pytest
from console_site import HOSTILE, console, looks, mark_in, site, token_in
from programs import makes_pdfs, until
from pypdf import PdfReader
from relay import Holding

from authz.report.exports.check import check_export
from authz.trust import load_trust

__all__ = ["site"]  # the fixture


@pytest.fixture(scope="module")
def officer(site):
    with console(site, everyone="o.ash", everyone_roles=["privacy-officer"]) as client:
        yield client


def post(client, path, **form):
    mark = mark_in(client.get("/search").text)
    return client.post(path, data={"mark": mark, "reason": "complaint 17", "form": "html"} | form)


def on_record(site, reason):
    """The looks with this reason, once there are any."""
    assert until(lambda: [one for one in looks(site) if one[2] == reason], 20)
    return [one for one in looks(site) if one[2] == reason]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("form", "says", "whose"),
    [
        ({"report": "disclosures", "identifier": "p-1"}, "Hazel Reed (p-1)", {"p-1"}),
        ({"report": "access", "identifier": "p-1"}, "Dr Alder (dr.alder)", {"p-1"}),
        ({"report": "access_internal", "identifier": "p-0"}, "n.reed", {"p-0"}),
        ({"report": "activity", "subject": "dr.alder"}, "Dr Alder", {"p-0", "p-1", "p-2"}),
        ({"report": "breach", "subject": "m.moss"}, "Patients by token: 1", {"p-9"}),
        ({"report": "review"}, "Periodic review", set()),
    ],
    ids=lambda one: one.get("report") if isinstance(one, dict) else "",
)
def test_each_report(site, officer, form, says, whose):
    """Is a file by a name that tells nobody's, made by the code of the command; and on record, with
    the reason and whose data is in it."""
    answer = post(officer, "/report", reason=f"a {form['report']}", issuer="Lakeside", **form)
    assert answer.status_code == 200, answer.text
    assert re.fullmatch(
        rf'attachment; filename="{form["report"].replace("_", "-")}-[-\d]{{10}}\.html"',
        answer.headers["content-disposition"],
    )
    page = answer.text
    assert says in page
    assert "Lakeside" in page
    assert "Proof of completeness" in page
    assert "by o.ash" in page
    assert HOSTILE not in page
    [(who, what, _, patients, details)] = on_record(site, f"a {form['report']}")
    assert (who, what) == ("o.ash", "console/report")
    assert set(patients) == {token_in(site, one) for one in whose}
    assert orjson.loads(details)["report"] == form["report"]
    assert "p-1" not in details


def test_on_paper(officer):
    """The same, paged."""
    makes_pdfs()
    answer = post(officer, "/report", report="access", identifier="p-1", form="pdf")
    assert answer.headers["content-type"] == "application/pdf"
    [first, *_] = PdfReader(io.BytesIO(answer.content)).pages
    assert "Access report" in first.extract_text()


def test_from_where_they_are(site, officer):
    """A person's page, a patient's and a search lead to what can be made of them."""
    token = token_in(site, "p-1")
    for page, reports in (
        ("/person/dr.alder", {"activity", "breach"}),
        (f"/patient/{token}", {"disclosures", "access", "access_internal"}),
        ("/search?role=physician", {"disclosures", "access", "access_internal", "activity",
                                    "breach", "review"}),
    ):  # fmt: skip
        address = re.search(r'href="(/reports[^"]+)"', officer.get(page).text)[1]
        shown = officer.get(address.replace("&amp;", "&")).text
        assert set(re.findall(r'<option value="([a-z_]+)">', shown)) - {"ndjson", "csv", "fhir"} \
            == reports  # fmt: skip
    assert '<input type="hidden" name="role" value="physician">' in shown


def test_what_is_not_made(site, officer):
    """Without a reason, of more than six years, of no such kind, or of nobody."""
    for form, says in (
        ({"report": "review", "reason": ""}, "give the reason"),
        ({"report": "review", "since": "2001-01-01"}, "6 years ago at most"),
        ({"report": "other"}, "want one of disclosures"),
        ({"report": "review", "form": "doc"}, "want one of html"),
        ({"report": "activity"}, "give the person"),
        ({"report": "access"}, "give the patient"),
        ({"report": "access", "patient": "p-1"}, "want a token"),
    ):
        answer = post(officer, "/report", **form)
        assert answer.status_code == 400, form
        assert says in answer.text
    assert officer.post("/report", data={"report": "review", "reason": "x"}).status_code == 403


@pytest.mark.thorough
def test_who_may_take_what(site):
    """It is the policy's to say, for each report; who sees no names has none in a report."""
    with console(site, everyone="s.ash", everyone_roles=["security-officer"]) as security:
        page = security.get("/reports").text
        assert "Breach list" in page
        assert "Accounting" not in page
        assert 'action="/export"' not in page
        assert post(security, "/report", report="access", identifier="p-1").status_code == 403
        assert post(security, "/export", format="csv", why="x").status_code == 403
        assert post(security, "/report", report="activity", subject="dr.alder").status_code == 200
    with console(site, everyone="a.birch", everyone_roles=["auditor"]) as auditor:
        answer = post(auditor, "/report", report="access", identifier="p-1")
        assert answer.status_code == 200
        assert "Alder" not in answer.text
        assert "Hazel" not in answer.text


@pytest.mark.parametrize("form", ["ndjson", "csv", "fhir"])
def test_an_export_of_a_search(site, officer, tmp_path, form):
    """An archive with the records that meet the search, and a manifest that proves them."""
    why = f"for the auditor, as {form}"
    asked = {"subject": "dr.alder", "decision": "allowed", "reason": "care TEAM"}
    answer = post(officer, "/export", format=form, since="2026-01-01", **asked, why=why)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    checked = check_export(tmp_path / "manifest.json", load_trust(
        site.directory / "receiver" / "trust.yaml"))  # fmt: skip
    assert checked.manifest.records == 6
    assert checked.proven == (form != "fhir")
    filters = checked.manifest.filters.model_dump()
    assert asked.items() <= filters.items()
    assert filters["since"] == "2026-01-01T00:00:00.000000Z"
    [(who, what, _, _, details)] = on_record(site, why)
    assert (who, what) == ("o.ash", "console/export")
    assert orjson.loads(details)["format"] == form


def test_an_export_that_is_cut_off(site, tmp_path):
    """Does not look whole: the browser is told that something is missing. The next one is made."""
    address = site.store.rpartition("@")[2].partition("/")[0]
    relay = Holding(address, b"FROM tiles")
    with console(site, store=site.store.replace(address, relay.address), everyone="a.birch",
                 everyone_roles=["auditor"]) as auditor:  # fmt: skip
        data = {"mark": mark_in(auditor.get("/search").text), "why": "x", "format": "ndjson",
                "subject": "dr.alder"}  # fmt: skip
        with auditor.stream("POST", "/export", data=data) as answer:
            assert answer.status_code == 200
            pieces = answer.iter_raw()
            next(pieces)
            assert relay.held.wait(30)
            relay.cut()
            relay.may.set()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        relay.mend()
        assert until(lambda: auditor.post("/export", data=data).status_code == 200, 20)
    relay.close()
