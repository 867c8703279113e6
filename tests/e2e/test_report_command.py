"""`authz report` against a real receiver: recorded first, complete, and not saying too much."""

import asyncio
import itertools
import json
import os
import pwd
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pages import FUNCTION, block
from programs import AUTHZ, makes_pdfs, until
from pypdf import PdfReader
from receiving import receiving

from authz import config
from authz.cli import program
from authz.errors import UsageError
from authz.record.privacy import load_key
from authz.serve import tls
from authz.serve.tell import tell
from authz.store.client import connect

ORIGIN = "test/receiver"
PATIENT = "mrn-5ca1ab1e-77"
OTHERS = [f"mrn-9d2f-{n:02}" for n in range(3)]
UNKNOWN = "mrn-nobody-knows"
HOSTILE = "<script>alert(1)</script>"
COURT = "County Court, Riverside"
ME = pwd.getpwuid(os.getuid()).pw_name
WHY = "complaint 17"
MANY = 90
_done = itertools.count()


class Site:
    """A receiver with records in its log."""

    def __init__(self, directory, store, ours, part):
        self.directory, self.store, self.part = directory, store, part
        self.environment = ours.environment
        self.key = directory / "privacy.key"

    def tell(self, *records):
        options = config.load(None, {"ext_authz": {"receiver": self.part.address}}).ext_authz
        directory, key = self.directory / "writer", load_key(self.key)
        connect_ = tls.to_receiver(options)
        asyncio.run(tell(self.part.address, connect_, directory, list(records), key.id))

    def report(self, *arguments, code=0, shown="--json"):
        """What the command prints, as JSON or (with `shown` "") as it is; or its error."""
        usual = ["--reason", WHY, "--data-dir", str(self.directory / "officer")]
        named = {"enter", "correct", "suspend", "disclosures", "patient"} & {arguments[0]}
        if named or "--identifiers" in arguments:
            usual += ["--privacy-key", str(self.key)]
        done = subprocess.run(
            [*AUTHZ, "report", arguments[0], *usual, *arguments[1:], *filter(None, [shown])],
            capture_output=True, text=True, check=False, timeout=90, env=self.environment,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        (self.directory / f"error-{next(_done)}.log").write_text(done.stderr)
        if code:
            assert done.stdout == ""
            return done.stderr
        return json.loads(done.stdout) if shown else done.stdout

    def count(self, condition):
        with connect(self.store) as client:
            return client.execute(f"SELECT count() FROM audit_log WHERE {condition}")[0][0]

    def entered(self, *arguments):
        """`authz report enter` or `suspend`, until it is in ClickHouse."""
        told = self.report(*arguments)
        mine = "writer = '{writer}' AND writer_seq = {seq}".format(**told)
        assert until(lambda: self.count(mine), 20)
        return told


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    with receiving(clickhouse, directory, "report", ORIGIN, COLUMNS="180") as there:
        site = Site(directory, there.store, there.ours, there.part)
        site.tell(*_records(load_key(site.key)))
        assert until(lambda: site.count("kind = 'decision'") >= MANY + 8, 30)
        yield site


def _records(key):
    number = itertools.count()

    def asked(subject, purpose, patients=(), held=(), **more):
        one, at = f"d-{next(number)}", time.time_ns() // 1000
        who = {"subject": subject, "purpose": purpose, "roles": ["analyst"], "decision_id": one,
               "reason": "may do so", "path": "/fhir/Observation", "action": "E", "time": at,
               "policy_revision": "8bfec9aca36d"} | more  # fmt: skip
        what = {"allowed": True, "enforced": True, "method": "GET", "resource_type": "Observation"}
        named = {"patients": [key.token(patient) for patient in patients]}
        yield {"kind": "decision"} | what | who | named
        if held:
            tokens = {"patients": [key.token(patient) for patient in held]}
            yield {"kind": "disclosure", "status": 200, "complete": True} | who | tokens

    yield from asked("dr.alder", "TREAT", [PATIENT], [PATIENT], roles=["physician"])
    for _ in range(3):
        yield from asked("a.elm", "HRESCH", held=[PATIENT, *OTHERS])
    yield from asked("det.moss", "HLEGAL", [PATIENT], [PATIENT], tenant="Riverside Police")
    yield from asked(HOSTILE, "PUBHLTH", [PATIENT], [PATIENT], reason=HOSTILE, path=HOSTILE)
    yield from asked("n.hazel", "TREAT", [PATIENT], allowed=False, reason="not on the care team")
    yield from asked("a.elm", "HRESCH", held=[UNKNOWN])
    for _ in range(MANY):
        yield from asked("b.birch", "HOPERAT", [OTHERS[0]])


def test_accounting_of_disclosures(site):
    """Research in one line, treatment left out and counted, and no denial; what was entered is
    there; the look is on record with the token."""
    enter = ["enter", "--patient", PATIENT, "--recipient", COURT, "--address", "1 Court Street"]
    enter += ["--description", "discharge letter", "--purpose", "subpoena 17", "--date", "2d"]
    site.entered(*enter)
    told = site.report("disclosures", "--patient", PATIENT)
    listed = {one["first"]["recipient"]: one for one in told["disclosures"]}
    assert set(listed) == {"a.elm, analyst", "det.moss, analyst", f"{HOSTILE}, analyst", COURT}
    assert listed["a.elm, analyst"]["count"] == 3
    fax = listed[COURT]["first"]
    assert (fax["address"], fax["description"]) == ("1 Court Street", "discharge letter")
    assert (fax["purpose"], fax["entered"]) == ("subpoena 17", True)
    assert told["left_out"] == {"treatment": 1}
    rests_on = told["completeness"]
    assert [log["origin"] for log in rests_on["logs"]] == [ORIGIN]
    assert (rests_on["unresolved"], rests_on["policies"]) == (0, ["8bfec9aca36d"])
    mine = "event = 'look' AND writer = '{writer}' AND writer_seq = {seq}".format(**told["looked"])
    assert until(lambda: site.count(mine), 20)
    with connect(site.store) as client:
        [row] = client.execute(
            f"SELECT subject, reason, patients, details FROM notices WHERE {mine}"
        )
    assert row[:3] == (ME, WHY, [load_key(site.key).token(PATIENT)])
    assert json.loads(row[3])["command"] == "report disclosures"


@pytest.mark.thorough
def test_a_wrong_entry(site):
    """What was entered is corrected by where it is, then withdrawn; each time the accounting has
    what is right by then, with a note, and both stay in the log."""
    whose = ["--patient", "p-wrong"]
    enter = ["--recipient", "Clinic", "--description", "letter", "--purpose", "referral"]
    site.entered("enter", *whose, *enter, "--date", "3d", "--address", "1 Elm Street")
    told = site.report("disclosures", *whose, "--each")
    [place] = told["disclosures"][0]["first"]["records"]
    at = told["disclosures"][0]["first"]["time"]
    site.entered("correct", place, *whose, "--recipient", "Other Clinic")
    told = site.report("disclosures", *whose)
    [one] = told["disclosures"]
    assert (one["first"]["recipient"], one["first"]["address"]) == ("Other Clinic", "1 Elm Street")
    assert (one["first"]["time"], one["first"]["records"][0]) == (at, place)
    assert WHY in site.report("disclosures", *whose, shown="")
    correction = one["first"]["records"][1]
    for wrong, words in (
        ([place, *whose], "give what is right"),
        ([place, *whose, "--withdraw", "--date", "1d"], "give what is right"),
        ([place, "--patient", PATIENT, "--withdraw"], "no entry about this patient"),
        ([f"{ORIGIN}@0", *whose, "--withdraw"], "no entry about this patient"),
        (["17", *whose, "--withdraw"], "want where the entry is"),
        ([place, *whose, "--description", "of P-WRONG"], "identifier stands in it"),
        ([place, *whose, "--date", "2999-01-01"], "in the future"),
    ):
        assert words in site.report("correct", *wrong, code=2)
    site.entered("correct", correction, *whose, "--withdraw")
    told = site.report("disclosures", *whose)
    assert told["disclosures"] == []
    assert [one["recipient"] for one in told["withdrawn"]] == ["Other Clinic"]
    assert "withdrawn already" in site.report("correct", place, *whose, "--withdraw", code=2)
    assert site.count("event = 'disclosure_entered' AND position(details, 'Elm Street') > 0") == 1


@pytest.mark.thorough
def test_corrected_as_documented(site):
    """By the page's commands an entry is corrected, and withdrawn after that."""
    whose = ["--patient", "p-0001"]
    enter = ["--recipient", "Clinic", "--description", "letter", "--purpose", "referral"]
    site.entered("enter", *whose, *enter, "--date", "3d", "--address", "2 Birch Road")
    [told] = site.report("disclosures", *whose, "--each")["disclosures"]
    text = block("docs/reports.md", "authz report correct")
    text = text.replace("demo/receiver@4711", told["first"]["records"][0])
    done = subprocess.run(
        ["sh", "-eu", "-c", FUNCTION + text.replace("data/ext-authz/privacy.key", str(site.key))],
        capture_output=True, text=True, check=False, timeout=90,
        env=site.environment | {
            "STORE": site.store, "RECEIVER": site.part.address,
            "XDG_STATE_HOME": str(site.directory / "state"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    corrected = "event LIKE 'disclosure_%' AND reason = 'the letter went out a day later'"
    assert until(lambda: site.count(corrected), 20)
    assert until(lambda: site.report("disclosures", *whose)["disclosures"] == [], 20)
    [one] = site.report("disclosures", *whose)["withdrawn"]
    assert one["recipient"] == "Clinic"


@pytest.mark.thorough
def test_a_suspension_hides_all_of_it(site):
    """What was disclosed to the police is in nothing that is shown, in whatever form, until the
    operator asks for it; who asks is on record."""
    suspend = ["suspend", "--patient", PATIENT, "--agency", "Riverside Police", "--until"]
    site.entered(*suspend, "30d")
    page = site.directory / "accounting.html"
    told = site.report("disclosures", "--patient", PATIENT, "--html", str(page))
    seen = json.dumps(told) + page.read_text()
    seen += site.report("disclosures", "--patient", PATIENT, shown="")
    for word in ("Police", "det.moss", "uspen"):
        assert word not in seen
    others = {one["first"]["recipient"] for one in told["disclosures"]}
    assert {"a.elm, analyst", f"{HOSTILE}, analyst"} <= others
    internal = site.report("disclosures", "--patient", PATIENT, "--with-suspended")
    [hidden] = internal["suspended"]
    assert hidden["first"]["recipient"] == "det.moss, analyst"
    assert internal["suspensions"][0]["agency"] == "Riverside Police"
    mine = "writer = '{writer}' AND writer_seq = {seq}".format(**internal["looked"])
    assert until(
        lambda: site.count(f"{mine} AND position(details, '\"with_suspended\":true') > 0"), 20
    )
    access = site.report("patient", "--patient", PATIENT, shown="")
    assert "INTERNAL" in access
    assert "det.moss" in access
    access = site.report("patient", "--patient", PATIENT, "--for-patient", shown="")
    assert "det.moss" not in access
    assert "uspen" not in access
    site.entered(*suspend, "0s")
    assert "det.moss" in json.dumps(site.report("disclosures", "--patient", PATIENT))


def test_breach_list(site, tmp_path):
    """All whom a search's answers held, named where they are known; the others by token."""
    known = tmp_path / "identifiers.txt"
    known.write_text("\n".join([PATIENT, *OTHERS, "mrn-of-nobody"]))
    asked = ["breach", "--subject", "a.elm", "--since", "1h"]
    told = site.report(*asked, "--identifiers", str(known))
    named = [one["patient"]["identifier"] for one in told["concerned"] if one["patient"]]
    assert sorted(named) == sorted([PATIENT, *OTHERS])
    assert (told["patients"], told["unidentified"]) == (5, 1)
    key = load_key(site.key)
    by_token = site.report(*asked, shown="")
    assert PATIENT not in by_token
    for patient in (PATIENT, UNKNOWN):
        assert key.token(patient) in by_token
    assert (
        site.report("breach", "--subject", "a.elm", "--since", "1h", "--until", "1h")["patients"]
        == 0
    )


def test_what_a_person_did(site, tmp_path):
    """Each operation with time, confirmed roles, reason and outcome; a denial is one."""
    told = site.report("user", "--subject", "n.hazel")
    [one] = told["requests"]
    assert (one["outcome"], one["roles"]) == ("denied", ["analyst"])
    assert one["reason"] == "not on the care team"
    assert one["patients"] == [load_key(site.key).token(PATIENT)]
    few = site.report("user", "--subject", "b.birch", "--limit", "5")
    assert (len(few["requests"]), few["total"], few["more"]) == (5, MANY, MANY - 5)


def test_access_report(site, tmp_path):
    """Everybody who saw the patient, by the names that a file gives; hostile values stay text."""
    people = tmp_path / "people.csv"
    people.write_text("subject,name,address\na.elm,Ann Elm,3 Elm Street\n")
    page = tmp_path / "seen.html"
    told = site.report(
        "patient", "--patient", PATIENT, "--people", str(people), "--html", str(page)
    )
    assert told["people"] == 5
    text = page.read_text()
    assert "Ann Elm (a.elm)" in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert page.stat().st_mode & 0o077 == 0


def test_periodic_review(site):
    """Counts, denials, looks, and what the verifier says where it is asked."""
    trust = site.directory / "receiver" / "trust.yaml"
    told = site.report("review", "--since", "1d", "--trust", str(trust))
    assert told["counts"]["decisions"] == MANY + 8
    assert told["denials"][0][1:] == ["not on the care team", 1, 1]
    assert told["completeness"]["verdict"]["intact"]
    site.report("disclosures", "--patient", PATIENT)

    def looks():
        return {command for command, *_ in site.report("review", "--since", "1d")["looks"]}

    assert until(lambda: "report disclosures" in looks(), 30)


@pytest.mark.thorough
def test_pdf(site, tmp_path):
    """A PDF of several pages that others can read, with its numbers, head and proof."""
    makes_pdfs()
    path = tmp_path / "activity.pdf"
    asked = ["user", "--subject", "b.birch", "--issuer", "Lakeside Hospital", "--pdf", str(path)]
    told = site.report(*asked)
    text = [page.extract_text() for page in PdfReader(path).pages]
    assert len(text) > 2
    assert "Lakeside Hospital" in text[0]
    assert "confirmed roles" in text[1].replace("\n", " ")
    for number, page in enumerate(text, 1):
        assert f"page {number} of {len(text)}" in page
    assert told["completeness"]["logs"][0]["root"] in "".join(text).replace("\n", "")
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.thorough
def test_nothing_is_shown_without_a_receiver(site):
    """A look that cannot be recorded shows nothing and writes nothing."""
    page = site.directory / "none.html"
    asks = [["disclosures", "--patient", PATIENT], ["user", "--subject", "a.elm"], ["review"]]
    site.part.stop()
    try:
        with ThreadPoolExecutor() as pool:
            asking = [
                pool.submit(
                    site.report,
                    *ask,
                    "--html",
                    str(page),
                    "--data-dir",
                    str(site.directory / ask[0]),
                    code=3,
                    shown="",
                )
                for ask in asks
            ]
            assert all("no receiver answers" in one.result() for one in asking)
    finally:
        site.part.start()
        site.part.wait_until_up()
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["disclosures", "--patient", PATIENT, "--since", "2500d"], "6 years at most"),
        (["disclosures", "--patient", PATIENT, "--pdf", "/no/where.pdf"], "--pdf /no/where.pdf"),
        (["patient", "--patient", " "], "--patient: want an identifier"),
        (["patient", "--patient", PATIENT, "--people", "/no/people.csv"], "--people /no/people"),
        (["patient", "--patient", PATIENT, "--trust", "/no/trust"], "--trust /no/trust"),
        (["breach", "--subject", "x", "--since", "7w"], "--since '7w'"),
        (["breach", "--subject", "x", "--since", "1d", "--identifiers", "/no/x"], "--identifiers"),
        (["user", "--subject", " "], "--subject: want text"),
        (["enter", "--patient", PATIENT, "--recipient", "r", "--description",
          f"letter of {PATIENT.upper()}", "--purpose", "p", "--date", "1d"],
         "--description: the patient's identifier stands in it"),
        (["enter", "--patient", PATIENT, "--recipient", "r", "--description", "d", "--purpose",
          "p", "--date", "2999-01-01"], "--date: it is in the future"),
        (["enter", "--patient", PATIENT, "--recipient", " ", "--description", "d", "--purpose",
          "p", "--date", "1d"], "--recipient: want text"),
        (["suspend", "--patient", PATIENT, "--agency", "a", "--until", "31d", "--oral"],
         "30 days at most"),
        (["suspend", "--patient", PATIENT, "--agency", "...", "--until", "3d"], "--agency: want"),
    ],
)  # fmt: skip
def test_wrong_usage(site, arguments, text, monkeypatch, capsys):
    """What could not be made as it was meant is refused before anything is done, and the patient is
    not named."""
    for name in ("AUTHZ_STORE", "AUTHZ_EXT_AUTHZ__RECEIVER"):
        monkeypatch.setenv(name, site.environment[name])
    monkeypatch.setenv("AUTHZ_PRIVACY__KEY", str(site.key))
    with pytest.raises(UsageError) as refused:
        program()(["report", *arguments, "--reason", WHY], standalone_mode=False)
    assert text in str(refused.value)
    assert PATIENT not in str(refused.value).lower()
    assert capsys.readouterr().out == ""


def test_no_identifier_in_clear(site):
    """No patient's identifier is in an error, a table of the database, or the receiver's files."""
    secrets = [one.encode() for one in (PATIENT, UNKNOWN, *OTHERS)]
    with connect(site.store) as client:
        for (table,) in client.execute("SHOW TABLES NOT LIKE 'baseline%'"):  # sketches
            rows = str(client.execute(f"SELECT * FROM {table}")).encode().lower()
            assert [one for one in secrets if one in rows] == [], table
    files = [path for path in site.directory.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix != ".html":
            content = path.read_bytes().lower()
            assert [one for one in secrets if one in content] == [], path
