"""`authz lookup` against a real receiver: on record before anything is shown, never in clear."""

import asyncio
import itertools
import json
import os
import pwd
import subprocess

import pytest
from live import Caller, account
from programs import AUTHZ, until

from authz import config
from authz.demo.people import Request, patient_id
from authz.demo.stack import Stack, running
from authz.record.privacy import load_key
from authz.serve import tls
from authz.serve.tell import tell
from authz.store.client import connect

READ = "p-0033"  # in dr.alder's care
SECRET = "mrn-5ca1ab1e-77"  # in nobody's, and in no policy's text
HELD = [f"held-9d2f-{n:02}" for n in range(20)]
OLD_ONE = "old-3b1d-patient"
NOBODY = "never-asked-for"
HOSTILE = "[red]a[/]\x1b[31m\u202e"
WHY = "complaint 17 of the patient's family"
ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Requests through Envoy, and beside them disclosures as a sidecar tells them."""
    with running(Stack(tmp_path_factory.mktemp("lookup")), lambda _: None) as stack:
        asyncio.run(_ask(stack))
        account(stack)
        assert until(lambda: _count(stack, "kind = 'disclosure' AND subject = 'a.elm'"), 20)
        key, old = load_key(stack.data_dir / "ext-authz" / "privacy.key"), load_key(_old_key(stack))
        with connect(stack.store) as client:
            [(one, at)] = client.execute(
                "SELECT decision_id, toUnixTimestamp64Micro(time) FROM decisions WHERE allowed"
                " AND has(patients, %(token)s)",
                {"token": key.token(READ)},
            )
        held = [key.token(patient) for patient in HELD]
        common = {"kind": "disclosure", "time": at, "subject": "dr.alder", "status": 200}
        common |= {"complete": True}
        stray = {"kind": "decision", "time": at, "subject": HOSTILE, "decision_id": "d-1"}
        _tell(
            stack,
            common | {"decision_id": one, "patients": held},
            common | {"decision_id": "d-0", "patients": [old.token(OLD_ONE)]},
            common | {"decision_id": "d-2", "reason_code": "cut", "complete": False},
            stray | {"patients": [key.token(HOSTILE)], "path": HOSTILE, "reason": HOSTILE},
        )
        assert until(lambda: _count(stack, "decision_id LIKE 'd-%'") == 3, 20)
        yield stack


async def _ask(stack):
    async with Caller(stack) as caller:
        for patient in (READ, SECRET):
            await caller.send(Request("alder", "GET", f"/fhir/Patient/{patient}"))
        await caller.send(Request("elm", "GET", "/fhir/Observation?_count=80"))


def _old_key(stack):
    return stack.data_dir / "old.key"


def _tell(stack, *records):
    address = stack.parts["receiver"].address
    options = config.load(None, {"ext_authz": {"receiver": address}}).ext_authz
    directory = stack.data_dir / "sidecar"
    return asyncio.run(tell(address, tls.to_receiver(options), directory, list(records)))


def _count(stack, condition):
    with connect(stack.store) as client:
        [(count,)] = client.execute(f"SELECT count() FROM audit_log WHERE {condition}")
    return count


_shown = itertools.count()


def lookup(stack, *arguments, code=0, old_key=False, shown="--json", environment=None):
    """What the command prints, as JSON or (with `shown` "") as it is; or its error."""
    options = ["--receiver", stack.parts["receiver"].address, "--reason", WHY]
    options += ["--privacy-key", str(stack.data_dir / "ext-authz" / "privacy.key")]
    options += ["--data-dir", str(stack.data_dir / "officer"), *filter(None, [shown])]
    ours = {**os.environ, "AUTHZ_STORE": stack.store, "COLUMNS": "200", **(environment or {})}
    if old_key:
        ours["AUTHZ_PRIVACY__OLD_KEYS"] = json.dumps([str(_old_key(stack))])
    command = [*AUTHZ, "lookup", *options, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=ours
    )
    said = stack.data_dir / "logs" / f"lookup-{next(_shown)}.log"
    said.write_text(done.stdout + done.stderr)  # for the test that looks for clear text
    assert done.returncode == code, done.stdout + done.stderr
    if code in (2, 3):
        assert not shown or not done.stdout or "requests" in json.loads(done.stdout)
        return done.stderr
    return json.loads(done.stdout) if shown else done.stdout


def test_who_saw_a_patient(stack):
    """A chart that was read through Envoy, and one that was denied: who, when, why and what."""
    told = lookup(stack, "--patient", READ)
    [request] = told["requests"]
    assert request["subject"] == "dr.alder"
    assert request["roles"] == ["physician"]
    assert (request["purpose"], request["reason"]) == ("TREAT", "physician on the care team")
    assert (request["outcome"], request["answered"], request["status"]) == ("allowed", True, 200)
    assert (request["method"], request["path"]) == ("GET", "/fhir/Patient/{id}")
    assert request["known"] == ["request", "answer"]
    assert len(request["records"]) == 3
    assert told["people"] == 1
    [denied] = lookup(stack, "--patient", SECRET)["requests"]
    assert (denied["outcome"], denied["allowed"], denied["answered"]) == ("denied", False, False)


def test_each_patient_of_an_answer(stack):
    """Every one of the twenty whom one answer held is found by it, with the request it answered."""
    asked = [word for patient in HELD for word in ("--patient", patient)]
    [request] = lookup(stack, *asked, "--since", "1h")["requests"]
    assert request["patients"] == list(range(1, 21))
    assert (request["known"], request["method"]) == (["answer"], "GET")
    [one] = lookup(stack, "--patient", HELD[7])["requests"]
    assert one["decision_id"] == request["decision_id"]
    assert lookup(stack, "--patient", HELD[7], "--until", "1h", code=1)["requests"] == []


def test_each_patient_of_a_search(stack):
    """A search through Envoy that named nobody is found by each of the twenty it answered with."""
    asked = [word for n in range(20) for word in ("--patient", patient_id(n + 1))]
    [request] = lookup(stack, *asked)["requests"]
    assert request["patients"] == list(range(1, 21))
    assert (request["subject"], request["purpose"]) == ("a.elm", "HRESCH")
    assert (request["known"], request["answered"]) == (["answer"], True)
    [one] = lookup(stack, "--patient", patient_id(20))["requests"]
    assert one["decision_id"] == request["decision_id"]


def test_an_old_key_finds_old_records(stack):
    """Records under a key of before are found with it; without it, nobody says there is nobody."""
    found = lookup(stack, "--patient", OLD_ONE, old_key=True)
    assert [request["decision_id"] for request in found["requests"]] == ["d-0"]
    assert found["other_keys"] == []
    error = lookup(stack, "--patient", OLD_ONE, code=3)
    assert load_key(_old_key(stack)).id in error
    assert "privacy.old_keys" in error
    nobody = lookup(stack, "--patient", NOBODY, code=1, old_key=True)
    assert (nobody["requests"], nobody["people"]) == ([], 0)
    assert nobody["unresolved"] == 1


def test_the_look_is_on_record_first(stack):
    """When the command ends, the look is on the receiver's disk, with who looked, why, and at whom:
    it is there even if the receiver dies that moment."""
    looked = lookup(stack, "--patient", READ, "--purpose", "HCOMPL", "--limit", "5")["looked"]
    stack.parts["receiver"].kill()
    stack.restart("receiver")
    mine = "writer = '{writer}' AND writer_seq = {seq}".format(**looked)
    assert until(lambda: _count(stack, mine), 20) == 1
    with connect(stack.store) as client:
        [(subject, reason, purpose, patients, details)] = client.execute(
            f"SELECT subject, reason, purpose, patients, details FROM notices"
            f" WHERE event = 'look' AND {mine}"
        )
    key = load_key(stack.data_dir / "ext-authz" / "privacy.key")
    assert (subject, reason, purpose, patients) == (ME, WHY, "HCOMPL", [key.token(READ)])
    assert json.loads(details) == {
        "by": ME, "command": "lookup", "since": 0, "until": 0, "limit": 5
    }  # fmt: skip


@pytest.mark.thorough
def test_nothing_is_shown_without_a_receiver(stack):
    """A look that cannot be recorded shows nothing, and neither does one with a wrong key."""
    looks = _count(stack, "event = 'look'")
    stack.parts["receiver"].kill()
    try:
        error = lookup(stack, "--patient", READ, code=3, shown="")
    finally:
        stack.restart("receiver")
    assert "no receiver answers" in error
    assert (stack.data_dir / "logs" / f"lookup-{next(_shown) - 1}.log").read_text() == error
    lookup(stack, "--patient", READ)
    assert until(lambda: _count(stack, "event = 'look'") > looks, 20)
    arguments = ["--patient", READ, "--privacy-key", str(_old_key(stack))]
    error = lookup(stack, *arguments, "--data-dir", str(stack.data_dir / "other"), code=2)
    assert "is not this deployment's" in error
    missing = ["--privacy-key", str(stack.data_dir / "no.key")]
    assert "no privacy key is there" in lookup(stack, "--patient", READ, *missing, code=3)
    assert not (stack.data_dir / "no.key").exists()


def test_a_terminal_is_safe(stack):
    """What the log holds cannot colour, move or reverse what the terminal shows, and the sum of it
    is told."""
    table = lookup(stack, "--patient", HOSTILE, "--patient", READ, shown="")
    assert "\x1b" not in table
    assert "\u202e" not in table
    assert "[red]a[/]\\x1b[31m\\u202e" in table
    assert "2 people, 2 requests" in table
    assert "1 answer in this time could not be resolved" in table
    assert READ not in table


def test_no_identifier_in_clear(stack):
    """No identifier that was asked for, or looked up, is in a file, a table or a line of output."""
    error = lookup(stack, "--patient", SECRET, "--since", "yesterday", code=2)
    assert "2026-11-01" in error
    command = [*AUTHZ, "lookup", "--patient", "-", "--reason", WHY, "--json"]
    command += ["--privacy-key", str(stack.data_dir / "ext-authz" / "privacy.key")]
    command += ["--receiver", stack.parts["receiver"].address]
    done = subprocess.run(
        [*command, "--data-dir", str(stack.data_dir / "officer")],
        input=f"{SECRET}\n{NOBODY}\n", capture_output=True, text=True, check=False,
        env={**os.environ, "AUTHZ_STORE": stack.store}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"][0]["patients"] == [1]
    (stack.data_dir / "logs" / "from-stdin.log").write_text(done.stdout + done.stderr)
    assert account(stack).report.verified
    secrets = [one.encode() for one in (SECRET, NOBODY, OLD_ONE, *HELD)]
    with connect(stack.store) as client:
        for (table,) in client.execute("SHOW TABLES NOT LIKE 'baseline%'"):  # sketches
            rows = str(client.execute(f"SELECT * FROM {table}")).encode()
            assert [one for one in secrets if one in rows] == [], table
    assert until(lambda: searched(stack.data_dir, secrets), 60)


def searched(directory, secrets):
    """Every file of `directory` has none of `secrets`. False if one was moved meanwhile, as the
    database does when it merges."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        assert [one for one in secrets if one in content] == [], path
    return True


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--reason", "r"], "--patient"),
        (["--patient", "x"], "--reason"),
        (["--patient", "x", "--reason", " "], "--reason: want text"),
        (["--patient", " ", "--reason", "r"], "--patient: want an identifier"),
        (["--patient", "x", "--reason", "r"], "--store is missing"),
        (["--patient", "x", "--reason", "r", "--store", "clickhouse://h/d"], "--receiver is miss"),
        (["--patient", "x", "--reason", "r", "--limit", "0"], "--limit"),
        (["--patient", "x", "--reason", "r", "--since", "tomorrow"], "2026-11-01T08:30"),
        (["--patient", "x", "--reason", "r", "--until", "7w"], "--until '7w'"),
    ],
)
def test_wrong_usage(tmp_path, arguments, text):
    """What could not be recorded or answered as it was meant is refused before anything is done."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [*AUTHZ, "lookup", *arguments], capture_output=True, text=True, env=environment,
        check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert not list(tmp_path.iterdir())
