"""Cuts a Bundle into its entries as it streams by, so that no more than one is held.

Only the structure is followed here: strings and brackets. Each entry, and at the end what is left
of the Bundle with ``null`` in each entry's place, goes to the JSON parser: a body whose pieces all
parse is JSON, and the same parser decides as for a small body. (An incremental parser such as
ijson bounds neither the depth nor the size of the entry that it builds.)
"""

import re
from collections.abc import Iterator

from authz.disclosure.findings import UnreadableError

_MAX_DEPTH = 512
_QUOTE, _OPENING, _ARRAY = ord('"'), b"{[", ord("[")
_SKIPPED_LEVELS = 6  # brackets in brackets that are skipped at once; deeper ones are followed
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+|[^"{}\[\]]++'


def _over(levels: int) -> re.Pattern[bytes]:
    """Over text, whole strings, and what is whole in brackets and at most `levels` deep."""
    skipped = _TEXT
    for _ in range(levels):
        skipped = _TEXT + rb"|[{\[](?:" + skipped + rb")*+[}\]]"
    return re.compile(rb"(?:" + skipped + rb")*+", re.DOTALL)


_TO_BRACKET, _OVER_BRACKETS = _over(0), _over(_SKIPPED_LEVELS)
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_ENTRY_KEY = re.compile(rb'[{,]\s*+"entry"\s*+:\s*+\[\Z')
_KEY_BYTES = 80  # a longer run of white space before the list: its entries count as the outside


class Entries:
    """Owns the place in one Bundle; holds at most `limit` bytes of an entry, and of the outside."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0
        self._outside = bytearray()
        self._entry = bytearray()
        self._into = self._outside
        self._rest = b""
        self._depth = 0
        self._in_string = False
        self._in_list = False
        self._too_large = False

    def feed(self, step: bytes) -> Iterator[bytes | None]:
        """The entries that end in this step; None for one that is too large to hold."""
        data = self._rest + step
        place = kept = 0
        while True:
            if self._in_string:
                place = _end(_IN_STRING, data, place)
                if data[place : place + 1] != b'"':
                    break  # the step's end, or a backslash whose character is still to come
                place, self._in_string = place + 1, False
            seeking = self._depth <= (2 if self._in_list else 1)  # the list, or an entry in it
            place = _end(_TO_BRACKET if seeking else _OVER_BRACKETS, data, place)
            if place == len(data):
                break
            byte = data[place]
            place += 1
            if byte == _QUOTE:
                self._in_string = True  # a string that does not end in this step
            elif byte in _OPENING:
                if self._in_list and self._depth == 2:
                    self._keep(data[kept : place - 1])
                    kept, self._into = place - 1, self._entry
                self._depth += 1
                if self._depth > _MAX_DEPTH:
                    raise UnreadableError("malformed")
                if self._depth == 2 and byte == _ARRAY:
                    self._keep(data[kept:place])
                    kept = place
                    self._in_list = bool(_ENTRY_KEY.search(self._outside[-_KEY_BYTES:]))
            else:
                self._depth -= 1
                if self._depth < 0:
                    raise UnreadableError("malformed")
                if self._in_list and self._depth == 2:
                    self._keep(data[kept:place])
                    kept = place
                    yield self._taken()
                self._in_list = self._in_list and self._depth > 1
        self._keep(data[kept:place])
        self._rest = data[place:]

    def outside(self) -> bytes:
        """The Bundle with ``null`` in each entry's place."""
        return bytes(self._outside) + self._rest

    def _keep(self, piece: bytes) -> None:
        if len(self._into) + len(piece) <= self._limit and not self._too_large:
            self._into += piece
        elif self._into is self._entry:
            self._too_large = True
            self._entry.clear()
        else:
            raise UnreadableError("too_large")

    def _taken(self) -> bytes | None:
        entry = None if self._too_large else bytes(self._entry)
        self._entry.clear()
        self._into, self._too_large = self._outside, False
        self.taken += 1
        self._keep(b"null")
        return entry


def _end(pattern: re.Pattern[bytes], data: bytes, place: int) -> int:
    match = pattern.match(data, place)
    return match.end() if match else place
