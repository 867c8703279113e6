"""One Check by itself: its request to the input document, and what the engine says to a verdict.
Nothing here waits, or knows of other Checks."""

import time
from dataclasses import dataclass

import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError

from authz.blocks import Blocks
from authz.config import ExtAuthz
from authz.envoy.check import BadRequestError, Facts, complete, facts, told, unsafe_path
from authz.envoy.parsing import ambiguous_credentials
from authz.errors import UnavailableError
from authz.identity.sources import Identities, RefusedError, shown
from authz.identity.values import NOBODY, Identity
from authz.policy.engine import Document, Outcome
from authz.policy.verdict import PolicyError, Verdict, denial, read_verdict
from authz.record.resource import Resource, Resources
from authz.serve.core_server import Exchange

logger = structlog.get_logger()

_NO_FACTS = Facts()
_NO_RESOURCE = Resource("")


@dataclass(slots=True, eq=False)
class Check:
    """What is known of one Check so far; each step fills in more."""

    exchange: Exchange
    decision_id: str
    began: float
    until: float
    """When it must be answered, by `time.monotonic()`."""
    facts: Facts = _NO_FACTS
    resource: Resource = _NO_RESOURCE
    identity: Identity = NOBODY
    document: Document | None = None
    """What the policy is asked; None when it needs not be."""
    verdict: Verdict | None = None
    """For the thread that handles it."""
    answered: Verdict | None = None
    """What was answered, set by whoever did."""
    revision: str = ""
    note: str = ""  # what went wrong, for the record only


class Judge:
    """Fills in a `Check`, step by step; holds nothing of any."""

    def __init__(
        self, config: ExtAuthz, identities: Identities, blocks: Blocks, resources: Resources
    ) -> None:
        self._identities = identities
        self._blocks = blocks
        self._resources = resources
        self._tcp = config.tcp
        self._max_bytes = config.max_request_bytes
        self._trust_envoy = config.client_address == "envoy"
        self._deny_unsafe = config.unsafe_paths == "deny"

    def read(self, check: Check) -> None:
        """Request to input document, or to a verdict of our own."""
        request = check.exchange.request
        try:
            if len(request) > self._max_bytes:
                check.verdict = denial(413, "bad_request")
                return
            document = told(CheckRequest.FromString(request))
            check.facts = known = facts(document, trust_envoy=self._trust_envoy)
            headers = document.get("attributes", {}).get("request", {}).get("http", {})
            headers = headers.get("headers", {})
            if not known.has_http and not self._tcp:
                check.verdict = denial(400, "bad_request")
                return
            if ambiguous_credentials(headers.get("authorization", "")):
                check.verdict = denial(400, "bad_request")
                check.note = "more than one set of credentials"
                return
            check.resource = self._resources.read(known.method, known.path)
            if self._deny_unsafe and unsafe_path(known.path):
                check.verdict = denial(400, "unsafe_path")
                return
            complete(document)
            check.identity = identity = self._identities.read(known, headers)
            if self._blocked(check, identity.subject):
                return
            if verified := shown(identity):
                document["authz"] = verified
            check.document = document
            self._show_risk(check, identity.subject)
        except DecodeError:
            check.verdict = denial(400, "bad_request")
        except BadRequestError as error:
            check.verdict = denial(400, "bad_request", str(error))
        except RefusedError as error:
            check.verdict = denial(error.status, error.reason)

    def rule(self, check: Check, outcome: Outcome) -> None:
        """What the engine said, to a verdict."""
        check.verdict = verdict = self._verdict(check, outcome)
        # The policy may know the person by another name, which is the one on record.
        self._blocked(check, verdict.audit.subject)

    def reconsider(self, check: Check) -> bool:
        """Whether the policy allowed somebody of whom it was not shown everything; now it is."""
        verdict = check.verdict
        if verdict is None or not verdict.allowed or not verdict.audit.subject:
            return False
        return self._show_risk(check, check.identity.subject, verdict.audit.subject)

    def _show_risk(self, check: Check, *subjects: str) -> bool:
        """Put what is said of these into the document; whether that is new."""
        document = check.document
        risk = self._blocks.risk(subjects, time.time_ns() // 1000)
        if document is None or risk is None:
            return False
        before = document.get("authz", {})
        if before.get("risk") == risk:
            return False
        document["authz"] = {**before, "risk": risk}
        return True

    def _blocked(self, check: Check, subject: str) -> bool:
        """Whether `subject` is blocked; the verdict then says so."""
        block = self._blocks.find(subject, time.time_ns() // 1000) if subject else None
        if block is None:
            return False
        check.verdict = denial(403, "blocked")
        check.note = f"blocked ({block.id}): {block.reason}"
        return True

    def _verdict(self, check: Check, outcome: Outcome) -> Verdict:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return read_verdict(outcome)
        except PolicyError as error:
            check.note = str(error)
            logger.error("policy error", error=check.note, decision_id=check.decision_id)
            return denial(403, "policy_error")
        except UnavailableError as error:
            check.note = str(error)
            logger.error("no decision", error=check.note, decision_id=check.decision_id)
            return denial(503, "policy_unavailable")
