"""A way between two parts that can be cut and mended."""

import contextlib
import socket
import threading
from collections.abc import Callable

HOST = "127.0.0.1"


class Relay:
    """Listens on `address` and passes every connection on to ``target``, until it is cut."""

    def __init__(self, target: str, listen: tuple[str, int] = (HOST, 0)) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._whole = True
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(listen)
        self.address = f"{listen[0]}:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection breaks, and none is made."""
        self._whole = False
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def forward(self, data: bytes, target: socket.socket) -> None:
        """What goes to the target."""
        target.sendall(data)

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if not self._whole:
                return
            with socket.create_connection(self._target) as far:
                self._open |= {near, far}
                back = threading.Thread(target=_pass, args=(far, near, near.sendall), daemon=True)
                back.start()
                _pass(near, far, lambda data: self.forward(data, far))
                back.join()
                self._open -= {near, far}


class Holding(Relay):
    """Holds back what has a mark in it, until it may go on."""

    def __init__(self, target: str, mark: bytes) -> None:
        self.mark, self.held, self.may = mark, threading.Event(), threading.Event()
        super().__init__(target)

    def forward(self, data: bytes, target: socket.socket) -> None:
        if self.mark in data:
            self.held.set()
            self.may.wait(30)
        super().forward(data, target)


def _pass(source: socket.socket, target: socket.socket, forward: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            forward(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
