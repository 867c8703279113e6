"""A policy as files: a directory, one ``.rego`` file, or an OPA bundle ``.tar.gz``.

As in an OPA bundle, ``data.json`` and ``data.yaml`` hold data under the path of their directory.
``*_test.rego`` is not part of the policy, nor is what `authz policy build` adds for batches.
"""

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from authz.errors import UsageError

BATCH = "authz_batch.rego"
"""The file of OPA's module for several decisions at once (`authz.policy.opa.wrapper`)."""

_DATA = ("data.json", "data.yaml", "data.yml")


@dataclass(frozen=True, slots=True)
class Policy:
    """`modules` by path; `data` merged, and its SHA-256, hexadecimal."""

    modules: dict[str, str]
    data: dict[str, Any]
    data_digest: str = ""


def fingerprint(path: Path) -> tuple[object, ...]:
    """Changes when the files do; cheap enough to ask several times a second."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = ((file, file.stat()) for file in files if file.is_file())
    return tuple((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino) for file, stat in stats)


def load(path: Path) -> Policy:
    """Read the policy at `path`. Raises `UsageError` that names the file."""
    try:
        files = _files(path)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--policy {path}: {reason}") from None
    modules: dict[str, str] = {}
    data: dict[str, Any] = {}
    for name, content in sorted(files.items()):
        try:
            file = name.rpartition("/")[2]
            if file.endswith(".rego") and not file.endswith("_test.rego") and file != BATCH:
                modules[name] = content.decode()
            elif file in _DATA:
                _merge(data, _parse(name, content), name)
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"--policy {path}: {name}: {reason}") from None
    if not modules:
        raise UsageError(f"--policy {path}: no .rego files there")
    return Policy(modules, data, _digest(data))


def _files(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        wanted = (file for file in path.rglob("*") if file.suffix == ".rego" or file.name in _DATA)
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in wanted}
    if path.suffix == ".rego":
        return {path.name: path.read_bytes()}
    files = {}
    with tarfile.open(path, "r:gz") as bundle:
        for member in bundle:
            file = bundle.extractfile(member)
            if file is not None:
                files[member.name.lstrip("./")] = file.read()
    return files


def _parse(name: str, content: bytes) -> dict[str, Any]:
    value = orjson.loads(content) if name.endswith(".json") else yaml.safe_load(content)
    for part in reversed(name.split("/")[:-1]):
        value = {part: value}
    if not isinstance(value, dict):
        raise ValueError("data must be an object")  # noqa: TRY004 - shown to the user like others
    return value


def _merge(into: dict[str, Any], new: dict[str, Any], name: str) -> None:
    for key, value in new.items():
        if isinstance(into.get(key), dict) and isinstance(value, dict):
            _merge(into[key], value, name)
        elif key in into:
            raise ValueError(f"{key!r} is given twice in the policy's data")
        else:
            into[key] = value


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()
