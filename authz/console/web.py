"""The console's pages as routes: who looks, whether they may, and that it is on record; then the
page. Nothing is shown before all three are so."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from authz.console import metrics, words
from authz.console.access import PAGES, Access, Action
from authz.console.directory import Directory
from authz.console.looks import Looks, NotRecordedError
from authz.console.people import NobodyError, People, Person
from authz.console.store import AwayError, Pool
from authz.record import MAX_INT, Record
from authz.report.document import count

_MOST_FORM: Final = 64
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_HERE: Final = Markup("<!-- as it comes -->")
"""Where in a page what comes bit by bit has its place: escaped text never holds it."""

Answer = Callable[["Visit"], Awaitable[Response]]


class NotFoundError(Exception):
    """There is no such record, person or finding; the text says what."""


@dataclass(slots=True)
class Visit:
    """One request of somebody who is known. `look` comes before what it shows."""

    request: Request
    person: Person
    site: "Site"
    form: FormData = field(default_factory=FormData)
    now_us: int = 0
    looked: bool = False

    def given(self, name: str, most: int = 256) -> str:
        """A value of the form, or else of the address; without the spaces around it."""
        value = self.form.get(name) or self.request.query_params.get(name) or ""
        value = value.strip() if isinstance(value, str) else ""
        if len(value) > most:
            raise HTTPException(400, f"{name}: more than {most} characters")
        return value

    def needed(self, name: str, what: str) -> str:
        """The same; without it, the person is asked for `what`."""
        if not (value := self.given(name)):
            raise HTTPException(400, f"Please go back and give {what}.")
        return value

    def time(self, name: str) -> int | None:
        """A day or moment in UTC, as browsers give it; None where it is left out."""
        if not (given := self.given(name)):
            return None
        try:
            told = datetime.fromisoformat(given)
            at = int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()) * 1_000_000
        except (ValueError, OverflowError):
            at = -1
        if not 0 <= at <= MAX_INT:
            raise HTTPException(400, f"{name}: want a day such as 2026-11-01.")
        return at

    async def names(self, subjects: Iterable[str]) -> dict[str, str]:
        """Of those people whom the directory names, for who may see that."""
        wanted = sorted({one for one in subjects if one})
        if not wanted or not await self.site.access.may(self.person, "names"):
            return {}
        return await asyncio.to_thread(self.site.directory.people, wanted)

    async def allow(self, action: Action, person: str = "", report: str = "") -> None:
        """Raises `HTTPException` unless the policy allows it."""
        if not await self.site.access.may(self.person, action, person, report):
            raise HTTPException(403, "You may not see this, by the console's policy.")

    async def look(self, page: Action, **asked: Any) -> None:
        """Put the look on record."""
        await self.site.looks.look(self.person, page, self.now_us, **asked)
        self.looked = True

    async def say(self, record: Record) -> None:
        await self.site.looks.say(record)

    async def show(self, template: str, **values: Any) -> Response:
        """The page. What was not put on record is not shown."""
        return HTMLResponse(await self._text(template, **values), 200, dict(HEADERS))

    async def stream(self, template: str, parts: AsyncIterator[str], **values: Any) -> Response:
        """The same with `parts` where the template has `here`, each sent when it is there."""
        before, _, after = (await self._text(template, here=_HERE, **values)).partition(_HERE)

        async def body() -> AsyncIterator[str]:
            yield before
            async for part in parts:
                yield part
            yield after

        return StreamingResponse(body(), 200, dict(HEADERS), "text/html")

    async def _text(self, template: str, **values: Any) -> str:
        if not self.looked:
            raise NotRecordedError
        allowed = await self.site.access.which(self.person, PAGES)
        pages = [page for page, may in zip(PAGES, allowed, strict=True) if may]
        return self.site.text(
            template, path=self.request.url.path, person=self.person, pages=pages,
            mark=self.site.people.mark(self.person), **values,
        )  # fmt: skip


class Site:
    """What all pages have."""

    def __init__(
        self, store: Pool, people: People, access: Access, looks: Looks, directory: Directory,
        hosts: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        """`hosts`: only what is asked for under these names is answered, so that no other site can
        give its name to this address."""
        self._hosts = hosts
        self.store = store
        self.people = people
        self.access = access
        self.looks = looks
        self.directory = directory
        self._templates = Environment(
            loader=PackageLoader("authz.console"), autoescape=select_autoescape(default=True),
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= {
            "moment": words.moment, "day": words.day, "segment": lambda one: quote(one, safe=""),
        }  # fmt: skip
        self._templates.globals |= {"actions": words.ACTIONS, "number": count}

    def text(self, template: str, **values: Any) -> str:
        defaults: dict[str, Any] = {"path": "", "person": None, "pages": (), "mark": ""}
        return self._templates.get_template(template).render(defaults | values)

    def say_no(self, status: int, text: str) -> Response:
        """A page that tells why there is none."""
        page = self.text("no.html", text=text, can_sign_in=self.people.can_sign_in)
        return HTMLResponse(page, status, dict(HEADERS))

    def page(
        self, path: str, action: Action, answer: Answer, methods: Sequence[str] = ("GET",)
    ) -> Route:
        """A route to `answer`, for who may do `action`; forms have to be those that we gave."""

        async def endpoint(request: Request) -> Response:
            begun = time.perf_counter()
            response = await self._answer(request, action, answer)
            metrics.SECONDS.labels(action).observe(time.perf_counter() - begun)
            metrics.REQUESTS.labels(action, str(response.status_code)).inc()
            return response

        return Route(path, endpoint, methods=list(methods))

    async def _answer(self, request: Request, action: Action, answer: Answer) -> Response:
        if self._hosts is not None and request.url.hostname not in self._hosts:
            return self.say_no(400, "This console has another name.")
        try:
            person = self.people.who(request)
        except NobodyError as error:
            if error.status == 401 and self.people.can_sign_in and request.method == "GET":
                return _to("/sign-in?back=" + quote(_place(request), safe=""))
            return self.say_no(error.status, f"{str(error).replace('_', ' ').capitalize()}.")
        visit = Visit(request, person, self, now_us=time.time_ns() // 1000)
        try:
            if request.method != "GET":
                visit.form = await request.form(max_fields=_MOST_FORM, max_files=0)
                if not self.people.is_theirs(str(visit.form.get("mark", "")), person):
                    return self.say_no(403, "This form is not yours, or too old: load it again.")
            await visit.allow(action)
            return await answer(visit)
        except NotFoundError as error:
            return self.say_no(404, str(error))
        except HTTPException as error:
            return self.say_no(error.status_code, error.detail)
        except NotRecordedError:
            return self.say_no(
                503, "Your look could not be put on record just now, so nothing is shown."
            )
        except AwayError:
            return self.say_no(503, "The database does not answer just now. Try again in a minute.")

    def sign_in_routes(self) -> list[Route]:
        return [
            Route("/sign-in", self._sign_in), Route("/signed-in", self._signed_in),
            Route("/sign-out", self._sign_out, methods=["POST"]),
        ]  # fmt: skip

    async def _sign_in(self, request: Request) -> Response:
        if not self.people.can_sign_in:
            return self.say_no(404, "Nobody signs in here.")
        try:
            answer: Response = await self.people.begin(
                request, request.query_params.get("back", "")
            )
        except NobodyError as error:
            return self.say_no(error.status, f"{str(error).capitalize()}.")
        return answer

    async def _signed_in(self, request: Request) -> Response:
        if not self.people.can_sign_in:
            return self.say_no(404, "Nobody signs in here.")
        try:
            return _to(await self.people.end(request))
        except NobodyError as error:
            return self.say_no(error.status, f"{str(error).capitalize()}.")

    async def _sign_out(self, request: Request) -> Response:
        try:
            form = await request.form(max_fields=_MOST_FORM, max_files=0)
            if self.people.is_theirs(str(form.get("mark", "")), self.people.who(request)):
                request.session.clear()
        except NobodyError:
            pass
        return self.say_no(200, "You are signed out.")


def _place(request: Request) -> str:
    """Where somebody wants to go."""
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path


def _to(place: str) -> Response:
    """To a page of ours, and nowhere else."""
    parts = urlsplit(place)
    ours = place.startswith("/") and not (parts.scheme or parts.netloc or "\\" in place)
    return RedirectResponse(place if ours else "/", 303, dict(HEADERS))
