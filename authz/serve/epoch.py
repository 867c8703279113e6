"""A new log that goes on from one whose key or disk is lost.

It takes the other's writers where the other's stored records leave them, and blocks whom the other
did. Its first record, a notice `log_started`, names the other's last stored checkpoint, so that
nobody can shorten the other quietly, nor go on with it.
"""

import asyncio
import base64
import time

import structlog

from authz.errors import UsageError
from authz.store import epochs
from authz.store.client import QUERY_ERRORS, Client, explain
from authz.store.epochs import Ended

_LEASE_SECONDS = 30  # longer than an owner that is dead may seem to live

logger = structlog.get_logger()


async def before(client: Client, store: str, origin: str, ours: str) -> Ended:
    """What log `origin` has come to. Raises `AuthzError` if it is not there, or at work."""
    if origin == ours:
        raise UsageError(
            f"receiver.follows: {origin} is this log itself; give the new one another --origin"
        )
    try:
        until = time.monotonic() + _LEASE_SECONDS
        while who := await asyncio.to_thread(epochs.at_work, client, origin):
            if time.monotonic() > until:
                raise UsageError(
                    f"receiver.follows: log {origin} is still at work ({who}); stop that one first"
                )
            logger.warning("the log to follow has an owner", origin=origin, who=who)
            await asyncio.sleep(1)
        ended = await asyncio.to_thread(epochs.read, client, origin)
    except QUERY_ERRORS as error:
        raise explain(error, store) from None
    if ended is None:
        raise UsageError(
            f"receiver.follows: {origin} has no checkpoint in the database, or not the records"
            " under it; check the name, and what `authz verify` says of that log"
        )
    return ended


def told(ended: Ended) -> dict[str, object]:
    """As `log_started` tells it."""
    checkpoint = ended.checkpoint
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": base64.b64encode(checkpoint.root).decode(),
        "sealed_at": ended.sealed_at,
        "note": ended.note,
    }
