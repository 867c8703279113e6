"""The embedded engine: rego-cpp through regopy, for demonstration, development and small sites.

The query is prepared once (an unprepared one costs 14 ms). The interpreter belongs to one thread;
evaluation runs there, so that a slow policy meets the Check's deadline and not the event loop.

Two things about regopy 1.5 that must not be undone: an input given as a Python value keeps its
strings unescaped, and they come back unescaped in the result's JSON, so that a caller could write
parts of the decision (input goes in as JSON text instead, and the result's JSON is never parsed);
and it prints to standard output, patients' data included (so a server closes that).
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import structlog

from authz.errors import UnavailableError, UsageError
from authz.policy import source
from authz.policy.archive import archive, revision
from authz.policy.engine import Decisions, Document, Outcome
from authz.policy.iteration import lost, modern
from authz.policy.limits import LARGE_DATA, refusals, uncommented, unknown_functions
from authz.policy.verdict import UNDEFINED, PolicyError

logger = structlog.get_logger()


class EmbeddedEngine:
    """Decides by the policy in `path`, at the decision `query` (``envoy/authz/allow``)."""

    reads = None  # it has no syntax tree to tell, so nothing it decides is cached
    most = 4  # they are decided one after another
    watch_seconds = 0.25

    def __init__(self, path: Path, query: str) -> None:
        self._path = path
        self._query = query
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._seen: tuple[object, ...] = ()
        self.revision = ""
        self.archive = b""
        self._prepared: _Prepared | None = None
        self._refused = ""

    async def start(self) -> None:
        """Load and prepare. Raises `UsageError` for a policy that cannot decide."""
        self._seen = self._fingerprint()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def decide(self, documents: Sequence[Document], until: float) -> Decisions:
        """Each document's decision, `UNDEFINED` if the policy makes none, `PolicyError` when it
        fails on it, `UnavailableError` for what is not decided before `until`."""
        outcomes: list[Outcome] = []
        future = self._thread.submit(self._decide, documents, until, outcomes)
        try:
            by = future.result(max(until - time.monotonic(), 0))
        except TimeoutError:
            future.cancel()
            by = self.revision
        decided = outcomes[: len(documents)]
        late = UnavailableError("the policy was not decided in time")
        return Decisions(by, decided + [late] * (len(documents) - len(decided)))

    async def look(self) -> None:
        """Reload when files have changed. Raises `UsageError` as long as the policy does not load:
        the last good one stays in force."""
        try:
            seen = self._fingerprint()
        except UsageError:
            return  # a file went while it was looked at, or the policy is being replaced
        if seen != self._seen:
            self._seen, self._refused = seen, ""
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            except UsageError as error:
                self._refused = str(error)
        if self._refused:
            raise UsageError(self._refused)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _fingerprint(self) -> tuple[object, ...]:
        try:
            return source.fingerprint(self._path)
        except OSError as error:
            raise UsageError(f"--policy {self._path}: {error.strerror}") from None

    def _load(self) -> None:
        policy = source.load(self._path)
        for name, text in policy.modules.items():
            for refusal in refusals(text):
                raise UsageError(f"--policy {name}: {refusal}; or use an OPA server")
        texts = {name: uncommented(text) for name, text in policy.modules.items()}
        for name, line, why in lost(texts):
            raise UsageError(f"--policy {name} line {line}: {why}, or use an OPA server")
        if (size := len(orjson.dumps(policy.data))) > LARGE_DATA:
            logger.warning(
                "this much data takes the embedded engine long to prepare; use an OPA server",
                kib=size >> 10,
            )
        modules = {name: modern(text) for name, text in texts.items()}
        self._prepared = _Prepared(replace(policy, modules=modules), self._query)
        self.archive = archive(policy.modules, policy.data_digest)
        self.revision = revision(self.archive)

    def _decide(self, documents: Sequence[Document], until: float, outcomes: list[Outcome]) -> str:
        """Add to `outcomes`, while there is time; returns the revision that decided."""
        assert self._prepared is not None
        for document in documents:
            if time.monotonic() >= until:
                break
            try:
                outcomes.append(self._prepared.decide(document))
            except PolicyError as error:
                outcomes.append(error)
        return self.revision


class _Prepared:
    """One policy, compiled. Used and freed in the engine's thread only."""

    def __init__(self, policy: source.Policy, query: str) -> None:
        try:
            from regopy import Interpreter
            from regopy.rego_shared import RegoError

            from authz.policy.rego_value import plain
        except ImportError:
            raise UsageError(
                "--policy: the embedded engine is not installed; run: pip install 'authz[demo]',"
                " or give the address of an OPA server"
            ) from None
        self._error = RegoError
        self._plain = plain
        self._rego: Any = Interpreter()
        try:
            for name, text in policy.modules.items():
                self._rego.add_module(name, text)
            self._rego.add_data(policy.data)
            self._bundle = self._rego.build("x = data." + query.replace("/", "."))
        except RegoError as error:
            raise UsageError(
                f"--policy does not compile: {_first_error(str(error), policy)}"
            ) from None
        if not self._bundle.ok():
            raise UsageError("--policy does not compile; `opa check` says where")
        for name, function in unknown_functions(policy.modules, self._rego.is_builtin):
            raise UsageError(
                f"--policy {name}: {function} is no function there, nor one of the embedded engine"
            )
        if not _defines(policy, query):
            raise UsageError(
                f"--decision {query}: no rule of that name in package"
                f" {query.rpartition('/')[0].replace('/', '.')}; see --policy and --decision"
            )
        try:
            # Some mistakes, such as an unknown function, show only when the policy is run.
            self.decide({"attributes": {}})
        except PolicyError as error:
            raise UsageError(f"--policy cannot be evaluated: {error}") from None

    def decide(self, document: dict[str, object]) -> object:
        try:
            self._rego.set_input_term(json.dumps(document, ensure_ascii=False, allow_nan=False))
            output = self._rego.query_bundle(self._bundle)
            if not output.ok():
                raise PolicyError("the policy's rules conflict or fail")
            if str(output) == "undefined":
                return UNDEFINED
            return self._plain(output.binding("x"))
        except (self._error, ValueError, RecursionError) as error:
            # The error's text may quote the input: only its place in the policy is told.
            raise PolicyError(f"the policy fails: {_place(str(error))}") from None


def _defines(policy: source.Policy, query: str) -> bool:
    """Whether some module of the query's package has a rule of its name."""
    package, _, rule = query.rpartition("/")
    in_package = re.compile(
        rf"^\s*package\s+{re.escape(package.replace('/', '.'))}\s*(#.*)?$", re.MULTILINE
    )
    names_rule = re.compile(rf"^(?:default\s+)?{re.escape(rule)}\b", re.MULTILINE)
    return any(
        in_package.search(text) and names_rule.search(text) for text in policy.modules.values()
    )


def _first_error(text: str, policy: source.Policy) -> str:
    """File, line and message of the first error in rego-cpp's report on a policy."""
    message = re.search(r"\(errormsg \d+:([^)]*)\)", text)
    place = re.search(r"\(error \d+:([^|)]+)\|(\d+)\|", text)
    shown = message[1] if message else text[:200]
    if place and place[1] in policy.modules:
        line = policy.modules[place[1]].count("\n", 0, int(place[2])) + 1
        return f"{place[1]} line {line}: {shown}"
    return f"{_place(text)} {shown}".strip()


def _place(text: str) -> str:
    """The file that a report names first."""
    place = re.search(r"\(error(?:ast)? \d+:([^|)]+)\|", text)
    return place[1] + ":" if place else ""


def close_standard_output() -> None:
    """For a process that evaluates policies: what the engine prints goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
