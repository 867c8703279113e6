"""Tells the log which logs there are (`authz.receiver.roster`)."""

import asyncio
import time

import structlog

from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.receiver.roster import EVERY_SECONDS, Roster
from authz.record import Entry
from authz.store import checkpoints
from authz.store.client import QUERY_ERRORS, connect, explain

_LOOK_SECONDS = 10

logger = structlog.get_logger()


async def tell(store: str, committer: Committer[list[Entry]]) -> None:
    """At the start, when a log comes or goes, and every now and then; forever."""
    client = connect(store)
    told, next_time = Roster(), 0.0
    while True:
        try:
            newest = await asyncio.to_thread(checkpoints.newest, client)
            found = Roster.of((one.origin, one.size, one.note) for one in newest)
            if found.differs(told) or time.monotonic() > next_time:
                records = found.records(time.time_ns() // 1000)
                if records:
                    await committer.submit([(record, b"") for record in records])
                told, next_time = found, time.monotonic() + EVERY_SECONDS
        except QUERY_ERRORS as error:
            client.disconnect()
            logger.debug("no roster", error=str(explain(error, store)))
        except JournalError as error:
            logger.error("the roster is not on record", error=str(error))
        await asyncio.sleep(_LOOK_SECONDS if told.logs else 1)
