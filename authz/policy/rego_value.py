"""rego-cpp's result tree as plain values.

The engine's own JSON text is never parsed: some builtins leave quotes unescaped in it, and a caller
who can put text into the decision could then write parts of it. Here text stays text.
"""

import json
from typing import Any

from regopy.rego_shared import (
    NodeKind,
    rego_node_get,
    rego_node_size,
    rego_node_type,
    rego_node_value,
)

_WRAPPERS = (NodeKind.Term, NodeKind.Scalar)


def plain(node: Any) -> object:
    """The JSON value of a regopy node. Raises `ValueError` for what has none."""
    return _plain(node._impl)  # noqa: SLF001 - regopy's own functions take the handle


def _plain(handle: Any) -> object:
    kind = rego_node_type(handle)
    while kind in _WRAPPERS:
        handle = rego_node_get(handle, 0)
        kind = rego_node_type(handle)
    match kind:
        case NodeKind.Object:
            return _object(handle)
        case NodeKind.Array | NodeKind.Set:
            return [_plain(rego_node_get(handle, n)) for n in range(rego_node_size(handle))]
        case NodeKind.String:
            return _text(rego_node_value(handle))
        case NodeKind.Int:
            return int(rego_node_value(handle))
        case NodeKind.Float:
            return float(rego_node_value(handle))
        case NodeKind.Boolean | NodeKind.True_ | NodeKind.False_:
            return bool(rego_node_value(handle) == "true")
        case NodeKind.Null:
            return None
    raise ValueError("the result holds something that is no JSON value")


def _object(handle: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for number in range(rego_node_size(handle)):
        item = rego_node_get(handle, number)
        key = _plain(rego_node_get(item, 0))
        if not isinstance(key, str) or key in found:
            raise ValueError("the result has a key that is no text, or one twice")
        found[key] = _plain(rego_node_get(item, 1))
    return found


def _text(value: str) -> str:
    """Text is held as in JSON, escaped and (from some builtins) in its quotes; text that other
    builtins made is held as it is."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if "\\" not in value:
        return value
    try:
        text: str = json.loads(f'"{value}"', strict=False)
    except ValueError:
        return value
    return text
