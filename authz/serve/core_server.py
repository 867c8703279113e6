"""A gRPC server straight on gRPC's C core, for Checks by the batch.

grpcio's two servers cost 260 µs of CPU a call where this costs 64 (16 in flight, one machine, the
same run): they wake an event loop or a thread for every step of every call. Here one thread at a
time waits on the core's completion queue, gathers the calls that came together and answers them;
where that takes long, another takes its place in the meantime.

`grpc._cython.cygrpc` is what grpcio's own server is made of, and no public interface: it is used
here and in `core_stream` only, `pyproject.toml` bounds the version, and
tests/unit/test_core_server.py fails on an upgrade that changes it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
import structlog
from grpc._cython import cygrpc

from authz.errors import UsageError
from authz.serve.core_stream import Handler, Stream

_NO_METADATA: Final = ()
# Of more than a thousand calls that nobody has taken yet the core rejects some by itself, with an
# error. Here each is taken, and answered by `shed` if need be.
_TAKE_ALL: Final = (
    ("grpc.server.max_pending_requests", 2**31 - 1),
    ("grpc.server.max_pending_requests_hard_limit", 2**31 - 1),
)
_WAITING_CALLS: Final = 64  # calls the core may hand over without being asked again
_POLL_SECONDS: Final = 0.5  # how soon a thread notices that the server stops
_WAIT_SECONDS: Final = 0.003  # the most a call waits for company, when company is usual
_QUICK_SECONDS: Final = 0.01  # answering takes less: one thread does it all
_LOOK_SECONDS: Final = 0.005  # how long one who answers may keep others from waiting for calls
_UNIMPLEMENTED: Final = cygrpc.StatusCode.unimplemented
_OK: Final = cygrpc.StatusCode.ok
_TIMEOUT: Final = cygrpc.CompletionType.queue_timeout
_SHUT_DOWN: Final = cygrpc.CompletionType.queue_shutdown

logger = structlog.get_logger()


class _Kept(NamedTuple):
    """That the baton is kept by somebody who answers; told apart by identity."""

    since: float


class Exchange:
    """One unary call: its request, and the one answer it gets."""

    __slots__ = ("_call", "arrived", "deadline", "on_gone", "request")

    def __init__(self, call: Any, deadline: float) -> None:
        self._call = call
        self.request = b""
        self.arrived = 0.0
        """`time.monotonic()` when the whole request was here."""
        self.deadline = deadline
        """`time.time()` when the client stops waiting."""
        self.on_gone: Callable[[], None] | None = None
        """Called once if the client had left before the answer."""

    def answer(self, response: bytes) -> None:
        """Send `response`. The caller sees to it that this is done once."""
        operations = (
            cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0),
            cygrpc.SendMessageOperation(response, 0),
            cygrpc.SendStatusFromServerOperation(_NO_METADATA, _OK, b"", 0),
            cygrpc.ReceiveCloseOnServerOperation(0),
        )
        if error := self._call.start_server_batch(operations, self._closed):
            raise RuntimeError(f"the core does not take the answer ({error})")

    def _closed(self, event: Any) -> None:
        # Taken out: it may lead back here, and a circle waits for a collection.
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None and event.batch_operations[3].cancelled():
            on_gone()


class CoreServer:
    """Serves one unary `method` by the batch, and `others` by their streams.

    `handle` gets the calls that came together, at most `most()`, and answers each; it runs in one
    of at most `threads` threads. When all of them are busy, or `limit` calls are under way, the one
    that waits for calls goes on waiting and gives what comes to `shed`, which must answer at once.
    Who asks nothing is answered with `unasked`.
    """

    def __init__(
        self, method: str, handle: Callable[[list[Exchange]], None],
        shed: Callable[[list[Exchange]], None], others: Mapping[str, Handler], *,
        most: Callable[[], int], unasked: bytes, limit: int = 1024, threads: int = 64,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:  # fmt: skip
        self._method = method.encode()
        self._handle = handle
        self._shed = shed
        self._others = {name.encode(): handler for name, handler in others.items()}
        self._most = most
        self._unasked = unasked
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server([*_TAKE_ALL, *options], False)
        self._server.register_completion_queue(self._queue)
        self._limit = limit
        self._most_threads = threads
        self._threads: list[threading.Thread] = []
        # Who has the baton waits for calls. It is kept while they are answered, which is cheapest
        # if that is quick, and passed on if it is not.
        self._baton = threading.Semaphore(1)
        self._count = threading.Lock()  # over the next four
        self._idle = 0  # threads that wait for the baton
        self._kept: _Kept | None = None  # since when it is kept by one who answers
        self._usual = 0.0  # seconds that answering takes
        self._ready: list[Exchange] = []
        self._in_hand = 0  # calls given to `handle` and not done
        self._company = 1.0  # how many calls are usually under way together
        self._stopping = False
        self._down = threading.Event()

    def start(self, listen: str, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen on ``host:port`` or ``unix:///path``. Raises `UsageError`."""
        address = listen.encode()
        try:
            if credentials is None:
                port = self._server.add_http2_port(address)
            else:
                inner = credentials._credentials  # type: ignore[attr-defined] # noqa: SLF001 - as grpcio
                port = self._server.add_http2_port(address, inner)
        except RuntimeError:
            port = 0
        if not port:
            raise UsageError(
                f"--listen {listen}: cannot be listened on (in use, or not this host's);"
                " choose another"
            )
        self._server.start(backup_queue=False)
        for _ in range(_WAITING_CALLS):
            self._server.request_call(self._queue, self._queue, self._called)
        for _ in range(2):
            self._add_thread()
        threading.Thread(target=self._watch, name="baton", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Take no more calls, let those under way be answered, at most `grace` seconds."""
        self._server.shutdown(self._queue, self._is_down)
        if not self._down.wait(grace):
            self._server.cancel_all_calls()
            self._down.wait(grace)
        self._stopping = True
        self._baton.release(len(self._threads))
        for thread in self._threads:
            thread.join(grace)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="check", daemon=True)
        with self._count:
            self._idle += 1
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more; those there are must do
            with self._count:
                self._idle -= 1
            _complain("no more threads", error)
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        leading = False
        while not self._stopping:
            if not leading:
                self._baton.acquire()
                with self._count:
                    self._idle -= 1
            leading = True
            try:
                calls = self._take()
            except Exception as error:  # noqa: BLE001 - a thread that ended would be counted on
                _complain("calls could not be taken", error)
            else:
                leading = not calls or self._answer(calls)
                del calls  # one that was left unanswered ends when nobody holds it

    def _answer(self, calls: list[Exchange]) -> bool:
        """Have `calls` answered; whether the baton is still this thread's."""
        began = time.monotonic()
        kept = _Kept(began)
        with self._count:
            quick = self._usual < _QUICK_SECONDS
            self._kept = kept if quick else None
        if not quick:
            self._baton.release()
        try:
            self._handle(calls)
        except Exception as error:  # noqa: BLE001 - a thread that ended would be counted on
            _complain("calls failed", error)
        with self._count:
            self._in_hand -= len(calls)
            self._usual += (time.monotonic() - began - self._usual) / 8
            if self._kept is kept:
                self._kept = None
                return True
            self._idle += 1
            return False

    def _watch(self) -> None:
        """Pass the baton on from one who keeps it too long."""
        while not self._down.wait(_LOOK_SECONDS):
            with self._count:
                kept = self._kept
                if kept is None or time.monotonic() - kept.since < _LOOK_SECONDS:
                    continue
                self._kept = None
            self._baton.release()

    def _take(self) -> list[Exchange]:
        """The calls to answer next, none now and then. Those too many are shed."""
        calls = self._gather()
        if calls and not self._idle and len(self._threads) < self._most_threads:
            self._add_thread()
        with self._count:
            room = max(self._limit - self._in_hand, 0) if self._idle else 0
            taken, too_many = calls[:room], calls[room:]
            self._in_hand += len(taken)
        if too_many:
            try:
                self._shed(too_many)
            except Exception as error:  # noqa: BLE001 - those taken are still to be answered
                _complain("calls could not be shed", error)
        return taken

    def _gather(self) -> list[Exchange]:
        """The calls to answer next: at once if there is nobody else, otherwise those that come
        within moments. Empty now and then, so that the caller can see whether to stop."""
        most = self._most()
        end = time.monotonic() + _POLL_SECONDS
        while not self._stopping:
            waiting = len(self._ready)
            now = time.monotonic()
            if waiting:
                # However busy the queue is, with streams or with calls that end.
                end = self._ready[0].arrived + _WAIT_SECONDS
            if waiting >= most or now >= end:
                break
            # Half of those who usually come are company enough: the others make the next round
            # while these are answered. Waiting for all would cost less CPU, and more time.
            enough = waiting and waiting >= min(max(round(self._company / 2), 1), most)
            # The core goes by the time of day, which may be set: never by one that was told before.
            until = 0 if enough else time.time() + end - now  # 0: what is there already
            event = self._queue.poll(until)
            if event.completion_type == _TIMEOUT:
                break
            if event.completion_type == _SHUT_DOWN:
                self._stopping = True
                break
            try:
                event.tag(event)
            except Exception as error:  # noqa: BLE001 - one bad call must not stop the others
                _complain("a call failed", error)
            del event  # it holds the call, which must be free before the next wait
        calls, self._ready = self._ready[:most], self._ready[most:]
        if calls:
            company = min(len(calls) + self._in_hand, most)
            # Fewer came than usually do: expect less next time.
            self._company = float(max(company, (self._company + company) / 2))
        return calls

    def _called(self, event: Any) -> None:
        """A new call, or (at shutdown) none any more."""
        # This call first: at shutdown no more can be asked for, and it must be answered still.
        try:
            if event.success and event.call is not None:
                self._begin(event.call, event.call_details)
        finally:
            with contextlib.suppress(ValueError):  # shutting down
                self._server.request_call(self._queue, self._queue, self._called)

    def _begin(self, call: Any, details: Any) -> None:
        method = details.method
        if method == self._method:
            exchange = Exchange(call, details.deadline)
            call.start_server_batch(
                (cygrpc.ReceiveMessageOperation(0),),
                lambda received: self._received(exchange, received),
            )
        elif method in self._others:
            Stream(call, self._others[method])
        else:
            operations = (
                cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0),
                cygrpc.SendStatusFromServerOperation(
                    _NO_METADATA, _UNIMPLEMENTED, b"no such method", 0
                ),
                cygrpc.ReceiveCloseOnServerOperation(0),
            )
            call.start_server_batch(operations, _ignore)

    def _received(self, exchange: Exchange, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is None:  # the client ended its side, or left, before it had asked
            exchange.answer(self._unasked)
            return
        exchange.request = message
        exchange.arrived = time.monotonic()
        self._ready.append(exchange)

    def _is_down(self, _event: Any) -> None:
        self._stopping = True
        self._down.set()


def _complain(what: str, error: Exception) -> None:
    with contextlib.suppress(Exception):  # a log that cannot be written stops nobody's answer
        logger.error(what, error=type(error).__name__)


def _ignore(_event: Any) -> None:
    """For operations whose end says nothing."""
