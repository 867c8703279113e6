"""One Check: request to decision, decision to record, record to disk, and only then the answer.

Every way out is an explicit denial or the policy's own answer. A gRPC error is never sent where a
denial can be: Envoy's failure_mode_allow would have something to act on.
"""

import asyncio
import os
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError

from authz.blocks import Blocks
from authz.config import ExtAuthz
from authz.envoy.answer import answer
from authz.envoy.check import (
    BadRequestError,
    Facts,
    facts,
    input_document,
    unsafe_path,
)
from authz.errors import UnavailableError
from authz.journal.chain import Entry
from authz.journal.segments import JournalError
from authz.policy.verdict import PolicyError, Verdict, denial, read_verdict
from authz.record import DECIDED, Record, clean
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resource, Resources
from authz.serve.metrics import CHECKS, IN_FLIGHT, SECONDS

_MARGIN_SECONDS = 0.05  # our answer comes this long before Envoy stops waiting
_JOURNAL_SECONDS = 0.025  # of that time, what a slow policy leaves for its record to reach the disk

logger = structlog.get_logger()


class Engine(Protocol):
    """What decides: the embedded engine, or an OPA server."""

    @property
    def revision(self) -> str: ...

    async def decide(self, document: dict[str, object]) -> object:
        """The decision; `UNDEFINED` for none. `PolicyError` or `UnavailableError` otherwise."""


class Keeper(Protocol):
    """Makes records durable."""

    def submit(self, item: Entry) -> "asyncio.Future[None]": ...
    def submit_unawaited(self, item: Entry) -> None: ...


_NO_FACTS = Facts()
_NO_RESOURCE = Resource("")


@dataclass(slots=True)
class _Check:
    """What is known of one Check so far; each step fills in more."""

    decision_id: str
    facts: Facts
    resource: Resource
    note: str = ""  # what went wrong, for the record only


class CheckService:
    """``envoy.service.auth.v3.Authorization``."""

    def __init__(
        self, config: ExtAuthz, engine: Engine, keeper: Keeper, key: PrivacyKey,
        resources: Resources, blocks: Blocks,
    ) -> None:  # fmt: skip
        self._config = config
        self._engine = engine
        self._keeper = keeper
        self._key = key
        self._resources = resources
        self._blocks = blocks
        self._deny_unsafe = config.unsafe_paths == "deny"
        self._budget = config.timeout_ms / 1000 - _MARGIN_SECONDS

    def handlers(self) -> list["grpc.GenericRpcHandler[Any, Any]"]:
        check = grpc.unary_unary_rpc_method_handler(self.check)  # bytes in, bytes out: we parse
        return [
            grpc.method_handlers_generic_handler(
                "envoy.service.auth.v3.Authorization", {"Check": check}
            )
        ]

    async def check(
        self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> bytes:
        """Authorization.Check. Raises nothing but `CancelledError`, when the client went away."""
        begun = time.perf_counter()
        check = _Check(new_decision_id(), _NO_FACTS, _NO_RESOURCE)
        left = context.time_remaining()
        budget = self._budget if left is None else min(self._budget, left - _MARGIN_SECONDS)
        with IN_FLIGHT.track_inprogress():
            try:
                verdict, metadata = await self._answer(check, request, max(budget, 0.0))
                response = answer(verdict, metadata)
            except Exception as error:  # noqa: BLE001 - a bug ends in a denial
                verdict, response = self._internal_error(check, error)
        outcome = "allowed" if verdict.allowed else "denied"
        CHECKS.labels(outcome, verdict.reason_code).inc()
        SECONDS.observe(time.perf_counter() - begun)
        return response

    async def _answer(
        self, check: _Check, request: bytes, budget: float
    ) -> tuple[Verdict, dict[str, object]]:
        """The verdict to send, and the metadata that goes with it; its record is on disk."""
        until = asyncio.get_running_loop().time() + budget
        try:
            verdict = await self._decide(check, request, until)
            record = self._record(check, verdict)
            enforced = self._enforced(verdict)
            await self._keep(record, until)
        except asyncio.CancelledError:
            # Nobody gets this answer. If a record is on its way already, this one comes after it.
            self._keeper.submit_unawaited((self._record(check, denial(503, "client_gone")), b""))
            raise
        except TimeoutError:
            # The record on its way may say allowed. This one, of the same decision, comes after it.
            return self._refuse(check, denial(503, "deadline"))[0], {}
        except JournalError as error:
            logger.error("a decision could not be recorded", error=str(error))
            # Envoy's entry must not name a decision that may be on record nowhere.
            return self._refuse(check, denial(503, "journal_unavailable"))[0], {}
        return enforced, _metadata(record)

    async def _decide(self, check: _Check, request: bytes, until: float) -> Verdict:
        """Request to verdict. Nothing is recorded yet."""
        if len(request) > self._config.max_request_bytes:
            return denial(413, "bad_request")
        try:
            message = CheckRequest.FromString(request)
            check.facts = facts(message)
            if not check.facts.has_http and not self._config.tcp:
                return denial(400, "bad_request")
            check.resource = self._resources.read(check.facts.method, check.facts.path)
            if self._deny_unsafe and unsafe_path(check.facts.path):
                return denial(400, "unsafe_path")
            document = input_document(message)
        except DecodeError:
            return denial(400, "bad_request")
        except BadRequestError as error:
            return denial(400, "bad_request", str(error))
        if self._blocked(check, _text_claim(check.facts.claims or {}, "sub")):
            return denial(403, "blocked")
        try:
            async with asyncio.timeout_at(until - _JOURNAL_SECONDS):
                verdict = read_verdict(await self._engine.decide(document))
                # The policy may know the person by another name, which is the one on record.
                blocked = self._blocked(check, verdict.audit.subject)
                return denial(403, "blocked") if blocked else verdict
        except PolicyError as error:
            check.note = str(error)
            logger.error("policy error", error=check.note, decision_id=check.decision_id)
            return denial(403, "policy_error")
        except (UnavailableError, TimeoutError) as error:
            check.note = str(error) or "the policy engine did not answer in time"
            logger.error("no decision", error=check.note, decision_id=check.decision_id)
            return denial(503, "policy_unavailable")

    def _blocked(self, check: _Check, subject: str) -> bool:
        block = self._blocks.find(subject, time.time_ns() // 1000) if subject else None
        if block:
            check.note = f"blocked ({block.id}): {block.reason}"
        return block is not None

    async def _keep(self, record: Record, until: float) -> None:
        """Returns once `record` is on disk."""
        durable = self._keeper.submit((dict(record), b""))
        async with asyncio.timeout_at(until):
            await durable

    def _refuse(self, check: _Check, verdict: Verdict) -> tuple[Verdict, dict[str, object]]:
        """Deny for a reason of our own, recorded as soon as that is possible, without waiting."""
        record = self._record(check, verdict)
        self._keeper.submit_unawaited((dict(record), b""))
        return verdict, _metadata(record)

    def _internal_error(self, check: _Check, error: Exception) -> tuple[Verdict, bytes]:
        """Deny, and record with nothing that a bug could have spoilt. The error's own text stays
        out of the log: it may quote the request."""
        frames = traceback.extract_tb(error.__traceback__)
        at = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        logger.error(
            "a bug in Check", error=type(error).__name__, at=at, decision_id=check.decision_id
        )
        verdict = denial(500, "internal_error")
        record: Record = {
            "kind": "decision",
            "time": time.time_ns() // 1000,
            "decision_id": check.decision_id,
            "enforced": True,
            "reason_code": verdict.reason_code,
            "status": verdict.http_status,
        }
        self._keeper.submit_unawaited((record, b""))
        return verdict, answer(verdict, {"decision_id": check.decision_id})

    def _enforced(self, verdict: Verdict) -> Verdict:
        if self._config.dry_run and not verdict.allowed:
            return Verdict(allowed=True, http_status=200, reason_code="dry_run", plain=True)
        return verdict

    def _record(self, check: _Check, verdict: Verdict) -> Record:
        told, resource, audit = check.facts, check.resource, verdict.audit
        claims = told.claims or {}
        token = self._key.token
        patients = dict.fromkeys([*audit.patients, *resource.patients])
        kind, identifier = resource.type, resource.id
        if not kind:
            kind, _, identifier = audit.resource.partition("/")
        if kind == "Patient" and identifier:
            identifier = token(identifier)
        return clean(
            {
                "kind": "decision",
                "time": told.time_us or time.time_ns() // 1000,
                "decision_id": check.decision_id,
                "subject": audit.subject or _text_claim(claims, "sub"),
                "principal": told.principal,
                "roles": list(audit.roles) or _roles_claim(claims),
                "tenant": audit.tenant,
                "purpose": audit.purpose,
                "reason": audit.reason or check.note,
                "allowed": verdict.allowed,
                "enforced": not self._config.dry_run,
                "reason_code": verdict.reason_code,
                "break_glass": audit.break_glass,
                "policy_revision": self._engine.revision,
                "method": told.method,
                "host": told.host,
                "path": resource.path,
                "resource_type": kind,
                "resource_id": identifier,
                "patients": [token(patient) for patient in patients],
                "action": resource.action,
                "source_ip": told.source_ip,
                "user_agent": told.user_agent,
                "status": 0 if verdict.allowed else verdict.http_status,
                "request_id": told.request_id,
                "trace_id": told.trace_id,
            }
        )


def _metadata(record: Mapping[str, object]) -> dict[str, object]:
    """What Envoy's access log brings back, so that the access says all the decision said."""
    brought = {name: record[name] for name in DECIDED if name in record}
    return {"decision_id": record["decision_id"], "authz": brought}


def new_decision_id() -> str:
    """A UUID, version 7 (RFC 9562): its order is that of time, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | random
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    return str(uuid.UUID(int=value))


def _text_claim(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""


def _roles_claim(claims: Mapping[str, object]) -> list[str]:
    value = claims.get("roles")
    if isinstance(value, str):
        return [value]
    return [role for role in value if isinstance(role, str)] if isinstance(value, list) else []
