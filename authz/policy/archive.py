"""The archive of a policy revision: its text, in a form whose SHA-256 is the revision. Pure.

JSON with sorted keys, UTF-8: ``{"data": D, "modules": {path: text}}``, where D is the SHA-256
(hexadecimal) of the policy's data, or empty if that is not known. Data is not archived: it may name
patients.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

_DIGEST = re.compile(r"([0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class Archive:
    """`modules` by path; `data` is the digest of the data."""

    modules: Mapping[str, str]
    data: str


def archive(modules: Mapping[str, str], data_digest: str = "") -> bytes:
    """The archive of a policy; `revision` of it is the policy's revision."""
    content = {"modules": dict(modules), "data": data_digest}
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def revision(archived: bytes) -> str:
    """The revision that an archive is of: its SHA-256, hexadecimal."""
    return hashlib.sha256(archived).hexdigest()


def parse_archive(archived: bytes) -> Archive:
    """The inverse of `archive`. Raises `ValueError` for what it did not make."""
    content = orjson.loads(archived)
    if not isinstance(content, dict) or content.keys() != {"modules", "data"}:
        raise ValueError("not the archive of a policy")
    modules, data = content["modules"], content["data"]
    if not isinstance(modules, dict) or not all(isinstance(t, str) for t in modules.values()):
        raise ValueError("the modules of an archive are texts by path")
    if not isinstance(data, str) or not _DIGEST.fullmatch(data):
        raise ValueError("the data of an archive is a SHA-256")
    return Archive(modules, data)
