"""Into ClickHouse exactly once, whatever happens to the connection."""

import contextlib
import hashlib
import socket
import threading
from urllib.parse import urlsplit

import pytest
from logs import SIGNER, TRUST

from authz.journal.chain import policy_notice
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


def named(attachment):
    return hashlib.sha256(attachment).hexdigest()


def written(log, number):
    """30 records of a writer: 10 bring a sealed input along, and one of the others a policy."""
    entries = [({"kind": "decision", "reason": f"{number} {n}"}, b"") for n in range(19)]
    for n in range(10):
        sealed = b"0123abcd." + bytes([number, n]) * 400
        decision = {"kind": "decision", "decision_id": f"{number} {n}", "sealed": named(sealed)}
        entries.append((decision, sealed))
    text = b"package p%d" % number
    return log.written_entries([*entries, policy_notice(number, named(text), text)])


@pytest.mark.thorough
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
        log.append_entries(written(log, attempt))
        batch = log.log.seal(1000)
        setattr(proxy, direction, 1 + attempt * step)
        for _ in range(10):
            try:
                writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
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
    kept = "SELECT count(), uniqExact(index), uniqExact(key_id) FROM sealed_originals"
    assert log.client.execute(kept) == [(ROUNDS * 10, ROUNDS * 10, 1)]
    [(policies,)] = log.client.execute("SELECT count() FROM policies")
    assert policies == ROUNDS
    report = verify_store(log.client, TRUST)
    assert (report.findings, report.logs[0].doubles) == ([], 0)
    assert cuts > 10, "the test did cut"


def test_repeated_put_doubles_nothing(log):
    """A batch stored by a process that died before it could remember is stored once."""
    log.append([{"kind": "access"}] * 10)
    batch = log.log.seal(100)
    for _ in range(3):
        log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
        log.restart()
    [(count,)] = log.client.execute("SELECT count() FROM audit_log")
    assert count == 10


def test_part_of_a_batch_is_completed(log):
    """Rows that landed are kept, and those missing are added."""
    log.append([{"kind": "access", "reason": str(n)} for n in range(20)])
    batch = log.log.seal(100)
    log.writer.put(batch.first, batch.leaves[:7], [], batch.note, [])
    log.restart()
    log.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
    rows = log.client.execute("SELECT index, reason FROM audit_log ORDER BY index")
    assert rows == [(n, str(n)) for n in range(20)]


def test_policies_are_kept_once(log):
    """However often and by whomever a revision is told, its text is one row, first seen then."""
    text = b"package a"
    for _ in range(3):
        entry = policy_notice(1, named(text), text)
        log.append_entries(log.written_entries([entry, policy_notice(2, named(text), text)]))
        log.seal()
        log.restart()
    rows = log.client.execute("SELECT revision, text, toUnixTimestamp64Micro(first_seen)"
                              " FROM policies")  # fmt: skip
    [(seen,)] = log.client.execute("SELECT toUnixTimestamp64Micro(min(sealed_at)) FROM audit_log")
    assert rows == [(named(text), text.decode(), seen)]


def test_any_bytes_can_be_sealed(log):
    """What a sealed input holds comes back byte by byte, with its record's id and time."""
    sealed_ones = [
        b"\n",
        b"\0" * 5,
        b"\xff\xfe\n\n",
        bytes(range(256)) * 50,
        b"abcdef01." + b"\x80",
    ]
    decision = {"kind": "decision", "decision_id": "d"}
    entries = [(decision | {"sealed": named(sealed)}, sealed) for sealed in sealed_ones]
    log.append_entries(log.written_entries(entries))
    log.seal()
    rows = log.client.execute(
        "SELECT ciphertext, key_id, sealed_at = audit_log.sealed_at FROM sealed_originals"
        " JOIN audit_log USING (origin, index) ORDER BY index",
        settings={"strings_as_bytes": True},
    )
    assert rows == [(s, b"abcdef01" if s.startswith(b"abc") else b"", 1) for _, s in entries]


def test_a_batch_is_bounded_in_bytes(log, monkeypatch):
    """Large attachments make smaller batches; one that was begun is finished as it was begun."""
    monkeypatch.setattr("authz.receiver.sequence._BATCH_BYTES", 10_000)
    monkeypatch.setattr("authz.receiver.sequence._READ_BYTES", 1000)
    entries = []
    for n in range(40):
        sealed = bytes([n]) * 3000
        entries.append(
            ({"kind": "decision", "decision_id": str(n), "sealed": named(sealed)}, sealed)
        )
    log.append_entries(log.written_entries(entries))
    first = log.log.seal(1000)
    assert 3 <= len(first.records) < 6
    monkeypatch.setattr("authz.receiver.sequence._BATCH_BYTES", 1)
    log.restart()
    again = log.log.seal(1000)
    assert (again.note, again.attachments) == (first.note, first.attachments)
