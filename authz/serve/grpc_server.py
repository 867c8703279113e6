"""What every gRPC server of ours has: limits, health, an address that is free, a clean stop."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import disable_created_metrics, start_http_server

from authz.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

P = ParamSpec("P")
T = TypeVar("T")

_COLLECT_AFTER = 50_000  # objects made and not freed

logger = structlog.get_logger()

# No receive limit in grpc: a message too large for us gets an answer from us, not a gRPC error
# that Envoy's failure_mode_allow could turn into an allow.
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.absolute_max_metadata_size", 1 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
]
# A peer that vanished without a word shows within seconds, though nothing is owed by it.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


def spare_collections() -> None:
    """For the end of a start. What lives as long as the process need not be looked through again;
    and a batch of requests makes thousands of objects that are free without a collection."""
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


class Health:
    """gRPC health of the services named, serving only while `set(True)` was said last."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = health.aio.HealthServicer()  # type: ignore[attr-defined] # the stubs lag
        self._services = ["", *services]
        self.serving = False
        self._leaving = False

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, serving: bool) -> None:
        if serving == self.serving or self._leaving:
            return
        self.serving = serving
        logger.info("health changed", serving=serving)
        status = health_pb2.HealthCheckResponse.SERVING
        if not serving:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, status)

    async def leave(self) -> None:
        """Not serving, for good: the process is about to end."""
        await self.set(False)
        self._leaving = True


async def start(
    listen: str, handlers: Sequence["grpc.GenericRpcHandler[Any, Any]"], health_service: Health,
    credentials: grpc.ServerCredentials | None = None,
) -> grpc.aio.Server:  # fmt: skip
    """A started server on `listen` (``host:port`` or ``unix:///path``). Raises `UsageError`."""
    server = grpc.aio.server(options=[*OPTIONS, *KEEPALIVE])
    server.add_generic_rpc_handlers(handlers)
    health_service.add_to(server)
    clear_socket(listen)
    try:
        if credentials is None:
            server.add_insecure_port(listen)
        else:
            server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise UsageError(
            f"--listen {listen}: cannot be listened on (in use, or not this host's); choose another"
        ) from None
    await server.start()
    return server


def clear_socket(listen: str) -> None:
    """Remove the unix socket that a killed process left; nothing else, and none that is in use.
    Raises `UsageError`."""
    path = Path(listen.removeprefix("unix://"))
    if not listen.startswith("unix://") or not path.exists():
        return
    if not path.is_socket():
        raise UsageError(f"--listen {listen}: a file is there that is not a socket; choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"--listen {listen}: {error.strerror or error}") from None
        else:
            raise UsageError(f"--listen {listen}: the socket is in use; choose another")


def serve_metrics(address: str | None, serving: Callable[[], bool] | None = None) -> None:
    """Prometheus metrics on ``host:port``, and at ``/healthz`` whether this is `serving`, for who
    cannot ask over gRPC: an orchestrator has no certificate of ours. Raises `UsageError`."""
    if address is None:
        return
    disable_created_metrics()  # type: ignore[no-untyped-call] # many lines, nobody's question
    host, _, port = address.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise UsageError(f"--metrics {address}: {error.strerror}; choose another") from None
    metrics = server.get_app()
    assert metrics is not None

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz" or serving is None:
            return metrics(environ, start_response)
        status = "200 OK" if serving() else "503 Service Unavailable"
        start_response(status, [("content-type", "text/plain"), ("cache-control", "no-store")])
        return [b"serving\n" if status.startswith("200") else b"not serving; the log says why\n"]

    server.set_app(answer)


@contextlib.asynccontextmanager
async def until_stopped() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, in a thread. Cancelled, it ends when the thread has: what that works
    with is then nobody's."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


class Loops:
    """Tasks that run as long as the process; an error in one of them ends all, loudly."""

    def __init__(self, *loops: Callable[[], Awaitable[None]]) -> None:
        self._tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(loop()) for loop in loops]

    async def until(self, stopped: asyncio.Event) -> None:
        """Returns once `stopped` is set; raises what ended a loop before that."""
        stop = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait([stop, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
        finally:
            stop.cancel()

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
