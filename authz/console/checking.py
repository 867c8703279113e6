"""Verification from the console: one at a time, in a thread, and what the last one said."""

import asyncio
import time
from pathlib import Path

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from authz.console import words
from authz.console.store import AwayError, Pool
from authz.console.web import HEADERS, Site, Visit
from authz.errors import AuthzError
from authz.trust import load_expiry_writers, load_trust
from authz.verify import Report, verify_store

logger = structlog.get_logger()


class Checking:
    """Verifies the logs in `store` by the keys in the file `trust`."""

    def __init__(self, store: Pool, trust: Path | None) -> None:
        self._store = store
        self.trust = trust
        self.last: tuple[Report | None, int] = (None, 0)
        """What the last verification said, and when."""
        self.failed = ""
        self.done = self.all = 0
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._running is not None and not self._running.done()

    def start(self) -> None:
        """Begin, if none is under way."""
        if not self.running:
            self.done = self.all = 0
            self.failed = ""
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        assert self.trust is not None
        try:
            logs = load_trust(self.trust)
            writers = load_expiry_writers(self.trust)
            report = await self._store.ask(
                lambda client: verify_store(
                    client, logs, progress=self._progress, expiry_writers=writers
                )
            )
            self.last = (report, time.time_ns() // 1000)
        except AwayError:
            self.failed = "The database did not answer."
        except AuthzError as error:
            logger.error("no verification", error=str(error))
            self.failed = "It could not be verified; the console's log says why."

    def _progress(self, done: int, of: int) -> None:
        self.done, self.all = done, of


class CheckingPages:
    """The page about it."""

    def __init__(self, site: Site, checking: Checking) -> None:
        self._site = site
        self._checking = checking

    def routes(self) -> list[Route]:
        page = self._site.page
        return [
            page("/verify", "verify", self.show),
            page("/verify/start", "verify", self.start, ["POST"]),
            page("/verify/progress", "verify", self.progress),
        ]

    async def show(self, visit: Visit) -> Response:
        await visit.look("verify")
        report, at = self._checking.last
        verdict, told = words.verdict(report) if report else ("", [])
        return await visit.show(
            "verify.html", checking=self._checking, report=report, at=at, verdict=verdict, told=told
        )

    async def start(self, visit: Visit) -> Response:
        if self._checking.trust is None:
            raise HTTPException(404, "This console has no trust file (console.trust).")
        await visit.look("verify", start=True)
        self._checking.start()
        return RedirectResponse("/verify", 303, dict(HEADERS))

    async def progress(self, _: Visit) -> Response:
        """How far it is: nothing of any record."""
        checking = self._checking
        told = {"running": checking.running, "done": checking.done, "all": checking.all}
        return JSONResponse(told, headers=dict(HEADERS))
