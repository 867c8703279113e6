"""Stopping the gRPC server on the C core: what it has is answered, and it ends soon."""

import threading
import time

import core_running
import grpc
import pytest
from core_running import METHOD, SECONDS, blocking, echo, wait_for

from authz.serve.core_stream import Unary


@pytest.fixture
def running(tmp_path):
    with core_running.servers(tmp_path) as make:
        yield make


def test_stop_answers_what_is_under_way(running):
    """Stopping waits for the calls it has, takes no new ones, and ends its threads."""
    go = threading.Event()
    taken = []

    def hold(exchanges):
        taken.extend(exchanges)
        go.wait()
        echo(exchanges)

    one = running(hold)
    futures = [one.ask.future(b"%d" % n) for n in range(20)]
    wait_for(lambda: len(taken) == 20)
    stopping = threading.Thread(target=one.server.stop, args=(SECONDS,))
    stopping.start()
    time.sleep(0.1)
    go.set()
    assert [future.result() for future in futures] == [b"re %d" % n for n in range(20)]
    stopping.join()
    with one.connect() as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(METHOD)(b"", timeout=2)


def test_stop_answers_what_the_core_has_handed_over(running):
    """A call that came just before the stop, and that no thread has looked at yet, is answered."""
    reached, go = threading.Event(), threading.Event()
    one = running(echo, others={"/test.Echo/Block": Unary(blocking(reached, go))})
    one.ask(b"", timeout=SECONDS)
    blocked = one.channel.unary_unary("/test.Echo/Block").future(b"")
    reached.wait()  # the thread that takes calls is held
    futures = [one.ask.future(b"%d" % n, timeout=SECONDS) for n in range(20)]
    time.sleep(1)  # they have come as far as the core
    stopping = threading.Thread(target=one.server.stop, args=(SECONDS,))
    stopping.start()
    time.sleep(0.1)
    go.set()
    assert [future.result() for future in futures] == [b"re %d" % n for n in range(20)]
    assert blocked.result() == b""
    stopping.join()


def test_stop_is_soon(running):
    """A server that had many threads stops as soon as one that had few."""
    barrier = threading.Barrier(30)

    def together(exchanges):
        barrier.wait()
        echo(exchanges)

    one = running(together, most=1)
    for future in [one.ask.future(b"") for _ in range(30)]:
        future.result()
    began = time.monotonic()
    one.stop()
    assert time.monotonic() - began < 0.2 * len(one.server._threads)


def test_stop_does_not_wait_for_ever(running):
    """A call that is never answered is cut off after the grace time."""
    go, taken = threading.Event(), threading.Event()

    def hang(exchanges):
        taken.set()
        go.wait()

    one = running(hang)
    future = one.ask.future(b"")
    taken.wait()
    one.server.stop(0.2)
    with pytest.raises(grpc.RpcError):
        future.result(SECONDS)
    go.set()


def test_at_shutdown_the_core_refuses_further_requests_of_calls(running):
    """Once it is told to stop, asking the core for another call is a ValueError: a call in hand
    must be seen to before that."""
    one = running(echo)
    one.ask(b"", timeout=SECONDS)
    one.stop()
    with pytest.raises(ValueError, match="shutting down"):
        one.server._server.request_call(one.server._queue, one.server._queue, None)
