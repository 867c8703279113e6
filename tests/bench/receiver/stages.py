"""What each stage of the receiver's work costs, run in this process over what was recorded.

These are the receiver's own functions in the order it calls them; what its process costs beyond
them is gRPC, the event loop and what is asked of the store.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from authz.envoy.access_log import http_access
from authz.journal.segments import Journal
from authz.ledger import Signer
from authz.receiver.access import access_record
from authz.receiver.sequence import Log
from authz.reconcile import Reconciler
from authz.record import Record
from authz.record.resource import Resources
from authz.serve import grpc_server
from authz.store.client import connect
from authz.store.writer import StoreWriter
from tests.bench.receiver.replay import WRITER, Request, World, message

NAMES = ("parse", "record", "journal", "seal", "insert", "reconcile")
_ENTRIES, _BATCH, _BATCHES = 250, 10_000, 4


def cost(work: Path, store: str) -> dict[str, float]:
    """Microseconds of CPU an entry, by stage; the least of several batches. `store` has the
    schema; the rows are of an origin of their own."""
    journal = Journal(work / "stages" / "journal", start=0)
    log = Log(work / "stages", journal, Signer("bench/stages", bytes(range(32))))
    client = connect(store)
    writer = StoreWriter(client, log.origin)
    resources = Resources((), ())
    world = World()
    grpc_server.spare_collections()
    reconciler = Reconciler()
    took: dict[str, list[float]] = {name: [] for name in NAMES}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        took[name].append((time.process_time() - began) / _BATCH * 1e6)

    for _ in range(_BATCHES):
        now = time.time_ns() // 1000
        told = [(request, now + n) for n, request in enumerate(world.requests(_BATCH))]
        messages = [message(told[n : n + _ENTRIES]) for n in range(0, _BATCH, _ENTRIES)]
        decisions = [_decided(request, at_us) for request, at_us in told]
        for record in filter(None, decisions):
            reconciler.add(record)
        with timed("parse"):
            parsed = [
                [
                    http_access(entry)
                    for entry in StreamAccessLogsMessage.FromString(data).http_logs.log_entry
                ]
                for data in messages
            ]
        with timed("record"):
            groups = [
                [(access_record(entry, "sidecar-0", resources, None), b"") for entry in entries]
                for entries in parsed
            ]
        with timed("journal"):
            for group in groups:  # each message waits for the disk
                journal.append(log.frame([group], journal.next))
                log.committed()
        with timed("seal"):
            batch = log.seal(_BATCH)
        assert batch is not None
        with timed("insert"):
            writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
            log.finish(batch)
        with timed("reconcile"):
            for record in batch.records:
                reconciler.add(record)
    reconciler.finish()
    assert not reconciler.tally.gaps, reconciler.tally.kinds
    log.close()
    journal.close()
    client.disconnect()
    return {name: min(found) for name, found in took.items()}


def _decided(request: Request, at_us: int) -> Record | None:
    record = request.decision(at_us)
    if record:
        record |= {"origin": "bench/stages", "index": 0, "sealed_at": at_us, "writer": WRITER}
    return record
