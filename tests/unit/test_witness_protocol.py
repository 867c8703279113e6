"""What is said to a witness, and what is made of its answers."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import Checkpoint, Signer, Verifier, sign_note, tree_hash
from authz.receiver.witness import WitnessError, cosignature, refusal, request

LOG = Signer("example.com/behind-the-sofa", bytes(32))
NOTE = sign_note(Checkpoint(LOG.name, 9, tree_hash([])).text(), LOG)
WITNESS = Signer("witness.example/w1", b"w" * 32)
KEY = Verifier(WITNESS.name, WITNESS.verifier.public_key, cosigns=True)


def line(name=WITNESS.name, key=KEY, when=1):
    text = NOTE.rpartition("\n\n")[0] + "\n"
    signature = WITNESS.sign(f"cosignature/v1\ntime {when}\n{text}".encode())
    encoded = base64.b64encode(key.key_id + when.to_bytes(8) + signature).decode()
    return f"\N{EM DASH} {name} {encoded}\n"


def test_request():
    """The body is as C2SP tlog-witness shows it: old size, proof, an empty line, the note."""
    proof = [bytes(32), b"\xff" * 32]
    lines = ["old 7", base64.b64encode(proof[0]).decode(), base64.b64encode(proof[1]).decode()]
    assert request(7, proof, NOTE).decode() == "\n".join(lines) + "\n\n" + NOTE
    assert request(0, [], NOTE).decode() == "old 0\n\n" + NOTE


def test_where_it_stands():
    """A conflict tells the size that the witness has; one beyond ours is an alarm."""
    assert refusal(409, b"7\n", 9) == 7
    assert refusal(409, b"9\n", 9) == 9
    with pytest.raises(WitnessError, match="10 records of this log, of which 9 are stored"):
        refusal(409, b"10\n", 9)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", "does not know this log"), (403, b"", "the one that signs now"),
        (422, b"", "forked"), (400, b"", "malformed"), (500, b"<html>", "status 500"),
        (302, b"", "status 302"), (409, b"", "another size"), (409, b"-1\n", "another size"),
        (409, b"9" * 5000, "another size"),
    ],
)  # fmt: skip
def test_refusals(status, body, said):
    """Any other answer than a cosignature says why, in words that lead to the mend."""
    with pytest.raises(WitnessError, match=said):
        refusal(status, body, 9)


def test_cosignature():
    """Of an answer, the witness's own line is taken, and no other."""
    other = "\N{EM DASH} another AAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
    assert cosignature(NOTE, (other + line()).encode(), KEY) == line()


@given(
    st.sampled_from([b"", b"\xff", b"hello\n", line().encode()[:-1], line(name="w2").encode()])
    | st.binary(max_size=200)
)
def test_no_cosignature(body):
    """Whatever else it answers is none."""
    with pytest.raises(WitnessError, match="no cosignature"):
        cosignature(NOTE, body, KEY)


def test_a_cosignature_over_something_else():
    """Nor is one over another checkpoint or time."""
    for changed in (line(when=2)[:-40] + line(when=1)[-40:], line().replace("AAAB", "AAAC")):
        with pytest.raises(WitnessError):
            cosignature(NOTE, changed.encode(), KEY)
    with pytest.raises(WitnessError):
        cosignature(NOTE.replace("\n9\n", "\n8\n"), line().encode(), KEY)
