"""Into ClickHouse exactly once, whatever happens to the connection."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit

import pytest
from logs import SIGNER, TRUST, TestLog

from authz.store.client import QUERY_ERRORS, connect
from authz.store.writer import StoreWriter
from authz.verify import verify_store

ROUNDS = 25


class Proxy:
    """Between client and server; cuts the connection after so many bytes in one direction."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.up = self.down = None  # bytes left until the cut, or None for never
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [client, server]
            for source, target, direction in ((client, server, "up"), (server, client, "down")):
                args = (source, target, direction)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, source, target, direction):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                left = getattr(self, direction)
                if left is not None:
                    if len(data) >= left:
                        target.sendall(data[:left])
                        break
                    setattr(self, direction, left - len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listener.close()
        for end in self._sockets:
            end.close()


@pytest.fixture
def log(tmp_path, database):
    log = TestLog(tmp_path, database)
    yield log
    log.close()
    log.writer_journal.close()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_at_every_point(log, database, direction):
    """Cut before, during or after any of a batch's statements, in either direction, and tried
    again: each row is there once, and tiles and checkpoint are right."""
    proxy = Proxy(urlsplit(database).port)
    client = connect(database.replace(f":{urlsplit(database).port}/", f":{proxy.port}/"))
    writer = StoreWriter(client, SIGNER.name)
    cuts = 0
    step = 331 if direction == "up" else 71
    for attempt in range(ROUNDS):
        log.append([{"kind": "access", "reason": f"{attempt} {n}"} for n in range(30)])
        batch = log.log.seal(1000)
        setattr(proxy, direction, 1 + attempt * step)
        for _ in range(10):
            try:
                writer.put(batch.first, batch.records, batch.tiles, batch.note)
                break
            except QUERY_ERRORS:
                cuts += 1
                setattr(proxy, direction, None)
        else:
            pytest.fail("the batch never went through")
        setattr(proxy, direction, None)
        log.log.finish(batch)
    client.disconnect()
    proxy.close()
    [(count, distinct)] = log.client.execute("SELECT count(), uniqExact(index) FROM audit_log")
    assert (count, distinct) == (ROUNDS * 30, ROUNDS * 30)
    [(size,)] = log.client.execute("SELECT max(size) FROM checkpoints")
    assert size == ROUNDS * 30
    report = verify_store(log.client, TRUST)
    assert (report.findings, report.logs[0].doubles) == ([], 0)
    assert cuts > 10, "the test did cut"


def test_repeated_put_doubles_nothing(log):
    """A batch stored by a process that died before it could remember is stored once."""
    log.append([{"kind": "access"}] * 10)
    batch = log.log.seal(100)
    for _ in range(3):
        log.writer.put(batch.first, batch.records, batch.tiles, batch.note)
        log.restart()
    [(count,)] = log.client.execute("SELECT count() FROM audit_log")
    assert count == 10


def test_part_of_a_batch_is_completed(log):
    """Rows that landed are kept, and those missing are added."""
    log.append([{"kind": "access", "reason": str(n)} for n in range(20)])
    batch = log.log.seal(100)
    log.writer.put(batch.first, batch.records[:7], [], batch.note)
    log.restart()
    log.writer.put(batch.first, batch.records, batch.tiles, batch.note)
    rows = log.client.execute("SELECT index, reason FROM audit_log ORDER BY index")
    assert rows == [(n, str(n)) for n in range(20)]
