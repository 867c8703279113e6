"""Group commit: all that wait share one write."""

import asyncio

import pytest

from authz.journal.commit import Committer
from authz.journal.segments import Journal, JournalError, JournalFullError


class Plain:
    """Records as they are; remembers the batches."""

    def __init__(self):
        self.batches = []
        self.done = 0

    def frame(self, items, first):
        self.batches.append(list(items))
        return list(items)

    def committed(self):
        self.done += 1


class Broken(Journal):
    """A journal whose appends fail while `failing`."""

    failing = False

    def append(self, payloads):
        if self.failing:
            raise JournalError("no disk")
        super().append(payloads)


@pytest.fixture
def journal(tmp_path):
    journal = Broken(tmp_path)
    yield journal
    journal.close()


def stored(journal):
    reader = journal.reader(1)
    records = reader.take(10_000)
    reader.close()
    return records


def test_order_and_company(journal):
    """Records are durable in the order given, and many at once take few writes."""
    plain = Plain()

    async def run():
        committer = Committer(journal, plain)
        items = [b"%d" % number for number in range(500)]
        await asyncio.gather(*(committer.submit(item) for item in items))
        committer.close()
        return items

    items = asyncio.run(run())
    assert stored(journal) == items
    assert len(plain.batches) < 10
    assert plain.done == len(plain.batches)


def test_durable_means_on_disk(journal):
    """Nobody is told before the record can be read back."""

    async def run():
        committer = Committer(journal, Plain())
        await committer.submit(b"one")
        assert stored(journal) == [b"one"]
        committer.close()

    asyncio.run(run())


def test_failure_reaches_all_and_leaves_no_hole(journal):
    """When a write fails everyone in it is told; the next gets the number that is free again."""
    plain = Plain()

    async def run():
        committer = Committer(journal, plain)
        journal.failing = True
        results = await asyncio.gather(
            *(committer.submit(b"lost") for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(result, JournalError) for result in results)
        assert committer.failing
        journal.failing = False
        await committer.submit(b"kept")
        assert not committer.failing
        committer.close()

    asyncio.run(run())
    assert stored(journal) == [b"kept"]
    assert plain.done == 1


def test_a_waiter_that_leaves_takes_nothing_back(journal):
    """A cancelled waiter's record is written all the same, and hinders nobody."""

    async def run():
        committer = Committer(journal, Plain())
        gone = committer.submit(b"gone")
        stays = committer.submit(b"stays")
        gone.cancel()
        await stays
        await committer.drain()
        committer.close()

    asyncio.run(run())
    assert stored(journal) == [b"gone", b"stays"]


def test_failure_that_nobody_waits_for(journal):
    """A failure that nobody waits for is no warning at the end."""

    async def run():
        committer = Committer(journal, Plain())
        journal.failing = True
        committer.submit(b"lost").cancel()
        await committer.drain()
        committer.close()

    asyncio.run(run())


def test_too_many_waiting(journal):
    """What waits in memory is bounded; beyond that a record is refused at once."""

    async def run():
        committer = Committer(journal, Plain(), max_waiting=3)
        futures = [committer.submit(b"x") for _ in range(4)]
        with pytest.raises(JournalFullError):
            await futures[3]
        await asyncio.gather(*futures[:3])
        committer.close()

    asyncio.run(run())


def test_a_record_that_cannot_be_framed(journal):
    """A bug in one record fails those written with it, told as a journal's error, and no others."""

    class Picky(Plain):
        def frame(self, items, first):
            if b"bad" in items:
                raise TypeError("bad")
            return super().frame(items, first)

    async def run():
        committer = Committer(journal, Picky())
        with pytest.raises(JournalError, match="TypeError"):
            await committer.submit(b"bad")
        await committer.submit(b"good")
        committer.close()

    asyncio.run(run())
    assert stored(journal) == [b"good"]
