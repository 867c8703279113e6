"""A log of a size, as a writer and Envoy fill it: decisions, their accesses, signed heads."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as pytest has it

from logs import SIGNER, TestLog

from authz.journal.segments import Journal
from authz.receiver import sequence
from authz.receiver.sequence import Log
from authz.record import Record
from authz.store import migrations
from authz.store.client import connect
from authz.store.writer import StoreWriter

__all__ = ["SIGNER", "Built", "build"]

GROUP = 5_000  # exchanges between two heads of a writer


class Built(TestLog):
    """A log whose journals do not wait for the disk: it is made to be read."""

    def __init__(self, directory: Path, store: str) -> None:
        super().__init__(directory, store)
        self.writer_journal.close()
        self.writer_journal = Journal(directory / "quick", sync=False, max_bytes=64 << 30)

    def open(self) -> None:
        self.journal = Journal(self.directory / "journal", start=0, sync=False, max_bytes=64 << 30)
        self.log = Log(self.directory, self.journal, self.signer)
        assert self.store
        self.client = connect(self.store)
        migrations.migrate(self.client)
        self.writer = StoreWriter(self.client, self.signer.name)


def build(
    log: Built, records: int, group: int = GROUP, apart_us: int = 0, begin_us: int = 0
) -> Iterator[int]:
    """Fill `log` with about `records` records, `apart_us` of its clock from one to the next; yields
    how many are stored by now."""
    begin = begin_us or time.time_ns() // 1000
    random = Random(log.journal.next)
    while log.journal.next < records:
        now = begin + log.journal.next * apart_us
        number = log.journal.next
        exchanges = [_exchange(random, number + n, now) for n in range(group)]
        with patch.object(sequence.time, "time_ns", lambda at=now: at * 1000):
            if not number:
                log.append(log.written([log.identity.start_notice(now, "1")]))
            log.append(log.written([decision for decision, _ in exchanges]))
            log.append([access for _, access in exchanges])
            log.append(log.written([log.identity.head_notice(now, *log.chain.place)]))
        while log.log.waiting():
            log.seal(10_000)
        log.writer_journal.trim(log.chain.place[0])
        yield log.journal.next


def _exchange(random: Random, number: int, now: int) -> tuple[Record, Record]:
    """A decision and its access, of about the size that real ones have."""
    patient = f"0a1b2c3d.{random.getrandbits(128):032x}"
    common: Record = {
        "subject": f"person-{random.randrange(3000)}",
        "roles": ["physician"],
        "tenant": "lakeside",
        "purpose": "TREAT",
        "reason": "physician on the care team",
        "decision_id": f"{number:032x}",
        "allowed": True,
        "enforced": True,
        "policy_revision": "6b1f" * 16,
        "method": "GET",
        "host": "ehr.example",
        "path": "/fhir/Patient/{id}",
        "resource_type": "Patient",
        "resource_id": patient,
        "patients": [patient],
        "action": "R",
        "source_ip": f"192.0.2.{number % 250}",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
        "request_id": f"{random.getrandbits(128):032x}",
        "trace_id": f"{random.getrandbits(128):032x}",
        "schema": 4,
        "time": now + number * 100,
    }
    access = {
        **common,
        "kind": "access",
        "writer": "envoy:sidecar-1",
        "status": 200,
        "bytes_out": random.randrange(500, 5000),
        "duration_us": random.randrange(2000, 90_000),
        "upstream": "10.0.0.1:8080",
        "response_details": "via_upstream",
    }
    return {**common, "kind": "decision", "principal": "spiffe://site/ehr"}, access
