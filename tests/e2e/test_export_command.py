"""`authz export` against a real receiver; `authz verify` with nothing but the folder; parts."""

import json
import shutil
import subprocess

import pytest
from programs import AUTHZ, run, until
from receiving import receiving

from authz.ledger.tiles import pack, unpack
from authz.store.client import connect

ORIGIN = "test/receiver"
COUNT = 700
ODD = ["\x00\x1f\x7f", "a\u2028b", "\\", "/\\/", "\\u000B", "\x1b[31m", "é\U0001f600"]


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A receiver with records in its log: (directory, store, environment that names both)."""
    directory = tmp_path_factory.mktemp("export")
    with receiving(clickhouse, directory, "export", ORIGIN, COLUMNS="160") as there:
        there.tell(decision(number) for number in range(COUNT))
        with connect(there.store) as client:
            assert until(lambda: _count(client) >= COUNT, 30)
        yield directory, there.store, there.ours


def decision(number):
    return {
        "kind": "decision", "time": 1_700_000_000_000_000 + number, "decision_id": f"d-{number}",
        "subject": ODD[number % len(ODD)], "roles": [ODD[number % 5]], "allowed": True,
    }  # fmt: skip


def _count(client):
    return client.execute("SELECT count() FROM audit_log WHERE decision_id != ''")[0][0]


def authz(site, *arguments, code=0, alone=False):
    """What the command prints; `alone` without store, receiver and network."""
    directory, _, ours = site
    environment = dict(ours.environment)
    more, before = [], []
    if arguments[0] == "export":
        more = ["--data-dir", directory / "officer"]
    else:
        more = ["--trust", directory / "receiver" / "trust.yaml"]
    if alone:
        environment = {k: v for k, v in environment.items() if not k.startswith("AUTHZ_")}
        before = _without_network()
    done = run([*before, *AUTHZ, *arguments, *more], ours, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code in (2, 3) else done.stdout


def _without_network():
    """A network of its own, with nothing in it; where that may not be made, a program that traces
    what is connected, and lets none."""
    try:
        subprocess.run(["unshare", "-rn", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        inject = "inject=connect,socket:error=ENETUNREACH"
        return [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=connect,socket",
            "-e",
            inject,
        ]
    return ["unshare", "-rn"]


@pytest.fixture(scope="module")
def exported(site):
    """A folder, and what the command said of it."""
    folder = site[0] / "bundle"
    told = json.loads(authz(site, "export", "-o", folder, "--reason", "the auditor", "--json"))
    return folder, told


def verified(site, *arguments, code=0, alone=True):
    return json.loads(authz(site, "verify", "--json", *arguments, code=code, alone=alone))


def test_an_auditor_with_nothing_but_the_folder(site, exported):
    """Without network, database and any of our settings, the whole log is verified; that it was
    taken is in the log, before the folder was written."""
    folder, told = exported
    assert told["logs"][ORIGIN] >= COUNT
    report = verified(site, "--from", folder)
    assert report["verified"]
    assert report["records"] == report["checked"] == told["logs"][ORIGIN]
    assert report["decisions"] == COUNT
    with connect(site[1]) as client:
        query = "SELECT details FROM notices WHERE event = 'look' AND reason = 'the auditor'"
        assert until(lambda: client.execute(query), 30)  # it is in the receiver's journal already
        [(details,)] = client.execute(query)
    assert json.loads(details)["logs"] == [ORIGIN]
    said = authz(site, "verify", "--from", folder, alone=True)
    assert "intact: nothing changed" in said


def test_one_record_was_removed(site, exported, tmp_path):
    """Its index is told, whether it was taken from the folder or was not in the database."""
    folder = tmp_path / "bundle"
    shutil.copytree(exported[0], folder)
    [bundle] = (folder / "logs").rglob("tile/entries/001")
    entries = list(unpack(bundle.read_bytes()))
    entries[301 - 256] = b""
    bundle.write_bytes(pack(entries))
    wrong = verified(site, "--from", folder, code=1)["logs"][0]["findings"]
    assert ("missing", 301, 301) in [(f["kind"], f["first"], f["last"]) for f in wrong]
    assert "301" in authz(site, "verify", "--from", folder, code=1, alone=True)


def test_names_that_act_on_terminals(site, exported, tmp_path):
    """What a folder calls its logs acts on no terminal, and is no markup."""
    folder = tmp_path / "bundle"
    shutil.copytree(exported[0], folder)
    [log] = (folder / "logs").iterdir()
    for name in (b"[%2F]%1B[31m", b"\xff[red]", b"[%2Fbold]"):
        shutil.copytree(log, folder / "logs" / name.decode("utf-8", "surrogateescape"))
    said = authz(site, "verify", "--from", folder, code=1, alone=True)
    assert "\x1b" not in said
    assert "[/]\\x1b[31m" in said
    assert len(verified(site, "--from", folder, code=1)["logs"]) == 4


@pytest.mark.thorough
def test_what_makes_no_sense(site, exported, tmp_path):
    """Options that do not go together, and folders that are none, are told in a line."""
    folder = exported[0]
    for options, named in (
        (["--from", tmp_path / "none"], "--from"),
        (["--from", site[0] / "receiver"], "--from"),
        (["--from", folder, "--since", "1d"], "--from"),
        (["--from", folder, "--store", site[1]], "--from"),
        (["--incremental"], "--incremental"),
        (["--since", "1h", "--until", "2h"], "--until"),
        (["--since", ""], "--since"),
        (["--incremental", "--state", tmp_path / "s", "--since", "1d"], "--incremental"),
        (["--state", folder / "logs"], "--state"),
    ):
        assert named in authz(site, "verify", *options, code=2, alone="--from" in options)
    assert "--output" in authz(site, "export", "-o", folder, "--reason", "x", code=2)


@pytest.mark.thorough
def test_a_window_and_what_is_new(site, tmp_path):
    """A window leaves the state file alone; what is new is checked from there, and only a check
    that finds nothing moves it on."""
    state = tmp_path / "state.json"
    (tmp_path / "spoilt.json").write_text('{"test/receiver": {"size": 5}}')
    spoilt = ("--state", tmp_path / "spoilt.json", "--incremental")
    assert "spoilt.json" in authz(site, "verify", *spoilt, code=2)
    incremental = ("--state", state, "--incremental")
    first = verified(site, *incremental, alone=False)
    assert first["checked"] == first["records"] >= COUNT
    kept = state.read_bytes()
    for window in (["--since", "1d"], ["--until", "1d"], ["--since", "1d", "--until", "1s"]):
        report = verified(site, "--state", state, *window, alone=False)
        assert report["verified"]
        assert state.read_bytes() == kept
    assert "in the part that was checked" in authz(site, "verify", "--since", "1d")
    authz(site, "export", "-o", tmp_path / "again", "--reason", "more is new")
    with connect(site[1]) as client:  # the receiver seals what was told it within a second or so
        newest = "SELECT max(size) FROM checkpoints"
        assert until(lambda: client.execute(newest)[0][0] > first["records"], 30)
    second = verified(site, *incremental, alone=False)
    assert second["records"] > first["records"]
    assert second["checked"] == second["records"] - first["records"]
    kept = state.read_bytes()
    authz(site, "export", "-o", tmp_path / "once more", "--reason", "a last one")
    with connect(site[1], mutations_sync=1) as client:
        reason = "event = 'look' AND reason = 'a last one'"
        covered = f"SELECT count() FROM notices WHERE {reason} AND index < (SELECT max(size) FROM"
        covered += " checkpoints)"
        assert until(lambda: client.execute(covered) == [(1,)], 20)
        try:
            client.execute(f"ALTER TABLE audit_log UPDATE reason = 'another' WHERE {reason}")
            assert not verified(site, *incremental, code=1, alone=False)["verified"]
        finally:  # others export this log
            changed = reason.replace("a last one", "another")
            client.execute(f"ALTER TABLE audit_log UPDATE reason = 'a last one' WHERE {changed}")
    assert state.read_bytes() == kept
