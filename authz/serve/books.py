"""Keeps the log's own account of itself (`authz.receiver.accounts`), as its records are stored."""

import asyncio

import structlog

from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.receiver import metrics
from authz.receiver.accounts import Accounts
from authz.receiver.sequence import Batch, Log
from authz.record import Entry, Record
from authz.store.accounts import Accounted
from authz.store.client import QUERY_ERRORS, connect, explain

logger = structlog.get_logger()


class Books:
    """`keep` is called for each batch that was stored, in order, and now and then for none."""

    def __init__(
        self, store: str, log: Log, committer: Committer[list[Entry]], accounts: Accounts
    ) -> None:
        self._store = store
        self._log = log
        self._committer = committer
        self._accounts = accounts
        self._client = connect(store)
        self._database = Accounted(self._client, log.origin)
        # What is durable and not yet stored may tell of intervals: it is waited for.
        self._begin = log.stored.tree.size + log.waiting()
        self._restored = False
        self._untold: list[Record] = []

    async def keep(self, batch: Batch | None) -> None:
        """Count `batch`, and tell of the intervals that are over. What fails is done next time:
        what was not counted is read from the database."""
        try:
            await asyncio.to_thread(self._count, batch)
            while True:
                if not self._untold:
                    self._untold = await asyncio.to_thread(self._close)
                if not self._untold:
                    return
                await self._committer.submit([(record, b"") for record in self._untold])
                metrics.count_gaps(self._untold)
                self._untold = []
        except QUERY_ERRORS as error:
            self._client.disconnect()
            logger.warning("accounts wait", error=str(explain(error, self._store)))
        except JournalError as error:
            logger.error("accounts wait", error=str(error))

    def _count(self, batch: Batch | None) -> None:
        accounts, stored = self._accounts, self._log.stored.tree.size
        if stored < self._begin:
            return
        if not self._restored and stored:
            away, lost = self._database.away()
            accounts.restore(self._database.told(), self._database.under_way(), away, lost)
        self._restored = True
        known = batch.first if batch else stored
        if accounts.next < known:
            accounts.add(self._database.rows(accounts.next, known))
        if batch and accounts.next == batch.first:
            accounts.add(batch.records)

    def _close(self) -> list[Record]:
        if not self._restored:
            return []
        now_us = self._accounts.newest
        if not self._log.waiting():
            now_us = max(now_us, self._log.now_us())
        return self._accounts.close(now_us, self._database)
