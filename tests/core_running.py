"""A gRPC server on the C core, and a client of grpcio's own, for tests."""

import contextlib
import threading
import time

import grpc

from authz.serve.core_server import CoreServer
from authz.serve.grpc_server import OPTIONS

METHOD = "/test.Echo/Ask"
SECONDS = 30  # for what should take none: a hang is a failure, slowness is not


class Running:
    """A server on a unix socket, and a client's channel to it."""

    def __init__(self, directory, handle, shed=None, others=(), *, most=16, **options):
        options.setdefault("unasked", b"nothing asked")
        self.address = f"unix://{directory}/core.sock"
        self.server = CoreServer(
            METHOD,
            handle,
            shed or handle,
            dict(others),
            most=lambda: most,
            options=OPTIONS,
            **options,
        )
        self.server.start(self.address)
        self.channel = self.connect()
        self.ask = self.channel.unary_unary(METHOD)

    def connect(self):
        unlimited = [("grpc.max_receive_message_length", -1)]
        own = [*unlimited, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(self.address, own)

    def stop(self, grace=5):
        self.channel.close()
        self.server.stop(grace)


@contextlib.contextmanager
def servers(directory):
    """Makes servers; stops them afterwards."""
    made = []

    def make(*args, **kwargs):
        made.append(Running(directory, *args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "check"]


def echo(exchanges):
    for exchange in exchanges:
        exchange.answer(b"re " + exchange.request)


def blocking(reached, go):
    """What holds the thread that takes calls, from `reached` until `go`."""

    def block(_message):
        reached.set()
        go.wait()
        return b""

    return block


def code(error):
    return error.value.code()


def wait_for(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.002)
