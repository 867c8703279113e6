"""A decision cache that is sound, or off.

The key is the whole input document less fields that differ with every request. It is used only if
the policy provably reads none of those and calls nothing that is not a function of its input. An
entry lives a second at most, and all are dropped when the policy changes.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import orjson
from prometheus_client import Counter

from authz.policy.engine import Decisions, Document, Engine, Outcome
from authz.policy.rego_ast import Reads

HITS = Counter("authz_cache_hits_total", "Decisions taken from the cache")

_SECONDS: Final = 1.0
_ENTRIES: Final = 10_000

_HTTP: Final = ("attributes", "request", "http")
_TRACING: Final = (
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
)
VOLATILE: Final = (
    ("attributes", "request", "time"),
    ("attributes", "source", "address", "socketAddress", "portValue"),
    (*_HTTP, "id"),
    *((*_HTTP, "headers", name) for name in _TRACING),
)


class CachedEngine:
    """`engine`, asked only for what was not asked in the last second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        # An outcome and when it is too old, by `time.monotonic()`. A plain dictionary: what is too
        # old is passed over, and all of it goes when there is too much; cachetools' TTLCache, which
        # is finer, costs more than all the rest here.
        self._known: dict[bytes, tuple[Outcome, float]] = {}
        self._judged: Reads | None = None
        self._sound = False
        self._revision = ""

    @property
    def revision(self) -> str:
        return self._engine.revision

    def decide(self, documents: Sequence[Document], deadline: float) -> Decisions:
        """As the engine's; decisions only are kept, errors are not."""
        if not self._usable():
            return self._engine.decide(documents, deadline)
        keys = [cache_key(document) for document in documents]
        now = time.monotonic()
        with self._lock:
            revision = self._revision
            kept = {key: self._known[key] for key in keys if key in self._known}
        found = {key: outcome for key, (outcome, until) in kept.items() if now < until}
        missing = {
            key: document for key, document in zip(keys, documents, strict=True) if key not in found
        }
        HITS.inc(len(documents) - len(missing))
        if missing:
            asked = self._engine.decide(list(missing.values()), deadline)
            answers = dict(zip(missing, asked.outcomes, strict=True))
            until = now + _SECONDS
            new = {k: (v, until) for k, v in answers.items() if not isinstance(v, Exception)}
            with self._lock:
                if asked.revision == revision == self._revision:
                    if len(self._known) > _ENTRIES:
                        self._known.clear()
                    self._known.update(new)
            revision = asked.revision
            found |= answers
        return Decisions(revision, [found[key] for key in keys])

    def _usable(self) -> bool:
        engine = self._engine
        if engine.revision != self._revision or engine.reads is not self._judged:
            with self._lock:
                self._known.clear()
                self._revision = engine.revision
                self._judged = engine.reads
                self._sound = cacheable(engine.reads)
        return self._sound


def cacheable(reads: Reads | None) -> bool:
    """Whether a policy that reads these decides alike whatever the volatile fields hold."""
    return (
        reads is not None
        and reads.function_of_input
        and not any(reads.may_read(path) for path in VOLATILE)
    )


def cache_key(document: dict[str, Any]) -> bytes:
    """All of the document but `VOLATILE`, in one form. The document is not changed."""
    attributes = dict(document.get("attributes", {}))
    request = dict(attributes.get("request", {}))
    request.pop("time", None)
    if http := request.get("http"):
        http = dict(http)
        http.pop("id", None)
        if headers := http.get("headers"):
            http["headers"] = {k: v for k, v in headers.items() if k not in _TRACING}
        request["http"] = http
    attributes["request"] = request
    if source := attributes.get("source"):
        attributes["source"] = _without_port(source)
    return orjson.dumps({**document, "attributes": attributes}, option=orjson.OPT_SORT_KEYS)


def _without_port(source: dict[str, Any]) -> dict[str, Any]:
    address = source.get("address", {})
    socket = address.get("socketAddress")
    if not socket:
        return source
    socket = {name: value for name, value in socket.items() if name != "portValue"}
    return {**source, "address": {**address, "socketAddress": socket}}
