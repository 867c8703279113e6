"""What a policy reads and calls, from the syntax tree that OPA's API gives.

A mistake here must say "reads everything" or "impure", never less: caching and batching rest on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

# Not a function of their arguments: two people in one query may not share what they return.
IMPURE: Final = frozenset(
    {"http.send", "uuid.rfc4122", "rand.intn", "net.lookup_ip_addr", "opa.runtime", "trace"}
)
# The same within a query, and another in the next one.
TIMED: Final = frozenset({"time.now_ns", "io.jwt.decode_verify", "io.jwt.verify"})

WHOLE: Final = ("*",)
"""The path that stands for the whole input, read by a dynamic reference or as a value."""


@dataclass(frozen=True, slots=True)
class Reads:
    """`paths` into the input (of names; array indexes and variables end a path), and `calls`."""

    paths: frozenset[tuple[str, ...]]
    calls: frozenset[str]

    @property
    def batchable(self) -> bool:
        return not self.calls & IMPURE

    @property
    def function_of_input(self) -> bool:
        return not self.calls & (IMPURE | TIMED)

    def may_read(self, path: tuple[str, ...]) -> bool:
        """Whether what is at `path` in the input may matter to the decision."""
        for read in self.paths:
            shorter = min(len(read), len(path))
            if read == WHOLE or read[:shorter] == path[:shorter]:
                return True
        return False


def reads(modules: list[Mapping[str, Any]]) -> Reads:
    """What `modules` (the ``ast`` values of OPA's ``GET /v1/policies``) read and call."""
    paths: set[tuple[str, ...]] = set()
    calls: set[str] = set()
    for module in modules:
        for node in _walk(module):
            if node.get("type") == "ref":
                _reference(node["value"], paths, calls)
            elif node.get("type") == "var" and node.get("value") == "input":
                paths.add(WHOLE)
    return Reads(frozenset(paths), frozenset(calls))


def _walk(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of the tree; the head of a reference is seen with its reference only."""
    if isinstance(node, Mapping):
        yield node
        values = list(node.values())
        if node.get("type") == "ref" and isinstance(node.get("value"), list):
            values = node["value"][1:]
        for value in values:
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def _reference(
    terms: list[Mapping[str, Any]], paths: set[tuple[str, ...]], calls: set[str]
) -> None:
    head = terms[0]
    if head.get("type") != "var":
        return
    names = []
    for term in terms[1:]:
        if term.get("type") != "string":
            break
        names.append(str(term["value"]))
    if head["value"] == "input":
        paths.add(tuple(names) or WHOLE)
    else:
        calls.add(".".join([str(head["value"]), *names]))
