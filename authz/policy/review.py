"""What can be said about a policy before it decides anything: pure, from OPA's syntax trees.

What is said for certain can be seen in the tree; where a value is computed elsewhere it says "may".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from authz.policy.builtins import IMPURE, TIMED
from authz.policy.cache import VOLATILE, cacheable
from authz.policy.opa_ask import Module
from authz.policy.rego_ast import WHOLE, Reads, reads, rule_reads
from authz.policy.rego_places import names_of, rule_path

Level = Literal["danger", "warning", "note"]
Tree = Mapping[str, Any]

_DEPTH: Final = 20  # objects in objects, and locals that stand for locals
_VALUES: Final = frozenset({"string", "number", "boolean", "null"})


@dataclass(frozen=True, slots=True)
class At:
    """A place in the policy. `line` is 0 if it is not known."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at. A danger opens a door."""

    level: Level
    kind: str
    text: str
    at: At


@dataclass(frozen=True, slots=True)
class Read:
    """A place in the input that the policy reads, and where it does so."""

    path: str
    at: tuple[At, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """What is known of a policy. `uncached` and `alone` say why, if it is so."""

    decision: str
    modules: tuple[str, ...]
    reads: tuple[Read, ...]
    uncached: tuple[Finding, ...]
    alone: tuple[Finding, ...]
    findings: tuple[Finding, ...]

    @property
    def dangers(self) -> bool:
        return any(finding.level == "danger" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cached": not self.uncached, "batched": not self.alone}


@dataclass(frozen=True, slots=True)
class Source:
    """A module, and for each of its rules the part of OPA's parse tree that has locations, if the
    program is there to make one."""

    module: Module
    parsed: tuple[Tree, ...] = ()


def review(sources: Sequence[Source], decision: str) -> Review:
    """Everything there is to say about the policy's `decision` (``envoy/authz/allow``)."""
    trees = [source.module.tree for source in sources]
    places = _Places(sources, rule_reads(trees, decision))
    known = reads(trees, decision)
    uncached = [] if cacheable(known) else list(_uncached(known, places))
    alone = [
        Finding("note", "alone", f"calls {name}, {_WHY_ALONE}", at)
        for name in sorted(known.calls & IMPURE | known.unknown)
        for at in places.of_call(name)
    ]
    return Review(
        decision,
        tuple(source.module.name for source in sources),
        tuple(Read(_dotted(path), places.of_path(path)) for path in sorted(known.paths)),
        tuple(uncached),
        tuple(alone),
        tuple(_findings(sources, decision, places)),
    )


_WHY_ALONE: Final = "which may answer two requests that are asked together alike"


def _uncached(known: Reads, places: "_Places") -> Iterator[Finding]:
    for path in sorted(known.paths):
        touched = [one for one in VOLATILE if Reads(frozenset({path}), frozenset()).may_read(one)]
        if touched:
            what = _dotted(touched[0]) if len(touched) == 1 else f"{len(touched)} such places"
            text = f"reads {_dotted(path)}: {what} differ{'s' * (len(touched) == 1)} with every"
            for at in places.of_path(path):
                yield Finding("note", "uncached", f"{text} request", at)
    for name in sorted(known.calls & (IMPURE | TIMED) | known.unknown):
        why = "no builtin known here" if name in known.unknown else "no function of the input"
        for at in places.of_call(name):
            yield Finding("note", "uncached", f"calls {name}, {why}", at)


def _dotted(path: Sequence[str]) -> str:
    if tuple(path) == WHOLE:
        return "input (all of it)"
    plain = [name if name.isidentifier() else f'["{name}"]' for name in path]
    return "input." + ".".join(plain).replace(".[", "[")


class _Places:
    """Finds the file and line of what a rule reads and calls."""

    def __init__(self, sources: Sequence[Source], of_rules: Sequence[Sequence[Reads]]) -> None:
        self._sources = sources
        self._of_rules = of_rules

    def of_path(self, path: tuple[str, ...]) -> tuple[At, ...]:
        return tuple(dict.fromkeys(self._where(path, lambda known: path in known.paths)))

    def of_call(self, name: str) -> tuple[At, ...]:
        asked = tuple(name.split("."))
        used = self._where(asked, lambda known: name in known.calls or name in known.unknown)
        return tuple(dict.fromkeys(used))

    def of_rule(self, module: int, rule: int) -> At:
        source = self._sources[module]
        return At(source.module.name, _line(source.parsed[rule]) if source.parsed else 0)

    def _where(self, names: tuple[str, ...], wanted: Any) -> Iterator[At]:
        for source, rules in zip(self._sources, self._of_rules, strict=True):
            for number, known in enumerate(rules):
                if wanted(known):
                    line = _nearest(source.parsed[number], names) if source.parsed else 0
                    yield At(source.module.name, line)


def _nearest(rule: Tree, names: tuple[str, ...]) -> int:
    """The line in `rule` of the reference that ends most like `names`, or of the rule itself."""
    best, line = 0, _line(rule)
    for node in _nodes(rule):
        if node.get("type") != "ref" or not isinstance(node.get("value"), list):
            continue
        parts = [str(term.get("value")) for term in node["value"]]
        score = _alike(parts, names)
        if score > best:
            best, line = score, _line(node) or line
    return line


def _alike(parts: Sequence[str], names: tuple[str, ...]) -> int:
    """How many names, from the last, a reference shares; its first part counts for the whole."""
    if names == WHOLE:
        return int(parts[0] == "input") * (2 if len(parts) == 1 else 1)
    for end in range(len(parts), 0, -1):
        size = 0
        while size < min(end, len(names)) and parts[end - 1 - size] == names[-1 - size]:
            size += 1
        if size:
            return size
    return 0


def _line(node: Tree) -> int:
    location = node.get("location")
    return int(location.get("row", 0)) if isinstance(location, Mapping) else 0


def _nodes(node: Any) -> Iterator[Tree]:
    if isinstance(node, Mapping):
        yield node
        for part in node.values():
            yield from _nodes(part)
    elif isinstance(node, list):
        for part in node:
            yield from _nodes(part)


# The decision


def _findings(sources: Sequence[Source], decision: str, places: _Places) -> Iterator[Finding]:
    asked = tuple(decision.split("/"))
    rules = [
        (number, place, rule_path(source.module.tree, rule), rule)
        for number, source in enumerate(sources)
        for place, rule in enumerate(source.module.tree.get("rules", ()))
    ]
    said = {asked: "the decision"}
    parts = []
    for number, place, path, rule in rules:
        at = places.of_rule(number, place)
        if path == asked:
            for branch in _branches(rule):
                value = _value(branch)
                yield from _reasons(value, at, denies=_denies(value))
                names = names_of(_field(value, "allowed"))
                if names[:1] == ("data",):
                    said.setdefault(names[1:], "what the decision calls `allowed`")
        elif path[: len(asked)] == asked:
            parts.append(path)
            if path == (*asked, "allowed"):
                said[path] = "`allowed` of the decision"
    if parts and (*asked, "audit", "reason") not in parts:
        yield Finding(
            "warning", "no_reason", f"{decision} is put together from rules, and may lack "
            "audit.reason: none of them gives it", At("", 0),
        )  # fmt: skip
    for number, place, path, rule in rules:
        if path in said:
            yield from _opens(rule, said[path], places.of_rule(number, place))


def _opens(rule: Tree, what: str, at: At) -> Iterator[Finding]:
    """Allows that need no condition."""
    first, *others = _branches(rule)
    if rule.get("default") and _allows(_value(rule)):
        yield Finding(
            "danger", "default_allows", f"{what} is an allow by default: whatever the rules leave "
            "out is let through", at,
        )  # fmt: skip
    elif _unconditional(first) and _allows(_value(first)):
        yield Finding("danger", "always_allows", f"{what} is an allow without any condition", at)
    elif any(_unconditional(branch) and _allows(_value(branch)) for branch in others):
        yield Finding("danger", "else_allows", f"{what} is an allow in every other case", at)


def _branches(rule: Tree) -> Iterator[Tree]:
    yield rule
    while "else" in rule:
        rule = rule["else"]
        yield rule


def _unconditional(branch: Tree) -> bool:
    """Nothing but what the compiler put there, to hold the head's value."""
    return all(expression.get("generated") for expression in branch.get("body", ()))


def _value(branch: Tree) -> Any:
    """What a head gives, with what the compiler's locals in it stand for."""
    return _resolved(branch["head"].get("value"), branch.get("body", ()), _DEPTH)


def _resolved(term: Any, body: Sequence[Tree], depth: int) -> Any:
    if not isinstance(term, Mapping) or not depth:
        return term
    kind, value = term.get("type"), term.get("value")
    if kind == "var" and str(value).startswith("__local"):
        found = (_bound(expression.get("terms"), str(value)) for expression in body)
        stands_for = next((one for one in found if one is not None), term)
        return term if stands_for is term else _resolved(stands_for, body, depth - 1)
    if kind == "object" and isinstance(value, list):
        fields = [[key, _resolved(part, body, depth - 1)] for key, part in value]
        return {**term, "value": fields}
    if kind == "call" and isinstance(value, list):
        return {**term, "value": [_resolved(part, body, depth - 1) for part in value]}
    return term


def _bound(terms: Any, name: str) -> Any:
    """The right side of ``name = ...``, or the call whose answer `name` is."""
    if not isinstance(terms, list) or len(terms) < 2:
        return None
    if names_of(terms[0]) in (("eq",), ("assign",)) and terms[1].get("value") == name:
        return terms[2]
    if terms[-1].get("value") == name and terms[-1].get("type") == "var":
        return {"type": "call", "value": terms[:-1]}
    return None


def _field(value: Any, name: str) -> Any:
    """A field of an object as it is written; None if it is not there or not an object."""
    if not isinstance(value, Mapping) or value.get("type") != "object":
        return None
    return next((part for key, part in value["value"] if key.get("value") == name), None)


def _is_boolean(value: Any, *, truth: bool) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("type") == "boolean"
        and value.get("value") is truth
    )


def _allows(value: Any) -> bool:
    return any(_is_boolean(one, truth=True) for one in (value, _field(value, "allowed")))


def _denies(value: Any) -> bool:
    return any(_is_boolean(one, truth=False) for one in (value, _field(value, "allowed")))


def _reasons(value: Any, at: At, *, denies: bool) -> Iterator[Finding]:
    """Whether a decision says why."""
    what = "a denial" if denies else "an allow"
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind in _VALUES:
        yield Finding("warning", "no_reason", f"{what} as a bare {kind} has no audit.reason", at)
        return
    if kind != "object":
        text = "the decision is computed, and may lack audit.reason"
        yield Finding("note", "no_reason", text, at)
        return
    what = what if denies or _allows(value) else "a decision"
    audit = _field(value, "audit")
    if audit is None:
        yield Finding("warning", "no_reason", f"{what} without audit.reason", at)
        return
    given = _reason(audit)
    if given is None:
        yield Finding("note", "no_reason", f"{what} whose audit may lack a reason", at)
    elif not given:
        yield Finding("warning", "no_reason", f"{what} whose audit has no reason", at)


def _reason(audit: Any) -> bool | None:
    """Whether an `audit` gives a reason; None if that cannot be seen."""
    if not isinstance(audit, Mapping):
        return None
    if audit.get("type") == "object":
        reason = _field(audit, "reason")
        return reason is not None and reason.get("value") != ""
    if audit.get("type") == "call" and names_of(audit["value"][0]) == ("object", "union"):
        return True if any(_reason(part) for part in audit["value"][1:] if part) else None
    return None
