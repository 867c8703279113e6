"""Proofs of many leaves at once."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.ledger import ProofError, Tree, leaf_hash, tree_hash
from authz.ledger import runs as of_runs
from authz.ledger.runs import prove_runs, root_of_runs

MOST = 1200  # several tiles, and a level above
HASHES = [leaf_hash(str(number).encode()) for number in range(MOST)]
SOME = settings(max_examples=60)


@st.composite
def parts(draw):
    """A tree's size, and runs of its leaves."""
    size = draw(st.integers(1, MOST))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=24)))
    return size, [tuple(cuts[n : n + 2]) for n in range(0, len(cuts) - 1, 2)]


def reader(size):
    """Gives the tiles of the tree of the first leaves."""
    tree = Tree()
    tiles = tree.append(HASHES[:size]) + tree.partial_tiles()
    data = {(tile.level, tile.index): tile.data for tile in tiles}
    return lambda places: [data[place.level, place.index] for place in places]


def leaves(runs):
    return [HASHES[index] for begin, end in runs for index in range(begin, end)]


@SOME
@given(parts())
@example((1, [(0, 1)]))
@example((700, [(0, 700)]))
@example((700, []))
@example((1025, [(255, 257), (1024, 1025)]))
def test_runs_and_their_proof_give_the_root(drawn):
    """The leaves of any runs, with the proof that tiles make, give the tree's root; all leaves give
    it alone."""
    size, runs = drawn
    proof = list(prove_runs(runs, size, reader(size)))
    assert root_of_runs(runs, size, leaves(runs), proof) == tree_hash(HASHES[:size])
    if runs == [(0, size)]:
        assert proof == []


def test_large_runs_are_read_in_steps(monkeypatch):
    """No more hashes than a step has are held, and the root is the same."""
    monkeypatch.setattr(of_runs, "_MOST_LEAVES", 16)
    monkeypatch.setattr(of_runs, "_AT_ONCE", 3)
    runs, size = [(3, 700), (702, 1100)], MOST
    proof = list(prove_runs(runs, size, reader(size)))
    assert root_of_runs(runs, size, iter(leaves(runs)), iter(proof)) == tree_hash(HASHES)


@SOME
@given(parts(), st.data())
def test_anything_else_does_not(drawn, data):
    """Another leaf, one more or fewer, leaves in another order, another hash of the proof, more or
    fewer of them, and runs elsewhere: none gives the root."""
    size, runs = drawn
    proof = list(prove_runs(runs, size, reader(size)))
    own, root = leaves(runs), tree_hash(HASHES[:size])

    def gives(runs, own, proof):
        try:
            return root_of_runs(runs, size, own, proof) == root
        except (ProofError, ValueError):
            return False

    for some, others in ((own, lambda changed: (runs, changed, proof)),
                         (proof, lambda changed: (runs, own, changed))):  # fmt: skip
        assert not gives(*others([*some, HASHES[0]]))
        if not some:
            continue
        at = data.draw(st.integers(0, len(some) - 1))
        assert not gives(*others(some[:at] + some[at + 1 :]))
        assert not gives(*others([*some[:at], bytes(32), *some[at + 1 :]]))
        if len(some) > 1:
            assert not gives(*others([*some[1:], some[0]]))
    moved = [(begin + 1, end + 1) for begin, end in runs]
    if runs and moved[-1][1] <= size:
        assert not gives(moved, own, proof)


@pytest.mark.parametrize(
    "runs", [[(1, 1)], [(2, 1)], [(0, 11)], [(0, 2), (2, 3)], [(4, 5), (1, 2)], [(-1, 2)]]
)
def test_runs_that_are_none(runs):
    """Runs that are empty, out of order, touching or outside the tree are refused by both sides."""
    with pytest.raises(ValueError, match="no runs"):
        list(prove_runs(runs, 10, reader(10)))
    with pytest.raises(ValueError, match="no runs"):
        root_of_runs(runs, 10, [], [])


def test_a_missing_tile():
    """A proof that needs a tile which is gone is refused."""
    with pytest.raises(ProofError, match="missing"):
        list(prove_runs([(0, 3)], 300, lambda places: [b""] * len(places)))
