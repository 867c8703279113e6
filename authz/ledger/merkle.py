"""The Merkle tree of RFC 6962 and its proofs (RFC 9162, sections 2.1.3 and 2.1.4). Pure."""

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32


class ProofError(Exception):
    """A proof does not show what it claims."""


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """`leaf_hash` of each, faster for many."""
    sha256 = hashlib.sha256
    return [sha256(b"\x00" + leaf).digest() for leaf in leaves]


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_hash(hashes: Sequence[bytes]) -> bytes:
    """The root over `hashes`: each the hash of a leaf, or of a complete subtree of one height
    (only the last may be smaller). SHA-256 of nothing for an empty tree."""
    if not hashes:
        return hashlib.sha256().digest()
    sha256 = hashlib.sha256
    level = list(hashes)
    while len(level) > 1:
        # An odd one out is carried up as it is: that is RFC 6962's split at a power of two.
        odd = level[len(level) & ~1 :]
        level = [
            sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        level += odd
    return level[0]


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hashed to `leaf_hash` is number `index` in the tree of `size` and `root`.

    Raises `ProofError`. RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise ProofError(f"index {index} is not in a tree of size {size}")
    _want_hashes(leaf_hash, root, *proof)
    node, last = index, size - 1
    computed = leaf_hash
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        node >>= 1
        last >>= 1
    if last:
        raise ProofError("the inclusion proof is too short")
    if computed != root:
        raise ProofError("the inclusion proof leads to another root")


def verify_consistency(
    size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes
) -> None:
    """Check that the tree of `size2` and `root2` only appended to that of `size1` and `root1`.

    Raises `ProofError`. RFC 9162, section 2.1.4.2. The empty tree is a prefix of every tree.
    """
    if not 0 <= size1 <= size2:
        raise ProofError(f"sizes {size1} and {size2} are not in order")
    _want_hashes(root1, root2, *proof)
    if size1 in (0, size2):
        if proof:
            raise ProofError("the consistency proof should be empty")
        if size1 == size2 and root1 != root2:
            raise ProofError("trees of one size have different roots")
        if size1 == 0 and root1 != tree_hash(()):
            raise ProofError("the root of size zero is not the empty tree's")
        return
    if not proof:
        raise ProofError("the consistency proof is empty")
    path = list(proof) if size1 & (size1 - 1) else [root1, *proof]
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    if last:
        raise ProofError("the consistency proof is too short")
    if old != root1:
        raise ProofError("the consistency proof leads to another old root")
    if new != root2:
        raise ProofError("the consistency proof leads to another new root")


def _want_hashes(*hashes: bytes) -> None:
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise ProofError(f"a hash of {len(value)} bytes; SHA-256 has {HASH_BYTES}")
