"""Which names in a compiled policy stand for a place in the input.

`x := input.a.b` makes ``x`` another name for a place, and so does ``http := input.a.b`` as a rule
of its own. What is read is then what is read *through* the name: ``http.method`` reads one field,
not all of ``input.a.b``. A place is a tuple of names, ``("a", "b")``.

Only names that can stand for nothing else count: locals that OPA's compiler made, whose every
binding of this form is to one place; and complete rules with one definition (and a default), which
nothing else overlaps. Any other mention of such a name reads all of its place.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Place = tuple[str, ...]
Module = Mapping[str, Any]

_ROUNDS = 20  # names that stand for names; longer chains are taken as reads of the whole place


@dataclass(frozen=True, slots=True)
class Places:
    """`locals` of one module, and `rules` of all modules by their path below ``data``."""

    locals: Mapping[str, Place] = field(default_factory=dict)
    rules: Mapping[Place, Place] = field(default_factory=dict)
    replaced: bool = False
    """Some ``with`` puts something else in the place of ``object.get``."""

    def of(self, term: Any) -> Place | None:
        """The place that a variable, or a reference made of names only, stands for."""
        names = _names(term)
        if not names:
            return None
        head, rest = names[0], names[1:]
        if head == "input":
            return rest
        if head == "data":
            for size in range(1, len(rest) + 1):
                if rest[:size] in self.rules:
                    return self.rules[rest[:size]] + rest[size:]
            return None
        return self.locals[head] + rest if head in self.locals else None

    def bound(self, terms: list[Any]) -> tuple[str, Place] | None:
        """The local that a call binds to a place: ``local = input.a``, ``local := rule.b``,
        ``object.get(input.a, "b", ..., local)``."""
        if len(terms) == 3 and names_of(terms[0]) in (("eq",), ("assign",)):
            name, place = terms[1], self.of(terms[2])
        elif len(terms) == 5:
            name, place = terms[4], self.got(terms)
        else:
            return None
        if not place or not isinstance(name, Mapping) or name.get("type") != "var":
            return None
        text = str(name["value"])
        return (text, place) if text.startswith("__local") else None

    def got(self, terms: list[Any]) -> Place | None:
        """The place that ``object.get(thing, key, ...)`` reads, if `terms` are that, and `key` is a
        text or a path of texts."""
        if self.replaced or len(terms) < 4 or names_of(terms[0]) != ("object", "get"):
            return None
        place, keys = self.of(terms[1]), _texts(terms[2])
        return (*place, *keys) if place is not None and keys else None


def find(modules: list[Module], query: Place | None) -> list[Places]:
    """For each module, the names that stand for places; of rules only if `query` is given, the
    path below ``data`` that will be asked for (without it any rule might be)."""
    replaced = any(_replaces(module) for module in modules)
    candidates = list(_candidates(modules)) if query is not None else []
    found = [Places(replaced=replaced) for _ in modules]
    for _ in range(_ROUNDS):
        rules: dict[Place, Place] = {}
        for number, path, value in candidates:
            if place := found[number].of(value):
                rules[path] = place
        better = [
            Places(_locals(module, before), rules, replaced)
            for module, before in zip(modules, found, strict=True)
        ]
        if better == found:
            return found
        found = better
    return [Places(replaced=replaced) for _ in modules]


def _locals(module: Module, known: Places) -> dict[str, Place]:
    places: dict[str, set[Place]] = {}
    for node in every_list(module):
        if found := known.bound(node):
            places.setdefault(found[0], set()).add(found[1])
    return {name: places.pop() for name, places in places.items() if len(places) == 1}


def _candidates(modules: list[Module]) -> Iterator[tuple[int, Place, Any]]:
    """Module, path and value of each rule that may stand for one place."""
    rules = [
        (number, rule_path(module, rule), rule)
        for number, module in enumerate(modules)
        for rule in module.get("rules", ())
        if not rule.get("default")
    ]
    paths = [path for _, path, _ in rules]
    for place, (number, path, rule) in enumerate(rules):
        if not is_complete(rule) or "else" in rule:
            continue
        others = paths[:place] + paths[place + 1 :]
        if not any(overlap(path, other) for other in others):
            yield number, path, rule["head"].get("value")


def is_complete(rule: Mapping[str, Any]) -> bool:
    """``name := value``: no function, no part of a set or an object."""
    head = rule["head"]
    return "args" not in head and "key" not in head and len(head.get("ref", ())) == 1


def rule_path(module: Module, rule: Mapping[str, Any]) -> Place:
    """Where below ``data`` a rule's value lies, up to the first part that is no name."""
    package = [str(term["value"]) for term in module["package"]["path"][1:]]
    head, *rest = rule["head"]["ref"]
    names = [str(head["value"])]
    for term in rest:
        if term.get("type") != "string":
            break
        names.append(str(term["value"]))
    return (*package, *names)


def overlap(one: Place, other: Place) -> bool:
    """Whether one of two paths leads to or through the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _replaces(module: Module) -> bool:
    return any(names_of(node.get("target")) == ("object", "get") for node in _every_mapping(module))


def _every(node: Any) -> Iterator[Any]:
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Mapping):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def every_list(node: Any) -> Iterator[list[Any]]:
    """Each list in a syntax tree: the terms of calls among them."""
    return (part for part in _every(node) if isinstance(part, list))


def _every_mapping(node: Any) -> Iterator[Mapping[str, Any]]:
    return (part for part in _every(node) if isinstance(part, Mapping))


def _names(term: Any) -> Place:
    """A variable, or a reference made of names only; () for anything else."""
    if isinstance(term, Mapping) and term.get("type") == "var":
        return (str(term["value"]),)
    return names_of(term)


def head_of(term: Any) -> str:
    """The variable that a term is, or begins with."""
    return _names(term)[0]


def names_of(term: Any) -> Place:
    """A reference made of names only; () for anything else."""
    if not isinstance(term, Mapping) or term.get("type") != "ref":
        return ()
    head, *rest = term["value"]
    if head.get("type") != "var":
        return ()
    texts = _strings(rest)
    return () if texts is None else (str(head["value"]), *texts)


def _texts(term: Any) -> Place:
    """A text, or an array of texts, as a place's names; () for anything else."""
    if not isinstance(term, Mapping):
        return ()
    if term.get("type") == "string":
        return (str(term["value"]),)
    if term.get("type") == "array":
        return _strings(term["value"]) or ()
    return ()


def _strings(terms: Iterable[Mapping[str, Any]]) -> Place | None:
    terms = list(terms)
    if any(term.get("type") != "string" for term in terms):
        return None
    return tuple(str(term["value"]) for term in terms)
