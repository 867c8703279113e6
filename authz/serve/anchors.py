"""The log's newest stored checkpoint goes where its operator cannot rewrite it: into directories
(`authz.anchors`), and to witnesses, whose cosignatures come back into the log's table.

Nothing waits for that. An anchor that is away shows in the metrics, in the log line by line, and,
once it has been away for a while, in the audit log itself.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import aiohttp
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from authz import anchors
from authz.config import Receiver, Witness
from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.ledger import Checkpoint, ProofError, Verifier, add_signatures, prove_consistency
from authz.receiver import metrics
from authz.receiver.sequence import Log
from authz.receiver.witness import WitnessError, cosignature, refusal, request
from authz.record import Entry, notice
from authz.serve.grpc_server import in_thread
from authz.serve.owner import Owner
from authz.store import checkpoints
from authz.store.client import QUERY_ERRORS, connect
from authz.store.tiles import Tiles

_TIMEOUT = aiohttp.ClientTimeout(total=5)
_DIRECTORY_SECONDS = 20
_STORE_SECONDS = 10
_ATTEMPTS = 3
_AWAY_ROUNDS = 3  # that failed, until it is told in the log
_LOOK_SECONDS = 0.2
_MOST_ANSWER = 65_536

_AWAY = (OSError, TimeoutError, aiohttp.ClientError, WitnessError, ProofError, *QUERY_ERRORS)

P = ParamSpec("P")
T = TypeVar("T")
Prove = Callable[[int, int], Awaitable[list[bytes]]]

logger = structlog.get_logger()


@dataclass(slots=True)
class _Anchor:
    """A directory or a witness, and how far it has come."""

    name: str
    size: int = 0
    failures: int = 0  # rounds, one after the other
    reason: str = ""
    told: bool = False  # that it is away

    def __post_init__(self) -> None:
        metrics.ANCHORED.labels(self.name).set(0)


@dataclass(slots=True)
class _Directory(_Anchor):
    path: Path = field(default_factory=Path)
    writing: "Future[None] | None" = None

    async def put(self, origin: str, size: int, note: str) -> None:
        """In a thread of its own, which nobody waits for at the end: a network's file system may
        never answer. Raises `OSError`, `TimeoutError`."""
        if self.writing and not self.writing.done():
            raise TimeoutError
        self.writing = _in_daemon(lambda: anchors.put(self.path, origin, size, note))
        written = asyncio.wrap_future(self.writing)
        done, _ = await asyncio.wait([written], timeout=_DIRECTORY_SECONDS)
        if not done:
            raise TimeoutError
        written.result()


@dataclass(slots=True)
class _Witness(_Anchor):
    url: str = ""
    key: Verifier | None = None
    known: int = 0  # the size it has, as far as we know

    @classmethod
    def of(cls, options: Witness) -> "_Witness":
        key = Verifier.parse(options.key)
        return cls(key.name, url=f"{options.url.rstrip('/')}/add-checkpoint", key=key)

    async def cosign(
        self, session: aiohttp.ClientSession, size: int, note: str, prove: Prove
    ) -> str:
        """Its signature line under `note`. Raises `_AWAY`."""
        assert self.key
        for _ in range(2):  # the first answer may be where it stands
            body = request(self.known, await prove(self.known, size), note)
            status, answer = await _post(session, self.url, body)
            if status == 200:
                line = cosignature(note, answer, self.key)
                self.known = size
                return line
            self.known = refusal(status, answer, size)
        raise WitnessError("it had another size than it just said")


class Anchors:
    """`run` until cancelled; then `finish`, and `close` once no thread runs."""

    def __init__(
        self, options: Receiver, store: str, log: Log, committer: Committer[list[Entry]],
        owner: Owner,
    ) -> None:  # fmt: skip
        self._log = log
        self._committer = committer
        self._owner = owner
        self._seconds = options.anchor_seconds
        self._directories = [_Directory(str(path), path=path) for path in options.anchors]
        self._witnesses = [_Witness.of(witness) for witness in options.witnesses]
        self._client = connect(store)
        self._client.connection.send_receive_timeout = _STORE_SECONDS
        self._asking = asyncio.Lock()  # the client is for one thread at a time
        self._note = ""  # of the last round, with the cosignatures that it brought

    @property
    def _all(self) -> Sequence[_Anchor]:
        return [*self._directories, *self._witnesses]

    async def run(self) -> None:
        await self._owner.held()
        while self._all:
            if await self._round():
                await asyncio.sleep(self._seconds)
            else:
                await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.Event().wait()  # there are none; a loop that ends would end the process

    async def finish(self, seconds: float) -> None:
        """The last checkpoint goes out too, if that takes no longer."""
        if not self._owner.holds:
            return
        try:
            await asyncio.wait_for(self._round(), seconds)
        except TimeoutError:
            logger.warning("the last checkpoint is not at every anchor")

    def close(self) -> None:
        self._client.disconnect()

    async def _round(self) -> bool:
        """The newest checkpoint to all who do not have it; false if there is none."""
        note = self._log.stored_note
        size = Checkpoint.parse(note).size if note else 0
        behind = [anchor for anchor in self._all if anchor.size < size]
        if not behind:
            return False
        if not self._note.startswith(note):
            self._note = note
        lines: list[str] = []
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:

            async def cosign(witness: _Witness) -> None:
                lines.append(await witness.cosign(session, size, note, self._prove))

            await asyncio.gather(
                *(self._try(one, size, one.put(self._log.origin, size, note))
                  for one in self._directories if one in behind),
                *(self._try(one, size, cosign(one)) for one in self._witnesses if one in behind),
            )  # fmt: skip
        if lines:
            keys = [witness.key for witness in self._witnesses if witness.key]
            self._note = add_signatures(self._note, lines, keys)
            await self._publish(size, self._note)
        return True

    async def _publish(self, size: int, cosigned: str) -> None:
        """A cosigned checkpoint, into the log's table and beside the plain one."""
        try:
            await self._ask(self._add, size, cosigned)
        except QUERY_ERRORS as error:
            logger.warning("a cosigned checkpoint is not stored", error=_reason(error))
        for one in self._directories:
            if one.size == size:
                await self._try(one, size, one.put(self._log.origin, size, cosigned))

    def _add(self, size: int, cosigned: str) -> None:
        self._owner.check()
        checkpoints.add(self._client, self._log.origin, size, cosigned)

    async def _prove(self, old: int, size: int) -> list[bytes]:
        tiles = Tiles(self._client, self._log.origin)
        return await self._ask(prove_consistency, old, size, tiles)

    async def _ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread that has the client for itself, also when this is cancelled."""
        async with self._asking:
            try:
                return await in_thread(work, *args, **kwargs)
            except QUERY_ERRORS:
                self._client.disconnect()
                raise

    async def _try(self, anchor: _Anchor, size: int, work: Awaitable[None]) -> None:
        try:
            await work
        except _AWAY as error:
            reason = _reason(error)
            if reason != anchor.reason:
                logger.error(
                    "an anchor is away; recording goes on", anchor=anchor.name, reason=reason,
                    anchored=anchor.size,
                )  # fmt: skip
            anchor.reason = reason
            anchor.failures += 1
            metrics.ANCHOR_UP.labels(anchor.name).set(0)
            if anchor.failures >= _AWAY_ROUNDS and not anchor.told:
                anchor.told = self._tell("anchor_away", anchor)
            return
        anchor.size = size
        metrics.ANCHORED.labels(anchor.name).set(size)
        metrics.ANCHOR_UP.labels(anchor.name).set(1)
        if anchor.failures:
            logger.info("an anchor is back", anchor=anchor.name, anchored=size)
        if anchor.told:
            anchor.told = not self._tell("anchor_back", anchor)
        anchor.failures, anchor.reason = 0, ""

    def _tell(self, event: str, anchor: _Anchor) -> bool:
        """In the log, whether it has room or not: a journal that is full is told by others."""
        details = {"anchor": anchor.name, "size": anchor.size, "stored": self._log.stored.tree.size}
        record = notice(event, time.time_ns() // 1000, details)
        told = self._committer.submit([(record, b"")])
        return not (told.done() and isinstance(told.exception(), JournalError))


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes]:
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((aiohttp.ClientError, TimeoutError)),
        wait=wait_exponential(multiplier=0.1, max=1),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    ):
        with attempt:
            async with session.post(url, data=body, allow_redirects=False) as answer:
                return answer.status, await answer.content.read(_MOST_ANSWER)
    raise AssertionError


def _in_daemon(work: Callable[[], None]) -> "Future[None]":
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except OSError as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="anchor", daemon=True).start()
    return future


def _reason(error: BaseException) -> str:
    if isinstance(error, WitnessError | ProofError):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
