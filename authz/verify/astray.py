"""What lies in another place than the one where it was sealed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from authz.ledger import leaf_hash
from authz.record import Record, canonical
from authz.verify.report import Finding

MOST_ASTRAY = 200


@dataclass(slots=True)
class Astray:
    """Rows that are not what was sealed at their place, and places (by the hash of what was sealed
    there) whose rows are not there; of each the first."""

    rows: list[tuple[str, Record]] = field(default_factory=list)
    places: dict[bytes, tuple[str, int]] = field(default_factory=dict)

    def row(self, origin: str, record: Record) -> None:
        if len(self.rows) < MOST_ASTRAY:
            self.rows.append((origin, record))

    def place(self, sealed: bytes, origin: str, index: int) -> None:
        if len(self.places) < MOST_ASTRAY:
            self.places[sealed] = (origin, index)

    def findings(self) -> Iterator[Finding]:
        """Which of the rows belong to which of the places."""
        for origin, record in self.rows:
            for sealed, (name, index) in self.places.items():
                try:
                    leaf = canonical({**record, "origin": name, "index": index})
                except (TypeError, ValueError):
                    break
                if leaf_hash(leaf) == sealed:
                    kind = "reordered" if origin == name else "moved"
                    text = f"what was sealed here is in the table as {_place(origin, record)}"
                    yield Finding(kind, name, index, index, text)


def _place(origin: str, record: Record) -> str:
    return f"record {record.get('index', 0)} of log {origin!r}"
