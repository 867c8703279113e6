"""How things stand: the first page. It goes on telling while somebody has it before them.

The look is on record when the page is opened, as one that goes on. Its script then asks for the
same page again and again, by a mark that the page came with: each time it is asked who they are and
whether they may, and nothing more is recorded.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from authz.console import charts, words
from authz.console.checking import Checking
from authz.console.searching import Search, walk
from authz.console.web import Site, Visit
from authz.report import findings
from authz.report.findings import Finding
from authz.store import pages, timelines
from authz.store.lookups import Window
from authz.store.pages import ANY, Overview, Row
from authz.store.timelines import Minute

_DAY_US: Final = 24 * 3_600 * 1_000_000
_MONTH_US: Final = 30 * _DAY_US
_MINUTES: Final = 30
_NEWEST: Final = 6
_SHARED_SECONDS: Final = 4  # however many look, the database is asked this often at most


@dataclass(frozen=True, slots=True)
class _Told:
    """What everybody is told; `at` is by a stopwatch."""

    at: float
    overview: Overview
    open: list[Finding]
    newest: list[Row]
    minutes: list[Minute]
    by_minute: str
    by_hour: str


class OverviewPage:
    def __init__(self, site: Site, checking: Checking) -> None:
        self._site = site
        self._store = site.store
        self._checking = checking
        self._reading = asyncio.Lock()
        self._told: _Told | None = None

    def routes(self) -> list[Route]:
        page = self._site.page
        return [page("/", "overview", self.overview), page("/live", "overview", self.live)]

    async def overview(self, visit: Visit) -> Response:
        await visit.look("overview", live=True)
        mark = self._site.people.mark(visit.person, "live")
        return await self._show(visit, await self._read(visit.now_us), mark)

    async def live(self, visit: Visit) -> Response:
        """What the page's script asks for: of the visit that is on record already."""
        mark = visit.request.headers.get("x-live", "")
        if not self._site.people.is_theirs(mark, visit.person, "live"):
            raise HTTPException(403, "This is for a page that is open: load the overview.")
        visit.looked = True
        async with self._reading:
            told = self._told
            if told is None or time.monotonic() - told.at > _SHARED_SECONDS:
                told = self._told = await self._read(visit.now_us)
        return await self._show(visit, told, mark)

    async def _show(self, visit: Visit, told: _Told, mark: str) -> Response:
        """`mark` is that of the visit: what goes on does so under no other."""
        report, at = self._checking.last
        return await visit.show(
            "overview.html", told=told.overview, open=told.open, newest=told.newest,
            minutes=told.minutes, by_minute=told.by_minute, by_hour=told.by_hour, report=report,
            standing=words.standing(told.overview, report, at), now=visit.now_us,
            names=await visit.names(one["subject"] for one in told.newest),
            live=mark,
        )  # fmt: skip

    async def _read(self, now_us: int) -> _Told:
        overview, found, newest, minutes = await asyncio.gather(
            self._store.ask(pages.overview, now_us),
            self._store.ask(findings.find, Window(now_us - _MONTH_US)),
            self._newest(now_us),
            self._store.ask(timelines.minutes, now_us, _MINUTES),
        )
        return _Told(
            time.monotonic(), overview, [one for one in found if one.is_open], newest, minutes,
            charts.bars(
                [f"{one.ago} min ago" if one.ago else "now" for one in minutes],
                [("allowed", [one.allowed for one in minutes]),
                 ("denied", [one.denied for one in minutes])], height=150,
            ),
            charts.bars(
                [f"{datetime.fromtimestamp(hour / 1e6, UTC):%H}:00" for hour, *_ in overview.hours],
                [("allowed", [allowed for _, allowed, _ in overview.hours]),
                 ("denied", [denied for *_, denied in overview.hours])],
            ),
        )  # fmt: skip

    async def _newest(self, now_us: int) -> list[Row]:
        search = Search(ANY, Window(now_us - _DAY_US))
        return [row async for rows in walk(self._store, search, _NEWEST, now_us) for row in rows]
