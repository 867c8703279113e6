"""A part of a log: where its check begins and ends, and what is counted of it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from authz.ledger import TILE_WIDTH, NoteError, Tree
from authz.reconcile import COUNTS, Gap, Tally
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
    tree = Tree(int(accepted["size"]), edge)
    if tree.root() != base64.b64decode(accepted["root"]):
        raise ValueError("its edge is not its root's")
    try:
        chains = Chains.from_json(accepted["writers"])
    except NoteError:
        raise ValueError("a writer's key is none") from None
    return Start(tree.size, tree, int(accepted["sealed_at"]), chains)


def before(check: LogCheck, source: Logs, since_us: int, until_us: int) -> int:
    """Have `check` begin before the records of a time, and end behind them; returns how many
    records it checks. Since `sealed_at` never decreases, the first record that was sealed earlier,
    and the first that was sealed later, bound the time: both are checked as well."""
    size = check.begin()
    first, end = source.span(check.origin, since_us, until_us)
    first = min(max(first - 1, 0), size) // TILE_WIDTH * TILE_WIDTH
    if first and (tree := edge_at(source, check.origin, first)):
        check.begin(Start(first, tree, 0, Chains(from_beginning=False)))
    return check.until(min(-(-(end + 1) // TILE_WIDTH) * TILE_WIDTH, size))


def edge_at(source: Logs, origin: str, size: int) -> Tree | None:
    """The tree of the first `size` leaves, of which the last tile is whole, as the tiles have it;
    None if they do not. Nothing here is checked: a signed root behind it tells."""
    edge: list[list[bytes]] = []
    level, count = 0, size
    while count:
        width = count % TILE_WIDTH
        hashes: list[bytes] = []
        if width:
            index = count // TILE_WIDTH
            stored = source.tiles(origin, level, index, index + 1)
            data = stored[-1][1] if stored else b""
            hashes = [data[at : at + 32] for at in range(0, 32 * width, 32)]
        edge.append(hashes)
        level, count = level + 1, count // TILE_WIDTH
    try:
        return Tree(size, edge)
    except ValueError:
        return None


class Told:
    """As `authz.verify.accounts.Accounts`, but counted is what the log itself tells of a part: its
    records, and in its summaries and notices what was matched and what is missing."""

    def __init__(self) -> None:
        self._tally = Tally()

    def add(self, record: Record, origin: str) -> Sequence[str]:
        tally, kind = self._tally, record.get("kind")
        if kind == "decision":
            tally.decisions += 1
            tally.allowed += bool(record.get("allowed"))
            tally.denied += not record.get("allowed")
        elif kind == "access":
            tally.accesses += 1
        elif kind == "notice" and "writer_seq" not in record:
            self._notice(record, origin)
        return ()

    def finish(self) -> Tally:
        return self._tally

    def _notice(self, record: Record, origin: str) -> None:
        told = details_of(record)
        if record.get("event") == "interval_summary":
            for name in set(COUNTS) - {"decisions", "allowed", "denied", "accesses", "pending"}:
                count = told.get(name)
                if isinstance(count, int):
                    setattr(self._tally, name, getattr(self._tally, name) + count)
        elif record.get("event") == "gap":
            index: Any = record.get("index", 0)
            source, kind, count = told.get("source"), record.get("rule"), told.get("count")
            for _ in range(count if isinstance(count, int) else 1):
                self._tally.find(Gap(str(kind), origin, index, str(source)))
