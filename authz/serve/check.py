"""Checks: request to decision, decision to record, records to disk, and only then the answers.

Checks that came together go through these steps together, in one thread: one question to the
engine, one write to the journal. Every way out is an explicit denial or the policy's own answer. A
gRPC error is never sent where a denial can be: Envoy's failure_mode_allow would have something to
act on. `watch_deadlines`, in a thread of its own, answers whatever takes too long.
"""

import contextlib
import hashlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

import structlog

from authz.blocks import Blocks
from authz.config import ExtAuthz
from authz.envoy.answer import answer
from authz.identity.sources import Identities
from authz.journal.group import Ticket
from authz.journal.segments import JournalError
from authz.places import nowhere
from authz.policy.engine import Decider, Document
from authz.policy.verdict import Verdict, denial
from authz.record import Entry, Record
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources
from authz.serve.core_server import Exchange
from authz.serve.decided import decision_record, metadata, new_decision_id
from authz.serve.metrics import BATCHES, CHECKS, IN_FLIGHT, SECONDS, SHED, STAGES
from authz.serve.one_check import Check, Judge
from authz.serve.tracing import CheckTracer

# An answer of no bytes would be an allow. Nobody asked for anything, so nothing is recorded.
UNASKED = answer(denial(400, "bad_request"), {})
METHOD = "/envoy.service.auth.v3.Authorization/Check"
_MARGIN_SECONDS = 0.05  # our answer comes this long before Envoy stops waiting
_JOURNAL_SECONDS = 0.025  # of that time, what a slow policy leaves for its record to reach the disk
_LOOK_SECONDS = 0.01  # how often the clock is looked at for Checks that take too long

logger = structlog.get_logger()


class Keeper(Protocol):
    """Makes records durable: `authz.journal.group.GroupCommit`."""

    def enqueue(self, items: Sequence[Entry]) -> Ticket[Entry]: ...
    def wait(self, ticket: Ticket[Entry]) -> None: ...
    def post(self, item: Entry) -> None: ...


P = ParamSpec("P")
T = TypeVar("T")

Seal: TypeAlias = Callable[[Document, str], bytes]
"""Seals an input document for the decision of this id."""


class CheckService:
    """``envoy.service.auth.v3.Authorization``. `handle` runs in several threads at once."""

    def __init__(
        self, config: ExtAuthz, identities: Identities, blocks: Blocks, engine: Decider,
        keeper: Keeper, key: PrivacyKey, resources: Resources, *, seal: Seal | None = None,
        tracer: CheckTracer | None = None, shown: Sequence[str] = (),
        country: Callable[[str], str] = nowhere,
    ) -> None:  # fmt: skip
        """`shown` are the paths below which Envoy shows the answers: `disclosure.routes`. `country`
        tells that of an address."""
        self._country = country
        self._config = config
        self._judge = Judge(config, identities, blocks, resources)
        self._seal = seal
        self._tracer = tracer
        self._engine = engine
        self._keeper = keeper
        self._key = key
        self._shown = tuple(f"{route.rstrip('/')}/" for route in shown)
        self._budget = config.timeout_ms / 1000 - _MARGIN_SECONDS
        # Checks without an answer. Whoever takes one out answers it, and nobody else does.
        self._open: dict[Check, None] = {}
        # Over taking a Check out and placing its record, so that the last record of a decision is
        # the one that was answered.
        self._order = threading.Lock()
        self._closing = threading.Event()
        IN_FLIGHT.set_function(lambda: len(self._open))

    def handle(self, exchanges: list[Exchange]) -> None:
        """Answer each. Raises nothing."""
        begun = time.perf_counter()
        checks = [self._begin(exchange) for exchange in exchanges]
        answered = []
        try:
            for check in checks:
                self._guarded(self._judge.read, check)
            parsed = time.perf_counter()
            self._decide([check for check in checks if check.document is not None])
            decided = time.perf_counter()
            records = self._keep(checks)
            kept = time.perf_counter()
            answered = [
                check for check, record in records if self._guarded(self._answer, check, record)
            ]
        except Exception as error:  # noqa: BLE001 - a bug ends in a denial
            for check in checks:
                self._internal_error(check, error)
        else:
            BATCHES.observe(len(checks))
            _PARSE.observe(parsed - begun)
            _DECIDE.observe(decided - parsed)
            _RECORD.observe(kept - decided)
            _ANSWER.observe(time.perf_counter() - kept)
            if self._tracer:
                self._trace(checks, begun, parsed, decided, kept)
        self._count(answered, enforced=not self._config.dry_run)

    def shed(self, exchanges: list[Exchange]) -> None:
        """Deny each at once: too many are under way."""
        SHED.inc(len(exchanges))
        for check in [self._begin(exchange) for exchange in exchanges]:
            self._guarded(self._judge.read, check)
            self._guarded(self._refuse, check, denial(503, "overloaded"))

    def watch_deadlines(self) -> None:
        """Deny what is not answered in time. Runs until `close`."""
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for check in list(self._open):
                if check.until <= now:
                    # The record on its way may say allowed. This one, of the same decision, comes
                    # after it.
                    self._guarded(self._refuse, check, denial(503, "deadline"))

    def _guarded(
        self, step: Callable[Concatenate[Check, P], T], check: Check,
        *args: P.args, **kwargs: P.kwargs,
    ) -> T | None:  # fmt: skip
        """A step of one Check. A bug in it denies this one, and none that came with it."""
        try:
            return step(check, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug ends in a denial
            self._internal_error(check, error)
            return None

    def close(self) -> None:
        self._closing.set()

    def _begin(self, exchange: Exchange) -> Check:
        left = exchange.deadline - time.time() - _MARGIN_SECONDS
        now = time.monotonic()
        check = Check(exchange, new_decision_id(), now, now + max(min(self._budget, left), 0))
        self._open[check] = None
        return check

    def _decide(self, checks: list[Check]) -> None:
        """Input documents to verdicts."""
        self._ask(checks)
        # The policy may know a person by another name, and have not seen what is said of that one.
        self._ask([check for check in checks if self._guarded(self._judge.reconsider, check)])

    def _ask(self, checks: list[Check]) -> None:
        if not checks:
            return
        until = max(check.until for check in checks) - _JOURNAL_SECONDS
        documents = [check.document for check in checks if check.document is not None]
        revision, outcomes = self._engine.decide(documents, until)
        for check, outcome in zip(checks, outcomes, strict=True):
            check.revision = revision
            self._guarded(self._judge.rule, check, outcome)

    def _keep(self, checks: list[Check]) -> list[tuple[Check, Record]]:
        """The Checks that are still to be answered, each with its record, which is on disk."""
        entries = [
            (check, entry)
            for check in checks
            if check in self._open and (entry := self._guarded(self._entry, check))
        ]
        with self._order:
            due = [(check, entry) for check, entry in entries if check in self._open]
            ticket = self._keeper.enqueue([entry for _, entry in due])
        try:
            self._keeper.wait(ticket)
        except JournalError as error:
            logger.error("decisions could not be recorded", error=str(error), count=len(due))
            for check, _ in due:
                self._refuse(check, denial(503, "journal_unavailable"))
            return []
        return [(check, record) for check, (record, _) in due]

    def _entry(self, check: Check) -> Entry:
        """The record, with what the policy decided on, sealed, if that is wanted."""
        record = self._record(check)
        if self._seal is None or check.document is None or not check.revision:
            return record, b""
        sealed = self._seal(check.document, check.decision_id)
        record["sealed"] = hashlib.sha256(sealed).hexdigest()
        return record, sealed

    def _answer(self, check: Check, record: Record) -> bool:
        """Whether this is its answer, and nothing else was."""
        assert check.verdict is not None
        verdict = check.verdict
        if self._config.dry_run and not verdict.allowed:
            verdict = Verdict(allowed=True, http_status=200, reason_code="dry_run", plain=True)
        response = answer(verdict, metadata(record))
        if self._open.pop(check, self) is self:
            return False
        check.answered = check.verdict
        check.exchange.on_gone = lambda: self._gone(check)
        if not self._send(check, response):
            self._gone(check)
            return False
        return True

    def _send(self, check: Check, response: bytes) -> bool:
        """Whether it went out. If not, nothing else would either."""
        try:
            check.exchange.answer(response)
        except Exception as error:  # noqa: BLE001 - the others' answers wait for this one
            _complain("no answer could be sent", error, check)
            return False
        return True

    def _gone(self, check: Check) -> None:
        """Nobody got the answer. Its record is there already; this one says so."""
        self._keeper.post((self._record(check, denial(503, "client_gone")), b""))

    def _refuse(self, check: Check, verdict: Verdict) -> None:
        """Deny for a reason of our own, recorded as soon as that is possible, without waiting.

        Envoy's entry does not name the decision, which may be on record nowhere.
        """
        record = self._record(check, verdict)
        with self._order:
            if self._open.pop(check, self) is self:
                return
            self._keeper.post((record, b""))
        check.answered = verdict
        self._send(check, answer(verdict, {}))
        self._count([check], enforced=True)

    def _internal_error(self, check: Check, error: Exception) -> None:
        """Deny, and record with nothing that a bug could have spoilt. Raises nothing."""
        verdict = denial(500, "internal_error")
        record: Record = {
            "kind": "decision",
            "time": time.time_ns() // 1000,
            "decision_id": check.decision_id,
            "enforced": True,
            "reason_code": verdict.reason_code,
            "status": verdict.http_status,
        }
        with self._order:
            mine = self._open.pop(check, self) is not self
            if mine:
                self._keeper.post((record, b""))
        if mine:
            check.answered = verdict
            self._send(check, answer(verdict, {"decision_id": check.decision_id}))
            self._count([check], enforced=True)
        _complain("a bug in Check", error, check)

    def _trace(self, checks: list[Check], *ends: float) -> None:
        """`ends` are those of the stages by `time.perf_counter()`, the first their beginning."""
        assert self._tracer is not None
        now_ns, now = time.time_ns(), time.perf_counter()
        begun, *stages = [now_ns - int((now - end) * 1e9) for end in ends]
        named = list(zip(("parse", "decide", "record"), stages, strict=True))
        named.append(("answer", now_ns))
        for check in checks:
            if check.answered is not None:
                attributes: dict[str, str | bool] = {
                    "authz.decision_id": check.decision_id,
                    "authz.allowed": check.answered.allowed,
                    "authz.enforced": not self._config.dry_run,
                    "authz.reason_code": check.answered.reason_code,
                    "authz.policy_revision": check.revision,
                }
                self._tracer.check(check.facts.traceparent, begun, named, attributes)

    def _count(self, checks: list[Check], *, enforced: bool) -> None:
        now = time.monotonic()
        outcomes: Counter[tuple[str, str]] = Counter()
        for check in checks:
            SECONDS.observe(now - check.began)
            if verdict := check.answered:
                outcomes["allowed" if verdict.allowed else "denied", verdict.reason_code] += 1
        for (outcome, reason_code), number in outcomes.items():
            CHECKS.labels(outcome, reason_code, "true" if enforced else "false").inc(number)

    def _record(self, check: Check, verdict: Verdict | None = None) -> Record:
        """The record of this verdict, or of the Check's own. What we refuse by ourselves is
        enforced in a dry run too."""
        own = verdict or check.verdict
        assert own is not None
        return decision_record(
            check.facts, check.resource, check.identity, own, self._key,
            decision_id=check.decision_id,
            revision=check.revision or self._engine.revision,
            note=check.note,
            enforced=verdict is not None or not self._config.dry_run,
            discloses=verdict is None and self._discloses(check, own),
            country=self._country(check.facts.source_ip),
        )  # fmt: skip

    def _discloses(self, check: Check, verdict: Verdict) -> bool:
        """Whether an answer of the service comes, and Envoy shows it."""
        path = f"{check.resource.path}/"
        return path.startswith(self._shown) and (verdict.allowed or self._config.dry_run)


_PARSE, _DECIDE, _RECORD, _ANSWER = (
    STAGES.labels(stage) for stage in ("parse", "decide", "record", "answer")
)


def _complain(what: str, error: Exception, check: Check) -> None:
    """To the log, without the error's own text: it may quote the request."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    with contextlib.suppress(Exception):  # a log that cannot be written stops nobody's answer
        logger.error(what, error=type(error).__name__, at=at, decision_id=check.decision_id)
