"""A watch that is stopped lets go of its database when nobody uses it any more."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from authz.serve import watch
from authz.serve.queries import Queries


class Slow:
    """Work in a thread that ends when it may."""

    def __init__(self):
        self.begun, self.may, self.ended = (threading.Event() for _ in range(3))

    def __call__(self):
        self.begun.set()
        self.may.wait(30)
        self.ended.set()
        return 0


def following(slow):
    looking = SimpleNamespace(look=slow, late=int, keep=int)
    return watch._follow(looking, "", asyncio.Event(), once=False)


def putting_on_record(slow):
    queries = Queries.__new__(Queries)
    queries.take_over = slow
    return queries.run()


@pytest.mark.parametrize("loop", [following, putting_on_record])
def test_stopped_in_the_middle(loop):
    """What it does then is done first: its connection is closed after that."""
    slow = Slow()

    async def run():
        task = asyncio.ensure_future(loop(slow))
        await asyncio.to_thread(slow.begun.wait, 30)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.2)
        assert not done
        slow.may.set()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()
        assert slow.ended.is_set()

    asyncio.run(run())
