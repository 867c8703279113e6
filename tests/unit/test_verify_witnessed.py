"""What anchors and witnesses have seen of a log, held against the log."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.anchors import folder, put
from authz.ledger import (
    Checkpoint,
    Signer,
    Verifier,
    add_signatures,
    leaf_hash,
    sign_note,
    tree_hash,
)
from authz.trust import TrustedLog
from authz.verify.witnessed import Witnessed, read_anchors

LOG = Signer("prod/receiver", bytes(32))
OLD = Signer("prod/receiver", b"o" * 32)
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]
FORGED = [leaf_hash(b"forged"), *LEAVES[1:]]


def root_at(size):
    return tree_hash(LEAVES[:size]) if size <= len(LEAVES) else None


def note(size, leaves=LEAVES, signer=LOG):
    return sign_note(Checkpoint(LOG.name, size, tree_hash(leaves[:size])).text(), signer)


class Witness:
    """One that cosigns whatever it is shown."""

    def __init__(self, name):
        self._signer = Signer(name, name.encode() * 16)
        key = self._signer.verifier
        self.key = Verifier(key.name, key.public_key, cosigns=True)

    def cosign(self, plain, when=1_700_000_000):
        text = plain.rpartition("\n\n")[0] + "\n"
        signature = self._signer.sign(f"cosignature/v1\ntime {when}\n{text}".encode())
        line = base64.b64encode(self.key.key_id + when.to_bytes(8) + signature).decode()
        return add_signatures(plain, [f"\N{EM DASH} {self.key.name} {line}\n"], [self.key])


W1, W2, W3 = Witness("w1"), Witness("w2"), Witness("w3")


class Case:
    """A log that has checkpoints of the sizes `known`, and an anchor for it in `directory`."""

    def __init__(self, directory, quorum=0, witnesses=(), anchors=None):
        self.directory = directory
        self.keys = (LOG.verifier, OLD.verifier)
        keys = tuple(witness.key for witness in witnesses)
        places = (directory,) if anchors is None else anchors
        self.log = TrustedLog(LOG.name, self.keys, places, keys, quorum)
        self.known = {10, 20, 30, 40}

    def put(self, size, **more):
        text = note(size, **more)
        put(self.directory, LOG.name, size, text)
        return text

    def judge(self, *rows, size=40, since=0, witnessed=0):
        """The kinds found, in order; `rows` are further notes of the log's table."""
        self.seen = Witnessed(self.log, read_anchors(self.log), since, witnessed=witnessed)
        rows = [*rows, *(note(one) for one in sorted(self.known) if one <= size)]
        for row in rows:
            checkpoint = Checkpoint.parse(row)
            if checkpoint.size > since:
                self.seen.add(checkpoint, row)
        asked = self.seen.sizes(size)

        def root(one):
            assert one in asked, "a root is recomputed that was not announced"
            return root_at(one)

        self.found = list(self.seen.findings(size, root))
        return [finding.kind for finding in self.found]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def test_as_it_should_be(case):
    """An anchor that saw the log as it is tells how far."""
    for size in (10, 30):
        case.put(size)
    case.put(20, signer=OLD)
    assert case.judge() == []
    assert (case.seen.anchored, case.seen.witnessed) == (30, 0)


def test_nothing_demanded(tmp_path):
    """A trust file without anchors and witnesses demands none."""
    case = Case(tmp_path, anchors=())
    assert case.judge(W1.cosign(note(10))) == []
    assert (case.seen.anchored, case.seen.witnessed) == (0, 0)


@pytest.mark.parametrize("there", ["nothing", "folder", "garbage", "another's"])
def test_an_anchor_without_checkpoints(case, tmp_path, there):
    """An anchor that is demanded and holds nothing the log signed is a finding."""
    if there == "folder":
        folder(tmp_path, LOG.name).mkdir()
    elif there == "garbage":
        put(tmp_path, LOG.name, 10, "hello\n\nworld\n")
    elif there == "another's":
        put(tmp_path, LOG.name, 10, note(10, signer=Signer(LOG.name, b"?" * 32)))
    assert case.judge() == ["anchor"]
    assert str(tmp_path) in case.found[0].text


def test_one_anchor_of_two_is_gone(case, tmp_path):
    """Each of the anchors counts: that one is in order does not speak for the other."""
    case.put(30)
    case.log = TrustedLog(LOG.name, case.keys, (tmp_path, tmp_path / "away"))
    assert case.judge() == ["anchor"]
    assert "away" in case.found[0].text
    assert case.seen.anchored == 30


def test_rollback(case):
    """A log that is shorter than an anchor saw it, everything else in order, is found."""
    case.put(20)
    case.put(40)
    case.known = {10, 20, 30}
    assert case.judge(size=30) == ["anchor_rollback"]
    assert (case.found[0].first, case.found[0].last) == (30, 39)
    assert case.seen.anchored == 20


def test_rewritten(case):
    """A log that is another than an anchor saw is found, with where it begins to be."""
    case.put(10)
    for size in (20, 30):
        case.put(size, leaves=[*LEAVES[:12], *FORGED[:28]])
    assert case.judge() == ["anchor_fork"]
    assert (case.found[0].first, case.found[0].last) == (10, 19)
    assert case.seen.anchored == 10


def test_two_roots_in_one_anchor(case):
    """So is one that was anchored twice, with different roots."""
    case.put(10)
    case.put(10, leaves=FORGED)
    assert case.judge() == ["anchor_fork"]


def test_a_checkpoint_is_gone(case):
    """A checkpoint that the log lacks is told, though the records under it are the same."""
    case.put(15)
    assert case.judge() == ["missing_checkpoint"]
    assert case.seen.anchored == 15


def test_a_root_that_cannot_be_computed(case, monkeypatch):
    """What cannot be recomputed is not taken for the same."""
    case.put(15)
    case.known = {10, 40}
    real = root_at
    monkeypatch.setitem(globals(), "root_at", lambda size: None if size == 15 else real(size))
    assert case.judge() == ["anchor_rollback"]


def test_quorum(tmp_path):
    """A size counts as witnessed once enough of the trusted have cosigned it, in one note or in
    several."""
    case = Case(tmp_path, 2, (W1, W2), anchors=())
    one = W1.cosign(note(10))
    assert case.judge(one, W1.cosign(note(20))) == ["unwitnessed"]
    assert case.judge(one, W1.cosign(note(10), when=5)) == ["unwitnessed"]
    assert case.judge(one, W3.cosign(note(10))) == ["unwitnessed"]
    assert case.judge(one, W2.cosign(note(10)), note(40)) == []
    assert case.seen.witnessed == 10
    both = W2.cosign(W1.cosign(W3.cosign(note(30))))
    assert case.judge(one, both, note(40), W1.cosign(note(40))) == []
    assert case.seen.witnessed == 30


def test_a_wrong_cosignature_counts_for_nothing(tmp_path):
    """A witness's line over another checkpoint is none, and one of another log is none."""
    case = Case(tmp_path, 1, (W1,), anchors=())
    line = W1.cosign(note(20)).removeprefix(note(20))
    assert case.judge(note(10) + line) == ["unwitnessed"]
    other = sign_note(Checkpoint("other", 10, root_at(10)).text(), Signer("other", bytes(32)))
    assert case.judge(W1.cosign(other)) == ["unwitnessed"]


def test_witnesses_saw_another_log(tmp_path):
    """A log that is shorter, or another, than witnesses cosigned is found."""
    case = Case(tmp_path, 1, (W1,), anchors=())
    assert case.judge(W1.cosign(note(40)), size=30) == ["rollback"]
    assert case.judge(W1.cosign(note(10, leaves=FORGED))) == ["fork"]
    assert case.seen.witnessed == 0


def test_cosigned_checkpoints_in_an_anchor(tmp_path):
    """Cosignatures that are in an anchor count though the table's rows are gone."""
    case = Case(tmp_path, 1, (W1,))
    put(tmp_path, LOG.name, 30, W1.cosign(case.put(30)))
    assert case.judge() == []
    assert (case.seen.anchored, case.seen.witnessed) == (30, 30)


def test_only_what_is_new(tmp_path):
    """With what was checked before left out, what is new is judged all the same, and how far it was
    seen is not forgotten."""
    case = Case(tmp_path, 1, (W1,))
    case.put(10, leaves=FORGED)  # was found, or not, by the check before
    case.put(20)
    put(tmp_path, LOG.name, 20, W1.cosign(note(20)))
    assert case.judge(since=20, witnessed=20) == []
    assert (case.seen.anchored, case.seen.witnessed) == (20, 20)
    case.put(30)
    assert case.judge(W1.cosign(note(40)), since=20, witnessed=20) == []
    assert (case.seen.anchored, case.seen.witnessed) == (30, 40)
    case.put(35, leaves=FORGED)
    assert case.judge(since=20, witnessed=20) == ["anchor_fork"]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 40),
    st.integers(0, 39),
    st.booleans(),
)
def test_whatever_was_seen(anchored, size, changed, forged):
    """If the log was rewritten or cut since, that is found, and else nothing but missing rows."""
    leaves = [*LEAVES[:changed], leaf_hash(b"new"), *LEAVES[changed + 1 :]] if forged else LEAVES
    log = TrustedLog(LOG.name, (LOG.verifier,), ("anchor",))
    from authz.verify.witnessed import Anchor

    seen = Witnessed(log, [Anchor("anchor", [note(one) for one in anchored])])
    kinds = {f.kind for f in seen.findings(size, lambda n: tree_hash(leaves[:n]))}
    assert ("anchor_rollback" in kinds) == (max(anchored) > size)
    rewritten = forged and any(changed < one <= size for one in anchored)
    assert ("anchor_fork" in kinds) == rewritten
    good = [one for one in anchored if one <= size and not (forged and changed < one)]
    assert seen.anchored == max(good, default=0)
