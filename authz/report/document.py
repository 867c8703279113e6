"""A report as people read it, on whatever: a title, what it is about, and tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from authz.record.shown import printable

Cell = str | tuple[str, ...]
"""One line of text, or several. A break within a line is shown escaped: so nothing that stands in a
record looks like a line of ours."""
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A table; `notes` stand above it, `empty` in its place."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A report. All of it is plain text, whatever it looks like."""

    title: str
    about: tuple[tuple[str, Cell], ...]
    """What it is about: names and values."""
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    issuer: str = ""
    marking: str = ""
    """Who may not see it, at the head of each page."""

    @property
    def wide(self) -> bool:
        """Whether it wants paper on its side."""
        return any(len(section.columns) > 4 for section in self.sections)


def date(time_us: int) -> str:
    """The day of a time, UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d")


def lines(*parts: str) -> tuple[str, ...]:
    """A cell of those that are not empty."""
    return tuple(filter(None, parts))


def cell_text(cell: Cell) -> str:
    """What a cell looks like: nothing that a reader would not see, or see in another order."""
    return "\n".join(map(printable, (cell,) if isinstance(cell, str) else cell))


def count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def listed(words: Sequence[str], most: int) -> str:
    """The first `most` of them."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
