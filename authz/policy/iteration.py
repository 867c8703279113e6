"""Where rego-cpp 1.5 loses what a reference ranges over, found in a policy's text.

A reference with a variable in brackets that nothing has bound yet (``roles[_]``, ``rules[i].path``)
stands for each of several values. The engine follows it as a whole side of a comparison or of an
assignment, after ``some ... in``, and on a line by itself. Inside a call, a literal, brackets or an
``in``, and beside another one that ranges over something else, it is undefined, whatever the input
says; and ``x := roles[_]`` with ``names[x]`` after it ends the process. What is undefined does not
hold, and under ``not`` that opens a door: such policies are refused.

This reads Rego well enough for that, and no better. Where it is not sure, it refuses.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_TOKEN: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|:=|[=!<>]=|[A-Za-z_]\w*|[0-9][\w.]*|\n|\S')
_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_CLOSES: Final = {"(": ")", "[": "]", "{": "}"}
_KEYWORDS: Final = frozenset(
    "as contains default else every false if import in not null package some true with".split()
)
_GOES_ON: Final = frozenset(":= = == != < > <= >= + - * / % & | , . in with".split())


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int
    joined: bool
    """No space before it."""


@dataclass(slots=True)
class _Group:
    """What stands between brackets; `text` is the opening one, `end` is behind the closing one."""

    text: str
    start: int
    joined: bool
    end: int = 0
    items: "list[_Item]" = field(default_factory=list)


_Item: TypeAlias = _Word | _Group


@dataclass(frozen=True, slots=True)
class _Ref:
    ranges: frozenset[str]
    """Variables in its brackets that nothing has bound."""
    steps: frozenset[str]
    """Those that are bound."""
    inside: bool
    start: int


@dataclass(slots=True)
class _Scope:
    bound: set[str]
    ranged: set[str] = field(default_factory=set)
    """Of these, those that stood in a reference's brackets first."""
    stepped: set[str] = field(default_factory=set)
    """Assigned with `:=` from a reference that ranges."""
    local: set[str] = field(default_factory=set)
    """Declared here with `some`."""
    used: dict[str, int] = field(default_factory=dict)
    """What is ranged over here, and where."""
    deeper: dict[str, int] = field(default_factory=dict)
    """So in bodies inside this one, without being declared there."""

    def inner(self) -> "_Scope":
        return _Scope(set(self.bound), set(self.ranged), set(self.stepped))

    def leave(self, inner: "_Scope") -> None:
        undeclared = {**inner.deeper, **inner.used}
        self.deeper |= {name: at for name, at in undeclared.items() if name not in inner.local}


def lost(texts: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
    """Module, line and reason, with the mend, why a policy is not for the engine. `texts` are its
    modules without their comments."""
    rules = {name: list(_rules(_tree(text))) for name, text in texts.items()}
    names = {found for module in rules.values() for found in _global_names(module)}
    for name, module in rules.items():
        reader = _Reader(names)
        for rule in module:
            reader.rule(rule)
        for start, why in dict(reader.found).items():
            yield name, texts[name].count("\n", 0, start) + 1, why


def modern(text: str) -> str:
    """The module with its sets written as in Rego v1: ``names[x] {...}`` as ``names contains x if
    {...}``. The engine takes the old form for an object, and every other old form for what it is.
    """
    done, copied = [], 0
    for rule in _rules(_tree(text)):
        key = rule[1] if len(rule) in (2, 3) else None
        body = rule[2] if len(rule) == 3 else None
        if not (isinstance(key, _Group) and key.text == "[" and key.joined and key.items):
            continue
        if body is not None and not (isinstance(body, _Group) and body.text == "{"):
            continue
        done += [text[copied : key.start], " contains ", text[key.start + 1 : key.end - 1]]
        done += [" if"] if body else []
        copied = key.end
    return "".join([*done, text[copied:]])


def _tree(text: str) -> list[_Item]:
    root: list[_Item] = []
    opened: list[_Group] = []
    end = -1
    for found in _TOKEN.finditer(text):
        token, joined, end = found[0], found.start() == end, found.end()
        items = opened[-1].items if opened else root
        if token in _CLOSES:
            group = _Group(token, found.start(), joined, len(text))
            items.append(group)
            opened.append(group)
        elif opened and token == _CLOSES[opened[-1].text]:
            opened.pop().end = end
        else:
            items.append(_Word(token, found.start(), end, joined))
    return root


def _rules(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """What begins on a line of its own and is not within brackets, up to the next such thing."""
    yield from _split(items, "\n")


def _split(items: Iterable[_Item], *separators: str) -> Iterator[list[_Item]]:
    part: list[_Item] = []
    for item in items:
        goes_on = bool(part) and part[-1].text in _GOES_ON
        if item.text in separators:
            if part and not goes_on:
                yield part
                part = []
        elif isinstance(item, _Word) and item.text == "\n":
            continue
        else:
            part.append(item)
    if part:
        yield part


def _global_names(rules: Iterable[Sequence[_Item]]) -> Iterator[str]:
    yield from ("input", "data")
    for rule in rules:
        words = [item.text for item in rule if isinstance(item, _Word)]
        if words and words[0] in ("import", "default"):
            yield words[-1] if words[0] == "import" else [*words, ""][1]
        elif words:
            yield words[0]


def _is_name(item: _Item) -> bool:
    return (
        isinstance(item, _Word)
        and bool(_NAME.fullmatch(item.text))
        and (item.text not in _KEYWORDS)
    )


def _names(items: Iterable[_Item]) -> set[str]:
    """All plain names in a pattern such as ``[_, {"a": x}]``."""
    found: set[str] = set()
    for item in items:
        if isinstance(item, _Group):
            found |= _names(item.items)
        elif _is_name(item) and item.text != "_":
            found.add(item.text)
    return found


def _at(items: Sequence[_Item], *texts: str) -> int:
    """Where the first of these words stands, or -1."""
    places = (n for n, item in enumerate(items) if isinstance(item, _Word) and item.text in texts)
    return next(places, -1)


def _is_reference(items: Sequence[_Item]) -> bool:
    """Whether this is one reference and nothing else."""
    if not items or not (isinstance(items[0], _Group) or _is_name(items[0])):
        return False
    return all(item.joined and (_is_name(item) or item.text in (".", "[")) for item in items[1:])


class _Reader:
    def __init__(self, global_names: set[str]) -> None:
        self._global = global_names
        self.found: list[tuple[int, str]] = []

    def rule(self, items: Sequence[_Item]) -> None:
        if items[0].text in ("package", "import"):
            return
        arguments = next((i for i in items[:8] if i.text == "(" and i.joined), None)
        scope = _Scope(set(self._global))
        if isinstance(arguments, _Group):
            scope.bound |= _names(arguments.items)
        head: list[_Item] = []
        place = 0
        while place < len(items):
            item = items[place]
            place += 1
            if item.text == "if" and not (place < len(items) and items[place].text == "{"):
                end = _at(items[place:], "else")
                end = len(items) if end < 0 else place + end
                self._literal(items[place:end], scope.inner())
                place = end
            elif isinstance(item, _Group) and item.text == "{" and _begins_body(items, place - 1):
                self._body(item.items, scope.inner())
            else:
                head.append(item)
        scope.bound |= _names(items)  # what the bodies bind is bound in the head
        self._refs(head, scope, inside=False)

    def _body(self, items: Sequence[_Item], scope: _Scope) -> None:
        for literal in _split(_with_joined(items), "\n", ";"):
            self._literal(literal, scope)
        for name in (scope.used.keys() & scope.deeper.keys()) - {"_"}:
            text = f"the embedded engine takes {name} in the inner brackets for another one"
            self.found.append((scope.deeper[name], f"{text}; give one of them another name"))

    def _literal(self, items: Sequence[_Item], scope: _Scope) -> None:
        if not items:
            return
        first = items[0].text
        if first in ("some", "every"):
            self._each(items, scope)
            return
        negated = first == "not"
        items = items[negated:]
        if (place := _at(items, "with")) >= 0:
            self._check(self._refs(items[place:], scope, inside=True), scope)
            items = items[:place]
        within = _at(items, "in") >= 0
        self._check(self._refs(items, scope, inside=within), scope, items)
        equals = _at(items, ":=", "=")
        left, right = items[: max(equals, 0)], items[equals + 1 :]
        if not negated and _is_reference(right):
            [*_, ref] = self._refs(right, scope, inside=False)
            if ref.steps & scope.stepped:
                name = min(ref.steps & scope.stepped)
                text = (
                    f"the embedded engine fails on ...[{name}] after '{name} := ...[_]';"
                    f" write 'some {name} in ...'"
                )
                self.found.append((ref.start, text))
            if (
                equals >= 0
                and items[equals].text == ":="
                and (ref.ranges or ref.steps & scope.ranged)
            ):
                scope.stepped |= _names(left)
        for ref in self._refs(items, scope, inside=False):
            scope.used |= dict.fromkeys(ref.ranges | ref.steps & scope.ranged, ref.start)
            scope.ranged |= ref.ranges
            scope.bound |= ref.ranges
        if equals >= 0:
            scope.bound |= _names(left)
            if items[equals].text == "=":
                scope.bound |= _names(right)

    def _each(self, items: Sequence[_Item], scope: _Scope) -> None:
        """``some`` and ``every``."""
        place = _at(items, "in")
        if place < 0:
            scope.bound -= _names(items)
            scope.local |= _names(items)
            return
        names, domain = _names(items[:place]), items[place + 1 :]
        body = domain[-1] if items[0].text == "every" else None
        if isinstance(body, _Group):
            domain = domain[:-1]
        refs = self._refs(domain, scope, inside=not _is_reference(domain))
        self._check(refs, scope)
        for ref in refs:
            scope.used |= dict.fromkeys(ref.ranges | ref.steps & scope.ranged, ref.start)
            scope.ranged |= ref.ranges
            scope.bound |= ref.ranges
        scope.bound |= names
        if isinstance(body, _Group):
            within = scope.inner()
            self._body(body.items, within)
            scope.leave(within)

    def _check(self, refs: Sequence[_Ref], scope: _Scope, items: Sequence[_Item] = ()) -> None:
        lost = [ref for ref in refs if ref.ranges and ref.inside]
        over = [ref.ranges | ref.steps & scope.ranged for ref in refs]
        apart = [names for names in over if names]
        alike = all(names == apart[0] and "_" not in names for names in apart)
        if len(apart) > 1 and not alike:
            equals = _at(items, "=")
            unified = _is_reference(items[:equals]) and _is_reference(items[equals + 1 :])
            if not unified or frozenset.intersection(*apart) - {"_"}:
                lost += [ref for ref in refs if ref.ranges]
        for ref in lost[:1]:
            text = f"the embedded engine loses what [{min(ref.ranges)}] ranges over"
            self.found.append((ref.start, f"{text}; write 'some x in ...' before it, and use x"))

    def _refs(self, items: Sequence[_Item], scope: _Scope, *, inside: bool) -> list[_Ref]:
        """The references in an expression; what is in its comprehensions is checked at once."""
        found: list[_Ref] = []
        place = 0
        while place < len(items):
            item = items[place]
            place += 1
            if isinstance(item, _Group):
                found += self._group(item, scope, inside=inside)
            elif not _is_name(item):
                continue
            ranges: set[str] = set()
            steps: set[str] = set()
            while place < len(items) and items[place].joined:
                part = items[place]
                if isinstance(part, _Word) and part.text == ".":
                    place += 1
                elif not isinstance(part, _Group) or part.text == "{":
                    break
                elif part.text == "[" and len(part.items) == 1 and _is_name(part.items[0]):
                    name = part.items[0].text
                    (steps if name in scope.bound and name != "_" else ranges).add(name)
                else:
                    found += self._refs(part.items, scope, inside=True)
                place += 1
            found.append(_Ref(frozenset(ranges), frozenset(steps), inside, item.start))
        return found

    def _group(self, group: _Group, scope: _Scope, *, inside: bool) -> list[_Ref]:
        bar = _at(group.items, "|")
        if group.text == "(":
            return self._refs(group.items, scope, inside=inside)
        if bar < 0:
            return self._refs(group.items, scope, inside=True)
        within = scope.inner()
        self._body(group.items[bar + 1 :], within)
        self._check(self._refs(group.items[:bar], within, inside=True), within)
        scope.leave(within)
        return []


def _begins_body(items: Sequence[_Item], place: int) -> bool:
    """Whether the braces at `place` of a rule are a body, and no object or set."""
    if place == 0:
        return False
    before = items[place - 1]
    return isinstance(before, _Group) or before.text not in _GOES_ON


def _with_joined(items: Sequence[_Item]) -> list[_Item]:
    """Without the line's end before a ``with``, which goes on with the line before."""
    return [
        item
        for place, item in enumerate(items)
        if not (item.text == "\n" and place + 1 < len(items) and items[place + 1].text == "with")
    ]
