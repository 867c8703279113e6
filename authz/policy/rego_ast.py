"""What a policy reads and calls, from the syntax tree that OPA's API gives.

A mistake here must say "reads everything" or "impure", never less: caching and batching rest on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from authz.policy.builtins import IMPURE, PURE, TIMED
from authz.policy.rego_places import (
    Module,
    Place,
    Places,
    find,
    head_of,
    names_of,
    overlap,
    rule_path,
)

__all__ = ["IMPURE", "TIMED", "WHOLE", "Reads", "reads", "rule_reads", "union"]

_KNOWN: Final = PURE | IMPURE | TIMED

WHOLE: Final = ("*",)
"""The path that stands for the whole input, read by a dynamic reference or as a value."""


@dataclass(frozen=True, slots=True)
class Reads:
    """`paths` into the input (of names; array indexes and variables end a path), `calls`, and
    those of them that are no builtin we know: an OPA may be built with more."""

    paths: frozenset[tuple[str, ...]]
    calls: frozenset[str]
    unknown: frozenset[str] = frozenset()

    @property
    def batchable(self) -> bool:
        return not (self.unknown or self.calls & IMPURE)

    @property
    def function_of_input(self) -> bool:
        return not (self.unknown or self.calls & (IMPURE | TIMED))

    def may_read(self, path: tuple[str, ...]) -> bool:
        """Whether what is at `path` in the input may matter to the decision."""
        for read in self.paths:
            shorter = min(len(read), len(path))
            if read == WHOLE or read[:shorter] == path[:shorter]:
                return True
        return False


def reads(modules: list[Module], query: str | None = None) -> Reads:
    """What `modules` (the ``ast`` values of OPA's ``GET /v1/policies``) read and call.

    With the decision's path (``envoy/authz/allow``), rules that only name a place in the input are
    seen through; without it any of them might be what is asked for.
    """
    asked = tuple(query.split("/")) if query is not None else None
    found = [
        _read(module, places, asked)
        for module, places in zip(modules, find(modules, asked), strict=True)
    ]
    return union(found)


def rule_reads(modules: list[Module], query: str) -> list[list[Reads]]:
    """The same for each rule of each module, in the order they stand there."""
    asked = tuple(query.split("/"))
    return [
        [_read({**module, "rules": [rule]}, places, asked) for rule in module.get("rules", ())]
        for module, places in zip(modules, find(modules, asked), strict=True)
    ]


def union(parts: list[Reads]) -> Reads:
    """What all of them read and call."""
    return Reads(
        frozenset().union(*(part.paths for part in parts)),
        frozenset().union(*(part.calls for part in parts)),
        frozenset().union(*(part.unknown for part in parts)),
    )


def _read(module: Module, places: Places, asked: Place | None) -> Reads:
    walk = _Walk(places, asked, module)
    for name, part in module.items():
        if name == "rules":
            for rule in part:
                walk.rule(rule)
        elif name != "package":  # its name is written like a reference to all that is in it
            walk.node(part)
    # A local that nothing uses still asks whether there is something at its place.
    unused = {place for name, place in walk.bound.items() if name not in walk.used}
    return Reads(frozenset(walk.paths | unused), frozenset(walk.calls), frozenset(walk.unknown))


@dataclass(slots=True)
class _Walk:
    """Goes over a module once, and gathers."""

    places: Places
    asked: Place | None
    module: Module
    paths: set[Place] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    bound: dict[str, Place] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def rule(self, rule: Mapping[str, Any]) -> None:
        """A rule that stands for a place is read where its name is used, or by who asks for it."""
        path = rule_path(self.module, rule)
        place = self.places.rules.get(path)
        if place is None or rule.get("default"):
            self.node(rule)
            return
        if self.asked is not None and overlap(path, self.asked):
            self.paths.add(place + self.asked[len(path) :])
        head = {name: part for name, part in rule["head"].items() if name != "value"}
        value = rule["head"]["value"]
        if value.get("type") == "var":
            self.used.add(str(value["value"]))
        self.node({**rule, "head": head})

    def node(self, node: Any) -> None:
        if isinstance(node, Mapping):
            kind, value = node.get("type"), node.get("value")
            if "target" in node:
                self._operator([value])  # `with f as g`: what is called as f is g
            if kind == "var":
                self._variable(node)
            elif kind == "ref" and isinstance(value, list):
                self._reference(value)
            else:
                for part in node.values():
                    self.node(part)
        elif isinstance(node, list):
            self._terms(node)

    def _terms(self, terms: list[Any]) -> None:
        """A call's terms, or any other list. Calls that only give a place a name read nothing."""
        self._operator(terms)
        got = self.places.got(terms)
        name, place = self.places.bound(terms) or ("", None)
        named = place is not None and self.places.locals.get(name) == place
        if named and place is not None:
            self.bound[name] = place
        elif got:
            self.paths.add(got)
        if named or got:
            # What is read lies further on along this local's place.
            self.used.add(head_of(terms[1 if got else 2]))
        for number, term in enumerate(terms):
            if not (named and (not got or number == 4)) and not (got and number == 1):
                self.node(term)

    def _operator(self, terms: list[Any]) -> None:
        """What a call calls; the first of any other list of terms makes no difference."""
        names = names_of(terms[0]) if terms else ()
        if names and names[0] not in ("data", "input") and not names[0].startswith("__local"):
            name = ".".join(names)
            if name not in _KNOWN:
                self.unknown.add(name)

    def _variable(self, term: Mapping[str, Any]) -> None:
        name = term["value"]
        place = self.places.of(term)
        if place is not None:
            self.used.add(name)
            self.paths.add(place or WHOLE)
        elif name == "data":
            self._data(())

    def _reference(self, terms: list[Mapping[str, Any]]) -> None:
        head = terms[0]
        if head.get("type") == "var":
            names = []
            for term in terms[1:]:
                if term.get("type") != "string":
                    break
                names.append(str(term["value"]))
            if head["value"] == "data":
                self._data(tuple(names))
            place = self.places.of(head)
            if place is not None:
                self.used.add(head["value"])
                self.paths.add((*place, *names) or WHOLE)
            else:
                self.calls.add(".".join([str(head["value"]), *names]))
        else:
            self.node(head)
        for term in terms[1:]:
            self.node(term)

    def _data(self, names: Place) -> None:
        """A reference to ``data``: into a rule that stands for a place, or around such rules."""
        for path, place in self.places.rules.items():
            if overlap(path, names):
                self.paths.add(place + names[len(path) :])
