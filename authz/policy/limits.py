"""What rego-cpp does not do as OPA does: found in a policy's text, before it decides anything.

What cannot be done right is refused. A mistake here must refuse too much, not too little.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

LARGE_DATA: Final = 256 << 10
"""Bytes of data, as JSON, above which preparing takes seconds. With regopy 1.5, 1,000 people
(76 KB) took 0.15 s, 3,000 0.7 s, 10,000 (760 KB) 6 s: it grows with the square."""

_LACKING = re.compile(r"\b(http\.send|net\.cidr_\w+|json\.match_schema|rego\.parse_module)\s*\(")
_FATAL = re.compile(r"\b(time\.(?:clock|date|diff|format|weekday))\s*\(")
"""Looking up a time zone, or a weekday's name, ends the process where protobuf is loaded too."""
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*"|`[^`]*`)|#[^\n]*')
_FUNCTION = re.compile(r"^([A-Za-z_][\w.]*)\(([^)]*)\)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_]\w*")
_DEFINED = re.compile(
    r"^(?:default\s+)?([A-Za-z_][\w.]*)\(|^\s*import\s+\S+\s+as\s+(\w+)", re.MULTILINE
)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`')
_CALL = re.compile(r"(?<![\w.])([A-Za-z_][\w.]*)\(")
_KEYWORDS = frozenset("as contains default else every if import in not package some with".split())


def refusals(text: str) -> Iterator[str]:
    """Why a module cannot be used with the embedded engine, a line each."""
    text = uncommented(text)
    for found in _LACKING.finditer(text):
        yield f"{found[1]} is not in the embedded engine"
    for found in _FATAL.finditer(text):
        yield f"{found[1]} can end the process in the embedded engine"
    for function, arguments, body in _functions(text):
        for argument in arguments:
            if _in_comprehension(argument, body):
                yield (
                    f"in function {function}, a comprehension uses the argument {argument}, which"
                    f" the embedded engine does not see there (write 'x := {argument}' before it,"
                    " and use x)"
                )


def unknown_functions(
    modules: Mapping[str, str], builtin: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """Module and name of each function that is called and is nowhere: the engine would only notice
    at a request that comes that far."""
    texts = {name: _STRING.sub('""', uncommented(text)) for name, text in modules.items()}
    defined = {
        (found[1] or found[2]).rpartition(".")[2]
        for text in texts.values()
        for found in _DEFINED.finditer(text)
    }
    for name, text in texts.items():
        for called in dict.fromkeys(found[1] for found in _CALL.finditer(text)):
            known = called in _KEYWORDS or called.rpartition(".")[2] in defined
            if not known and not builtin(called):
                yield name, called


def uncommented(text: str) -> str:
    return _COMMENT.sub(lambda found: found[1] or "", text)


def _functions(text: str) -> Iterator[tuple[str, list[str], str]]:
    """Each function's name, its arguments, and its text up to the next thing at the margin."""
    for head in _FUNCTION.finditer(text):
        end = re.compile(r"^(?=[^\s})\]])", re.MULTILINE).search(text, head.end())
        body = text[head.end() : end.start() if end else len(text)]
        yield head[1], _NAME.findall(head[2]), body


def _in_comprehension(name: str, body: str) -> bool:
    """Whether `name` occurs in a comprehension of `body`."""
    word = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
    return any(word.search(part) for part in _comprehensions(body))


def _comprehensions(body: str) -> Iterator[str]:
    """Each bracketed part that has a ``|`` of its own, not only inside further brackets."""
    opened: list[tuple[int, bool]] = []
    for place, sign in enumerate(body):
        if sign in "[{":
            opened.append((place, False))
        elif sign == "|" and opened:
            opened[-1] = (opened[-1][0], True)
        elif sign in "]}" and opened:
            begin, divided = opened.pop()
            if divided:
                yield body[begin : place + 1]
