"""Where tiles and entry bundles lie, and what is in them (C2SP tlog-tiles, height 8). Pure."""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from authz.ledger.tree import TILE_WIDTH

MAX_ENTRY = 0xFFFF
"""Of an entry in a bundle, in bytes: its length is told in 16 bits."""
ENTRIES = -1
"""Stands for a level where entry bundles are meant."""
_LENGTH = struct.Struct(">H")
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-5]?[0-9]|6[0-3])/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A tile's, or an entry bundle's (level `ENTRIES`): `width` hashes or entries, 1 to 256."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """As C2SP tlog-tiles writes it: ``tile/0/x001/x234/067``, ``tile/entries/000.p/5``."""
        parts = [f"{self.index % 1000:03}"]
        rest = self.index // 1000
        while rest:
            parts.append(f"x{rest % 1000:03}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(reversed(parts))}{partial}"

    @classmethod
    def parse(cls, path: str) -> "Place | None":
        """The inverse of `path`; None for anything that it does not write."""
        found = _PATH.fullmatch(path)
        if not found:
            return None
        level = ENTRIES if found["level"] == "entries" else int(found["level"])
        index = int(found["index"].replace("x", "").replace("/", ""))
        place = cls(level, index, int(found["width"] or TILE_WIDTH))
        return place if place.path == path else None


def width_at(level: int, index: int, size: int) -> int:
    """How wide a tile (or entry bundle) is in a tree of `size`; 0 if it has none there."""
    count = size >> 8 * max(level, 0)
    return max(min(count - index * TILE_WIDTH, TILE_WIDTH), 0)


def pack(entries: Sequence[bytes]) -> bytes:
    """An entry bundle. Raises `ValueError` for an entry of more than `MAX_ENTRY` bytes."""
    parts = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"an entry of {len(entry)} bytes; a bundle takes {MAX_ENTRY}")
        parts += [_LENGTH.pack(len(entry)), entry]
    return b"".join(parts)


def unpack(data: bytes) -> Iterator[bytes]:
    """The entries of a bundle. Raises `ValueError` for one that is cut."""
    place = 0
    while place < len(data):
        if place + 2 > len(data):
            raise ValueError("an entry bundle is cut")
        end = place + 2 + _LENGTH.unpack_from(data, place)[0]
        if end > len(data):
            raise ValueError("an entry bundle is cut")
        yield data[place + 2 : end]
        place = end
