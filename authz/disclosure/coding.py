"""Takes content codings off a body as it streams by (RFC 9110, section 8.4)."""

import zlib
from collections.abc import Iterator, Sequence

from authz.disclosure.findings import UnreadableError

STEP = 16 * 1024  # bytes that come out at once
_MAX_CODINGS = 2
_BOMB_BYTES = 1024 * 1024
_BOMB_RATIO = 500  # DEFLATE reaches 1032 on zeros; charts stay far below


class Decoder:
    """The codings of one Content-Encoding header, the last applied taken off first."""

    def __init__(self, header: str) -> None:
        names = [name.strip().lower().removeprefix("x-") for name in header.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        self.known = set(names) <= {"gzip", "deflate"} and len(names) <= _MAX_CODINGS
        self._stages = [_Inflate(name) for name in reversed(names)] if self.known else []

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What comes out for `data`, at most `STEP` bytes at once where there is a coding. Raises
        `UnreadableError`."""
        return _through(self._stages, data)

    @property
    def ended(self) -> bool:
        return all(stage.ended for stage in self._stages)


def _through(stages: Sequence["_Inflate"], data: bytes) -> Iterator[bytes]:
    if not stages:
        yield data
        return
    for piece in stages[0].decode(data):
        yield from _through(stages[1:], piece)


class _Inflate:
    """gzip, with its members (RFC 1952, 2.2), or deflate: zlib's form, or, as some send, raw."""

    def __init__(self, coding: str) -> None:
        self.ended = False
        self._gzip = coding == "gzip"
        self._head = b""
        self._inflate: zlib._Decompress | None = None
        self._taken = self._given = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        self._taken += len(data)
        data, self._head = self._head + data, b""
        while data or self._inflate:
            if self._inflate is None:
                if self.ended and not self._gzip:
                    raise UnreadableError("encoding")
                if len(data) < 2:
                    self._head, self.ended = data, False
                    return
                self._inflate, self.ended = self._begin(data), False
            try:
                out = self._inflate.decompress(data, STEP)
            except zlib.error:
                raise UnreadableError("encoding") from None
            data = self._inflate.unconsumed_tail
            self._given += len(out)
            if self._given > max(_BOMB_BYTES, (self._taken - len(data)) * _BOMB_RATIO):
                raise UnreadableError("encoding")
            if out:
                yield out
            if self._inflate.eof:
                data, self._inflate, self.ended = self._inflate.unused_data, None, True
            elif not data and len(out) < STEP:
                return

    def _begin(self, head: bytes) -> "zlib._Decompress":
        if self._gzip:
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        zlib_form = head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0  # RFC 1950, 2.2
        return zlib.decompressobj(zlib.MAX_WBITS if zlib_form else -zlib.MAX_WBITS)
