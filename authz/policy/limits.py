"""What rego-cpp does not do as OPA does: found in a policy's text, before it decides anything.

What cannot be done right is refused. A mistake here must refuse too much, not too little.
"""

import re
from collections.abc import Iterator

_LACKING = re.compile(r"\b(http\.send|net\.cidr_\w+|json\.match_schema|rego\.parse_module)\s*\(")
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*"|`[^`]*`)|#[^\n]*')
_FUNCTION = re.compile(r"^([A-Za-z_][\w.]*)\(([^)]*)\)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_]\w*")


def refusals(text: str) -> Iterator[str]:
    """Why a module cannot be used with the embedded engine, a line each."""
    text = _COMMENT.sub(lambda found: found[1] or "", text)
    for found in _LACKING.finditer(text):
        yield f"{found[1]} is not in the embedded engine"
    for function, arguments, body in _functions(text):
        for argument in arguments:
            if _in_comprehension(argument, body):
                yield (
                    f"in function {function}, a comprehension uses the argument {argument}, which"
                    f" the embedded engine does not see there (write 'x := {argument}' before it,"
                    " and use x)"
                )


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
