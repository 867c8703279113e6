"""Looks at a policy with a real OPA, and gathers what `review` needs and what only OPA can say."""

import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from authz.errors import UnavailableError, UsageError
from authz.policy import source
from authz.policy.iteration import lost
from authz.policy.limits import LARGE_DATA, refusals, uncommented, unknown_functions
from authz.policy.opa import OpaOptions, is_server
from authz.policy.opa_ask import Module, asking
from authz.policy.opa_process import dialect, find_opa, running, write
from authz.policy.rego_places import overlap, rule_path
from authz.policy.review import At, Finding, Review, Source, review


async def examine(options: OpaOptions, decision: str) -> Review:
    """The review of the policy at an address, or in files that `options.url` names (by a temporary
    OPA).

    Raises `UsageError` for a policy that does not compile or has no such decision,
    `UnavailableError` without OPA.
    """
    with ExitStack() as stack:
        files = None if is_server(options.url) else source.load(Path(options.url))
        if files is not None:
            options = OpaOptions(stack.enter_context(running(files)))
        async with asking(options, decision) as opa:
            modules = await opa.modules()
    require(modules, decision)
    texts = {module.name: module.text for module in modules}
    checked = files or source.Policy(texts, {})
    parsed, strict = _read(checked)
    sources = [Source(module, _aligned(module, parsed.get(module.name))) for module in modules]
    found = review(sources, decision)
    more = [*strict, *(_embedded(files) if files else ())]
    return Review(
        found.decision, found.modules, found.reads, found.uncached, found.alone,
        (*found.findings, *more),
    )  # fmt: skip


def require(modules: Iterable[Module], decision: str) -> None:
    """Raises `UsageError` unless some rule of the policy is, or is part of, the decision."""
    asked = tuple(decision.split("/"))
    for module in modules:
        for rule in module.tree.get("rules", ()):
            if overlap(rule_path(module.tree, rule), asked):
                return
    raise UsageError(f"--decision {decision}: the policy has no rule of that name")


def _aligned(module: Module, rules: list[Mapping[str, Any]] | None) -> tuple[Any, ...]:
    """The parsed rules, if they are one for one those of the compiled module."""
    compiled = module.tree.get("rules", ())
    return tuple(rules) if rules is not None and len(rules) == len(compiled) else ()


def _read(policy: source.Policy) -> tuple[dict[str, list[Mapping[str, Any]]], list[Finding]]:
    """Each module's rules with their locations, and what ``opa check --strict`` says; nothing
    without the program, since an address needs none."""
    try:
        program = find_opa()
    except UnavailableError:
        return {}, []
    with tempfile.TemporaryDirectory(prefix="authz-opa-") as temporary:
        directory = Path(temporary) / "policy"
        named = {f"{n}.rego": text for n, text in enumerate(policy.modules.values())}
        names = dict(zip(named, policy.modules, strict=True))
        write(source.Policy(named, {}), directory)
        options = dialect(program, directory)
        parsed = {}
        for file, name in names.items():
            told = _run(
                program, "parse", "--format", "json",
                "--json-include", "locations,-comments", *options, file, cwd=directory,
            )  # fmt: skip
            parsed[name] = orjson.loads(told.stdout).get("rules", []) if told.stdout else []
        told = _run(program, "check", "--strict", "--format", "json", *options, ".", cwd=directory)
    return parsed, list(_strict(told.stderr or told.stdout, names))


def _strict(output: bytes, names: Mapping[str, str]) -> Iterator[Finding]:
    try:
        errors = orjson.loads(output or b"{}").get("errors") or []
    except orjson.JSONDecodeError:
        errors = []
    for error in errors:
        location = error.get("location") or {}
        file = str(location.get("file", "")).removeprefix("./")
        at = At(names.get(file, file), int(location.get("row", 0)))
        yield Finding("warning", "strict", str(error.get("message", "")), at)


def _run(program: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, check=False)


def _embedded(policy: source.Policy) -> Iterator[Finding]:
    """What the embedded engine, which such files may be given to, cannot do."""
    for name, text in policy.modules.items():
        for refusal in refusals(text):
            yield Finding(
                "warning", "embedded", f"not for the embedded engine: {refusal}", At(name)
            )
    texts = {name: uncommented(text) for name, text in policy.modules.items()}
    for name, line, why in lost(texts):
        yield Finding("warning", "embedded", why, At(name, line))
    for name, function in _unknown(policy):
        text = f"not for the embedded engine: it has no {function}"
        yield Finding("warning", "embedded", text, At(name))
    size = len(orjson.dumps(policy.data))
    if size > LARGE_DATA:
        text = (
            f"the data is {size / 1024:.0f} KiB: the embedded engine takes seconds to prepare"
            " more than 256 KiB, and the time grows with the square; use an OPA server"
        )
        yield Finding("warning", "embedded", text, At("data.json"))


def _unknown(policy: source.Policy) -> Iterator[tuple[str, str]]:
    try:
        from regopy import Interpreter
    except ImportError:
        return
    yield from unknown_functions(policy.modules, Interpreter().is_builtin)
