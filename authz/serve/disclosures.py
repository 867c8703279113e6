"""Whose data an answer holds: Envoy's ext_proc filter shows it, and a record says so.

Each answer is read by one of a few threads, as it streams by: a stream's next message is asked for
when the one before has been read, so what is in memory is bounded by the streams and their bounds.
Nothing of a body is kept, and nothing of it but tokens and counts gets into a record.

What is only observed is read a moment later: on its way to the client the answer has the processor
to itself.

An answer that Envoy has wait (mode hold) is kept here until its records are on disk. It is refused
with 503 if they cannot be, or if it is larger than may be held.
"""

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import structlog
from google.protobuf.message import DecodeError

from authz.config import Disclosure
from authz.disclosure import Answer, Reading, Rule, Seen
from authz.envoy import processing
from authz.envoy.processing import Begun, More
from authz.journal.segments import JournalError
from authz.record import FIELD, Entry, clean
from authz.record.privacy import PrivacyKey
from authz.serve.check import Keeper
from authz.serve.core_stream import Stream
from authz.serve.metrics import DISCLOSURES

_THREADS = 4
_LATER_SECONDS = 0.02
_PATIENTS = FIELD["patients"].items
# The decision's values that the disclosure repeats: who and why, and what was asked for.
_REPEATED = (
    "subject", "roles", "tenant", "purpose", "reason", "break_glass", "policy_revision", "path",
    "action", "decided_by",
)  # fmt: skip
_SWITCHING_PROTOCOLS = 101
_NOBODY = Seen((), {}, "")
_BUG = "internal_error"

logger = structlog.get_logger()


def reading_of(config: Disclosure) -> Reading:
    """How answers are read. Raises `UsageError` for a rule that is none."""
    rules = [Rule(rule.path, tuple(rule.patients), rule.resource_type) for rule in config.rules]
    return Reading(
        max_bytes=config.max_bytes, max_patients=config.max_patients, rules=rules,
        header=config.header,
    )  # fmt: skip


class Processor:
    """``envoy.service.ext_proc.v3.ExternalProcessor``, as a `core_stream.Handler`."""

    def __init__(self, config: Disclosure, keeper: Keeper, key: PrivacyKey) -> None:
        self._config = config
        self._reading = reading_of(config)
        self._keeper = keeper
        self._key = key
        self._lock = threading.Lock()  # over the next
        self._open: dict[Stream, _Shown] = {}
        self._queues = [queue.SimpleQueue[_Event | None]() for _ in range(_THREADS)]
        self._threads = [
            threading.Thread(target=self._work, args=(events,), name="disclosure", daemon=True)
            for events in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def received(self, stream: Stream, message: bytes) -> bool:
        self._put(stream, message)
        return False  # not before this one has been read

    def half_closed(self, stream: Stream) -> None:
        self._put(stream, None)

    def left(self, stream: Stream) -> None:
        self._put(stream, None)

    def close(self) -> None:
        """Read what has come, and record it. Call it when no more comes."""
        for events in self._queues:
            events.put(None)
        for thread in self._threads:
            thread.join()

    def _put(self, stream: Stream, message: bytes | None) -> None:
        """To the stream's own thread, so that what comes is read in order; None is its end."""
        with self._lock:
            shown = self._open.get(stream)
            if message is None:
                self._open.pop(stream, None)
            elif shown is None:
                crowded = len(self._open) >= self._config.max_concurrent
                shown = self._open[stream] = _Shown(self._config, crowded=crowded)
        if shown is not None:
            self._queues[id(stream) // 64 % _THREADS].put((stream, shown, message))

    def _work(self, events: "queue.SimpleQueue[_Event | None]") -> None:
        later: deque[tuple[float, Stream]] = deque()  # to be read on, and when
        while True:
            left = later[0][0] - time.monotonic() if later else None
            if left is not None and left <= 0:
                later.popleft()[1].read_on()
                continue
            try:
                event = events.get(timeout=left)
            except queue.Empty:
                continue
            if event is None:
                return
            try:
                if self._take(*event):
                    later.append((time.monotonic() + _LATER_SECONDS, event[0]))
            except Exception as error:  # noqa: BLE001 - the next answers are to be read
                _complain("an answer could not be ended", error)
            del event  # nothing of an answer stays while none comes

    def _take(self, stream: Stream, shown: "_Shown", message: bytes | None) -> bool:
        """Read a message; returns whether the next is to be read later."""
        beginning = shown.begun is None
        try:
            if shown.take(message, self._reading):
                self._finish(stream, shown)
        except Exception as error:  # noqa: BLE001 - nothing gets through unseen by a bug
            _complain("a bug in reading an answer", error)
            self._give_up(stream, shown)
        if message is None or shown.done:
            stream.end()
        elif beginning and not shown.waits:
            return True
        else:
            stream.read_on()
        return False

    def _finish(self, stream: Stream, shown: "_Shown") -> None:
        """Record an answer that was shown whole, or as far as it came; then it may go."""
        shown.done = True
        seen = shown.seen()
        entries = shown.entries(seen, self._key) if seen else []
        if not shown.waits:
            self._post(entries)
        elif shown.held is None:
            self._hold_back(stream, shown, "not whole, or more than may be held")
            return
        else:
            try:
                self._keeper.wait(self._keeper.enqueue(entries))
            except JournalError as error:
                self._hold_back(stream, shown, str(error))
                return
            for message in shown.released(self._config.header):
                stream.send(message)
        if seen:
            DISCLOSURES.labels(seen.trouble or "complete").inc()

    def _hold_back(self, stream: Stream, shown: "_Shown", why: str) -> None:
        """Nobody sees it: 503 instead. On record as soon as that is possible, without waiting."""
        logger.error("an answer is held back", reason=why)
        shown.held = None
        DISCLOSURES.labels("held_back").inc()
        self._post(shown.entries(_NOBODY, self._key, "held_back"))
        stream.send(processing.refuse())

    def _give_up(self, stream: Stream, shown: "_Shown") -> None:
        """After a bug. What was shown counts as unresolved."""
        done, shown.done = shown.done, True
        if shown.waits:
            self._hold_back(stream, shown, _BUG)
        elif not done:
            DISCLOSURES.labels(_BUG).inc()
            self._post(shown.entries(Seen((), {}, _BUG), self._key))

    def _post(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._keeper.post(entry)


def _complain(what: str, error: Exception) -> None:
    """To the log, without the error's own text: it may quote the answer."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    logger.error(what, error=type(error).__name__, at=at)


class _Shown:
    """One answer, as far as it was shown."""

    def __init__(self, config: Disclosure, *, crowded: bool) -> None:
        self.begun: Begun | None = None
        self.done = False
        self.size = 0
        """Of the body, in bytes, as it was sent."""
        self.held: list[bytes] | None = None if crowded else []
        """The body, of an answer that waits; None if that is too much."""
        self._hold_bytes = config.hold_bytes
        self._answer: Answer | None = None
        self._trouble = "overloaded" if crowded else ""
        self._whole = False
        self._trailers = False

    @property
    def waits(self) -> bool:
        """Whether the client waits for what is sent back."""
        return self.begun is not None and self.begun.awaited

    def take(self, message: bytes | None, reading: Reading) -> bool:
        """Read a message, or (None) that no more comes; whether the answer is over by that."""
        if self.done:
            return False
        if message is None:
            self.held = None  # of what waits, nothing has gone out and nothing will
            return self.begun is not None
        try:
            told = processing.read(message)
        except DecodeError:
            self._trouble = self._trouble or "malformed"
            self.held = None  # a part of it is missing
            return self.waits
        if isinstance(told, Begun):
            self._begin(told, reading)
            self._whole = told.ended
        elif isinstance(told, More):
            self._more(told)
        return self._whole or (self.waits and self.held is None)

    def _begin(self, begun: Begun, reading: Reading) -> None:
        self.begun = begun
        if begun.status == _SWITCHING_PROTOCOLS:
            self._trouble = self._trouble or "upgrade"
        if begun.from_upstream and not self._trouble:
            template = str(_decided(begun).get("path", ""))
            self._answer = Answer(reading, begun.status, begun.headers, template=template)

    def _more(self, told: More) -> None:
        self.size += len(told.body)
        if self._answer is not None:
            self._answer.feed(told.body)
        if self.waits and self.held is not None:
            self.held.append(told.body)
            if self.size > self._hold_bytes:
                self.held = None
        self._whole, self._trailers = told.ended, told.trailers

    def seen(self) -> Seen | None:
        """What is to be recorded; None for an answer that ext-authz gave itself."""
        assert self.begun is not None
        if not self.begun.from_upstream:
            # Envoy's own: a denial, or what stands for a service that did not answer.
            return _NOBODY if _let_in(self.begun) else None
        seen = self._answer.finish(cut=not self._whole) if self._answer is not None else _NOBODY
        self._answer = None
        return replace(seen, trouble=self._trouble or seen.trouble)

    def entries(self, seen: Seen, key: PrivacyKey, reason_code: str = "") -> list[Entry]:
        """The records of it, many where the patients are many; none before it has begun."""
        if self.begun is None:
            return []
        decided = _decided(self.begun)
        tokens = [key.token(patient) for patient in seen.patients]
        parts = [tokens[at : at + _PATIENTS] for at in range(0, len(tokens), _PATIENTS)] or [[]]
        common: dict[str, object] = {
            "kind": "disclosure",
            "time": time.time_ns() // 1000,
            "decision_id": self.begun.said.get("decision_id", ""),
            **{name: decided[name] for name in _REPEATED if name in decided},
            "status": self.begun.status,
            "reason_code": reason_code or seen.trouble,
            "complete": seen.complete,
        }
        entries: list[Entry] = []
        for number, part in enumerate(parts, 1):
            told = {"part": number, "parts": len(parts), "patients": len(tokens)}
            details = orjson.dumps({**told, "types": seen.types}, option=orjson.OPT_SORT_KEYS)
            size = self.size if number == 1 else 0
            own = {"patients": part, "details": details.decode(), "bytes_out": size}
            entries.append((clean({**common, **own}), b""))
        return entries

    def released(self, header: str) -> list[bytes]:
        """The messages that let it go to the client."""
        assert self.begun is not None
        held, self.held = self.held or [], None
        return processing.release(
            held, remove=[header], bodiless=self.begun.ended, trailers=self._trailers
        )


_Event = tuple[Stream, _Shown, bytes | None]


def _decided(begun: Begun) -> dict[str, Any]:
    """The decision's values that Envoy's metadata repeat."""
    decided = begun.said.get("authz", {})
    return decided if isinstance(decided, dict) else {}


def _let_in(begun: Begun) -> bool:
    """Whether the request was let through to the service."""
    decided = _decided(begun)
    return bool(decided.get("allowed")) or (
        "decision_id" in begun.said and not decided.get("enforced")
    )
