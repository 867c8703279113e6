"""Into ClickHouse exactly once: cut, held back or killed at every point of every statement."""

import asyncio
import os
import time
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import SIGNER, TRUST, TestLog
from streams import named

from authz.journal.chain import policy_notice
from authz.store.client import QUERY_ERRORS, connect
from authz.store.writer import StoreWriter
from authz.verify import verify_store

from .cutting import INSERT_POINTS, POINTS, Cutter, Trap
from .feeding import Feeder, Server, check, database, ready, site

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)

INSERTS = ("audit_log", "sealed_originals", "policies", "tiles", "checkpoints")
STATEMENTS = [(b"INSERT INTO " + table.encode(), 1, INSERT_POINTS) for table in INSERTS] + [
    (b"KILL QUERY", 1, POINTS),
    (b"FROM audit_log", 1, POINTS),  # what an earlier attempt left
    (b"FROM audit_log", 2, POINTS),  # the read-back
    (b"FROM sealed_originals", 2, POINTS),
    (b"FROM policies", 2, POINTS),
]
ROWS, SEALED = 30, 10


class Batches:
    """A log, stored in batches by a fresh writer each, as a receiver that was just started is."""

    def __init__(self, directory, store, through):
        self.log = TestLog(directory, store)
        self._through = through
        self.count = 0

    def put(self, timeout=60.0, between=lambda: None):
        """The next batch, tried until it is stored; returns how often that failed."""
        self.count += 1
        self.log.append_entries(self._written())
        batch = self.log.log.seal(1000)
        client = connect(self._through)
        client.connection.send_receive_timeout = timeout
        writer = StoreWriter(client, SIGNER.name)
        for failures in range(10):  # noqa: B007 - it is returned
            try:
                writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)
                break
            except QUERY_ERRORS:
                between()
        else:
            pytest.fail("the batch never went through")
        client.disconnect()
        self.log.log.finish(batch)
        return failures

    def _written(self):
        entries = [({"kind": "decision", "reason": "x" * 100}, b"")] * (ROWS - SEALED - 1)
        entries = [(dict(record), kept) for record, kept in entries]
        for number in range(SEALED):
            sealed = b"0123abcd." + bytes([self.count % 256, self.count // 256, number]) * 300
            name = f"{self.count} {number}"
            record = {"kind": "decision", "decision_id": name, "sealed": named(sealed)}
            entries.append((record, sealed))
        text = b"package p%d" % self.count
        return self.log.written_entries([*entries, policy_notice(1, named(text), text)])

    def check(self):
        """Each row of each table once, and the log intact. After that nothing more may come."""
        client, count = self.log.client, self.count
        query = "SELECT count(), uniqExact(index) FROM audit_log"
        assert client.execute(query) == [(count * ROWS, count * ROWS)]
        query = "SELECT count(), uniqExact(index) FROM sealed_originals"
        assert client.execute(query) == [(count * SEALED, count * SEALED)]
        query = "SELECT count(), uniqExact(revision) FROM policies"
        assert client.execute(query) == [(count, count)]
        report = verify_store(client, TRUST)
        assert (report.findings, report.logs[0].doubles) == ([], 0)
        assert report.logs[0].size == count * ROWS

    def close(self):
        self.log.end()


@pytest.fixture
def cutter(database):
    cutter = Cutter(database)
    yield cutter
    cutter.close()


@pytest.fixture
def batches(tmp_path, database, cutter):
    batches = Batches(tmp_path, database, cutter.url)
    yield batches
    batches.close()


def slow(client, seconds):
    """Have an insert of a batch's rows wait about so long on the server before any is there."""
    client.execute(
        f"ALTER TABLE audit_log ADD CONSTRAINT slow CHECK sleepEachRow({seconds / ROWS}) = 0"
    )


@pytest.mark.thorough
def test_every_point_of_every_statement(batches, cutter):
    """Cut there once and tried again, everything is there once."""
    for statement, nth, points in STATEMENTS:
        for point in points:
            trap = cutter.set(Trap(statement, point, nth))
            failures = batches.put()
            assert trap.sprung.is_set(), (statement, point)
            assert failures == 1, (statement, point)
        batches.check()


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["query", "in data", "data", "done"])
def test_cut_while_the_server_still_inserts(batches, cutter, point):
    """The client alone sees the cut, and the old query still runs when the next attempt begins:
    nothing is there twice, then or later."""
    batches.put()
    slow(batches.log.client, 0.8)
    trap = cutter.set(Trap(b"INSERT INTO audit_log", point, unseen=True))
    assert batches.put() == 1
    assert trap.sprung.is_set()
    batches.check()
    time.sleep(0.8)
    batches.check()


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["before", "in data", "data", "done"])
def test_held_back_beyond_the_time_out(batches, cutter, point):
    """What a network holds back arrives when the client has long given up and tried again: a
    query, half of its data, or its answer."""
    batches.put()
    held = 0.8
    trap = cutter.set(
        Trap(b"INSERT INTO audit_log", point, act=lambda: time.sleep(held), cut=False)
    )
    assert batches.put(timeout=0.3) >= 1
    assert trap.sprung.is_set()
    batches.check()
    time.sleep(held)
    batches.check()


@pytest.mark.parametrize("point", ["in data", "done"])
def test_server_killed_there(tmp_path, clickhouse_of_its_own, point):
    """kill -9 of the server at that point of insert or read-back: all is there once."""
    server = clickhouse_of_its_own
    with database(server.store) as store:
        cutter = Cutter(store)
        batches = Batches(tmp_path, store, cutter.url)
        batches.put()
        slow(batches.log.client, 0.3)
        statements = [(b"INSERT INTO audit_log", 1), (b"INSERT INTO tiles", 1)]
        if point in POINTS:
            statements.append((b"FROM audit_log", 2))
        for statement, nth in statements:
            trap = cutter.set(Trap(statement, point, nth, act=server.kill))
            assert batches.put(between=server.start) == 1
            assert trap.sprung.is_set()
        batches.log.client.disconnect()
        batches.check()
        batches.close()
        cutter.close()


@pytest.fixture(scope="module")
def clickhouse_of_its_own(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("killed"))
    yield server
    server.stop()


def test_any_byte(batches, cutter):
    """Each connection cut after any number of bytes, many in a row: everything is there once."""
    offsets = st.lists(st.integers(0, 60_000), min_size=1, max_size=5)

    class Offsets:
        """Gives the cuts one after another, then none that matters."""

        def __init__(self, wanted):
            self.wanted = iter(wanted)

        def expovariate(self, _):
            return next(self.wanted, 1 << 40)

    failures = 0

    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(offsets)
    def run(wanted):
        nonlocal failures
        cutter.flaky = Offsets(wanted)
        failures += batches.put()
        cutter.flaky = None

    run()
    batches.check()
    assert failures > 20, "the test did cut"


@pytest.mark.thorough
def test_cut_under_load(tmp_path, database):
    """The receiver itself, its connections cut at random all the while, loses and doubles nothing,
    and needs no restart."""
    print(f"AUTHZ_TEST_SEED={SEED}")
    cutter = Cutter(database)

    async def run():
        with site(tmp_path, cutter.url) as here:
            here.start()
            await ready(here)
            async with Feeder(tmp_path / "writer", here.address) as feeder:
                cutter.flaky = Random(SEED)
                cutter.cut_all()
                await feeder.feed(3)
                cutter.flaky = None
                await feeder.settle()
                counted = check(here, feeder)
                assert counted.wrong == []
                assert feeder.unsure == set()
                print(counted.report.records, "records,", cutter.cuts, "connections cut")
            assert here.stop() == 0

    asyncio.run(run())
    assert cutter.cuts > 5
    cutter.close()
