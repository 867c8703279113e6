"""Every look at the log through the console is on record before anything is shown."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from authz.console.people import Person
from authz.journal.segments import JournalError
from authz.record import FIELD, Entry, Record, text
from authz.report.looks import look_notices

logger = structlog.get_logger()


class Keeper(Protocol):
    """Makes records durable: `authz.journal.group.GroupCommit`."""

    def commit(self, items: list[Entry]) -> None: ...


class NotRecordedError(Exception):
    """A look, or what somebody said, could not be put on record: nothing is shown or done."""


class Looks:
    """Puts looks, and what people say, into this process's journal, from where they are sent."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def look(
        self, who: Person, page: str, now_us: int, *, reason: str = "", purpose: str = "",
        tokens: tuple[str, ...] = (), **asked: object,
    ) -> None:  # fmt: skip
        """`asked` is what was asked for, empty values left out. Raises `NotRecordedError`."""
        told = {name: value for name, value in asked.items() if value}
        await self._keep(
            look_notices(
                f"console/{page}", who.subject, text(reason, FIELD["reason"].cap), purpose,
                tokens, now_us, told,
            )
        )  # fmt: skip

    async def say(self, record: Record) -> None:
        """Raises `NotRecordedError`."""
        await self._keep([record])

    async def _keep(self, records: Sequence[Record]) -> None:
        try:
            await asyncio.to_thread(self._keeper.commit, [(record, b"") for record in records])
        except JournalError as error:
            logger.error("a look could not be recorded", error=str(error))
            raise NotRecordedError from None
