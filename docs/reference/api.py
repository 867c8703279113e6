"""What other programs may rely on: the Python API, the gRPC services, HTTP."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from authz import ledger, record
from authz.console.log import LogApi
from authz.console.store import Pool
from docs.reference import markdown

_ROOT = Path(__file__).parents[2]

_TEXT = """Whatever is not on this page is the program's own, and may change with any version."""

_PYTHON = """The package `authz.ledger` imports nothing else of authz: lift it out to check proofs
with code that you have read. Hashes are bytes, 32 of them."""

_SERVICES = [
    ("envoy.service.auth.v3.Authorization", "ext-authz", "Envoy"),
    ("envoy.service.ext_proc.v3.ExternalProcessor", "ext-authz", "Envoy"),
    ("envoy.service.accesslog.v3.AccessLogService", "receiver", "Envoy"),
    ("authz.v1.RecordStream", "receiver", "authz: below"),
    ("grpc.health.v1.Health", "both", "gRPC"),
    ("grpc.reflection.v1alpha.ServerReflection", "ext-authz, with its `reflection`", "gRPC"),
]

_STREAM = """Any program may be a writer: it sends records as [the record's page](../record.md) has
them, numbered and chained. What does not fit is refused, with the reason."""

_HTTP = """`authz serve console` answers programs at these paths, as
[verifying](../verifying.md#a-log-over-http) tells; its other paths are pages for people. Every
server has its [metrics](metrics.md) at `/metrics` of `--metrics`."""


def page() -> str:
    lines = markdown.head("API", _TEXT)
    lines += ["## Python: authz.ledger", "", _PYTHON, ""]
    for name in ledger.__all__:
        lines += _named(ledger, name)
    lines += ["## Python: authz.record", "", *_named(record, "canonical")]
    proto = (_ROOT / "protos" / "authz" / "v1" / "stream.proto").read_text()
    services = [[f"`{name}`", by, of] for name, by, of in _SERVICES]
    lines += ["## gRPC", "", *markdown.table(["Service", "Served by", "Defined by"], services)]
    lines += [_STREAM, "", "```proto", proto.rstrip(), "```", ""]
    lines += ["## HTTP", "", _HTTP, ""]
    routes = LogApi(cast("Pool", None)).routes()  # the store is for answers
    paths = ["/healthz", *(route.path for route in routes)]
    lines += markdown.table(["Path"], [[f"`{path.replace(':path', '')}`"] for path in paths])
    return markdown.page(lines)


def _named(module: ModuleType, name: str) -> list[str]:
    """A function, class or constant of `module`, with what it says of itself."""
    value = getattr(module, name)
    title = f"### {module.__name__}.{name}"
    if not callable(value):
        return [title, "", f"`{value!r}`", ""]
    lines = [title, "", "```python", _signature(name, value), "```", "", _doc(value), ""]
    if inspect.isclass(value) and not issubclass(value, Exception):
        for method, member in vars(value).items():
            if method.startswith("_") or not inspect.getdoc(member):
                continue
            function = member.__func__ if isinstance(member, classmethod) else member
            if isinstance(member, property):
                lines += [f"`.{method}`: {_doc(member)}", ""]
            elif callable(function):
                lines += [f"`.{_signature(method, function)}`: {_doc(member)}", ""]
    return lines


def _signature(name: str, value: Any) -> str:
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    prefix = "class " if inspect.isclass(value) else ""
    signature = re.sub(r"\b[a-z_]+\.(?=[a-z_.]*[A-Z])", "", str(inspect.signature(value)))
    return prefix + name + signature.removesuffix(" -> None")


def _doc(value: Any) -> str:
    return (inspect.getdoc(value) or "").replace("\n\n", "\n")
