"""Inclusion and consistency proofs, against vectors and examples that others made."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.ledger import (
    Place,
    ProofError,
    Tree,
    edge_of,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    root_at,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "merkle"

# RFC 6962's reference implementation: the leaves, and the root at each size.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def vectors(kind: str) -> list[Path]:
    return sorted((VECTORS / kind).rglob("*.json"))


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


@pytest.mark.parametrize("path", vectors("inclusion"), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_inclusion_vector(path):
    """A published inclusion proof is accepted or refused as its author says."""
    case = json.loads(path.read_text())
    arguments = (
        decoded(case["leafHash"]), case["leafIdx"], case["treeSize"],
        [decoded(item) for item in case["proof"] or []], decoded(case["root"]),
    )  # fmt: skip
    if case["wantErr"]:
        with pytest.raises(ProofError):
            verify_inclusion(*arguments)
    else:
        verify_inclusion(*arguments)


@pytest.mark.parametrize("path", vectors("consistency"), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_consistency_vector(path):
    """A published consistency proof is accepted or refused as its author says."""
    case = json.loads(path.read_text())
    arguments = (
        case["size1"], case["size2"], [decoded(item) for item in case["proof"] or []],
        decoded(case["root1"]), decoded(case["root2"]),
    )  # fmt: skip
    if case["wantErr"]:
        with pytest.raises(ProofError):
            verify_consistency(*arguments)
    else:
        verify_consistency(*arguments)


def test_vectors_are_all_there():
    """The vectors were not lost in a copy."""
    assert len(vectors("inclusion")) + len(vectors("consistency")) > 100


@pytest.mark.parametrize("size", range(1, 9))
def test_example_tree(size):
    """The roots of RFC 6962's example tree are the published ones."""
    assert tree_hash([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size - 1]


def path_to(hashes: list[bytes], index: int) -> list[bytes]:
    """RFC 6962's PATH, as it is written there."""
    if len(hashes) == 1:
        return []
    split = largest_power_below(len(hashes))
    if index < split:
        return [*path_to(hashes[:split], index), root_of(hashes[split:])]
    return [*path_to(hashes[split:], index - split), root_of(hashes[:split])]


def proof_of(hashes: list[bytes], size: int, whole: bool = True) -> list[bytes]:
    """RFC 6962's SUBPROOF, as it is written there."""
    if size == len(hashes):
        return [] if whole else [root_of(hashes)]
    split = largest_power_below(len(hashes))
    if size <= split:
        return [*proof_of(hashes[:split], size, whole), root_of(hashes[split:])]
    return [*proof_of(hashes[split:], size - split, whole=False), root_of(hashes[:split])]


def root_of(hashes: list[bytes]) -> bytes:
    """RFC 6962's MTH, as it is written there."""
    if len(hashes) == 1:
        return hashes[0]
    split = largest_power_below(len(hashes))
    return node_hash(root_of(hashes[:split]), root_of(hashes[split:]))


def largest_power_below(number: int) -> int:
    return 1 << (number - 1).bit_length() - 1


TREES = st.integers(1, 70).map(lambda size: [leaf_hash(bytes([n])) for n in range(size)])


@given(TREES, st.data())
def test_proofs_hold_and_mutations_do_not(hashes, data):
    """A proof by the RFC's own recursion is accepted; with any hash changed, dropped or added,
    or for another index or size, it is not."""
    root = tree_hash(hashes)
    assert root == root_of(hashes)
    index = data.draw(st.integers(0, len(hashes) - 1))
    proof = path_to(hashes, index)
    verify_inclusion(hashes[index], index, len(hashes), proof, root)
    for bad in mutations(proof):
        with pytest.raises(ProofError):
            verify_inclusion(hashes[index], index, len(hashes), bad, root)
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(b"another"), index, len(hashes), proof, root)


@given(TREES, st.data())
def test_consistency_holds_and_mutations_do_not(hashes, data):
    """So for consistency proofs."""
    size = data.draw(st.integers(1, len(hashes)))
    old, new = tree_hash(hashes[:size]), tree_hash(hashes)
    proof = proof_of(hashes, size)
    verify_consistency(size, len(hashes), proof, old, new)
    for bad in mutations(proof):
        with pytest.raises(ProofError):
            verify_consistency(size, len(hashes), bad, old, new)
    if size < len(hashes):
        with pytest.raises(ProofError):
            verify_consistency(size, len(hashes), proof, new, new)
        with pytest.raises(ProofError):
            verify_consistency(size, len(hashes), proof, old, old)


def mutations(proof: list[bytes]) -> list[list[bytes]]:
    wrong = leaf_hash(b"wrong")
    changed = [[*proof[:n], wrong, *proof[n + 1 :]] for n in range(len(proof))]
    dropped = [[*proof[:n], *proof[n + 1 :]] for n in range(len(proof))]
    return [*changed, *dropped, [*proof, wrong], [wrong, *proof]]


def test_hashes_have_32_bytes():
    """A hash of another length is refused, wherever it stands."""
    good, short = leaf_hash(b""), b"short"
    for arguments in (
        (short, 0, 1, [], good),
        (good, 0, 1, [], short),
        (good, 0, 2, [short], good),
    ):
        with pytest.raises(ProofError, match="bytes"):
            verify_inclusion(*arguments)
    for arguments in ((1, 2, [short], good, good), (1, 1, [], short, short)):
        with pytest.raises(ProofError, match="bytes"):
            verify_consistency(*arguments)


def test_sizes_zero_and_equal():
    """The empty tree is a prefix of every tree, and a tree of itself, without any proof."""
    empty, one = tree_hash([]), leaf_hash(b"")
    verify_consistency(0, 0, [], empty, empty)
    verify_consistency(0, 1, [], empty, one)
    verify_consistency(1, 1, [], one, one)
    for arguments in ((0, 1, [], one, one), (1, 1, [], one, empty), (2, 1, [], one, one),
                      (0, 1, [one], empty, one), (-1, 1, [], empty, one)):  # fmt: skip
        with pytest.raises(ProofError):
            verify_consistency(*arguments)
    for index, size in ((0, 0), (1, 1), (-1, 1)):
        with pytest.raises(ProofError):
            verify_inclusion(one, index, size, [], one)


class Tiles:
    """The tiles that a tree of `hashes` leaves, as a reader gives them; it notes what is asked."""

    def __init__(self, hashes: list[bytes]) -> None:
        self.tree = Tree()
        tiles = self.tree.append(hashes) + self.tree.partial_tiles()
        self.data = {(tile.level, tile.index): tile.data for tile in tiles}
        self.calls: list[list[Place]] = []

    def __call__(self, places):
        self.calls.append(list(places))
        return [self.data[place.level, place.index] for place in places]


SIZES = st.integers(1, 1100) | st.sampled_from([255, 256, 257, 511, 512, 513, 1024])


def leaf_hashes(count: int) -> list[bytes]:
    return [leaf_hash(n.to_bytes(4, "big")) for n in range(count)]


MANY = leaf_hashes(1200)


@given(SIZES, st.integers(0, 99), st.data())
def test_proofs_out_of_tiles(size, more, data):
    """Out of tiles, which may be of a larger tree, come the RFC's own proofs and roots, and the
    tiles asked for are few, all there at this size, and asked for at once."""
    tiles = Tiles(MANY[: size + more])
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert prove_inclusion(index, size, tiles) == path_to(MANY[:size], index)
    assert prove_consistency(old, size, tiles) == proof_of(MANY[:size], old)
    assert root_at(size, tiles) == tree_hash(MANY[:size])
    assert len(tiles.calls) <= 3
    for places in tiles.calls:
        assert len(places) <= 6
        for place in places:
            assert 1 <= place.width <= (size >> 8 * place.level) - 256 * place.index


@given(SIZES, st.integers(0, 99), st.integers(0, 300))
def test_a_tree_out_of_tiles_goes_on(size, more, appended):
    """A tree restored at a size from tiles, which may be of a larger one, grows as that did."""
    restored, tree = edge_of(size, Tiles(MANY[: size + more])), Tree()
    tree.append(MANY[:size])
    added = leaf_hashes(appended)
    assert (restored.size, restored.root()) == (size, tree.root())
    assert restored.append(added) == tree.append(added)
    assert restored.partial_tiles() == tree.partial_tiles()


def test_the_empty_tree_has_no_tiles():
    """At size zero nothing is read: there is the empty root, the empty tree, and no proof."""
    tiles = Tiles([])
    assert root_at(0, tiles) == tree_hash([])
    assert edge_of(0, tiles).size == 0
    assert prove_consistency(0, 5, tiles) == []
    assert tiles.calls == []


def test_three_levels_of_tiles():
    """Where tiles of a third level stand on those of a second, it is the same."""
    hashes = leaf_hashes(2 * 256**2 + 300)
    tiles, size = Tiles(hashes), len(hashes)
    root = root_at(size, tiles)
    assert root == tree_hash(hashes) == tiles.tree.root()
    for index in (0, 65_535, 65_536, size - 301, size - 300, size - 1):
        proof = prove_inclusion(index, size, tiles)
        verify_inclusion(hashes[index], index, size, proof, root)
        assert len(tiles.calls[-1]) <= 6
    for old in (1, 255, 65_536, 70_000, 2 * 256**2, size - 1, size):
        proof = prove_consistency(old, size, tiles)
        verify_consistency(old, size, proof, root_at(old, tiles), root)
    assert edge_of(size, tiles).edge == tiles.tree.edge


@pytest.mark.parametrize("missing", [(0, 0), (0, 2), (1, 0)])
@pytest.mark.parametrize("left", [0, 40])
def test_a_tile_that_is_missing(missing, left):
    """Without a tile that is needed, or with a part of it, there is no proof, and it is named."""
    tiles = Tiles(MANY[:700])
    tiles.data[missing] = tiles.data[missing][:left]
    with pytest.raises(ProofError, match=f"{Place(*missing).path}.* is missing"):
        prove_inclusion(5, 700, tiles)


def test_what_no_tree_has():
    """An index outside, or sizes that are not in order, are refused."""
    tiles = Tiles(MANY[:10])
    for index, size in ((10, 10), (0, 0), (-1, 10)):
        with pytest.raises(ValueError, match="not in a tree"):
            prove_inclusion(index, size, tiles)
    for sizes in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not in order"):
            prove_consistency(*sizes, tiles)
