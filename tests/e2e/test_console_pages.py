"""The console as people use it: over HTTP, with a real receiver, ClickHouse and policy."""

import re
import subprocess
import time
from datetime import UTC, datetime
from html import unescape

import orjson
import pytest
import yaml
from console_site import HOSTILE, MANY, ORIGIN, console, finding, looks, mark_in, site, token_in
from programs import AUTHZ, CHECKOUT, until
from relay import Holding

from authz.store.client import connect

__all__ = ["site"]  # the fixture

OFFICER = "o.ash"


@pytest.fixture(scope="module")
def officer(site):
    """What a privacy officer's browser asks."""
    roles = ["privacy-officer"]
    with console(site, everyone=OFFICER, everyone_roles=roles) as client:
        yield client


PAGES = {
    "/": "overview", "/search": "search", "/search?subject=dr.alder&decision=denied": "search",
    "/person/dr.alder": "person", "/findings": "findings", "/verify": "verify",
    "/policy": "policy", "/policy?role=physician": "policy", f"/record/{ORIGIN}@3": "record",
}  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_on_record(site, officer, path):
    """Before it is shown, and once; what people wrote is text there, and no page loads from
    elsewhere."""
    arrived(site, officer, f"before {path}")
    before = len(looks(site, OFFICER))
    answer = officer.get(path)
    assert answer.status_code == 200, answer.text
    assert HOSTILE not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r'(?:src|href)="https?:', answer.text)
    arrived(site, officer, f"after {path}")
    assert [what for _, what, *_ in looks(site, OFFICER)[before:-1]] == [f"console/{PAGES[path]}"]


def test_the_state_is_a_sentence(officer):
    """First it is not verified; then everything is intact, or it says what is not."""
    assert "Not verified from here yet" in officer.get("/").text
    page = officer.get("/verify").text
    assert officer.post("/verify/start", data={"mark": mark_in(page)}).status_code == 303
    assert until(lambda: not officer.get("/verify/progress").json()["running"], 30)
    assert "No record was changed" in officer.get("/verify").text
    assert "is intact, as verified at" in unescape(officer.get("/").text)


def test_search(site, officer):
    """By person, decision, reason and token; the address has the filters."""
    found = officer.get("/search", params={"subject": "n.reed", "decision": "denied"}).text
    assert found.count("/record/") == 3
    assert "/person/n.reed" in found
    assert "Dr Alder" not in found
    assert "Dr Alder" in officer.get("/search?reason=CARE team").text
    assert "/record/" not in officer.get("/search?resource_type=Observation&resource_id=no").text
    found = officer.get("/search?resource_type=Observation&resource_id=o-7&role=").text
    assert found.count("/record/") == 1
    token = token_in(site, "p-1")
    assert officer.get("/search", params={"patient": token}).text.count("/record/") == 5
    assert "Nothing is found" in officer.get("/search?country=NO").text
    for wrong in ("since=yesterday", "patient=p-1", "resource_type=Patient&resource_id=p-1",
                  "before=x", "since=0001-01-01"):  # fmt: skip
        assert officer.get(f"/search?{wrong}").status_code == 400, wrong
    assert officer.get("/patient/p-1").status_code == 400


def test_older_requests(site, officer):
    """Page by page, each request once; a page's address has the filters and stays what it is."""
    address, seen = "/search?subject=m.moss&since=2026-01-01", []
    for rows in (200, MANY - 200):
        page = officer.get(address).text
        found = re.findall(r'href="/record/([^"]+)"', page)
        assert len(found) == rows
        seen += found
        older = re.search(r'href="([^"]+)" rel="next"', page)
        address = unescape(older[1]) if older else ""
        assert ("subject=m.moss" in address) == (rows == 200)
    assert len(set(seen)) == MANY
    assert "none older since 2026-01-01" in page


@pytest.mark.thorough
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_what_is_found_is_shown_at_once(site, cut):
    """While the database is still reading what is older; and that it stopped is said."""
    since = datetime(2024, 1, 1, tzinfo=UTC)
    address = site.store.rpartition("@")[2].partition("/")[0]
    relay = Holding(address, str(int(since.timestamp()) * 1_000_000).encode())
    store = site.store.replace(address, relay.address)
    with (
        console(site, store=store, everyone="a.oak", everyone_roles=["auditor"]) as auditor,
        auditor.stream("GET", "/search?subject=n.reed&since=2024-01-01") as answer,
    ):
        pieces, shown = answer.iter_text(), ""
        while "/record/" not in shown:
            shown += next(pieces)
        assert relay.held.wait(30)
        assert "searched" not in shown
        if cut:
            relay.cut()
        relay.may.set()
        shown += "".join(pieces)
        assert shown.rstrip().endswith("</html>")
        assert shown.count("/record/") == 6
        assert ("The database stopped answering" in shown) == cut
        assert ("none older since 2024-01-01" in shown) != cut
    relay.close()


@pytest.mark.thorough
def test_the_overview_goes_on(site, officer):
    """One look is on record, which says that it goes on; what is new is told without another. Only
    who opened the page is told."""
    arrived(site, officer, "first")
    before = len(looks(site, OFFICER))
    page = officer.get("/").text
    mark = {"x-live": re.search(r'data-mark="([^"]+)"', page)[1]}
    new = {"kind": "decision", "time": time.time_ns() // 1000, "decision_id": "new",
           "subject": "new.comer", "allowed": True, "enforced": True}  # fmt: skip
    site.tell([new])
    assert until(lambda: "new.comer" in officer.get("/live", headers=mark).text, 20)
    arrived(site, officer, "last")
    opened, last = looks(site, OFFICER)[before:]
    assert (opened[1], last[1]) == ("console/overview", "console/policy")
    assert orjson.loads(opened[4])["live"] is True
    for wrong in ("", "x", mark_in(officer.get("/search").text)):
        assert officer.get("/live", headers={"x-live": wrong}).status_code == 403
    with console(site, everyone="m.ash", everyone_roles=["privacy-officer"]) as other:
        assert other.get("/live", headers=mark).status_code == 403


def arrived(site, officer, name):
    """A look of this name, and all before it, are on record."""
    assert officer.get("/policy", params={"role": name}).status_code == 200
    assert until(lambda: name in str(looks(site, OFFICER)[-1:]), 20)


def test_a_patient_by_identifier(site, officer):
    """It becomes a token before anything else: no address and no record has it. A name is shown to
    who says why."""
    page = officer.get("/search").text
    asked = {"mark": mark_in(page), "identifier": "p-1", "reason": "the patient asked"}
    answer = officer.post("/patient", data=asked)
    token = token_in(site, "p-1")
    assert answer.headers["location"] == f"/patient/{token}"
    page = officer.get(answer.headers["location"]).text
    assert "dr.alder" in page
    assert "Hazel" not in page
    shown = officer.post(
        f"/patient/{token}", data={"mark": mark_in(page), "reason": "to write to them"}
    )
    assert "Who saw Hazel Reed" in shown.text
    assert until(lambda: "to write to them" in [why for _, _, why, *_ in looks(site)], 20)
    [found] = [one for one in looks(site) if one[2] == "to write to them"]
    assert token in found[3]
    assert "p-1" not in str([one[:3] for one in looks(site)])


def test_a_proof_to_take_along(site, officer, tmp_path):
    """The file is what `authz verify-proof` takes."""
    answer = officer.get(f"/proof/{ORIGIN}@3")
    assert answer.status_code == 200
    (tmp_path / "proof").write_bytes(answer.content)
    trust = site.directory / "receiver" / "trust.yaml"
    command = [*AUTHZ, "verify-proof", tmp_path / "proof", "--trust", trust]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def notices(site, event):
    with connect(site.store) as client:
        query = "SELECT subject, reason, records, details FROM notices WHERE event = %(event)s"
        return client.execute(query, {"event": event})


def test_a_finding_is_judged(site, officer):
    """What somebody says is on record, with who said it; and who it is about can be blocked."""
    place = finding(site)
    page = officer.get(f"/finding/{place}").text
    assert "act now" in page
    said = {"mark": mark_in(page), "act": "confirm", "reason": "no reason was found"}
    assert officer.post(f"/judge/{place}", data=said).status_code == 303
    assert until(lambda: notices(site, "finding_confirmed"), 20)
    [(subject, reason, records, details)] = notices(site, "finding_confirmed")
    assert (subject, reason, records) == ("n.reed", "no reason was found", [place])
    assert orjson.loads(details)["by"] == "o.ash"
    assert until(lambda: "confirmed" in officer.get(f"/finding/{place}").text, 20)
    blocked = {"mark": mark_in(page), "hours": "2", "reason": "until we know", "finding": place}
    assert officer.post("/block/n.reed", data=blocked).status_code == 303
    assert until(lambda: notices(site, "block"), 20)
    assert notices(site, "block")[0][2] == [place]


def test_broken_glass_is_reviewed(site, officer):
    """It waits for somebody, and goes when they have said what they think."""
    page = officer.get("/findings").text
    [place] = re.findall(r'action="/review/([^"]+)"', page)
    said = {"mark": mark_in(page), "verdict": "justified", "reason": "an emergency, by the ward"}
    assert officer.post(f"/review/{place}", data=said).status_code == 303
    assert until(lambda: "/review/" not in officer.get("/findings").text, 20)


@pytest.mark.parametrize("form", [{}, {"mark": "x"}, {"mark": "another's"}])
def test_forms_of_others(site, officer, form):
    """Nothing happens by a form that was not given to this person, as another site's is not."""
    if form.get("mark") == "another's":
        with console(site, everyone="m.ash", everyone_roles=["privacy-officer"]) as other:
            form = {"mark": mark_in(other.get("/search").text)}
    before = notices(site, "block")
    answer = officer.post("/block/dr.alder", data=form | {"hours": "1", "reason": "x"})
    assert answer.status_code == 403
    assert notices(site, "block") == before


def test_another_name_for_this_address(officer):
    """Another site that gives its name to this address is told nothing."""
    answer = officer.get("/", headers={"host": "evil.example"})
    assert answer.status_code == 400


def test_who_may_not(site):
    """An auditor sees records, and judges and names nobody; a physician sees nothing. None of it is
    in the navigation."""
    with console(site, everyone="a.birch", everyone_roles=["auditor"]) as auditor:
        page = auditor.get(f"/finding/{finding(site)}").text
        assert "/judge/" not in page
        assert "Dr Alder" not in auditor.get("/person/dr.alder").text
        mark = mark_in(auditor.get("/search").text)
        asked = {"mark": mark, "act": "confirm", "reason": "x"}
        assert auditor.post(f"/judge/{finding(site)}", data=asked).status_code == 403
    with console(site, everyone="dr.alder", everyone_roles=["physician"]) as physician:
        for path in PAGES:
            assert physician.get(path).status_code == 403
        assert "<nav" not in physician.get("/").text


def test_nobody_is_signed_in(site):
    """Without an identity there is no page, and a header is no identity."""
    with console(site, url="http://127.0.0.1:1", oidc={
        "issuer": "http://127.0.0.1:9", "client_id": "console",
    }) as nobody:  # fmt: skip
        for path in PAGES:
            answer = nobody.get(path, headers={"x-authz-subject": "o.ash"})
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/sign-in?back=")
        assert nobody.get("/sign-in").status_code == 503, "the provider is away"
        assert nobody.post("/block/n.reed", data={"reason": "x"}).status_code == 401


@pytest.mark.thorough
def test_what_it_does_not_start_with(site):
    """Without a receiver, a way to know people, or with everybody let in from other hosts."""
    directory, store, receiver, ours = site.directory, site.store, site.address, site.ours
    alone = {name: it for name, it in ours.environment.items() if "RECEIVER" not in name}
    good = {"policy": str(CHECKOUT / "deploy" / "opa" / "console.rego")}
    for options, more, says in (
        (good | {"everyone": "x"}, {}, "ext_authz.receiver is missing"),
        (good, {"ext_authz": {"receiver": receiver}}, "nobody can come to be known"),
        (good | {"everyone": "x", "listen": "0.0.0.0:0", "plaintext": True},
         {"ext_authz": {"receiver": receiver}}, "console.everyone"),
        (good | {"oidc": {"issuer": "https://idp.example", "client_id": "c"}},
         {"ext_authz": {"receiver": receiver}}, "console.url is missing"),
    ):  # fmt: skip
        path = directory / "wrong.yaml"
        data = str(directory / "wrong")
        path.write_text(
            yaml.safe_dump({"store": store, "data_dir": data, "console": options} | more)
        )
        done = subprocess.run(
            [*AUTHZ, "serve", "console", "--config", path], env=alone,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
