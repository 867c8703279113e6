"""Streams of `authz.serve.core_server`: what its clients call that is no Check."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from grpc._cython import cygrpc

_NO_METADATA: Final = ()
_OK: Final = cygrpc.StatusCode.ok
_INTERNAL: Final = cygrpc.StatusCode.internal


class Stream:
    """A call that is answered message by message: what is no Check."""

    def __init__(self, call: Any, handler: "Handler") -> None:
        self._call = call
        self._handler = handler
        self._lock = threading.Lock()
        self._to_send: deque[bytes | int] = deque()  # messages, and the status that ends them
        self._begun = False
        self._sending = False
        self.closed = False
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._left)
        self.read_on()

    def send(self, message: bytes) -> None:
        """Queue one answer; from any thread."""
        self._queue(message)

    def end(self, code: int = _OK) -> None:
        """Close the call with a status, after what is queued."""
        self._queue(code)

    def _queue(self, message: bytes | int) -> None:
        with self._lock:
            if not self.closed:
                self._to_send.append(message)
                self._send_next()

    def _send_next(self) -> None:
        """Under the lock: the core takes one message of a call at a time."""
        if self._sending or not self._to_send:
            return
        message = self._to_send.popleft()
        operations: list[Any] = []
        if not self._begun:
            operations.append(cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0))
            self._begun = True
        if isinstance(message, int):
            self.closed = True
            operations.append(cygrpc.SendStatusFromServerOperation(_NO_METADATA, message, b"", 0))
        else:
            operations.append(cygrpc.SendMessageOperation(message, 0))
        self._sending = True
        self._call.start_server_batch(tuple(operations), self._sent)

    def _sent(self, _event: Any) -> None:
        with self._lock:
            self._sending = False
            if not self.closed:
                self._send_next()

    def read_on(self) -> None:
        """Ask for the next message; from any thread."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if self.closed:
            return
        try:
            if message is None:
                self._handler.half_closed(self)
            elif self._handler.received(self, message):
                self.read_on()
        except Exception:
            self.end(_INTERNAL)
            raise

    def _left(self, _event: Any) -> None:
        with self._lock:
            self.closed = True
            self._to_send.clear()
        self._handler.left(self)


class Handler(Protocol):
    """Answers the streams of one method; called by the thread that waits for calls."""

    def received(self, stream: Stream, message: bytes) -> bool:
        """Whether the next message may come at once; if not, `Stream.read_on` asks for it."""

    def half_closed(self, stream: Stream) -> None: ...
    def left(self, stream: Stream) -> None: ...


class Unary:
    """A method of one request and one answer (None: there is no such thing), as a `Handler`."""

    def __init__(self, behavior: Callable[[bytes], bytes | None]) -> None:
        self._behavior = behavior

    def received(self, stream: Stream, message: bytes) -> bool:
        answer = self._behavior(message)
        if answer is None:
            stream.end(cygrpc.StatusCode.not_found)
        else:
            stream.send(answer)
            stream.end()
        return False

    def half_closed(self, stream: Stream) -> None:
        stream.end()

    def left(self, stream: Stream) -> None: ...


class Conversation:
    """A method whose every request has its answers, as a `Handler`."""

    def __init__(self, behavior: Callable[[bytes], Iterable[bytes]]) -> None:
        self._behavior = behavior

    def received(self, stream: Stream, message: bytes) -> bool:
        for answer in self._behavior(message):
            stream.send(answer)
        return True

    def half_closed(self, stream: Stream) -> None:
        stream.end()

    def left(self, stream: Stream) -> None: ...
