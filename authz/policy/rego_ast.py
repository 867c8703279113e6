"""What a policy reads and calls, from the syntax tree that OPA's API gives.

A mistake here must say "reads everything" or "impure", never less: caching and batching rest on it.
"""

from collections.abc import Mapping
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
        walk = _Walk(_aliases(module), paths, calls)
        walk.node(module)
    return Reads(frozenset(paths), frozenset(calls))


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes over a module once. `aliases` are locals that stand for a place in the input."""

    aliases: Mapping[str, tuple[str, ...]]
    paths: set[tuple[str, ...]]
    calls: set[str]

    def node(self, node: Any) -> None:
        if isinstance(node, Mapping):
            kind, value = node.get("type"), node.get("value")
            if kind == "var":
                self._variable(value)
            elif kind == "ref" and isinstance(value, list):
                self._reference(value)
            else:
                for part in node.values():
                    self.node(part)
        elif isinstance(node, list):
            self._terms(node)

    def _terms(self, terms: list[Any]) -> None:
        """A call's terms, or any other list. Two kinds of call do not read all of a place."""
        alias = _aliased(terms)
        if alias and alias[0] in self.aliases:
            return  # the read is where the alias is used
        place = self._got(terms)
        if place:
            self.paths.add(place)
        for number, term in enumerate(terms):
            if not (place and number == 1):
                self.node(term)

    def _variable(self, name: Any) -> None:
        if name == "input":
            self.paths.add(WHOLE)
        elif name in self.aliases:
            self.paths.add(self.aliases[name])

    def _reference(self, terms: list[Mapping[str, Any]]) -> None:
        head = terms[0]
        if head.get("type") == "var":
            names = []
            for term in terms[1:]:
                if term.get("type") != "string":
                    break
                names.append(str(term["value"]))
            base = self._place(head)
            if base is not None:
                self.paths.add((*base, *names) or WHOLE)
            else:
                self.calls.add(".".join([str(head["value"]), *names]))
        else:
            self.node(head)
        for term in terms[1:]:
            self.node(term)

    def _place(self, variable: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Where in the input a variable stands; None if it does not."""
        if variable["value"] == "input":
            return ()
        return self.aliases.get(variable["value"])

    def _got(self, terms: list[Any]) -> tuple[str, ...]:
        """What ``object.get(input..., "key", ...)`` reads, if `terms` are that."""
        if len(terms) < 4 or _names(terms[0]) != ("object", "get"):
            return ()
        thing, key = terms[1:3]
        if not isinstance(key, Mapping) or key.get("type") != "string":
            return ()
        names = _names(thing)
        if names[:1] == ("input",):
            return (*names[1:], str(key["value"]))
        if (
            isinstance(thing, Mapping)
            and thing.get("type") == "var"
            and thing["value"] in self.aliases
        ):
            return (*self.aliases[thing["value"]], str(key["value"]))
        return ()


def _aliases(module: Any) -> dict[str, tuple[str, ...]]:
    """Locals that OPA's compiler made, each unified once, with a place in the input."""
    found: dict[str, set[tuple[str, ...]]] = {}
    stack = [module]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
            if alias := _aliased(node):
                found.setdefault(alias[0], set()).add(alias[1])
    return {name: places.pop() for name, places in found.items() if len(places) == 1}


def _aliased(terms: list[Any]) -> tuple[str, tuple[str, ...]] | None:
    """``__local1__ = input.a.b`` as the local's name and the path."""
    if len(terms) != 3 or _names(terms[0]) not in (("eq",), ("assign",)):
        return None
    variable, thing = terms[1:]
    names = _names(thing)
    if variable.get("type") != "var" or len(names) < 2 or names[0] != "input":
        return None
    name = str(variable["value"])
    return (name, names[1:]) if name.startswith("__local") else None


def _names(term: Any) -> tuple[str, ...]:
    """A reference made of names only; () for anything else."""
    if not isinstance(term, Mapping) or term.get("type") != "ref":
        return ()
    head, *rest = term["value"]
    if head.get("type") != "var" or any(part.get("type") != "string" for part in rest):
        return ()
    return tuple(str(part["value"]) for part in (head, *rest))
