"""Who may see what: decided by a policy of its own, and nothing without it.

The input document is ``{"subject", "roles", "tenant", "action"}``, with ``"person"`` where it is
about somebody, and ``"report"`` where it is a certain one: see ``deploy/opa/console.rego``.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import structlog

from authz.console.people import Person
from authz.errors import UnavailableError
from authz.policy.engine import Decider
from authz.policy.verdict import PolicyError, read_verdict

Action = Literal[
    "overview", "search", "record", "person", "patient", "names", "findings", "judge", "block",
    "report", "export", "verify", "policy",
]  # fmt: skip
PAGES: Final[Sequence[Action]] = ("overview", "search", "findings", "report", "verify", "policy")
"""Those that the navigation leads to."""
_SECONDS: Final = 2.0

logger = structlog.get_logger()


class Access:
    """Asks `engine`. An error of any kind is a no."""

    def __init__(self, engine: Decider) -> None:
        self._engine = engine

    async def may(self, who: Person, action: Action, person: str = "", report: str = "") -> bool:
        """Whether `who` may do this; `person` is whom it is about."""
        [allowed] = await self.which(who, [action], person=person, report=report)
        return allowed

    async def which(self, who: Person, actions: Sequence[Action], **about: str) -> list[bool]:
        """Of each action whether it is allowed."""
        asked: dict[str, Any] = {
            "subject": who.subject, "roles": list(who.roles), "tenant": who.tenant,
            **{name: value for name, value in about.items() if value},
        }  # fmt: skip
        documents = [{**asked, "action": action} for action in actions]
        until = time.monotonic() + _SECONDS
        try:
            told = await asyncio.to_thread(self._engine.decide, documents, until)
            outcomes = told.outcomes
        except Exception as error:  # noqa: BLE001 - a bug ends in a no
            logger.error("no decision", error=str(error))
            return [False] * len(documents)
        return [_allowed(outcome) for outcome in outcomes]


def _allowed(outcome: object) -> bool:
    if isinstance(outcome, UnavailableError | PolicyError):
        logger.error("no decision", error=str(outcome))
        return False
    try:
        return read_verdict(outcome).allowed
    except PolicyError as error:
        logger.error("policy error", error=str(error))
        return False
