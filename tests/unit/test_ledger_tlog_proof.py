"""Proofs as files (C2SP tlog-proof), with the record in them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import (
    Checkpoint,
    NoteError,
    ProofError,
    Signer,
    TlogProof,
    leaf_hash,
    sign_note,
    tree_hash,
)

SIGNER = Signer("example.org/log", bytes(range(32)))
LEAVES = [b'{"kind":"decision"}', b"", b"third"]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
NOTE = sign_note(Checkpoint(SIGNER.name, 3, tree_hash(HASHES)).text(), SIGNER)
PROOF = TlogProof(0, (HASHES[1], HASHES[2]), NOTE, LEAVES[0])
TEXT = f"""c2sp.org/tlog-proof@v1
extra eyJraW5kIjoiZGVjaXNpb24ifQ==
index 0
bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=
W3K5RlzpgRtH5ogWyC14D9zJ9NoQB7mjmyuCsrNPMco=

{NOTE}"""


def test_form():
    """The file is the specification's: header, record, index, hashes, an empty line, the note."""
    assert HASHES[1].hex().startswith("6e340b9c")
    assert str(PROOF).splitlines()[:4] == TEXT.splitlines()[:4]
    assert str(PROOF).endswith(f"\n\n{NOTE}")
    assert TlogProof.parse(str(PROOF)) == PROOF


def test_verifies():
    """It shows the record it holds, by the log's key; without a record, it shows one that is given;
    and no other record, and by no other key."""
    checkpoint, signed = PROOF.verify(LEAVES[0], [SIGNER.verifier])
    assert (checkpoint.origin, checkpoint.size) == (SIGNER.name, 3)
    assert signed == [SIGNER.verifier]
    bare = TlogProof.parse(str(TlogProof(0, PROOF.hashes, NOTE)))
    assert bare.leaf is None
    bare.verify(LEAVES[0], [SIGNER.verifier])
    assert bare.claimed == checkpoint
    with pytest.raises(ProofError):
        bare.verify(LEAVES[2], [SIGNER.verifier])
    with pytest.raises(NoteError):
        bare.verify(LEAVES[0], [Signer(SIGNER.name, bytes(32)).verifier])


@given(
    st.integers(0, 2**63 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(max_size=300),
)  # fmt: skip
def test_reads_back(index, hashes, leaf):
    """What is written is read."""
    proof = TlogProof(index, tuple(hashes), NOTE, leaf)
    assert TlogProof.parse(str(proof)) == proof


@given(
    st.integers(0, len(str(PROOF)) - 1), st.sampled_from(["", "\n", " ", "0", "1", "A", "=", "é"])
)
def test_whatever_is_changed(place, put):
    """A file with a character changed, dropped or added is refused, or shows the same still."""
    text = str(PROOF)
    for changed in (text[:place] + put + text[place + 1 :], text[:place] + put + text[place:]):
        with contextlib.suppress(ProofError, NoteError):
            proof = TlogProof.parse(changed)
            checkpoint, _ = proof.verify(proof.leaf or b"", [SIGNER.verifier])
            assert (proof.leaf, proof.index) == (PROOF.leaf, PROOF.index)
            assert checkpoint == PROOF.claimed


@given(st.text() | st.text().map(lambda text: f"c2sp.org/tlog-proof@v1\nindex 0\n{text}"))
def test_malformed(text):
    """Whatever is given, it is a proof's form or a ProofError; what is no note is a NoteError."""
    with contextlib.suppress(ProofError, NoteError):
        TlogProof.parse(text).verify(b"", [SIGNER.verifier])
        pytest.fail("text that nobody signed was accepted")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v2"), ("index 0", "index 00"),
        ("index 0", "index -0"), ("index 0", "index \u0660"), ("index 0\n", ""),
        ("extra ", "extra  "), ("fQ==", "fR=="), ("bjQL", "\nbjQL"), ("bjQL", ""),
        ("bjQL", "b\tjQL"), (f"\n\n{NOTE}", "\n"), ("\n", "\r\n"),
    ],
)  # fmt: skip
def test_other_forms(old, new):
    """Each proof has one form: another spelling of the same is refused."""
    assert old in str(PROOF)
    with pytest.raises((ProofError, NoteError)):
        TlogProof.parse(str(PROOF).replace(old, new)).verify(LEAVES[0], [SIGNER.verifier])
