"""A receiver's disk is lost, and a new log goes on from the old one: what had been stored stays
provable, writers send again what they still have, and the rest is missed."""

import asyncio
import base64
import contextlib
import json
import shutil
from collections import Counter

import pytest
import yaml
from faults.feeding import ORIGIN, Feeder, Site, database, ready, site
from streams import now_us

from authz.blocks import block_notice
from authz.ledger import Checkpoint
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import verify_store

FINDING = {"kind": "finding", "event": "raised", "subject": "dr.ash", "lane": "act", "rule": "r"}
SECOND = f"{ORIGIN}-2"
SLOW = {"AUTHZ_RECEIVER__BATCH_SECONDS": "60", "AUTHZ_RECEIVER__BATCH_ROWS": "1000000"}


def stored(receiver, origin=ORIGIN):
    with connect(receiver.store) as client:
        query = "SELECT max(size) FROM checkpoints WHERE origin = %(origin)s"
        return client.execute(query, {"origin": origin})[0][0]


def free_lease(receiver):
    """What 20 seconds would do: the lease of a killed receiver ends."""
    with connect(receiver.store, mutations_sync=1) as client:
        client.execute(f"ALTER TABLE leases DELETE WHERE origin = '{ORIGIN}'")


def second(receiver):
    """The same place in the network, with a new disk, and a log that follows the lost one."""
    settings = {"AUTHZ_RECEIVER__GRACE_SECONDS": "1", "AUTHZ_RECEIVER__INTERVAL_SECONDS": "1"}
    made = Site(receiver.directory, receiver.store, AUTHZ_RECEIVER__FOLLOWS=ORIGIN, **settings)
    made.address, made.origin = receiver.address, SECOND
    made.data_dir = receiver.directory / "second"
    return made


@contextlib.asynccontextmanager
async def lost(directory, store, *, trimmed=False):
    """A receiver whose disk is lost while records that it acknowledged are not stored; its writer,
    and how far the log was stored then."""
    with site(directory, store) as receiver:
        receiver.start()
        await ready(receiver)
        async with Feeder(directory / "writer", receiver.address) as feeder:
            if trimmed:
                feeder.writer.journal._segment_bytes = 4000
            await feeder.feed(0.5)
            feeder.writer.write((block_notice("dr.oak", 2**52, "lost badge", "me", 1), b""))
            feeder.writer.write((FINDING, b""))
            await feeder.settle()
            assert receiver.stop() == 0
            before = stored(receiver)
            shutil.copy(receiver.data_dir / "trust.yaml", directory / "trust.yaml")
            receiver.environment |= SLOW
            receiver.start()
            await ready(receiver)
            while (size := stored(receiver)) == before:  # the first batch does not wait
                await asyncio.sleep(0.05)
            await feeder.feed(0.5)
            await feeder.settle()
            receiver.kill()
            assert stored(receiver) == size
            free_lease(receiver)
            shutil.rmtree(receiver.data_dir)
            yield receiver, feeder, size


def notices(following, event):
    """What the new log tells, in order."""
    query = "SELECT details FROM notices WHERE origin = %(origin)s AND event = %(event)s"
    with connect(following.store) as client:
        found = client.execute(query + " ORDER BY index", {"origin": SECOND, "event": event})
    return [json.loads(details) for (details,) in found]


async def gaps(following):
    """Once there are any, and the receiver has stopped: their count by kind."""
    while not notices(following, "gap"):
        await asyncio.sleep(0.1)
    assert following.stop() == 0, following.log.read_text()
    found = Counter()
    for gap in notices(following, "gap"):
        found[gap["kind"]] += gap["count"]
    return found


def verify(following):
    """By a trust file that names both logs."""
    directory = following.directory
    logs = [
        yaml.safe_load(path.read_text())["logs"][0]
        for path in (directory / "trust.yaml", following.data_dir / "trust.yaml")
    ]
    path = directory / "both.yaml"
    path.write_text(yaml.safe_dump({"logs": logs}))
    with connect(following.store) as client:
        return verify_store(client, load_trust(path))


@pytest.mark.thorough
def test_the_disk_is_lost(tmp_path, clickhouse):
    """Every acknowledged decision is in one of the two logs, once, since writers still had it; what
    no writer can send again is told as missing; both logs verify."""

    async def live(store):
        async with lost(tmp_path, store) as (receiver, feeder, size):
            following = second(receiver)
            try:
                following.start()
                await ready(following)
                await feeder.feed(0.3)
                await feeder.settle()
                assert feeder.writer.blocked("dr.oak"), "a block of the old log is in force"
                assert feeder.writer.blocks.risk(["dr.ash"], now_us()), "and so is a finding"
                assert feeder.writer.identity.origin == SECOND
                told = await gaps(following)
            finally:
                following.kill()
            [started] = notices(following, "log_started")
            return size, started, told, feeder, verify(following)

    with database(clickhouse.store) as store:
        size, started, told, feeder, report = asyncio.run(live(store))
        with connect(store) as client:
            query = "SELECT decision_id FROM decisions ORDER BY origin, index"
            assert [name for (name,) in client.execute(query)] == feeder.decided
            [(first,)] = client.execute(
                "SELECT note FROM checkpoints WHERE origin = %(origin)s AND size = %(size)s",
                {"origin": ORIGIN, "size": size},
            )
    assert report.findings == []
    assert (report.logs[0].origin, report.logs[0].size) == (ORIGIN, size)
    follows, checkpoint = started["follows"], Checkpoint.parse(first)
    assert (follows["origin"], follows["size"], follows["note"]) == (ORIGIN, size, first)
    assert base64.b64decode(follows["root"]) == checkpoint.root
    assert told == {"no_access": len(feeder.decided) - report.accesses}
    assert told == report.gaps


@pytest.mark.thorough
def test_what_writers_do_not_have_any_more(tmp_path, clickhouse):
    """A writer whose own journal has forgotten what the lost disk held is refused, and the log
    tells how far it has this writer's records."""

    async def live(store):
        async with lost(tmp_path, store, trimmed=True) as (receiver, feeder, _):
            following = second(receiver)
            try:
                following.start()
                await ready(following)
                for _ in range(600):
                    if feeder.writer.forwarder.refusal:
                        break
                    await asyncio.sleep(0.05)
                assert "records between are lost" in feeder.writer.forwarder.refusal
                told = await gaps(following)
                return told, notices(following, "gap"), verify(following)
            finally:
                following.kill()
                feeder._untold.clear()

    with database(clickhouse.store) as store:
        told, [gap], report = asyncio.run(live(store))
    assert told == {"writer_sequence": 1}
    assert gap["last_seq"] > 0
    assert report.findings == []


@pytest.mark.thorough
@pytest.mark.parametrize("name", [SECOND, "no/such"])
def test_what_cannot_be_followed(tmp_path, database, name):
    """A log that is not there, or is the new one itself, cannot be followed."""
    made = Site(tmp_path, database, AUTHZ_RECEIVER__FOLLOWS=name)
    made.origin = SECOND
    made.start()
    try:
        assert made.process.wait(60) == 2
    finally:
        made.kill()
    assert f"receiver.follows: {name}" in made.log.read_text()


def test_the_key_is_lost(tmp_path, database):
    """Without its key a log is not begun anew in its own place: the receiver says what to do."""
    with site(tmp_path, database) as receiver:
        receiver.start()
        asyncio.run(ready(receiver))
        assert receiver.stop() == 0
        (receiver.data_dir / "log.key").unlink()
        receiver.start()
        assert receiver.process.wait(60) == 2
    assert "receiver.follows" in receiver.log.read_text()
    assert not (receiver.data_dir / "log.key").exists()
