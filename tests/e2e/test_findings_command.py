"""`authz findings` against a real receiver: shown once on record, and said for good."""

import asyncio
import json
import os
import pwd
import subprocess

import pytest
from live import Caller, account
from pages import FUNCTION, block
from programs import AUTHZ, until
from raised import HOSTILE, finding

from authz import config
from authz.demo.people import Request
from authz.demo.stack import Stack, running
from authz.serve import tls
from authz.serve.tell import tell
from authz.store.client import connect
from authz.store.findings import raised

ME = pwd.getpwuid(os.getuid()).pw_name
GLASS = Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": "unconscious"})


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Break-glass through Envoy, with a reason and without, and findings: about whoever did that,
    about a name that is no text for a terminal, the user of these tests, and an address."""
    with running(Stack(tmp_path_factory.mktemp("findings")), lambda _: None) as stack:
        seen = asyncio.run(_ask(stack))
        assert [answer.status for answer in seen] == [200, 403]
        account(stack)
        with connect(stack.store) as client:
            [(origin, index, decision, token)] = client.execute(
                "SELECT origin, index, decision_id, patients[1] FROM decisions WHERE break_glass"
            )
        used = f"{origin}@{index}"
        hostile = {"evidence": f"{HOSTILE}\nsecond line", "subject": HOSTILE}
        _tell(
            stack,
            finding(1, subject="dr.fir", records=[decision, f"{origin}@999999"]),
            finding(2, lane="review", rule="off_hours", records=[], **hostile),
            finding(3, subject=ME, records=[used]),
            finding(4, subject="", source_ip="192.0.2.9", rule="failed_authentications"),
        )
        with connect(stack.store) as client:
            assert until(lambda: len(raised(client)) == 4, 20)
        yield stack, used, token


async def _ask(stack):
    bare = Request("fir", "GET", "/fhir/Patient/p-0100", {"x-break-glass": " , -"}, expect="deny")
    async with Caller(stack) as caller:
        return [await caller.send(GLASS), await caller.send(bare)]


def _tell(stack, *records):
    address = stack.parts["receiver"].address
    options = config.load(None, {"ext_authz": {"receiver": address}}).ext_authz
    directory = stack.data_dir / "watch"
    return asyncio.run(tell(address, tls.to_receiver(options), directory, list(records)))


def findings(stack, *arguments, code=0, shown="--json", environment=None):
    """What the command prints, as JSON or (with `shown` "") as it is; or its error."""
    options = ["--data-dir", str(stack.data_dir / "officer"), *filter(None, [shown])]
    ours = {**os.environ, "AUTHZ_STORE": stack.store, "COLUMNS": "200", **(environment or {})}
    ours["AUTHZ_EXT_AUTHZ__RECEIVER"] = stack.parts["receiver"].address
    done = subprocess.run(
        [*AUTHZ, "findings", *arguments, *options], capture_output=True, text=True, check=False,
        timeout=60, env=ours,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    if code in (2, 3):
        return done.stderr
    return json.loads(done.stdout) if shown else done.stdout


def notices(stack, condition):
    with connect(stack.store) as client:
        return client.execute(
            "SELECT subject, reason, records, details, patients FROM notices"
            f" WHERE {condition} ORDER BY index"
        )


def listed(stack, *arguments, **more):
    return {one["id"]: one for one in findings(stack, "list", *arguments, **more)["findings"]}


def stored_one(stack, subject):
    """The id of the finding about `subject`."""
    with connect(stack.store) as client:
        [one] = [one for one in raised(client) if one.get("subject", "") == subject]
    return f"{one['origin']}@{one['index']}"


def test_said_and_kept(stack):
    """What people say of a finding is on record with who and why, closes it or not, and shows; the
    state is in the log, so it is the same for everybody who asks."""
    stack, _, token = stack
    mine = stored_one(stack, "dr.fir")
    told = findings(stack, "acknowledge", mine, "--reason", "asked her chief")
    assert (told["state"], told["by"], told["finding"]) == ("acknowledged", ME, mine)
    assert until(lambda: notices(stack, "event = 'finding_acknowledged'"), 20)
    seen = findings(stack, "list", "--check", "--subject", "dr.fir", code=1)["findings"]
    assert [(one["id"], one["state"], one["open"]) for one in seen] == [
        (mine, "acknowledged", True)
    ]
    findings(stack, "explain", mine, "--reason", "a real emergency")
    assert until(lambda: notices(stack, "event = 'finding_explained'"), 20)
    assert listed(stack, "--check", "--subject", "dr.fir") == {}
    shown = listed(stack, "--all", "--since", "1h")[mine]
    assert [(one["act"], one["by"], one["reason"]) for one in shown["said"]] == [
        ("acknowledged", ME, "asked her chief"), ("explained", ME, "a real emergency")
    ]  # fmt: skip
    assert (shown["state"], shown["open"]) == ("explained", False)
    [(subject, reason, records, details, _)] = notices(stack, "event = 'finding_explained'")
    assert (subject, reason, records) == ("dr.fir", "a real emergency", [mine])
    assert json.loads(details) == {"by": ME}
    text = findings(stack, "show", mine, shown="")
    for said in ("dr.fir", "broken glass", "unconscious", token[:20], "a real emergency",
                 "1 of the 2 records that it names are not in the database"):  # fmt: skip
        assert said in text


@pytest.mark.thorough
def test_looks_are_on_record(stack):
    """Each look at findings is on record before it shows anything, with the patients it shows."""
    stack, _, token = stack
    looked = findings(stack, "show", stored_one(stack, "dr.fir"), "--reason", "weekly")
    assert [record["patients"] for record in looked["named"]] == [[token]]
    place = "writer = '{writer}' AND writer_seq = {seq}".format(**looked["looked"])
    assert until(lambda: notices(stack, place), 20)
    [(subject, reason, _, details, patients)] = notices(stack, f"event = 'look' AND {place}")
    assert (subject, reason, patients) == (ME, "weekly", [token])
    assert json.loads(details)["command"] == "findings show"
    away = {"AUTHZ_EXT_AUTHZ__RECEIVER": ""}
    error = findings(stack, "list", "--receiver", "127.0.0.1:1", code=3, environment=away)
    assert "no receiver answers" in error


def test_not_of_oneself(stack):
    """Nobody judges what they did themselves."""
    stack, *_ = stack
    own = stored_one(stack, ME)
    error = findings(stack, "confirm", own, "--reason", "it was me", code=2)
    assert "somebody else has to say it" in error
    assert notices(stack, f"has(records, '{own}')") == []


def test_break_glass(stack):
    """A use through Envoy waits for a review with its reason, is late when its time is over, and is
    done once somebody says whether it was justified; one without a reason opened nothing."""
    stack, used, token = stack
    told = findings(stack, "breakglass")
    [use] = told["uses"]
    assert (use["id"], use["subject"], use["patients"]) == (used, "dr.fir", [token])
    assert use["reason"] == "break-glass by emergency_physician: unconscious"
    assert not use["late"]
    soon = {"AUTHZ_WATCH__BREAK_GLASS_HOURS": "0.000001"}
    assert findings(stack, "breakglass", "--late", "--check", code=1, environment=soon)["late"] == 1
    assert "late by" in findings(stack, "breakglass", shown="", environment=soon)
    error = findings(stack, "review", f"{used}9", "--justified", "--reason", "r", code=2)
    assert "no use of break-glass" in error
    said = findings(stack, "review", used, "--not-justified", "--reason", "she was awake")
    assert (said["use"], said["verdict"]) == (used, "not_justified")
    assert until(lambda: notices(stack, "event = 'break_glass_reviewed'"), 20)
    assert findings(stack, "breakglass", "--check", environment=soon)["uses"] == []
    [(subject, reason, records, details, _)] = notices(stack, "event = 'break_glass_reviewed'")
    assert (subject, reason, records) == ("dr.fir", "she was awake", [used])
    assert json.loads(details) == {"by": ME, "verdict": "not_justified"}


def test_a_terminal_is_safe(stack):
    """The list shows the first line of the evidence as text, and whom it is about."""
    stack, *_ = stack
    text = findings(stack, "list", "--all", shown="")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]a[/]\\x1b[31m\\u202e" in text
    assert "second line" not in text
    assert "(nobody) from 192.0.2.9" in text


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "demo/receiver@999999"], "no finding is there"),
        (["confirm", "demo/receiver@0", "--reason", " "], "--reason: want text"),
        (["review", "x", "--justified", "--reason", "r"], "such as demo/receiver@10"),
    ],
)
def test_wrong_usage(stack, arguments, text):
    """What could not be recorded or answered as it was meant is refused."""
    stack, *_ = stack
    assert text in findings(stack, *arguments, code=2)


def test_still_verified(stack):
    """Findings and what was said of them are part of a log that verifies."""
    stack, *_ = stack
    assert account(stack).report.verified


def test_a_block_from_a_finding(stack):
    """By the page's command the person of a finding is blocked, and the notice names the finding;
    what is not about a person blocks nobody."""
    stack, _, _ = stack
    text = block("docs/operating.md", "authz block --finding")
    assert "demo/receiver@4711" in text

    def ran(text):
        given = {"STORE": stack.store, "RECEIVER": stack.parts["receiver"].address}
        given["XDG_STATE_HOME"] = str(stack.data_dir / "state")
        return subprocess.run(
            ["sh", "-eu", "-c", FUNCTION + text], capture_output=True, text=True, check=False,
            timeout=60, env=os.environ | given,
        )  # fmt: skip

    async def look():
        async with Caller(stack) as caller:
            await caller.send(Request("fir", "GET", "/fhir/metadata"))

    def blocked():
        """Whether that is why the person is denied; the finding itself is a reason, too."""
        asyncio.run(look())
        newest = "SELECT reason_code FROM decisions WHERE subject = 'dr.fir' ORDER BY index DESC"
        with connect(stack.store) as client:
            return client.execute(f"{newest} LIMIT 1") == [("blocked",)]

    about_nobody = ran(text.replace("demo/receiver@4711", stored_one(stack, "")))
    assert about_nobody.returncode == 2, about_nobody.stdout + about_nobody.stderr
    mine = stored_one(stack, "dr.fir")
    done = ran(text.replace("demo/receiver@4711", mine))
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert until(blocked, 20)
        [(subject, _, records, *_)] = until(lambda: notices(stack, "event = 'block'"), 20)
        assert (subject, records) == ("dr.fir", [mine])
    finally:
        done = ran('authz unblock dr.fir --receiver "$RECEIVER"')
    assert done.returncode == 0, done.stderr
    assert until(lambda: not blocked(), 20)
