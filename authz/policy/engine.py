"""What decides: an OPA server, or the embedded engine."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from authz.errors import UnavailableError
from authz.policy.rego_ast import Reads
from authz.policy.verdict import PolicyError

Document: TypeAlias = dict[str, Any]
"""An input document: JSON values."""

Outcome: TypeAlias = object | PolicyError | UnavailableError
"""A decision document, `UNDEFINED`, or what went wrong instead, as a value: of several decisions
made together, one may fail."""


class Decisions(NamedTuple):
    """The outcomes of several documents, in their order, and the policy revision behind them."""

    revision: str
    outcomes: list[Outcome]


class Decider(Protocol):
    """What a Check asks. Called from several threads at once."""

    def decide(self, documents: Sequence[Document], until: float) -> Decisions:
        """An outcome for each document, before `until` (`time.monotonic()`)."""

    @property
    def revision(self) -> str: ...


class Engine(Decider, Protocol):
    """A decider with its policy. `start`, `look` and `close` are for the main loop."""

    watch_seconds: float
    """How often to `look`."""

    @property
    def archive(self) -> bytes:
        """The policy's text (`authz.policy.archive`); `revision` is the SHA-256 of this."""

    @property
    def reads(self) -> Reads | None:
        """What the policy reads, if the engine can tell."""

    @property
    def most(self) -> int:
        """How many documents `decide` takes well at once."""

    async def start(self) -> None:
        """Get ready. Raises `AuthzError` for what a user can mend."""

    async def look(self) -> None:
        """Notice a changed policy. Raises `AuthzError` if there is something wrong with it: then
        the last good one stays."""

    async def close(self) -> None: ...
