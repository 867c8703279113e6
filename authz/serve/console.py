"""The composition root of ``authz serve console``."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator

import structlog
import uvicorn
from starlette.applications import Starlette

from authz.config import Config, Console
from authz.console.app import create_app
from authz.console.log import LogApi, load_token
from authz.console.store import Pool
from authz.errors import UsageError
from authz.serve import grpc_server, tls
from authz.serve.console_pages import Made, pages_of
from authz.store.client import connect

_DRAIN_SECONDS = 20

logger = structlog.get_logger()


class _Server(uvicorn.Server):
    """Leaves signals to us: as uvicorn handles them, a clean stop would end like a kill."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: Config) -> None:
    """Run until SIGTERM; what is being answered then is answered. Raises `AuthzError`."""
    store, options = config.database, config.console
    connect(store)  # nothing is sent: it says what is wrong with the URL
    if options.entries_token_file:
        load_token(options.entries_token_file)  # says at once what is wrong with it
    context = tls.of_http_server("console", options)
    pool = Pool(store)
    log = LogApi(pool, options.entries_token_file)
    if not options.policy:
        await _serve(options, create_app(pool, log), context, Made())
        return
    async with pages_of(config, pool) as made:
        await _serve(options, create_app(pool, log, made.routes, made.sessions), context, made)


async def _serve(
    options: Console, app: Starlette, context: ssl.SSLContext | None, made: Made
) -> None:
    # What it logs of a request we log ourselves, as JSON and without what the request says.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = _Server(
        uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", loop="none", log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            ssl_context_factory=(lambda *_: context) if context else None,
        )
    )  # fmt: skip
    listening = _listen(options.listen)
    grpc_server.serve_metrics(options.metrics)
    logger.info("console is up", listen=options.listen, pages=bool(made.routes))
    async with grpc_server.until_stopped() as stopped:
        serving = asyncio.ensure_future(server.serve([listening]))
        running = [asyncio.ensure_future(loop()) for loop in made.loops]
        stop = asyncio.ensure_future(stopped.wait())
        await asyncio.wait([serving, stop, *running], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if made.drain:
            await made.drain()
        for task in (stop, *running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    logger.info("console stopped")


def _listen(listen: str) -> socket.socket:
    """A socket bound to ``host:port`` or ``unix:///path``. Raises `UsageError`."""
    grpc_server.clear_socket(listen)
    try:
        if listen.startswith("unix://"):
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(listen.removeprefix("unix://"))
            return bound
        host, _, port = listen.rpartition(":")
        [found, *_] = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        return socket.create_server(found[4][:2], family=found[0])
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror or error}; choose another") from None
