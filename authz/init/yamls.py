"""The YAML files of deploy/ with other values in them; comments and order stay."""

import json
import re
from collections.abc import Callable, Iterator, Mapping

import yaml

Place = tuple[str | int, ...]
Change = Callable[[Place, str], str | None]


def rewritten(text: str, change: Change) -> str:
    """`text` (one document or several), in which each scalar has the value that `change` answers
    for its place and value; None leaves it."""
    edits = [
        (node.start_mark.index, node.end_mark.index, _scalar(new))
        for document in yaml.compose_all(text, yaml.SafeLoader)
        for place, node in _scalars((), document)
        if (new := change(place, str(node.value))) is not None
    ]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def with_values(text: str, values: Mapping[str, str]) -> str:
    """`text` with the values of keys that it has, each named by its dotted place."""
    left = dict(values)

    def change(place: Place, _: str) -> str | None:
        return left.pop(".".join(map(str, place)), None)

    made = rewritten(text, change)
    assert not left, f"no such keys: {left}"
    return made


def with_variables(text: str, values: Mapping[str, str]) -> str:
    """`text` of NAME=value lines with the values of names that it has."""
    for name, value in values.items():
        line = f"{name}={value}".replace("\\", r"\\")
        text, times = re.subn(rf"^{name}=.*$", line, text, flags=re.MULTILINE)
        assert times == 1, f"no such name: {name}"
    return text


def _scalars(place: Place, node: yaml.Node | None) -> Iterator[tuple[Place, yaml.ScalarNode]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars((*place, key.value), value)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _scalars((*place, number), value)
    elif isinstance(node, yaml.ScalarNode):
        yield place, node


def _scalar(value: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9/][A-Za-z0-9._/:-]*(?<!:)", value)
    return value if plain and yaml.safe_load(value) == value else json.dumps(value)


def dump(document: object, comment: str = "") -> str:
    told = "".join(f"# {line}\n" for line in comment.splitlines())
    return told + yaml.safe_dump(document, sort_keys=False, width=100)
