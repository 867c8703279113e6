"""`authz export` of records against a real receiver; `authz verify-proof` with the files alone."""

import csv
import json
import shutil

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from programs import AUTHZ, free_port, run, until
from receiving import receiving

from authz.ledger import leaf_hash
from authz.record.privacy import load_key
from authz.store.client import connect

ORIGIN = "test/receiver"
COUNT = 600
PATIENT = "p-0042"
FORMULA = '=HYPERLINK("http://evil.example","\x1b[31mclick")'


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A receiver with records in its log: (directory, store, environment that names both)."""
    directory = tmp_path_factory.mktemp("formats")
    key = load_key(directory / "privacy.key")
    more = {"COLUMNS": "200", "AUTHZ_PRIVACY__KEY": str(directory / "privacy.key")}
    with receiving(clickhouse, directory, "formats", ORIGIN, **more) as there:
        there.tell((decision(number, key) for number in range(COUNT)), key.id)
        with connect(there.store) as client:
            query = "SELECT count() FROM decisions WHERE index < (SELECT max(size)"
            query += " FROM checkpoints)"
            assert until(lambda: client.execute(query)[0][0] >= COUNT, 30)
        yield directory, there.store, there.ours


def decision(number, key):
    return {
        "kind": "decision", "time": 1_700_000_000_000_000 + number, "decision_id": f"d-{number}",
        "subject": "dr.alder" if number % 5 else "n.hazel", "roles": ["physician"],
        "patients": [key.token(PATIENT)] if number % 20 == 0 else [], "allowed": number % 9 != 0,
        "enforced": True, "reason": FORMULA, "method": "GET", "path": "/fhir/Patient/{id}",
        "action": "R", "resource_type": "Patient",
    }  # fmt: skip


def authz(site, *arguments, code=0):
    directory, _, ours = site
    environment = ours.environment
    more = ["--data-dir", directory / "officer"] if arguments[0] == "export" else []
    if arguments[0] == "verify-proof":  # nothing but the files
        more = ["--trust", directory / "receiver" / "trust.yaml"]
        environment = {k: v for k, v in environment.items() if not k.startswith("AUTHZ_")}
    done = run([*AUTHZ, *arguments, *more], ours, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code in (2, 3) else done.stdout


def export(site, folder, form, *arguments):
    reason = f"for {folder.name}"
    told = authz(
        site, "export", "-o", folder, "--format", form, "--reason", reason, "--json", *arguments
    )
    return json.loads(told)


def verified(site, folder, code=0):
    return json.loads(authz(site, "verify-proof", folder / "manifest.json", "--json", code=code))


def test_ndjson_from_the_log_to_a_stranger(site, tmp_path):
    """All records of the log, whose hashes anyone can compute, are proven to be all of it; that
    they were taken is on record; a changed one is found."""
    folder = tmp_path / "all"
    told = export(site, folder, "ndjson")
    assert told["logs"][ORIGIN] >= COUNT
    lines = (folder / "records.ndjson").read_bytes().splitlines()
    assert len(lines) == told["logs"][ORIGIN]
    with connect(site[1]) as client:
        stored = client.execute(
            "SELECT data FROM tiles WHERE level = 0 AND index = 0 ORDER BY width DESC LIMIT 1",
            settings={"strings_as_bytes": True},
        )
        query = "SELECT subject, details FROM notices WHERE event = 'look' AND reason = 'for all'"
        assert until(lambda: client.execute(query), 30)
        [(_, details)] = client.execute(query)
    assert b"".join(map(leaf_hash, lines[:256])) == stored[0][0]
    assert json.loads(details)["format"] == "ndjson"
    report = verified(site, folder)
    assert (report["proven"], report["records_proven"]) == (True, True)
    assert report["logs"][0]["none_left_out"]
    said = authz(site, "verify-proof", folder / "manifest.json")
    assert "these are all its" in said
    assert "not proven: " in said
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    data = (spoilt / "records.ndjson").read_bytes()
    (spoilt / "records.ndjson").write_bytes(data.replace(b"n.hazel", b"n.hazeI", 1))
    assert not verified(site, spoilt, code=1)["proven"]
    assert "NOT proven" in authz(site, "verify-proof", spoilt / "manifest.json", code=1)


def test_one_patient_for_a_spreadsheet(site, tmp_path):
    """The records that name a patient, asked for by identifier, which is in no file; no cell is
    run; each is proven to be the log's."""
    folder = tmp_path / "patient"
    told = export(site, folder, "csv", "--patient", PATIENT, "--kind", "decision")
    assert told["logs"] == {ORIGIN: COUNT // 20}
    with (folder / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["reason"] for row in rows} == {"'" + FORMULA}
    assert not [cell for row in rows for cell in row.values() if cell.startswith("=")]
    report = verified(site, folder)
    assert report["records_proven"]
    assert not report["logs"][0]["none_left_out"]
    assert report["filters"]["patients"] == [rows[0]["patients"][2:-2]]
    assert not [path for path in folder.iterdir() if PATIENT.encode() in path.read_bytes()]
    with connect(site[1]) as client:
        query = "SELECT patients FROM notices WHERE event = 'look' AND reason = 'for patient'"
        assert until(lambda: client.execute(query), 30)
        assert client.execute(query) == [(report["filters"]["patients"],)]


def test_audit_events(site, tmp_path):
    """AuditEvents are FHIR R4; denials are told apart; what is proven of them is told."""
    folder = tmp_path / "events"
    export(site, folder, "fhir", "--kind", "decision", "--subject", "n.hazel", "--since", "1d")
    events = list(map(json.loads, (folder / "audit-events.ndjson").read_bytes().splitlines()))
    assert len(events) == COUNT // 5
    for event in events:
        AuditEvent.model_validate(event)
    assert {event["outcome"] for event in events} == {"0", "8"}
    report = verified(site, folder)
    assert (report["proven"], report["records_proven"]) == (True, False)
    assert "does not give the record back" in " ".join(report["not_proven"])


@pytest.mark.thorough
def test_what_makes_no_sense(site, tmp_path):
    """Options that do not go together, and files that are none, are told in a line."""
    usual = ("-o", tmp_path / "x", "--reason", "x")
    for options, named in (
        (["--subject", "dr.alder"], "--format bundle"),
        (["--format", "csv", "--since", "soon"], "--since"),
        (["--format", "csv", "--subject", "x" * 300], "--subject"),
        (["--format", "ndjson", "--patient", " "], "--patient"),
        (["--format", "xml"], "--format"),
        (["--format", "csv", "--kind", "access", "--kind", "look"], "--kind look"),
    ):
        assert named in authz(site, "export", *usual, *options, code=2)
    (tmp_path / "manifest.json").write_text('{"authz_export": 2}')
    assert "manifest" in authz(site, "verify-proof", tmp_path / "manifest.json", code=1)
    assert not (tmp_path / "x").exists()


@pytest.mark.thorough
def test_nothing_is_written_that_is_not_on_record(site, tmp_path):
    """Where no receiver answers, nothing is exported."""
    away = f"127.0.0.1:{free_port()}"
    options = ("--format", "ndjson", "--reason", "x", "--receiver", away)
    authz(site, "export", "-o", tmp_path / "y", *options, code=3)
    assert not (tmp_path / "y").exists()
