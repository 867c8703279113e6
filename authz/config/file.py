"""The configuration read, and what is wrong with it told."""

import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from authz.config.keys import Config
from authz.errors import UsageError


def load(path: Path | None = None, options: dict[str, Any] | None = None) -> Config:
    """The configuration from `path`, the environment and `options` (nested by section).

    Raises `UsageError` naming the key, the line and the mend.
    """
    root, content = _read(path) if path else (None, {})
    try:
        return Config(**{"_file": content, **(options or {})})
    except ValidationError as error:
        raise UsageError("\n".join(_explain(path, root, item) for item in error.errors())) from None
    except SettingsError as error:
        section = "".join(re.findall(r'field "(\w+)"', str(error))).upper()
        given = [name for name in sorted(os.environ) if name.startswith(f"AUTHZ_{section}")]
        raise UsageError(
            f"{', '.join(given)}: want JSON for a list or a section, such as '[\"/fhir\"]'"
        ) from None


class DatelessLoader(yaml.SafeLoader):
    """No value here is a date: what looks like one is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read(path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    """The YAML document in `path`, as nodes (which know their lines) and as values."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, DatelessLoader)
        content = yaml.load(text, DatelessLoader) or {}  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}, line {line}: not YAML; {error.problem}") from None
    except (yaml.YAMLError, ValueError):
        raise UsageError(f"{path}: not YAML; it holds bytes that are no text") from None
    if not isinstance(content, dict):
        raise UsageError(
            f"{path}, line 1: want keys and values, such as 'data_dir: /var/lib/authz'"
        )
    _check_keys(path, root)
    return root, content


def _check_keys(path: Path, root: yaml.Node | None) -> None:
    """Each key of a mapping is text, and there once: of two, one would not count."""
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in met:  # an alias; it may even lead back to where it stands
            continue
        met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            where = f"{path}, line {key.start_mark.line + 1}"
            if not key.tag.endswith(":str"):
                raise UsageError(f"{where}: {key.value} is no key here; see: authz config")
            if key.value in seen:
                raise UsageError(f"{where}: {key.value} is there twice; keep one")
            seen.add(key.value)
        if isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in reversed(node.value)]


def _explain(path: Path | None, root: yaml.Node | None, error: Any) -> str:
    place = [str(part) for part in error["loc"] if not re.search(r"[\[(]", str(part))]
    key = ".".join(place)
    line = _line(root, place[:-1] if error["type"] == "missing" else place)
    where = f"{path}, line {line}: " if line else ""
    if error["type"] == "extra_forbidden":
        known = ", ".join(sorted(_model(place[:-1]).model_fields))
        return f"{where}{key} is no key here; known: {known}"
    return f"{where}{key}: {error['msg'].removeprefix('Value error, ')}"


def _model(place: list[str]) -> type[BaseModel]:
    """The model of the section at `place`, or of the items of the list there."""
    model: type[BaseModel] = Config
    for part in place:
        if part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that a field is, or has a list of."""
    kinds = [annotation, *get_args(annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _line(node: yaml.Node | None, place: list[str]) -> int | None:
    """The line (from 1) of the key at `place` in the document, if it stands there."""
    line = None
    for part in place:
        if isinstance(node, yaml.SequenceNode) and part.isdecimal():
            if int(part) >= len(node.value):
                return None
            node = node.value[int(part)]
            line = node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        pairs = {key.value: (key, value) for key, value in node.value}
        if part not in pairs:
            return None
        key, node = pairs[part]
        line = key.start_mark.line + 1
    return line


def describe() -> str:
    """Every key with its default and meaning, as a YAML file to start from."""
    lines = ["# Every key with its default. Environment: AUTHZ_<SECTION>__<KEY>, in capitals."]
    for name, field in Config.model_fields.items():
        if isinstance(field.default, BaseModel):
            model = type(field.default)
            lines += ["", f"# {model.__doc__}", f"{name}:"]
            for key, inner in model.model_fields.items():
                lines.append(_described(f"  {key}", inner))
                if item := _section(inner.annotation):
                    lines += [_described(f"  #   {k}", i) for k, i in item.model_fields.items()]
        else:
            lines.append(_described(name, field))
    return "\n".join(lines) + "\n"


def _described(key: str, field: FieldInfo) -> str:
    value = str(field.default) if isinstance(field.default, Path) else field.default
    shown = "..." if field.is_required() else json.dumps(value)
    return f"{key}: {shown}  # {field.description}"
