"""Between a client and ClickHouse: cuts, holds or does something at a point of a statement.

It knows of the native protocol that a statement's text is sent as it is, that an insert's data
follows once the server has answered with the table's columns, and that the last byte of an answer
is 5, the end of the stream.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

# Where in a statement: before the server has anything of it; with half the query; with the query,
# its answer not passed on; with half of the data; with the data, unless the server is quicker; the
# server is done, and the client does not hear of it.
INSERT_POINTS = ("before", "in query", "query", "in data", "data", "done")
POINTS = ("before", "in query", "query", "done")
_END = b"\x05"
_QUIET_SECONDS = 0.05  # the client has sent all its data
_UNSEEN_SECONDS = 3


@dataclass(slots=True)
class Trap:
    statement: bytes
    point: str
    nth: int = 1
    act: Callable[[], None] = lambda: None
    cut: bool = True
    unseen: bool = False
    """The cut: the server does not learn of it for some seconds."""
    sprung: threading.Event = field(default_factory=threading.Event)


class Cutter:
    """`set` one trap; it springs once, and every connection after passes unharmed. `flaky` cuts
    each connection after a random number of bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port
        self._port = parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{parts.port}/", f":{self._listener.getsockname()[1]}/")
        self._trap: Trap | None = None
        self.flaky: Random | None = None
        self.away = False  # nobody gets through
        self.cuts = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, trap: Trap) -> Trap:
        self._trap = trap
        return trap

    def cut_all(self) -> None:
        """Cut what is open now."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.away:
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {client, server}
                try:
                    Connection(self, client, server).pump()
                    self.cuts += 1
                finally:
                    self._open -= {client, server}

    def springs(self, data: bytes) -> Trap | None:
        """The trap, if `data` from a client is the statement it is set for."""
        trap = self._trap
        if trap is None or trap.statement not in data:
            return None
        trap.nth -= 1
        if trap.nth:
            return None
        self._trap = None
        return trap


class Connection:
    """One of the client's connections; `pump` returns when it is over."""

    def __init__(self, cutter: Cutter, client: socket.socket, server: socket.socket) -> None:
        self._cutter = cutter
        self._client = client
        self._server = server
        self._trap: Trap | None = None  # of the statement under way
        self._turn = ""  # what of it passes next: query, sample, data
        self._left = int(cutter.flaky.expovariate(1 / 100_000)) if cutter.flaky else None

    def pump(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ)
            selector.register(self._server, selectors.EVENT_READ)
            while True:
                timeout = _QUIET_SECONDS if self._at("data") and self._turn == "data" else None
                ready = selector.select(timeout)
                if not ready:
                    if self._spring():
                        return
                    continue
                for key, _ in ready:
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 16)
                    if not data or not self._pass(source, data):
                        return

    def _pass(self, source: socket.socket, data: bytes) -> bool:
        """Hand `data` on, or what of it should be; false: the connection is over."""
        if self._left is not None:
            if len(data) > self._left:
                data, target = data[: self._left], self._other(source)
                target.sendall(data)
                return False
            self._left -= len(data)
        if source is self._client:
            return self._up(data)
        return self._down(data)

    def _up(self, data: bytes) -> bool:
        if trap := self._cutter.springs(data):
            self._trap, self._turn = trap, "query"
            if trap.point == "before" and self._spring():
                return False
            if trap.point == "in query":
                return self._halves(data)
        elif self._turn == "sample":
            self._turn = "data"
            if self._at("in data"):
                return self._halves(data)
        self._server.sendall(data)
        return True

    def _down(self, data: bytes) -> bool:
        if self._turn == "query":
            self._turn = "sample"
            if self._at("query") and self._spring():
                return False
        if data.endswith(_END) and (self._at("done") or self._at("data")) and self._spring():
            return False
        self._client.sendall(data)
        return True

    def _halves(self, data: bytes) -> bool:
        middle = len(data) // 2
        self._server.sendall(data[:middle])
        if self._spring():
            return False
        self._server.sendall(data[middle:])
        return True

    def _at(self, point: str) -> bool:
        return self._trap is not None and self._trap.point == point

    def _spring(self) -> bool:
        """Whether the connection is cut by it."""
        trap, self._trap = self._trap, None
        assert trap
        trap.sprung.set()
        trap.act()
        if trap.cut and trap.unseen:
            self._client.close()
            self._server.settimeout(_UNSEEN_SECONDS)
            with contextlib.suppress(OSError):
                while self._server.recv(1 << 16):
                    pass
        return trap.cut

    def _other(self, end: socket.socket) -> socket.socket:
        return self._server if end is self._client else self._client
