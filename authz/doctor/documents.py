"""Envoy's configuration as plain values, wherever it stands: bootstrap, manifest, a text in one.

Envoy takes each field by two names (`failure_mode_allow`, `failureModeAllow`), each truth in many
spellings (`true`, `"true"`, `on`, `y`), and a typed message also inside a TypedStruct. Here there
is one of each, so that a check cannot be passed by spelling.
"""

import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from authz.config.file import DatelessLoader
from authz.errors import UsageError

Mapping: TypeAlias = dict[str, Any]

_CAMEL: Final = re.compile(r"[a-z][a-z0-9]*(?:[A-Z][a-z0-9]*)+")
_HUMP: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")
_FALSE: Final = frozenset({"false", "no", "off", "n", ""})
_OPENS: Final = re.compile(
    r"(failure_?mode_?allow|fail_?open)[\"']?\s*:\s*(?![\"']?(?:false|no|off|n)\b)", re.IGNORECASE
)
_IGNORED: Final = object()


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `name` is its file and, for a text in another document, the place there."""

    name: str
    root: Mapping
    unread: tuple[str, ...] = ()
    """Where a text accepts failures (`failure_mode_allow`) in a form that could not be read."""

    @property
    def is_envoy(self) -> bool:
        """Whether it is a whole configuration, of which one can say what is missing."""
        return not {"static_resources", "dynamic_resources"}.isdisjoint(self.root)


def is_true(value: object) -> bool:
    """Whether Envoy could take `value` for true. What is unclear is true."""
    if value is None or isinstance(value, bool):
        return bool(value)
    return str(value).lower() not in _FALSE


def read(path: Path) -> list[Document]:
    """All documents of a file, YAML or JSON, and those in texts in them. Raises `UsageError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not YAML or JSON; it holds bytes that are no text") from None
    try:
        roots = parse(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    documents = [
        document
        for root in roots
        if isinstance(root, dict)
        for document in _with_embedded(path.name, root)
    ]
    if not documents:
        raise UsageError(f"{path}: no configuration is in it")
    return documents


def parse(text: str) -> list[Any]:
    """The documents in `text` (YAML or JSON), normalised. Raises `UsageError`."""
    try:
        if text.lstrip().startswith("{"):
            try:
                return [normalised(json.loads(text, object_pairs_hook=_once))]
            except json.JSONDecodeError:
                pass  # a flow mapping of YAML may begin so too
        return [normalised(root) for root in yaml.load_all(text, _Loader)]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(
            f"line {line}: not YAML ({error.problem}); a template must be filled first"
        ) from None
    except yaml.YAMLError:
        raise UsageError("not YAML; it holds characters that are no text") from None
    except RecursionError:
        raise UsageError("nested too deep, or in itself") from None


def normalised(value: Any) -> Any:
    """`value` with one name for each field, and typed messages as what they are."""
    if isinstance(value, list):
        return [normalised(item) for item in value if item is not _IGNORED]
    if not isinstance(value, dict):
        return value
    found: Mapping = {}
    for key, item in value.items():
        name = str(key)
        if _CAMEL.fullmatch(name):
            name = _HUMP.sub(lambda hump: "_" + hump[1].lower(), name)
        if name in found:
            raise UsageError(f"{name} is there by two names; keep one")
        if item is not _IGNORED:
            found[name] = normalised(item)
    if str(found.get("@type", "")).endswith(".TypedStruct") and "type_url" in found:
        inner = found.get("value")
        return {**(inner if isinstance(inner, dict) else {}), "@type": found["type_url"]}
    return found


def _with_embedded(name: str, root: Mapping) -> Iterator[Document]:
    """`root`, and what texts in it are documents themselves: ConfigMaps, a mesh's configuration."""
    unread, found = [], []
    for place, text in _texts(root, ()):
        try:
            inner = [part for part in parse(text) if isinstance(part, dict)]
        except UsageError:
            inner = []
        if not inner and _OPENS.search(text):
            unread.append(place)
        found += [(f"{name}, {place}", part) for part in inner]
    yield Document(name, root, tuple(unread))
    for inner_name, part in found:
        yield from _with_embedded(inner_name, part)


def _texts(value: Any, place: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The texts in `value` that may be documents, each with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*place, key))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, place)
    elif isinstance(value, str) and ("\n" in value or value.lstrip().startswith("{")):
        yield ".".join(place), value


def _once(pairs: list[tuple[str, Any]]) -> Mapping:
    found: Mapping = {}
    for key, item in pairs:
        if key in found:
            raise UsageError(f"{key} is there twice; keep one")
        found[key] = item
    return found


class _Loader(DatelessLoader):
    """What looks like a date is text, a key is there once, and `!ignore` is as in Envoy."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is there twice; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("!ignore", lambda *_: _IGNORED)
