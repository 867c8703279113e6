"""What a command tells the log: written as a writer, done once the receiver has it on its disk.

A command's data directory is a writer's, with a journal and an identity of its own, so the log has
its records in a signed chain like any other's. It is bound to one receiver's log.

1. The receiver is connected to first: if it is away or refuses, nothing is written anywhere.
2. The records are in the journal, then the signed head of the chain. A crash, or a receiver that
   goes away, leaves them there from here on: they may be in the log, and if not, they get there
   first when the next command of this directory connects.
3. The receiver has acknowledged all of it. Only now is the command done.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc

from authz.errors import UnavailableError, UsageError
from authz.journal.chain import Chain, Identity, load_identity
from authz.journal.segments import Journal, JournalError
from authz.record import Record
from authz.serve.forward import Forwarder

_SECONDS = 10  # to connect, and then to be acknowledged
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """Where the records went: the log, the writer they are from, and the last one's number."""

    origin: str
    writer: str
    seq: int


async def tell(
    receiver: str,
    connect: Callable[[], grpc.aio.Channel],
    directory: Path,
    records: Sequence[Record],
    privacy_key_id: str = "",
) -> Told:
    """Get `records` into the log of the receiver that `connect` leads to; messages call it
    `receiver`. It refuses a `privacy_key_id` that is not its log's.

    Raises `UnavailableError` when it does not answer or acknowledge, `UsageError` when it refuses.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = Journal(directory / "journal", max_bytes=_MAX_BYTES)
        identity = load_identity(directory / "writer.json")
    except OSError as error:
        raise UsageError(
            f"--data-dir {directory}: {error.strerror}; choose a directory this user may write"
        ) from None
    durable = asyncio.Event()
    forwarder = Forwarder(journal, identity, privacy_key_id, connect, durable)
    running = asyncio.create_task(forwarder.run())
    try:
        await _connected(forwarder, running, receiver)
        seq = _write(Chain(identity.writer, journal), journal, identity, records)
        durable.set()
        drained = asyncio.create_task(forwarder.drain(_SECONDS))
        await asyncio.wait([drained, running], return_when=asyncio.FIRST_COMPLETED)
        if forwarder.unacknowledged:
            raise UnavailableError(
                f"the receiver at {receiver} has not acknowledged it, so it may be in force or not;"
                f" it stays in {directory}, and goes first when this is tried again"
            )
        return Told(identity.origin, identity.writer, seq)
    except JournalError as error:
        raise UnavailableError(f"{directory}: {error}") from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        journal.close()


async def _connected(forwarder: Forwarder, running: "asyncio.Task[None]", receiver: str) -> None:
    until = time.monotonic() + _SECONDS
    while not forwarder.connected:
        if running.done():
            running.result()  # raises what a user can mend
        if forwarder.refusal:
            raise UsageError(f"the receiver at {receiver} refuses: {forwarder.refusal}")
        if time.monotonic() > until:
            raise UnavailableError(f"no receiver answers at {receiver}; is it running?")
        await asyncio.sleep(0.01)


def _write(chain: Chain, journal: Journal, identity: Identity, records: Sequence[Record]) -> int:
    """Append `records` (after the writer's key, the first time), and the head signed over them."""
    now_us = time.time_ns() // 1000
    begun = [identity.start_notice(now_us, version("authz"))] if journal.next == 1 else []
    _append(chain, journal, [*begun, *records])
    seq, head = chain.place
    _append(chain, journal, [identity.head_notice(now_us, seq, head)])
    return seq


def _append(chain: Chain, journal: Journal, records: Sequence[Record]) -> None:
    journal.append(chain.frame([(record, b"") for record in records], journal.next))
    chain.committed()
