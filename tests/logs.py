"""Small real logs for tests: a receiver's state, a writer's chain, a ClickHouse."""

from pathlib import Path

import schema
from clickhouse_driver import Client

from authz.journal.chain import Chain, check_attachment, check_link, load_identity, split
from authz.journal.segments import Journal
from authz.ledger import Signer
from authz.receiver.sequence import Batch, Log
from authz.record import Entry, Record, clean
from authz.store.client import connect
from authz.store.writer import StoreWriter
from authz.trust import TrustedLog

SIGNER = Signer("test/receiver", bytes(range(32)))
TRUST = [TrustedLog(SIGNER.name, (SIGNER.verifier,))]


class TestLog:
    """A log in `directory` that `store` takes in batches."""

    __test__ = False

    def __init__(
        self, directory: Path, store: str | None = None, start: int = 0, signer: Signer = SIGNER
    ) -> None:
        self.directory = directory
        self.signer = signer
        self.following: Signer | None = None
        self.store = store
        self.start = start
        self.open()
        self.writer_journal = Journal(directory / "writer")
        self.identity = load_identity(directory / "writer.json")
        self.chain = Chain(self.identity.writer, self.writer_journal)

    def open(self) -> None:
        """As a start of the receiver does."""
        self.journal = Journal(self.directory / "journal", start=self.start, segment_bytes=4000)
        self.log = Log(self.directory, self.journal, self.signer, self.following)
        if self.store:
            self.client: Client = connect(self.store)
            schema.make(self.client, self.store)
            self.writer = StoreWriter(self.client, self.signer.name)

    def close(self) -> None:
        """What a crash leaves too: nothing is flushed here."""
        self.log.close()
        self.journal.close()
        if self.store:
            self.client.disconnect()

    def end(self) -> None:
        """Its writer closes its journal too."""
        self.close()
        self.writer_journal.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def written(self, records: list[Record]) -> list[Record]:
        """`records` as the writer's, as the receiver reads them from its stream."""
        return [record for record, _ in self.written_entries([(r, b"") for r in records])]

    def written_entries(self, entries: list[Entry]) -> list[Entry]:
        """The same for records with attachments."""
        place = self.chain.place
        payloads = self.chain.frame(entries, place[0] + 1)
        self.writer_journal.append(payloads)
        self.chain.committed()
        taken = []
        for seq, payload in enumerate(payloads, place[0] + 1):
            form, attachment = split(payload)
            record = check_link(form, self.identity.writer, seq, _prev(form))
            check_attachment(record, attachment)
            taken.append((record, attachment))
        return taken

    def append(self, records: list[Record]) -> None:
        """Into the journal, as one group."""
        self.append_entries([(record, b"") for record in records])

    def append_entries(self, entries: list[Entry]) -> None:
        """The same for records with attachments."""
        entries = [(clean(record), attachment) for record, attachment in entries]
        self.journal.append(self.log.frame([entries], self.journal.next))
        self.log.committed()

    def seal(self, limit: int = 10_000) -> Batch:
        """Seal and store what waits, a batch."""
        batch = self.log.seal(limit)
        assert batch is not None
        self.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
        self.log.finish(batch)
        return batch


def _prev(payload: bytes) -> str:
    import json

    return json.loads(payload).get("prev", "")
