"""Group commit among threads: whoever comes first writes for all who wait."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from authz.journal.group import GroupCommit
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


class Stubborn(Journal):
    """A journal whose appends fail while `failing`, and wait while not `free`."""

    failing = False

    def __init__(self, directory):
        super().__init__(directory)
        self.free = threading.Event()
        self.free.set()
        self.reached = threading.Event()
        self.appends = 0

    def append(self, payloads):
        self.reached.set()
        self.free.wait()
        if self.failing:
            raise JournalError("no disk")
        self.appends += 1
        super().append(payloads)


@pytest.fixture
def journal(tmp_path):
    journal = Stubborn(tmp_path)
    yield journal
    journal.free.set()
    journal.close()


@pytest.fixture
def group(journal):
    """Makes committers on the journal; closes them afterwards."""
    made = []

    def make(framer=None, **options):
        made.append(GroupCommit(journal, framer or Plain(), **options))
        return made[-1]

    yield make
    journal.free.set()
    for one in made:
        one.close()


def stored(journal):
    reader = journal.reader(1)
    records = reader.take(1_000_000)
    reader.close()
    return records


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.001)


def test_durable_means_on_disk(journal, group):
    """Nobody is told before the record can be read back."""
    one = group()
    one.commit([b"one", b"two"])
    assert stored(journal) == [b"one", b"two"]


def test_order_is_that_of_enqueue(journal, group):
    """What was enqueued first comes first, whoever waits first, and posted items keep their place
    between awaited ones."""
    one = group()
    journal.free.clear()
    first = one.enqueue([b"1", b"2"])
    one.post(b"3")
    last = one.enqueue([b"4"])
    journal.free.set()
    one.wait(last)
    one.wait(first)
    assert stored(journal) == [b"1", b"2", b"3", b"4"]


def test_those_who_wait_share_a_sync(journal, group):
    """While one write is under way, all others gather, and are written at once after it."""
    plain = Plain()
    one = group(plain)
    journal.free.clear()
    with ThreadPoolExecutor(20) as pool:
        leader = pool.submit(one.commit, [b"leader"])
        journal.reached.wait()
        rest = [pool.submit(one.commit, [b"%d" % number]) for number in range(19)]
        wait_for(lambda: one._count == 19)
        journal.free.set()
        for future in (leader, *rest):
            future.result()
    assert [len(batch) for batch in plain.batches] == [1, 19]
    assert plain.done == 2


def test_many_threads(journal, group):
    """From many threads at once: everything is durable once, each thread's own in its order."""
    one = group()

    def work(thread):
        for number in range(200):
            items = [b"%d %d %d" % (thread, number, part) for part in range(number % 3 + 1)]
            if number % 7:
                one.commit(items)
            else:
                for item in items:
                    one.post(item)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    one.drain()
    records = [tuple(map(int, record.split())) for record in stored(journal)]
    expected = [(n, part) for n in range(200) for part in range(n % 3 + 1)]
    for thread in range(16):
        assert [record[1:] for record in records if record[0] == thread] == expected
    assert len(records) == 16 * len(expected)
    assert one.lost == 0


def test_failure_reaches_all_and_leaves_no_hole(journal, group):
    """When a write fails everyone in it is told; the next gets the number that is free again."""
    plain = Plain()
    one = group(plain)
    journal.failing = True
    journal.free.clear()
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(one.commit, [b"lost"]) for _ in range(6)]
        journal.reached.wait()
        wait_for(lambda: one._count == 5)
        journal.free.set()
        assert all(isinstance(future.exception(), JournalError) for future in futures)
    assert one.failing
    assert one.lost == 0, "those who waited were told"
    journal.failing = False
    one.commit([b"kept"])
    assert not one.failing
    assert stored(journal) == [b"kept"]
    assert journal.next == 2
    assert plain.done == 1


def test_an_error_of_the_framer_is_a_failure(journal, group):
    """A bug in one record fails those written with it, told as a journal's error by its type only,
    and no others."""

    class Picky(Plain):
        def frame(self, items, first):
            if b"bad" in items:
                raise TypeError("p-123")
            return super().frame(items, first)

    one = group(Picky())
    with pytest.raises(JournalError, match=r"^TypeError$"):
        one.commit([b"bad"])
    one.commit([b"good"])
    assert stored(journal) == [b"good"]


def test_too_many_waiting(journal, group):
    """What waits in memory is bounded: beyond that an awaited item is refused at once, without
    the disk, and a posted one counted as lost."""
    one = group(max_waiting=3)
    journal.free.clear()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(one.commit, [b"leader"])
        journal.reached.wait()
        ticket = one.enqueue([b"1", b"2"])
        with pytest.raises(JournalFullError):
            one.wait(one.enqueue([b"3", b"4"]))
        one.post(b"3")
        one.post(b"4")
        assert one.lost == 1
        journal.free.set()
        leader.result()
        one.wait(ticket)
    assert stored(journal) == [b"leader", b"1", b"2", b"3"]


def test_posted_items_are_written_soon(journal, group):
    """An item that nobody waits for is durable soon, with nobody else writing."""
    one = group()
    one.post(b"a")
    wait_for(lambda: stored(journal) == [b"a"])


def test_posted_items_that_fail_are_counted(journal, group):
    """What could not be recorded and nobody was told of is counted, to be told of later; and the
    thread that writes posted items goes on."""
    one = group()
    journal.failing = True
    for _ in range(5):
        one.post(b"x")
    wait_for(lambda: one.lost == 5)
    assert one.failing
    journal.failing = False
    one.post(b"y")
    wait_for(lambda: stored(journal) == [b"y"])
    assert not one.failing


def test_each_lost_item_is_counted_once(journal, group):
    """The count of what was lost is right, however many threads lose at the same time."""
    one = group(max_waiting=4)
    journal.failing = True
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: [one.post(b"x") for _ in range(2000)], range(8)))
    finally:
        sys.setswitchinterval(before)
    one.drain()
    assert one.lost == 16_000


def test_those_who_listen_hear_of_each_write(journal, group):
    """`on_durable` is called after each write that succeeded, and an error in it harms nobody."""
    one = group()
    heard = []
    one.on_durable = lambda: heard.append(journal.next)
    one.commit([b"1"])
    journal.failing = True
    with pytest.raises(JournalError):
        one.commit([b"x"])
    journal.failing = False
    assert heard == [2]

    def broken():
        raise RuntimeError("the loop is closed")

    one.on_durable = broken
    one.commit([b"2"])
    one.post(b"3")
    wait_for(lambda: len(stored(journal)) == 3)
    one.post(b"4")
    wait_for(lambda: len(stored(journal)) == 4)


def test_drain(journal, group):
    """After `drain` nothing that was posted before it waits any more."""
    one = group()
    for number in range(100):
        one.post(b"%d" % number)
        one.drain()
        assert len(stored(journal)) == number + 1


def test_close_writes_what_was_posted(journal, tmp_path):
    """What was posted before `close` is durable after it, also if the background thread was at
    work just then."""
    for number in range(50):
        one = GroupCommit(journal, Plain())
        journal.reached.clear()
        journal.free.clear()
        one.post(b"%d first" % number)
        journal.reached.wait()  # the background thread is in the middle of a write
        one.post(b"%d last" % number)
        closing = threading.Thread(target=one.close)
        closing.start()
        journal.free.set()
        closing.join()
        assert len(stored(journal)) == 2 * number + 2


def test_after_close_the_journal_is_let_alone(journal):
    """A thread that comes late, when the next process may own the directory, is refused."""
    one = GroupCommit(journal, Plain())
    ticket = one.enqueue([b"in time"])
    one.close()
    one.wait(ticket)
    with pytest.raises(JournalError, match="closed"):
        one.commit([b"late"])
    assert stored(journal) == [b"in time"]


def test_a_waiter_whose_items_another_wrote_does_not_write(journal, group):
    """A ticket is done once: waiting again for it costs no write."""
    one = group()
    ticket = one.enqueue([b"1"])
    one.drain()
    one.wait(ticket)
    one.wait(ticket)
    assert journal.appends == 1


def test_nothing_is_an_empty_batch(journal, group):
    """A batch of no items is durable, and leaves nothing behind."""
    one = group()
    one.commit([])
    assert stored(journal) == []
