"""Signed notes and checkpoints, as C2SP writes them."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import (
    Checkpoint,
    NoteError,
    Signer,
    Verifier,
    add_signatures,
    open_note,
    sign_note,
    tree_hash,
)

# The example in the documentation of golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\N{EM DASH} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNX"
    "gKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = Signer("example.org/log", bytes(range(32)))


def test_go_example():
    """A note signed by Go's own implementation is accepted, with the key as Go writes it."""
    verifier = Verifier.parse(GO_KEY)
    assert str(verifier) == GO_KEY
    text, signed = open_note(GO_NOTE, [verifier])
    assert text.startswith("If you think")
    assert signed == [verifier]


def test_changed_text_is_refused():
    """A note whose text was changed is worth nothing."""
    with pytest.raises(NoteError, match="wrong"):
        open_note(GO_NOTE.replace("answer", "ANSWER"), [Verifier.parse(GO_KEY)])


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_round_trip(text):
    """What is signed opens as it was, with that key and no other."""
    text = text.replace("\r", "") + "\n"
    note = sign_note(text, SIGNER)
    assert open_note(note, [SIGNER.verifier]) == (text, [SIGNER.verifier])
    with pytest.raises(NoteError):
        open_note(note, [Verifier.parse(GO_KEY)])


def test_unknown_signatures_are_ignored_and_wrong_ones_are_not():
    """Somebody else's signature beside ours does no harm; a wrong one of ours does."""
    note = sign_note("hello\n", SIGNER)
    theirs = sign_note("hello\n", Signer("witness", bytes(32))).rpartition("\n\n")[2]
    assert open_note(note + theirs, [SIGNER.verifier])[1] == [SIGNER.verifier]
    wrong = sign_note("other\n", SIGNER).rpartition("\n\n")[2]
    with pytest.raises(NoteError):
        open_note(note + wrong, [SIGNER.verifier])


@given(st.text(max_size=300))
def test_malformed_notes(text):
    """Whatever is given, it is a note or a NoteError."""
    with pytest.raises(NoteError):
        open_note(text, [SIGNER.verifier])


@given(st.text(max_size=100) | st.from_regex(r"[a-z]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]{0,50}"))
def test_malformed_keys(text):
    """So for keys; the error does not repeat them, since they may be private."""
    for parse in (Verifier.parse, Signer.parse):
        with pytest.raises(NoteError) as error:
            parse(text)
        assert len(text) < 20 or text not in str(error.value)


def test_private_key_text():
    """A private key survives its text form, and its representation does not show it."""
    assert Signer.parse(SIGNER.private_text()) == SIGNER
    assert SIGNER.seed.hex() not in repr(SIGNER)
    assert str(SIGNER.seed) not in repr(SIGNER)


def test_checkpoint():
    """A checkpoint's text is origin, size and root, and reads back; extension lines are ignored."""
    checkpoint = Checkpoint("example.org/log", 7, tree_hash([]))
    assert checkpoint.text().split("\n")[:2] == ["example.org/log", "7"]
    assert Checkpoint.parse(checkpoint.text()) == checkpoint
    assert Checkpoint.parse(checkpoint.text() + "extension\n") == checkpoint


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "a\n1\n", "a\n01\nAAAA\n", "a\n-1\nAAAA\n", "a\n1\n!!\n", "a\nx\nAAAA\n"],
)
def test_bad_checkpoints(text):
    """A text that is no checkpoint is refused."""
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_lone_surrogates():
    """Text that is no Unicode, which YAML and JSON can hold, is refused as any other."""
    note = sign_note("hello\n", SIGNER).replace("hello", "hell\ud800")
    with pytest.raises(NoteError):
        open_note(note, [SIGNER.verifier])
    with pytest.raises(NoteError):
        Verifier.parse(GO_KEY.replace("Peter", "\ud800"))


@pytest.mark.parametrize("place", range(0, 90, 8))
def test_any_changed_signature(place):
    """No character of a signature line can be changed."""
    start = GO_NOTE.index("x08go")
    changed = "A" if GO_NOTE[start + place] != "A" else "B"
    note = GO_NOTE[: start + place] + changed + GO_NOTE[start + place + 1 :]
    with pytest.raises(NoteError):
        open_note(note, [Verifier.parse(GO_KEY)])


def cosigned(text, name="witness.example/w1", when=1_679_315_147):
    """A note that a witness cosigned, put together as C2SP tlog-cosignature says."""
    key = Signer(name, b"w" * 32)
    verifier = Verifier(name, key.verifier.public_key, cosigns=True)
    signature = key.sign(f"cosignature/v1\ntime {when}\n{text}".encode())
    line = base64.b64encode(verifier.key_id + when.to_bytes(8) + signature).decode()
    return verifier, f"\N{EM DASH} {name} {line}\n"


@given(st.integers(0, 2**63 - 1))
def test_cosignature(when):
    """A witness's signature counts over this checkpoint at this time, and for nothing else."""
    text = Checkpoint("example.org/log", 7, tree_hash([])).text()
    verifier, line = cosigned(text, when=when)
    assert Verifier.parse(str(verifier)) == verifier
    note = add_signatures(sign_note(text, SIGNER), [line], [verifier])
    assert open_note(note, [verifier]) == (text, [verifier])
    assert open_note(note, [SIGNER.verifier, verifier])[1] == [SIGNER.verifier, verifier]
    _, later = cosigned(text, when=when ^ 1)
    place = line.index(" ", 2) + 1
    for wrong in (
        line[: place + 20] + later[place + 20 :],  # the signature is over another time
        line[: place + 40] + ("B" if line[place + 40] == "A" else "A") + line[place + 41 :],
    ):
        with pytest.raises(NoteError):
            add_signatures(note, [wrong], [verifier])
    with pytest.raises(NoteError):
        open_note(note.replace("\n7\n", "\n8\n"), [verifier])


def test_a_log_key_is_no_witness():
    """A plain signature by a witness's key is no cosignature, nor the other way round."""
    text = Checkpoint("example.org/log", 7, tree_hash([])).text()
    verifier, line = cosigned(text)
    plain = Verifier(verifier.name, verifier.public_key)
    with pytest.raises(NoteError):
        open_note(sign_note(text, Signer(verifier.name, b"w" * 32)), [verifier])
    with pytest.raises(NoteError):
        open_note(f"{text}\n{line}", [plain])
    with pytest.raises(NoteError):
        Signer.parse("PRIVATE+KEY+" + str(verifier))


def test_signatures_are_added_once():
    """Of an answer only wanted lines are taken, each key's once; anything else in it is refused or
    left out."""
    text = Checkpoint("example.org/log", 7, tree_hash([])).text()
    first, line = cosigned(text)
    second, other = cosigned(text, "witness.example/w2")
    note = sign_note(text, SIGNER)
    both = add_signatures(note, [line + other, other, line], [first, second])
    assert both == note + line + other
    assert add_signatures(note, [line + other], [second]) == note + other
    for nonsense in ("", "hello", line[:-1], line + "\n", "\n\n" + line, "<html>\n"):
        with pytest.raises(NoteError):
            add_signatures(note, [nonsense], [first])
