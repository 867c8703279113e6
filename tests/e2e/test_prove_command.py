"""`authz prove` against a real receiver, and `authz verify-proof` with nothing but the file."""

import json
import os
import pwd
import re

import pytest
from programs import AUTHZ, run, until
from receiving import receiving

from authz.ledger import Signer, TlogProof, sign_note
from authz.store.client import connect

ORIGIN = "test/receiver"
HOSTILE = "[red]a[/]\x1b[31m\u202e"
TOKENS = ["0123abcd.token-of-a-patient"]
COUNT = 700
ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A receiver with records in its log: (directory, its address, environment with the store)."""
    directory = tmp_path_factory.mktemp("prove")
    with receiving(clickhouse, directory, "prove", ORIGIN, COLUMNS="100") as there:
        records = [decision(number) for number in range(COUNT)]
        there.tell([*records, decision(9) | {"kind": "access"}, decision(8), decision(8)])
        with connect(there.store) as client:
            assert until(lambda: _count(client) >= COUNT + 3, 30)
        yield directory, there.store, there.ours


def decision(number):
    return {
        "kind": "decision", "time": 1_700_000_000_000_000 + number, "decision_id": f"d-{number}",
        "subject": HOSTILE if number == 5 else "dr.alder", "patients": TOKENS, "allowed": True,
    }  # fmt: skip


def _count(client):
    return client.execute("SELECT count() FROM audit_log WHERE decision_id != ''")[0][0]


def authz(site, *arguments, code=0):
    directory, _, ours = site
    more = ["--data-dir", directory / "officer"] if arguments[0] == "prove" else []
    done = run([*AUTHZ, *arguments, *more], ours)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code in (2, 3) else done.stdout


def verified(site, file, code=0):
    trust = site[0] / "receiver" / "trust.yaml"
    return json.loads(authz(site, "verify-proof", file, "--trust", trust, "--json", code=code))


def looks(store, reason):
    with connect(store) as client:
        return client.execute(
            "SELECT subject, purpose, patients, details FROM notices"
            " WHERE event = 'look' AND reason = %(reason)s",
            {"reason": reason},
        )


def test_a_proof_that_stands_alone(site, tmp_path):
    """A decision's proof is one small file, which verifies without the database, and holds the
    record; who took it is in the log, with the patients that it was about."""
    file = tmp_path / "d-3.tlog-proof"
    why = ("--reason", "the court asks", "--purpose", "HLEGAL")
    told = json.loads(authz(site, "prove", "d-3", "-o", file, *why, "--json"))
    assert (told["origin"], told["bytes"]) == (ORIGIN, file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o600, "it holds a record"
    proof = TlogProof.parse(file.read_text())
    assert proof.index == told["index"]
    assert len(file.read_bytes()) - 4 * len(proof.leaf) / 3 < 2048
    proven = verified(site, file)
    assert proven["record"]["decision_id"] == "d-3"
    assert proven["record"]["patients"] == TOKENS
    assert (proven["index"], proven["size"]) == (told["index"], told["size"])
    [look] = until(lambda: looks(site[1], "the court asks"), 20)
    subject, purpose, patients, details = look
    assert (subject, purpose) == (ME, "HLEGAL")
    assert patients == TOKENS
    assert json.loads(details)["record"] == f"{ORIGIN}@{told['index']}"


def test_by_its_place(site, tmp_path):
    """A record is named by its log and index, in the forms that people meet."""
    for place in (f"{ORIGIN}@600", f"{ORIGIN}/600"):
        file = tmp_path / "proof"
        assert f"{ORIGIN}@600" in authz(site, "prove", place, "-o", file)
        assert verified(site, file)["index"] == 600


@pytest.mark.thorough
def test_which_record_is_meant(site, tmp_path):
    """A decision id means its decision, or the kind that is named; of several, they are told."""
    file = tmp_path / "proof"
    authz(site, "prove", "d-9", "-o", file, "--kind", "access")
    assert verified(site, file)["record"]["kind"] == "access"
    authz(site, "prove", "d-9", "-o", file)
    assert verified(site, file)["record"]["kind"] == "decision"
    several = authz(site, "prove", "d-8", "-o", file, code=2)
    assert several.count(f"{ORIGIN}@") == 3, several
    missing = authz(site, "prove", "d-7", "-o", file, "--kind", "access", code=1)
    assert "no access has this decision id; there is:" in missing
    assert "no decision" in authz(site, "prove", "d-none", "-o", file, code=1)
    assert "--kind" in authz(site, "prove", f"{ORIGIN}@3", "-o", file, "--kind", "access", code=2)
    nowhere = json.loads(authz(site, "prove", f"{ORIGIN}@99999", "-o", file, "--json", code=1))
    assert nowhere["proven"] is False
    assert "no record" in nowhere["reason"]


def test_what_a_person_sees(site, tmp_path):
    """The record's values are shown as they are, and act on no terminal."""
    file = tmp_path / "proof"
    authz(site, "prove", "d-5", "-o", file)
    shown = authz(site, "verify-proof", file, "--trust", site[0] / "receiver" / "trust.yaml")
    assert "[red]a[/]\\x1b[31m\\u202e" in shown
    assert "\x1b" not in shown
    assert "2023-11-14 22:13:20.000005 UTC" in shown
    assert "proven: the log has this record" in shown
    assert re.search(r"allowed +│ yes ", shown)


def test_what_is_not_proven(site, tmp_path):
    """A changed record, another's trust file and a file of something else are told apart, in words
    and by the exit code; the record is not shown."""
    file, trust = tmp_path / "proof", site[0] / "receiver" / "trust.yaml"
    authz(site, "prove", "d-5", "-o", file)
    proof = TlogProof.parse(file.read_text())
    changed = TlogProof(
        proof.index, proof.hashes, proof.checkpoint, proof.leaf.replace(b"true", b"flse")
    )
    other = tmp_path / "other.yaml"
    other.write_text(trust.read_text().replace(ORIGIN, "another/log", 1))
    for text, by, why in (
        (str(changed), trust, "another root"), (str(proof), other, "does not name"),
        ("hello", trust, "not a proof"),
    ):  # fmt: skip
        file.write_text(text)
        said = verified(site, file, code=1) if by is trust else {}
        shown = authz(site, "verify-proof", file, "--trust", by, code=1)
        assert "NOT proven" in shown
        assert why in shown
        assert "d-5" not in shown + str(said)
        assert said.get("proven", False) is False
    file.write_bytes(b"\xff")
    assert "no text" in verified(site, file, code=1)["reason"]
    authz(site, "verify-proof", tmp_path / "none", "--trust", trust, code=2)
    authz(site, "verify-proof", file, "--trust", tmp_path / "none", code=2)


def test_a_changed_row_gives_no_proof(site, tmp_path):
    """What the table says now, but the log never had, cannot be proven; nor what is gone. No file
    is written."""
    file = tmp_path / "proof"
    with connect(site[1], mutations_sync=1) as client:
        client.execute("ALTER TABLE audit_log UPDATE subject = 'm.birch' WHERE index = 100")
        client.execute("ALTER TABLE audit_log DELETE WHERE index = 101")
        left = client.execute("SELECT index, subject FROM audit_log WHERE index IN (100, 101)")
        told = client.execute("SELECT * FROM system.mutations WHERE table = 'audit_log'")
        assert left == [(100, "m.birch")], told
    assert "cannot be proven" in authz(site, "prove", f"{ORIGIN}@100", "-o", file, code=1)
    assert "no record" in authz(site, "prove", f"{ORIGIN}@101", "-o", file, code=1)
    assert not file.exists()


def test_a_checkpoint_that_nobody_signed(site, tmp_path):
    """Somebody put a checkpoint of theirs into the table: with the trust file, no proof is made
    that others would refuse."""
    file, trust = tmp_path / "proof", site[0] / "receiver" / "trust.yaml"
    authz(site, "prove", f"{ORIGIN}@7", "-o", file, "--trust", trust)
    forged = TlogProof.parse(file.read_text()).claimed
    note = sign_note(forged.text(), Signer(ORIGIN, bytes(32))) + "\N{EM DASH} x AAAAAAAA\n"
    with connect(site[1], mutations_sync=1) as client:
        row = [(ORIGIN, forged.size, note)]
        client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", row)
        file.unlink()
        said = authz(site, "prove", f"{ORIGIN}@7", "-o", file, "--trust", trust, code=1)
        client.execute("ALTER TABLE checkpoints DELETE WHERE note = %(note)s", {"note": note})
    assert "no signature by a trusted key" in said.replace("\n", " ")
    assert not file.exists()


def test_nothing_is_shown_that_is_not_on_record(site, tmp_path):
    """Where the look cannot be recorded, no proof is written. Without any receiver one is, and it
    is said that nobody will know."""
    file, ours = tmp_path / "proof", site[2]
    (tmp_path / "taken").write_text("")
    command = [*AUTHZ, "prove", f"{ORIGIN}@3", "-o", file]
    done = run([*command, "--data-dir", tmp_path / "taken"], ours)
    assert (done.returncode, file.exists()) == (2, False)
    environment = {**ours.environment}
    del environment["AUTHZ_EXT_AUTHZ__RECEIVER"]
    done = run(command, ours, env=environment)
    assert (done.returncode, file.exists()) == (0, True)
    assert "not on record" in done.stderr
