"""The receiver's ownership of its log: taken before anything is sealed, and kept while it runs."""

import asyncio
import random
import socket
from pathlib import Path

import structlog

from authz.errors import UsageError
from authz.receiver import metrics
from authz.receiver.sequence import Log
from authz.store import checkpoints, migrations, writer
from authz.store.client import QUERY_ERRORS, connect, explain
from authz.store.lease import RENEW_SECONDS, SETTINGS, Claim, Claims, Lease, holder_of, who_am_i

_TIMEOUT_SECONDS = 5
_RETRY_SECONDS = 1
_MOST_RETRY_SECONDS = 5

logger = structlog.get_logger()


class Owner:
    """`run` takes the lease and renews it; `held` and `check` are what sealing waits for."""

    def __init__(self, store: str, log: Log, lock: Path) -> None:
        """`lock` is the lock file of the data directory, whose lock this process has."""
        self._store = store
        self._log = log
        self._client = connect(store, **SETTINGS)
        self._client.connection.send_receive_timeout = _TIMEOUT_SECONDS
        claims = Claims(self._client, log.origin)
        self._lease = Lease(claims, holder_of(lock), who_am_i(socket.gethostname()))
        self._migrated = False
        self._examined = False  # whether what is in the database is ours, since the lease was taken
        self._running = True

    @property
    def holds(self) -> bool:
        return self._examined and self._lease.live

    def check(self) -> None:
        """Raises `OSError` unless this process may add to the log now. For any thread."""
        if not self.holds:
            raise OSError("the lease of the log has ended")

    async def held(self) -> None:
        """Until this process may add to the log. Raises `UsageError` once that will never be."""
        while not self.holds:
            if not self._running:
                raise UsageError("the log belongs to another process")
            await asyncio.sleep(0.02)

    async def run(self) -> None:
        """Raises `UsageError` when another process has the log, or has written to it."""
        try:
            while True:
                await self._take()
                logger.info("this process owns the log", origin=self._log.origin)
                await self._keep()
                logger.error("the lease has ended; nothing is sealed", origin=self._log.origin)
        finally:
            self._running = False

    def release(self) -> None:
        """Let the next process have the log at once; call it when nothing is under way."""
        try:
            self._lease.release()
        except QUERY_ERRORS as error:
            logger.warning("the lease was not given back", error=str(explain(error, self._store)))
        self._client.disconnect()

    async def _take(self) -> None:
        renewed: dict[str, int] = {}
        pause = 0.5
        while True:
            try:
                rival = await asyncio.to_thread(self._try)
            except QUERY_ERRORS as error:
                metrics.STORE_ERRORS.inc()
                text = str(explain(error, self._store))
                logger.error("cannot take the lease; the journal holds what comes", error=text)
                pause = min(pause * 2, _MOST_RETRY_SECONDS)
                await asyncio.sleep(pause)
                continue
            if rival is None:
                return
            if rival.owns and rival.number > renewed.setdefault(rival.process, rival.number):
                raise UsageError(self._refusal(rival))
            logger.warning("another process has the log's lease", who=rival.who)
            await asyncio.sleep(random.uniform(0.2, 1))  # noqa: S311 - so that two do not keep step

    def _try(self) -> Claim | None:
        """As `Lease.take`, and then what is in the database is examined."""
        if not self._migrated:
            migrations.migrate(self._client)
            self._migrated = True
        self._examined = False
        rival = self._lease.take()
        if rival is None:
            writer.stop_running(self._client, self._log.origin)
            if wrong := checkpoints.foreign(self._client, self._log.sealed, self._log.verifiers):
                self._lease.release()
                raise UsageError(
                    f"the database has of log {self._log.origin} {wrong}: another process has"
                    " written this log, or this --data-dir is an older copy of its directory; start"
                    " the receiver with the newest directory, or give it one of its own and another"
                    " --origin"
                )
            self._examined = True
        return rival

    async def _keep(self) -> None:
        while self._lease.live:
            await asyncio.sleep(RENEW_SECONDS)
            while self._lease.live:
                try:
                    await asyncio.to_thread(self._lease.renew)
                    break
                except QUERY_ERRORS as error:
                    logger.warning("lease not renewed", error=str(explain(error, self._store)))
                    await asyncio.sleep(_RETRY_SECONDS)

    def _refusal(self, rival: Claim) -> str:
        return (
            f"log {self._log.origin} belongs to {rival.who}, which renews its lease; stop that one"
            " first, or give this receiver a --data-dir of its own (no copy) and another --origin"
        )
