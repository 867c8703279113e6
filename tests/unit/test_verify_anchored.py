"""A whole log rewritten and signed anew with its own key: who else has seen it tells."""

import base64

import pytest
from logs import SIGNER, TestLog

from authz.anchors import put
from authz.ledger import ProofError, Signer, Verifier, add_signatures
from authz.proof import check_proof, make_proof
from authz.store.tiles import Tiles, leaves
from authz.trust import TrustedLog
from authz.verify import verify_store

WITNESS = Signer("witness.example", bytes(range(1, 33)))
COSIGNS = Verifier(WITNESS.name, WITNESS.verifier.public_key, cosigns=True)
ORIGIN = SIGNER.name


def fill(directory, database, subject):
    """A log of three batches; in one life they are of another person."""
    log = TestLog(directory, database)
    for batch in range(3):
        log.append([
            {"kind": "decision", "decision_id": f"{batch}-{number}", "subject": subject}
            for number in range(100)
        ])  # fmt: skip
        log.seal()
    return log


def notes(client):
    return dict(client.execute("SELECT size, note FROM checkpoints ORDER BY size"))


def cosigned(note, when=1_700_000_000):
    text = note.rpartition("\n\n")[0] + "\n"
    signature = WITNESS.sign(f"cosignature/v1\ntime {when}\n{text}".encode())
    line = base64.b64encode(COSIGNS.key_id + when.to_bytes(8) + signature).decode()
    return add_signatures(note, [f"\N{EM DASH} {COSIGNS.name} {line}\n"], [COSIGNS])


@pytest.fixture
def site(database, tmp_path):
    """A log, an anchor that holds its first two checkpoints, and how to rewrite all of it."""
    (tmp_path / "anchor").mkdir()
    log = fill(tmp_path / "log", database, "dr.alder")
    for size in (100, 200):
        put(tmp_path / "anchor", ORIGIN, size, notes(log.client)[size])

    def rewrite():
        for table in ("audit_log", "tiles", "checkpoints"):
            log.client.execute(f"TRUNCATE TABLE {table}")
        other = fill(tmp_path / "other", database, "dr.nobody")
        other.end()

    yield log.client, tmp_path / "anchor", rewrite
    log.end()


def verify(client, state=None, **more):
    return verify_store(client, [TrustedLog(ORIGIN, (SIGNER.verifier,), **more)], state)


def found(report):
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def test_anchored(site):
    """Each checkpoint that the anchor holds is the log's; how far that goes is told."""
    client, anchor, _ = site
    report = verify(client, anchors=(anchor,))
    assert report.verified
    assert (report.logs[0].size, report.logs[0].anchored) == (300, 200)


def test_rewritten_behind_an_anchor(site):
    """Everything rewritten and signed anew is a good log to all but the anchor, and to a state."""
    client, anchor, rewrite = site
    state = {}
    assert verify(client, state).verified
    rewrite()
    assert verify(client).verified
    assert found(verify(client, anchors=(anchor,))) == [("anchor_fork", 0, 99)]
    assert found(verify(client, state)) == [("fork", -1, -1)]


def test_rolled_back_behind_an_anchor(site):
    """A log cut back, checkpoints and tiles with it, has fewer records than the anchor saw."""
    client, anchor, _ = site
    put(anchor, ORIGIN, 300, notes(client)[300])
    client.execute("ALTER TABLE audit_log DELETE WHERE index >= 200 SETTINGS mutations_sync = 1")
    client.execute("ALTER TABLE checkpoints DELETE WHERE size > 200 SETTINGS mutations_sync = 1")
    client.execute("ALTER TABLE tiles DELETE WHERE width > 200 SETTINGS mutations_sync = 1")
    kinds = {kind for kind, *_ in found(verify(client, anchors=(anchor,)))}
    assert "anchor_rollback" in kinds


def test_witnessed(site):
    """A checkpoint with the witness's cosignature is stored beside the plain one; what lies beyond
    it is not witnessed yet, and that is no tampering."""
    client, _, _ = site
    row = (ORIGIN, 200, cosigned(notes(client)[200]))
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [row])
    report = verify(client, witnesses=(COSIGNS,), quorum=1)
    assert found(report) == []
    assert (report.logs[0].witnessed, report.logs[0].checkpoints) == (200, 3)


def test_rewritten_behind_a_witness(site):
    """A cosignature that is kept tells of another log; without any, a quorum is not reached."""
    client, anchor, rewrite = site
    seen = cosigned(notes(client)[200])
    rewrite()
    assert found(verify(client, witnesses=(COSIGNS,), quorum=1)) == [("unwitnessed", -1, -1)]
    put(anchor, ORIGIN, 200, seen)
    report = verify(client, anchors=(anchor,), witnesses=(COSIGNS,), quorum=1)
    assert {kind for kind, *_ in found(report)} == {"anchor_fork", "fork"}


def test_proof_wants_witnesses(site):
    """A proof is good for who asks for witnesses only under a checkpoint that they cosigned."""
    client, _, _ = site
    log = TrustedLog(ORIGIN, (SIGNER.verifier,), (), (COSIGNS,), 1)
    [leaf] = leaves(client, ORIGIN, 7, 8)[7]
    for note, said in (
        (notes(client)[300], "0 of the trusted"),
        (cosigned(notes(client)[200]), ""),
    ):
        proof = str(make_proof(leaf, 7, note, Tiles(client, ORIGIN)))
        assert check_proof(proof, [TrustedLog(ORIGIN, (SIGNER.verifier,))]).proof.index == 7
        if said:
            with pytest.raises(ProofError, match=said):
                check_proof(proof, [log])
        else:
            assert COSIGNS in check_proof(proof, [log]).signed
