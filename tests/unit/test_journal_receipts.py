"""With `durability: receiver` a record counts when the receiver has it: over a real stream."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from streams import Receiver, until

from authz.blocks import Blocks
from authz.config import Config
from authz.journal.chain import split
from authz.journal.receipts import NOT_YET, OVERDUE
from authz.journal.segments import JournalError
from authz.serve.writer import Writer


class Sending:
    """ext-authz as a writer, its stream running; `decide` records one decision, and waits."""

    def __init__(self, directory, receiver, patience_ms=30_000):
        self.directory = directory
        self.config = Config(
            data_dir=directory,
            ext_authz={"receiver": receiver, "timeout_ms": patience_ms},
            journal={"durability": "receiver"},
        )

    async def __aenter__(self):
        self.writer = Writer(self.config)
        self.writer.start()
        self.receipts = self.writer.receipts
        self.threads = ThreadPoolExecutor(32)
        blocks = Blocks.load(self.directory / "blocks.json")
        self.forwarder = self.writer.forwarder(self.config.ext_authz, "", blocks)
        self.running = asyncio.create_task(self.forwarder.run())
        return self

    async def __aexit__(self, *_):
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.threads.shutdown()
        self.writer.close()

    async def ready(self):
        await until(lambda: not self.receipts.unavailable and not self.forwarder.unacknowledged)

    def decide(self, name):
        entry = ({"kind": "decision", "decision_id": name}, b"")

        def work():
            self.receipts.wait(self.receipts.enqueue([entry]))
            return name

        return asyncio.get_running_loop().run_in_executor(self.threads, work)

    def written(self):
        return self.writer.journal.next - 1


def decided(receiver):
    records = [orjson.loads(split(payload)[0]) for payload in receiver.payloads()]
    return [record["decision_id"] for record in records if record["kind"] == "decision"]


@contextlib.contextmanager
def held(receiver):
    """The receiver's disk hangs; gives the sizes of the appends after that."""
    free, append, sizes = threading.Event(), receiver.journal.append, []

    def hang(payloads):
        free.wait()
        append(payloads)
        sizes.append(len(payloads))

    receiver.journal.append = hang
    try:
        yield sizes
    finally:
        free.set()


def test_who_is_told_can_rely_on_the_receiver(tmp_path):
    """When a wait ends the record is in the receiver's journal, whatever becomes of the writer's;
    from many threads at once each is there once."""

    async def run():
        async with Receiver(tmp_path) as receiver, Sending(tmp_path / "w", receiver.address) as one:
            await one.ready()
            for number in range(20):
                name = await one.decide(f"a{number}")
                assert decided(receiver)[-1] == name
            names = [f"b{number}" for number in range(300)]
            await asyncio.gather(*map(one.decide, names))
            found = decided(receiver)
            assert sorted(found[20:]) == sorted(names)

    asyncio.run(run())


def test_those_who_wait_share_an_acknowledgement(tmp_path):
    """What is written while a batch is under way goes along together with the next."""

    async def run():
        async with Receiver(tmp_path) as receiver, Sending(tmp_path / "w", receiver.address) as one:
            await one.ready()
            before = one.written()
            with held(receiver) as sizes:
                first = one.decide("first")
                await until(lambda: one.written() == before + 1)
                await asyncio.sleep(0.05)
                rest = [one.decide(f"d{number}") for number in range(24)]
                await until(lambda: one.written() == before + 25)
                await asyncio.sleep(0.05)
                assert not any(future.done() for future in [first, *rest])
            await asyncio.gather(first, *rest)
            assert sizes == [1, 24]

    asyncio.run(run())


def test_without_a_receiver_nothing_is_begun(tmp_path):
    """Without a receiver a record that somebody would wait for is refused at once and not kept;
    once there is one it goes on by itself."""

    async def run():
        receiver = Receiver(tmp_path)
        async with Sending(tmp_path / "w", receiver.address) as one:
            before = one.written()
            assert one.writer.unavailable == NOT_YET
            with pytest.raises(JournalError):
                await one.decide("early")
            assert one.written() == before
            async with receiver:
                await one.ready()
                await one.decide("in time")
                assert decided(receiver) == ["in time"]
            await until(lambda: one.writer.unavailable)
            with pytest.raises(JournalError, match="no receiver is connected"):
                await one.decide("late")

    asyncio.run(run())


def test_a_cut_ends_the_wait_and_loses_nothing(tmp_path):
    """Who waits when the receiver goes away is told at once; the record was written here, and is in
    the log once, when a receiver is back."""

    async def run():
        async with Sending(tmp_path / "w", f"unix://{tmp_path}/r") as one:
            async with Receiver(tmp_path) as receiver:
                await one.ready()
                with held(receiver):
                    before = one.written()
                    waiting = [one.decide(f"d{number}") for number in range(5)]
                    await until(lambda: one.written() == before + 5)
                    await receiver.server.stop(0)
                    for future in waiting:
                        with pytest.raises(JournalError, match="no receiver is connected"):
                            await future
            async with Receiver(tmp_path) as again:
                await one.ready()
                await one.decide("after")
                assert sorted(decided(again)) == ["after", *(f"d{number}" for number in range(5))]

    asyncio.run(run())


def test_a_receiver_that_hangs_is_waited_for_once(tmp_path):
    """An acknowledgement that is overdue ends the wait; until it has come others are refused at
    once, and then all is well again."""

    async def run():
        receiver = Receiver(tmp_path)
        async with receiver, Sending(tmp_path / "w", receiver.address, 1000) as one:
            await one.ready()
            with held(receiver):
                with pytest.raises(JournalError, match=OVERDUE):
                    await one.decide("slow")
                before = one.written()
                assert one.writer.unavailable == OVERDUE
                with pytest.raises(JournalError, match=OVERDUE):
                    await one.decide("refused")
                assert one.written() == before
            await one.ready()
            await one.decide("after")
            assert decided(receiver) == ["slow", "after"]

    asyncio.run(run())


def test_what_was_not_acknowledged_is_sent_by_the_next_start(tmp_path):
    """A writer that ends while the receiver hangs sends from its journal when it is back."""

    async def run():
        async with Receiver(tmp_path) as receiver:
            async with Sending(tmp_path / "w", receiver.address, 500) as one:
                await one.ready()
                with held(receiver):
                    before = one.written()
                    waiting = one.decide("left")
                    await until(lambda: one.written() == before + 1)
                    one.running.cancel()
                    await asyncio.wait([waiting])
                    assert waiting.exception()
            async with Sending(tmp_path / "w", receiver.address) as one:
                await one.ready()
                await one.decide("after")
                assert decided(receiver) == ["left", "after"]

    asyncio.run(run())


def test_a_receiver_that_does_not_sync_is_refused(tmp_path):
    """The acknowledgement of a receiver that does not sync its disk is not taken for one, and the
    refusal says the mend."""

    async def run():
        receiver = Receiver(tmp_path, synced=False)
        async with receiver, Sending(tmp_path / "w", receiver.address) as one:
            await until(lambda: one.forwarder.refusal)
            assert "journal.durability: fsync" in one.writer.unavailable
            with pytest.raises(JournalError, match="does not sync"):
                await one.decide("d")
            assert receiver.payloads() == []

    asyncio.run(run())
