"""A part of a log: where its check begins and ends, and what is counted of it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from authz.ledger import TILE_WIDTH, NoteError, ProofError, Tree, edge_of
from authz.reconcile import COUNTS, Gaps, Tally
from authz.record import Record, details_of
from authz.verify.chains import Chains
from authz.verify.log import LogCheck, Start
from authz.verify.source import Logs


def after(accepted: Mapping[str, Any]) -> Start | None:
    """Behind what was `accepted` before; None if that is not told in full. Raises `KeyError`,
    `TypeError` or `ValueError` for what is no such state."""
    if "edge" not in accepted:
        return None
    edge = [[base64.b64decode(one, validate=True) for one in level] for level in accepted["edge"]]
    tree, sealed_at = Tree(accepted["size"], edge), accepted["sealed_at"]
    if tree.root() != base64.b64decode(accepted["root"]):
        raise ValueError("its edge is not its root's")
    if type(sealed_at) is not int:
        raise TypeError("when its last record was sealed is no integer")
    try:
        chains = Chains.from_json(accepted["writers"])
    except NoteError:
        raise ValueError("a writer's key is none") from None
    return Start(tree, sealed_at, chains)


def within(check: LogCheck, source: Logs, since_us: int, until_us: int) -> int:
    """Have `check` begin before the records of a time, and end behind them; returns how many
    records it checks.

    Since `sealed_at` never decreases, the last record that was sealed earlier and the first that
    was sealed later bound the time. Both are checked as well: so a record that was taken out of the
    time, or moved to its other side, is found there. What claims to be of the time is checked
    wherever it is.
    """
    size = check.begin()
    if not size:
        return 0
    first, _ = _bounds(source, check.origin, size, since_us)
    _, end = _bounds(source, check.origin, size, until_us)
    claims, ends = source.span(check.origin, since_us, until_us)
    if ends:
        first, end = min(first, claims - 1), max(end, ends)
    first = max(first, 0) // TILE_WIDTH * TILE_WIDTH
    try:
        # Nothing of this tree is checked here: the signed root behind it tells.
        tree = edge_of(first, check.tree.read_tiles)
        return check.only(Start(tree, 0, Chains(from_beginning=False)), end + 1)
    except ProofError:
        return check.only(Start(), end + 1)  # it can be made of the leaves


def _bounds(source: Logs, origin: str, size: int, time_us: int) -> tuple[int, int]:
    """The indexes of two rows: one sealed before a time (-1: there is none), and the next one that
    there is, sealed at that time or later (`size`: there is none)."""
    before, after = -1, size
    low, high = 0, size  # what is still to be looked at
    while low < high:
        middle = (low + high) // 2
        found = source.sealed_from(origin, middle, high)
        if found and found[1] < time_us:
            before, low = found[0], found[0] + 1
        else:
            after, high = found[0] if found else after, middle
    return before, after


class Told:
    """As `authz.verify.accounts.Accounts`, but counted is what the log itself tells of a part: its
    records, and in its summaries and notices what was matched and what is missing."""

    def __init__(self) -> None:
        self._tally = Tally()

    def add(self, record: Record, origin: str) -> Sequence[str]:  # noqa: ARG002 - as `Accounts` has it
        tally, kind = self._tally, record.get("kind")
        if kind == "decision":
            tally.decisions += 1
            tally.allowed += bool(record.get("allowed"))
            tally.denied += not record.get("allowed")
        elif kind == "access":
            tally.accesses += 1
        elif kind == "notice" and "writer_seq" not in record:
            self._notice(record)
        return ()

    def finish(self) -> Tally:
        return self._tally

    def _notice(self, record: Record) -> None:
        told = details_of(record)
        if record.get("event") == "interval_summary":
            for name in set(COUNTS) - {"decisions", "allowed", "denied", "accesses", "pending"}:
                count = told.get(name)
                if isinstance(count, int):
                    setattr(self._tally, name, getattr(self._tally, name) + count)
        elif record.get("event") == "gap":
            key = (str(record.get("rule", "")), str(told.get("source", "")))
            count = told.get("count")
            gaps = self._tally.gaps.setdefault(key, Gaps())
            gaps.count += count if isinstance(count, int) else 1
