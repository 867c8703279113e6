"""Every key of the configuration, as its model has it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from authz.config import Config
from docs.reference import markdown

_TEXT = """The file is YAML, given as `--config`; `authz config` prints one with every key, and
`authz config --config FILE` says what is wrong with yours. A variable of the environment goes
before the file; lists and sections are JSON there (`AUTHZ_PRIVACY__FHIR_BASES='["/fhir"]'`).
Options go before both. A key that is not here is an error."""

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "minItems": "{} or more",
}
_NAMES = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`"}


def page() -> str:
    schema = Config.model_json_schema()
    models = schema["$defs"]
    lines = markdown.head("Configuration", _TEXT)
    sections = {
        name: models[value["$ref"].rpartition("/")[2]]
        for name, value in schema["properties"].items()
        if "$ref" in value
    }
    own = {key: value for key, value in schema["properties"].items() if key not in sections}
    lines += ["## At the top", "", *_keys(own, (), "AUTHZ_", "")]
    for name, section in sections.items():
        lines += [f"## {name}", "", section["description"], ""]
        lines += _keys(section["properties"], section.get("required", ()), "AUTHZ_", name)
        for key, item in _items(section, models):
            lines += [f"### Each of {name}.{key}", "", item["description"], ""]
            lines += _keys(item["properties"], item.get("required", ()), "", "")
    return markdown.page(lines)


def _items(section: dict[str, Any], models: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys that are sections themselves, or lists of such."""
    for key, value in section["properties"].items():
        for one in (value, value.get("items", {}), *value.get("anyOf", ())):
            if "$ref" in one:
                yield key, models[one["$ref"].rpartition("/")[2]]


def _keys(keys: dict[str, Any], required: Any, prefix: str, section: str) -> list[str]:
    rows = []
    for key, value in keys.items():
        variable = prefix + (f"{section}__{key}" if section else key).upper()
        default = "**must be given**" if key in required else _shown(value.get("default"))
        environment = [f"`{variable}`"] if prefix else []
        rows.append([f"`{key}`", *environment, _type(value), default, value["description"]])
    columns = ["Key", *(["Environment"] if prefix else []), "Type", "Default", "Meaning"]
    return markdown.table(columns, rows)


def _shown(default: Any) -> str:
    if default in (None, ""):
        return "none"
    return f"`{default if isinstance(default, str | Path) else json.dumps(default)}`"


def _type(value: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in value:
        return "section, below"
    if "anyOf" in value:
        return next(_type(one) for one in value["anyOf"] if one.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value["type"] == "array":
        items = value["items"]
        kind = "list of sections, below" if "$ref" in items else f"list of {_type(items)}"
    else:
        kind = "file or directory" if value.get("format") == "path" else value["type"]
    bounds = [text.format(value[name]) for name, text in _BOUNDS.items() if name in value]
    return ", ".join([_NAMES.get(kind, kind), *bounds])
