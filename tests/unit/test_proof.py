"""One record's proof, checked against a trust file."""

import pytest
from logs import SIGNER, TRUST

from authz.ledger import (
    Checkpoint,
    NoteError,
    ProofError,
    Signer,
    TlogProof,
    Tree,
    leaf_hash,
    sign_note,
)
from authz.proof import check_proof, make_proof
from authz.record import form
from authz.trust import TrustedLog

ORIGIN = SIGNER.name


def record(index, origin=ORIGIN, **values):
    place = {"index": index} if index else {}
    return {"kind": "decision", "origin": origin, "subject": "dr.alder", **place, **values}


def proof_of(leaves, index, origin=ORIGIN, signer=SIGNER):
    """The proof out of a log with these leaves, as a file's text."""
    tree = Tree()
    tiles = tree.append(map(leaf_hash, leaves)) + tree.partial_tiles()
    data = {(tile.level, tile.index): tile.data for tile in tiles}
    note = sign_note(Checkpoint(origin, tree.size, tree.root()).text(), signer)

    def read(places):
        return [data[place.level, place.index] for place in places]

    return str(make_proof(leaves[index], index, note, read))


LEAVES = [form(record(index)) for index in range(300)]


@pytest.mark.parametrize("index", [0, 1, 255, 256, 299])
def test_proven(index):
    """A record of a trusted log is proven, with the log's own key named."""
    proven = check_proof(proof_of(LEAVES, index), TRUST)
    assert proven.record == record(index)
    assert proven.signed == (SIGNER.verifier,)
    told = proven.to_json()
    assert (told["origin"], told["index"], told["size"]) == (ORIGIN, index, 300)


def test_a_later_key():
    """After a change of keys both count, and only those of the log itself."""
    new = Signer(ORIGIN, bytes(32))
    text = proof_of(LEAVES, 7, signer=new)
    logs = [TrustedLog(ORIGIN, (SIGNER.verifier, new.verifier))]
    assert check_proof(text, logs).signed == (new.verifier,)
    other = TrustedLog("other/receiver", (new.verifier,))
    with pytest.raises(NoteError):
        check_proof(text, [*TRUST, other])
    with pytest.raises(ProofError, match="does not name"):
        check_proof(text, [other])


@pytest.mark.parametrize(
    ("leaf", "wrong"),
    [
        (form(record(2)), "elsewhere"),
        (form(record(1, origin="other/receiver")), "elsewhere"),
        (b'{"origin": "test/receiver", "index": 1}', "canonical"),
        (b'{"index":1,"origin":"other","origin":"test/receiver"}', "canonical"),
        (b"[]", "canonical"), (b"\xff", "canonical"), (b"", "canonical"),
    ],
)  # fmt: skip
def test_what_the_log_has_there_is_not_this_record(leaf, wrong):
    """A leaf that was sealed, and says that it stands elsewhere or can be read in two ways, proves
    nothing."""
    with pytest.raises(ProofError, match=wrong):
        check_proof(proof_of([LEAVES[0], leaf], 1), TRUST)


def test_without_the_record():
    """A proof of which the record is somewhere else is told as such."""
    proof = TlogProof.parse(proof_of(LEAVES, 3))
    bare = TlogProof(proof.index, proof.hashes, proof.checkpoint)
    with pytest.raises(ProofError, match="no record"):
        check_proof(str(bare), TRUST)


def test_no_proof_is_made_of_what_is_not_so():
    """A leaf, a place or a checkpoint that does not fit the tiles gives no proof."""
    tree = Tree()
    data = [tile.data for tile in [*tree.append(map(leaf_hash, LEAVES[:9])), *tree.partial_tiles()]]
    note = sign_note(Checkpoint(ORIGIN, 9, tree.root()).text(), SIGNER)
    for leaf, index in ((LEAVES[1], 2), (LEAVES[9], 9)):
        with pytest.raises(ProofError):
            make_proof(leaf, index, note, lambda places: data)
    for text in ("no note", sign_note("no checkpoint\n", SIGNER)):
        with pytest.raises(NoteError):
            make_proof(LEAVES[1], 1, text, lambda places: data)
