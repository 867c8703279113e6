"""An Envoy configuration in a file: all checks of it, and what Envoy itself says of it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from authz.config import Config
from authz.doctor import envoy_authz, envoy_http, envoy_order, runtime
from authz.doctor.documents import Document, read
from authz.doctor.envoy import ANY_EXT_AUTHZ, Envoy
from authz.doctor.findings import Finding, Level

CHECKS: Final = (*envoy_authz.CHECKS, *envoy_http.CHECKS, *envoy_order.CHECKS, runtime.in_file)

_DEPRECATED: Final = re.compile(r"Deprecated field: type (\S+) .*?option '([\w.]+)'")
_VALIDATE_SECONDS: Final = 60


def examine(envoy: Envoy) -> Iterator[Finding]:
    """What is wrong with one configuration; that nothing is, if so."""
    found = list(dict.fromkeys(finding for check in CHECKS for finding in check(envoy)))
    yield from found
    filters, managers = len(list(envoy.of(ANY_EXT_AUTHZ))), len(envoy.managers)
    name = envoy.document.name
    if found:
        return
    if envoy.document.is_envoy and not (filters or managers):
        yield Finding(
            Level.UNKNOWN, name,
            "no listener for requests is in it: they come from a control plane, or nowhere; look at"
            " the running Envoy with --envoy-admin",
        )  # fmt: skip
    elif filters:
        seen = f"no answer is no access (ext_authz filters: {filters}, HTTP listeners: {managers})"
        yield Finding(Level.OK, name, seen)
    else:
        yield Finding(Level.OK, name, "no ext_authz filter is in it, and none is missing")


def in_file(path: Path, config: Config | None) -> list[Envoy]:
    """The configurations in a file. Raises `UsageError`."""
    return [Envoy(document, config) for document in read(path)]


def validated(path: Path, documents: list[Document], program: str | None) -> Iterator[Finding]:
    """What `envoy --mode validate` says of a bootstrap; nothing without the program.

    Only names of types and fields are taken from what Envoy says: it quotes the configuration.
    """
    if program is None or not documents[0].is_envoy:
        return
    command = [program, "--mode", "validate", "-c", str(path), "--log-level", "warning"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VALIDATE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        yield Finding(Level.UNKNOWN, path.name, "`envoy --mode validate` did not run to its end")
        return
    for _, field in dict.fromkeys(_DEPRECATED.findall(done.stderr)):
        yield Finding(
            Level.WARN, path.name, f"Deprecated field: {field}",
            "a later Envoy will not start with it",
            "take what Envoy's release notes put in its place",
        )  # fmt: skip
    if done.returncode:
        yield Finding(
            Level.FAIL, path.name, "Envoy does not accept it here",
            "it would not start, or names files that this host lacks",
            f"see: envoy --mode validate -c {path}",
        )  # fmt: skip
