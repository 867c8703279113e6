"""The gRPC server on the C core, asked by grpcio's own client."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import core_running
import grpc
import pytest
from core_running import METHOD, SECONDS, blocking, code, echo, wait_for
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from grpc._cython import cygrpc

from authz.errors import UsageError
from authz.serve import core_server
from authz.serve.check import UNASKED
from authz.serve.core_server import CoreServer
from authz.serve.core_stream import Conversation, Unary
from authz.serve.grpc_server import OPTIONS


@pytest.fixture
def running(tmp_path):
    with core_running.servers(tmp_path) as make:
        yield make


def shed(exchanges):
    for exchange in exchanges:
        exchange.answer(b"shed")


def test_a_call_is_answered(running):
    """A unary call gets its answer, by any client's time-out or none."""
    one = running(echo)
    assert one.ask(b"a", timeout=SECONDS) == b"re a"
    assert one.ask(b"") == b"re "


def test_concurrent_calls_get_their_own_answers(running):
    """Of calls answered together, in whatever order, each gets the answer to its own request."""
    sizes = []

    def backwards(exchanges):
        sizes.append(len(exchanges))
        echo(reversed(exchanges))

    one = running(backwards, most=8)

    def client(number):
        with one.connect() as channel:
            ask = channel.unary_unary(METHOD)
            futures = {n: ask.future(b"%d %d" % (number, n), timeout=SECONDS) for n in range(200)}
            return [future.result() == b"re %d %d" % (number, n) for n, future in futures.items()]

    with ThreadPoolExecutor(8) as pool:
        right = [answer for answers in pool.map(client, range(8)) for answer in answers]
    assert right == [True] * 1600
    assert sum(sizes) == 1600
    assert 1 < max(sizes) <= 8


def test_no_call_is_lost_in_a_rush(running):
    """Thousands of calls that no thread has come to yet are all answered: what the core rejects by
    itself gets an error, and `failure_mode_allow` would let that through."""
    reached, go = threading.Event(), threading.Event()
    one = running(echo, others={"/test.Echo/Block": Unary(blocking(reached, go))})
    one.ask(b"", timeout=SECONDS)
    blocked = one.channel.unary_unary("/test.Echo/Block").future(b"")
    reached.wait()  # the thread that takes calls is held
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(one.connect()) for _ in range(8)]
        asks = [channel.unary_unary(METHOD) for channel in channels]
        futures = [ask.future(b"", timeout=120) for _ in range(500) for ask in asks]
        time.sleep(1)
        go.set()
        assert {future.result() for future in futures} == {b"re "}
    assert blocked.result() == b""


def test_large_messages(running):
    """There is no limit on either side's message: what is too large, our own code says."""
    one = running(echo)
    assert one.ask(bytes(20 << 20), timeout=SECONDS) == b"re " + bytes(20 << 20)


def test_deadline_is_told(running):
    """The handler sees until when the client waits, as time of day."""
    seen = []

    def keep(exchanges):
        seen.extend(exchange.deadline - time.time() for exchange in exchanges)
        echo(exchanges)

    one = running(keep)
    one.ask(b"", timeout=1000)
    one.ask(b"")
    assert 900 < seen[0] < 1100  # on the wire it has few digits
    assert seen[1] > 1e6


def test_a_call_without_a_request(running):
    """A client that ends its side before it has asked gets the answer that is for such, and not no
    bytes, which would be a CheckResponse that allows."""
    one = running(echo)
    assert one.channel.stream_unary(METHOD)(iter(()), timeout=SECONDS) == b"nothing asked"
    assert CheckResponse.FromString(UNASKED).status.code == 7
    assert CheckResponse.FromString(UNASKED).denied_response.status.code == 400


def test_more_requests_than_one_get_one_answer(running):
    """A client that sends two messages gets the answer to the first."""
    one = running(echo)
    assert one.channel.stream_unary(METHOD)(iter((b"1", b"2")), timeout=SECONDS) == b"re 1"


def test_unknown_method(running):
    """Another method is unimplemented, and the next call is none the worse."""
    one = running(echo)
    with pytest.raises(grpc.RpcError) as error:
        one.channel.unary_unary("/test.Echo/Other")(b"", timeout=SECONDS)
    assert code(error) == grpc.StatusCode.UNIMPLEMENTED
    assert one.ask(b"a", timeout=SECONDS) == b"re a"


def test_cancelled_calls(running):
    """A client that leaves is told of once, after the answer, and hinders nobody."""
    held, gone, go = [], [], threading.Event()

    def hold(exchanges):
        for exchange in exchanges:
            exchange.on_gone = lambda request=exchange.request: gone.append(request)
            held.append(exchange)
        go.wait()
        echo(exchanges)

    one = running(hold)
    leaving = [one.ask.future(b"leaves %d" % n) for n in range(40)]
    staying = [one.ask.future(b"stays %d" % n) for n in range(40)]
    wait_for(lambda: len(held) == 80)
    for future in leaving:
        future.cancel()
    time.sleep(0.2)
    go.set()
    assert [future.result() for future in staying] == [b"re stays %d" % n for n in range(40)]
    wait_for(lambda: len(gone) == 40)
    assert sorted(gone) == sorted(b"leaves %d" % n for n in range(40))
    wait_for(lambda: all(exchange.on_gone is None for exchange in held))


def test_an_answer_the_core_does_not_take_is_an_error(running):
    """A second answer to one call is refused, and whoever gives it is told."""
    errors = []

    def twice(exchanges):
        for exchange in exchanges:
            exchange.answer(b"first")
            try:
                exchange.answer(b"second")
            except RuntimeError as error:
                errors.append(error)

    one = running(twice)
    assert one.ask(b"", timeout=SECONDS) == b"first"
    wait_for(lambda: len(errors) == 1)


def test_a_handler_that_raises(running):
    """Whatever the handler raises ends the calls it left unanswered at once, and never a thread:
    the server answers as before, and sheds as before."""

    def bad(exchanges):
        if exchanges[0].request == b"bad":
            raise ValueError("bad")
        echo(exchanges)

    one = running(bad, bad, threads=3)
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as error:
            one.ask(b"bad", timeout=SECONDS)
        assert code(error) == grpc.StatusCode.CANCELLED
    assert one.ask(b"a", timeout=SECONDS) == b"re a"
    assert time.monotonic() - began < 20 * core_server._POLL_SECONDS, (
        "at once, not at the next look"
    )
    wait_for(lambda: one.server._in_hand == 0)


def test_a_log_that_cannot_be_written(running, monkeypatch):
    """A standard error that nobody reads any more ends no thread."""

    class Broken:
        def error(self, *_, **__):
            raise BrokenPipeError

    def bad(exchanges):
        raise ValueError("bad")

    monkeypatch.setattr(core_server, "logger", Broken())
    one = running(bad, threads=2)
    for _ in range(10):
        with pytest.raises(grpc.RpcError):
            one.ask(b"bad", timeout=SECONDS)


def test_shed_when_all_threads_are_busy(running):
    """When every thread answers, further calls are answered by `shed` at once, and none waits."""
    go = threading.Event()

    def hold(exchanges):
        go.wait()
        echo(exchanges)

    one = running(hold, shed, most=1, threads=4)
    held = [one.ask.future(b"%d" % n) for n in range(3)]  # the fourth thread waits for calls
    wait_for(lambda: one.server._in_hand == 3)
    assert [one.ask(b"x", timeout=SECONDS) for _ in range(10)] == [b"shed"] * 10
    go.set()
    assert [future.result() for future in held] == [b"re %d" % n for n in range(3)]
    assert one.ask(b"x", timeout=SECONDS) == b"re x"


def test_shed_only_what_is_too_much(running):
    """Of a batch that is larger than what is left of the limit, the rest only is shed."""
    go = threading.Event()

    def hold(exchanges):
        go.wait()
        echo(exchanges)

    one = running(hold, shed, limit=5)
    one.server._company = 16.0
    futures = [one.ask.future(b"") for _ in range(16)]
    wait_for(lambda: sum(future.done() for future in futures) == 11)
    go.set()
    assert sorted(future.result() for future in futures) == [b"re "] * 5 + [b"shed"] * 11


def test_no_more_threads(running, monkeypatch):
    """Where the system gives no more threads, calls are answered by those there are, or shed."""

    def slow(exchanges):
        time.sleep(0.01)
        echo(exchanges)

    one = running(slow, shed)

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)
        list(pool.map(lambda _: barrier.wait(), range(4)))  # the pool's threads are there
        monkeypatch.setattr(threading.Thread, "start", refuse)
        answers = list(pool.map(lambda _: one.ask(b"", timeout=SECONDS), range(200)))
        monkeypatch.undo()
    assert set(answers) <= {b"re ", b"shed"}
    assert one.ask(b"a", timeout=SECONDS) == b"re a"


def test_a_clock_that_is_set_back(running, monkeypatch):
    """A call that waits for company is answered soon even if the time of day is set back by an
    hour meanwhile."""

    class Time:
        monotonic = staticmethod(time.monotonic)
        told = 0

        def time(self):
            self.told += 1
            return time.time() + (3600 if self.told == 1 else 0)

    one = running(echo)
    one.ask(b"", timeout=SECONDS)
    one.server._company = 16.0
    monkeypatch.setattr(core_server, "time", Time())
    assert one.ask(b"a", timeout=SECONDS) == b"re a"


def test_a_busy_stream_holds_no_call_up(running):
    """A call goes to the handler within moments, however many messages another client sends to
    the other methods."""
    begun = threading.Event()
    answered = threading.Event()

    def slow(message):
        begun.set()
        time.sleep(0.005)
        return [message]

    def told(exchanges):
        answered.set()
        echo(exchanges)

    one = running(told, others={"/test.Echo/Talk": Conversation(slow)})
    one.server._company = 16.0

    def messages():
        while not answered.is_set():
            yield b"x" * 100

    with one.connect() as channel:
        talk = channel.stream_stream("/test.Echo/Talk")(messages())
        begun.wait()
        time.sleep(0.2)
        assert one.ask(b"a", timeout=SECONDS) == b"re a"
        talk.cancel()


def test_an_address_in_use(running, tmp_path):
    """An address that cannot be listened on is the user's to mend."""
    one = running(echo)
    other = CoreServer(METHOD, echo, echo, {}, most=lambda: 1, unasked=b"", options=OPTIONS)
    with pytest.raises(UsageError, match="choose another"):
        other.start(f"unix://{tmp_path}/absent/core.sock")
    assert one.ask(b"a", timeout=SECONDS) == b"re a"


# -- in the long run


def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.thorough
def test_memory_is_flat(running):
    """Memory after a hundred thousand calls is what it was after the first few thousand."""
    one = running(echo)
    gone = []

    async def many(count):
        async with grpc.aio.insecure_channel(one.address) as channel:
            ask = channel.unary_unary(METHOD)

            async def some(share):
                for number in range(share):
                    call = ask(bytes(500))
                    if number % 50 == 0:
                        call.cancel()
                        gone.append(1)
                    with contextlib.suppress(asyncio.CancelledError):
                        await call

            await asyncio.gather(*(some(count // 20) for _ in range(20)))

    asyncio.run(many(10_000))
    before = rss()
    asyncio.run(many(90_000))
    assert rss() - before < 12 << 20  # 140 bytes a call
    assert len(gone) == 2000


# -- the private interface


def test_the_core_is_as_we_know_it(running):
    """What `core_server` takes from grpcio's inside is there and behaves as it relies on; where an
    upgrade changes that, this fails first."""
    assert {"queue_timeout", "queue_shutdown"} <= set(dir(cygrpc.CompletionType))
    for name in ("ok", "not_found", "unimplemented", "internal"):
        assert getattr(cygrpc.StatusCode, name) == getattr(grpc.StatusCode, name.upper()).value[0]
    assert cygrpc.CallError.ok == 0
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server([], False)
    server.register_completion_queue(queue)
    assert queue.poll(0).completion_type == cygrpc.CompletionType.queue_timeout
    assert queue.poll(time.time() + 0.01).completion_type == cygrpc.CompletionType.queue_timeout
    for method in ("request_call", "shutdown"):
        with pytest.raises(ValueError, match="start"):
            getattr(server, method)(queue, *([queue] * (method == "request_call")), None)
    queue.shutdown()
    assert queue.poll(0).completion_type == cygrpc.CompletionType.queue_shutdown
    credentials = grpc.ssl_server_credentials([(b"", b"")])
    assert isinstance(credentials._credentials, cygrpc.ServerCredentials)

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        called, received = CoreServer._called, CoreServer._received

        def on_call(self, event):
            seen.append((event.success, event.call_details.method, event.call_details.deadline))
            called(self, event)

        def on_request(self, exchange, event):
            seen.append((event.success, event.batch_operations[0].message()))
            received(self, exchange, event)

        patch.setattr(CoreServer, "_called", on_call)
        patch.setattr(CoreServer, "_received", on_request)
        one = running(echo)
        assert one.ask(b"a", timeout=100) == b"re a"
        assert seen[0][:2] == (True, METHOD.encode())
        assert 0 < seen[0][2] - time.time() < 102  # gRPC rounds up
        assert seen[1:] == [(True, b"a")]
        one.stop()
