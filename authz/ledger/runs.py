"""Proofs that many leaves are in a tree at once: of all leaves of some runs, which are whole parts
of the log from one index up to another. One run from 0 to the tree's size needs no hash at all.

Cut the tree (RFC 6962, section 2.1) where a subtree has leaves of a run and others. What is left
are subtrees of leaves that are all there, and subtrees that no run touches: the proof is the hashes
of the latter, from left to right. Pure.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from authz.ledger.merkle import HASH_BYTES, ProofError, node_hash, tree_hash
from authz.ledger.proofs import Reader, hashes_of, split

Run = tuple[int, int]
"""Leaves from the first on and before the second."""

_AT_ONCE = 512  # hashes, whose tiles are held
_MOST_LEAVES = 1 << 16  # whose hashes are held


def prove_runs(runs: Sequence[Run], size: int, read: Reader) -> Iterator[bytes]:
    """The proof of `runs`, which are in order, apart from each other and within `size`. Raises
    `ValueError` if they are not, `ProofError` for a tile that is missing."""
    check_runs(runs, size)
    others = _others(0, size, runs, 0, len(runs))
    while some := list(islice(others, _AT_ONCE)):
        yield from hashes_of(some, size, read)


def root_of_runs(
    runs: Sequence[Run], size: int, leaves: Iterable[bytes], proof: Iterable[bytes]
) -> bytes:
    """The root of the tree of `size` that has in `runs` the leaves with these hashes, in order.

    Takes from `leaves` and `proof` as it goes, and holds some. Raises `ValueError` for runs that
    are none, `ProofError` if there are too few or too many leaves or hashes.
    """
    check_runs(runs, size)
    told, others = iter(leaves), iter(proof)

    def root(begin: int, end: int, low: int, high: int) -> bytes:
        """Of a subtree, which the runs from number `low` on and before `high` touch."""
        if low == high:
            value = next(others, b"")
            if len(value) != HASH_BYTES:
                raise ProofError("the proof of its place in the log is too short")
            return value
        if _covers(runs[low], begin, end) and end - begin <= _MOST_LEAVES:
            hashes = list(islice(told, end - begin))
            if len(hashes) < end - begin:
                raise ProofError("there are fewer records than it says")
            return tree_hash(hashes)
        middle = begin + split(end - begin)
        left, right = _halves(runs, middle, low, high)
        return node_hash(root(begin, middle, low, left), root(middle, end, right, high))

    found = root(0, size, 0, len(runs)) if size else tree_hash(())
    if next(others, None) is not None:
        raise ProofError("the proof of its place in the log is too long")
    if next(told, None) is not None:
        raise ProofError("there are more records than it says")
    return found


def check_runs(runs: Sequence[Run], size: int) -> None:
    """Raises `ValueError` unless `runs` are in order, apart and within `size`."""
    last = -1
    for begin, end in runs:
        if not last < begin < end <= size:
            raise ValueError(f"no runs of a log of {size}: {begin} to {end}")
        last = end


def _others(begin: int, end: int, runs: Sequence[Run], low: int, high: int) -> Iterator[Run]:
    """The subtrees that no run touches, of one that the runs from `low` up to `high` touch."""
    if low == high:
        if begin < end:
            yield begin, end
    elif not _covers(runs[low], begin, end):
        middle = begin + split(end - begin)
        left, right = _halves(runs, middle, low, high)
        yield from _others(begin, middle, runs, low, left)
        yield from _others(middle, end, runs, right, high)


def _covers(run: Run, begin: int, end: int) -> bool:
    return run[0] <= begin and end <= run[1]


def _halves(runs: Sequence[Run], middle: int, low: int, high: int) -> tuple[int, int]:
    """Up to which of the runs there are some before `middle`, and from which on behind."""
    left = bisect_left(runs, middle, low, high, key=lambda run: run[0])
    right = left - 1 if left > low and runs[left - 1][1] > middle else left
    return left, right
