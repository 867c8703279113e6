"""The console as one ASGI application."""

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from authz.console.log import LogApi
from authz.console.store import AwayError, Pool
from authz.store import migrations

logger = structlog.get_logger()


def create_app(store: Pool, log: LogApi) -> Starlette:
    """`log` is the logs' read API; ``/healthz`` says whether the store can be read."""

    async def health(_: Request) -> Response:
        headers = {"cache-control": "no-store"}
        try:
            await store.ask(migrations.check)
        except AwayError:
            return PlainTextResponse("the store cannot be read\n", 503, headers)
        return PlainTextResponse("ok\n", headers=headers)

    app = Starlette(
        routes=[Route("/healthz", health), *log.routes()], exception_handlers={Exception: _bug}
    )
    app.router.redirect_slashes = False  # what has no answer has none elsewhere
    return app


async def _bug(_: Request, error: Exception) -> Response:
    logger.error("a bug", exc_info=error)
    return PlainTextResponse("a bug; it is in the log\n", 500)
