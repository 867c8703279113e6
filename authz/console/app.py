"""The console as one ASGI application."""

from collections.abc import Sequence
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from authz.console.log import LogApi
from authz.console.store import AwayError, Pool
from authz.store import migrations

logger = structlog.get_logger()


def create_app(
    store: Pool, log: LogApi, pages: Sequence[BaseRoute] = (),
    sessions: Sequence[Middleware] = (),
) -> Starlette:  # fmt: skip
    """`log` is the logs' read API; ``/healthz`` says whether the store can be read; `pages` are for
    people, whom `sessions` remembers."""

    async def health(_: Request) -> Response:
        headers = {"cache-control": "no-store"}
        try:
            await store.ask(migrations.check)
        except AwayError:
            return PlainTextResponse("the store cannot be read\n", 503, headers)
        return PlainTextResponse("ok\n", headers=headers)

    static = Mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app = Starlette(
        routes=[Route("/healthz", health), *((static, *pages) if pages else ()), *log.routes()],
        middleware=list(sessions), exception_handlers={Exception: _bug},
    )  # fmt: skip
    app.router.redirect_slashes = False  # what has no answer has none elsewhere
    return app


def sessions(key: bytes, hours: float, *, secure: bool) -> Middleware:
    """A signed cookie that scripts do not see, for so long; `secure` over TLS only."""
    return Middleware(
        SessionMiddleware, secret_key=key.hex(), session_cookie="authz_session",
        max_age=int(hours * 3600), same_site="lax", https_only=secure,
    )  # fmt: skip


async def _bug(_: Request, error: Exception) -> Response:
    logger.error("a bug", exc_info=error)
    return PlainTextResponse("a bug; it is in the log\n", 500)
