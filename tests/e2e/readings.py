r"""How services read the path of a request: which resource one of them could take it for.

A service unescapes, once or twice, strictly or not; cuts parameters at `;`, texts at NUL, paths at
`#` or a `?` that was escaped; takes `\` for `/`; merges slashes and resolves dot segments; and
each in its own order. `typical` holds what frameworks do by default. `lenient` adds what some do on
some systems: no case, no suffix, no dots and spaces at the end of a name, compatibility characters.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from urllib.parse import unquote_to_bytes

Step = Callable[[bytes], bytes]

_UNICODE_ESCAPE = re.compile(rb"%u([0-9a-fA-F]{4})")
_LOOSE_ESCAPE = re.compile(rb"%([0-9A-Za-z:-@\[-`])([0-9A-Za-z:-@\[-`])")
_OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f]..")
_SUFFIX = re.compile(rb"\.(?:json|xml|html?)\Z")


def _same(path: bytes) -> bytes:
    return path


def _resolved(path: bytes) -> bytes:
    """RFC 3986, section 5.2.4, after merging slashes."""
    kept: list[bytes] = []
    segments = re.sub(rb"/+", b"/", path).split(b"/")
    for segment in segments:
        if segment == b"..":
            kept = kept[:-1] or [b""]
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept).lstrip(b"/")


def _unescaped_twice(path: bytes) -> bytes:
    return unquote_to_bytes(unquote_to_bytes(path))


def _unescaped_loosely(path: bytes) -> bytes:
    """%u002e as old IIS, %2> as Jetty, and overlong UTF-8 as decoders that only shift bits."""
    path = _UNICODE_ESCAPE.sub(lambda found: chr(int(found[1], 16)).encode(), path)
    path = _LOOSE_ESCAPE.sub(
        lambda found: bytes([(_digit(found[1]) * 16 + _digit(found[2])) & 0xFF]), path
    )
    return _OVERLONG.sub(_shifted, path)


def _digit(character: bytes) -> int:
    code = character[0]
    return (code & 0x1F) + (code >> 6) * 0x19 - 0x10


def _shifted(found: re.Match[bytes]) -> bytes:
    code = 0
    for byte in found[0][1:]:
        code = code << 6 | byte & 0x3F
    return chr(code | (found[0][0] & 0x03) << 6 if len(found[0]) == 2 else code).encode()


def _cut(mark: bytes) -> Step:
    return lambda path: path.partition(mark)[0]


def _without_parameters(path: bytes) -> bytes:
    return b"/".join(segment.partition(b";")[0] for segment in path.split(b"/"))


def _readable(path: bytes) -> bytes:
    return path.decode(errors="ignore").encode()


def _printable(path: bytes) -> bytes:
    return re.sub(rb"[\x00-\x1f\x7f]", b"", path)


def _slashed(path: bytes) -> bytes:
    return path.replace(b"\\", b"/")


def _compatible(path: bytes) -> bytes:
    return unicodedata.normalize("NFKC", path.decode(errors="replace")).encode()


def _trimmed(path: bytes) -> bytes:
    return b"/".join(segment.rstrip(b". ") for segment in path.rstrip(b"/").split(b"/"))


def _without_suffix(path: bytes) -> bytes:
    return _SUFFIX.sub(b"", path)


_TYPICAL: tuple[tuple[Step, ...], ...] = (
    (_same, _without_parameters, _cut(b";"), _cut(b"#")),
    (_same, _resolved),
    (unquote_to_bytes, _unescaped_twice, _unescaped_loosely),
    (_same, _without_parameters, _cut(b";"), _cut(b"#"), _cut(b"?"), _cut(b"\0"), _readable,
     _printable),
    (_same, _slashed),
    (_resolved,),
)  # fmt: skip
_LENIENT: tuple[tuple[Step, ...], ...] = (
    (_same, _compatible),
    (_same, bytes.lower),
    (_same, _trimmed),
    (_same, _without_suffix),
    (_resolved,),
)


@cache
def typical(target: bytes) -> frozenset[bytes]:
    """The paths that some framework, as it comes, resolves a request target to."""
    return _results([target.partition(b"?")[0]], _TYPICAL)


@cache
def lenient(target: bytes) -> frozenset[bytes]:
    """`typical`, and what it becomes for services that are less exact about names."""
    return _results(typical(target), _LENIENT)


def _results(paths: Iterable[bytes], steps: Iterable[Iterable[Step]]) -> frozenset[bytes]:
    found = set(paths)
    for alternatives in steps:
        found = {step(path) for step, path in itertools.product(alternatives, found)}
    return frozenset(found)
