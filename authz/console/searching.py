"""Searches: requests as they are found, the newest first. An address has all that was asked for.

A log of any size is walked back in time, part by part, the newest part short: what is there is
shown while the next part is read, and not much that is older than a page holds is read.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from authz.console import words
from authz.console.store import AwayError, Pool
from authz.console.web import Site, Visit
from authz.record import MAX_INT
from authz.record.privacy import is_token
from authz.store import pages
from authz.store.lookups import Window
from authz.store.pages import Filters, Place, Row

_MINUTE_US = 60 * 1_000_000
_DAY_US = 24 * 60 * _MINUTE_US
_LONG_US = 8 * _DAY_US  # of what lies together, to which a part costs more than what is in it
_LONGEST_US = 360 * _DAY_US
_LIMIT = 200
_TIMES = ("since", "until")
_MOST_TOKENS = 512  # characters


@dataclass(frozen=True, slots=True)
class Search:
    """What somebody searches for, and after what they go on."""

    filters: Filters
    window: Window
    after: Place | None = None

    @classmethod
    def of(cls, visit: Visit) -> "Search":
        """As an address or a form has it: of the last week where nothing is said. Raises
        `HTTPException`."""
        names = [name for name in Filters.__dataclass_fields__ if name != "patients"]
        told = {name: visit.given(name) for name in names}
        tokens = tokens_of(visit.given("patient", _MOST_TOKENS))
        if told["resource_type"] == "Patient" and told["resource_id"]:
            tokens_of(told["resource_id"])
        since = visit.time("since")
        if since is None:
            since = (visit.now_us - 7 * _DAY_US) // _MINUTE_US * _MINUTE_US
        window = Window(since, visit.time("until"))
        return cls(Filters(**told, patients=tokens), window, _place(visit.given("before", 512)))

    @property
    def told(self) -> dict[str, object]:
        """What the record of a look has of it, but for the patients and the place."""
        since, until = self.window.since_us, self.window.until_us
        return {"filters": self._filters, "since": since, "until": until}

    @property
    def asked(self) -> dict[str, str]:
        """What an address or a form has of it, but for the place."""
        since, until = (
            words.moment(at or 0) for at in (self.window.since_us, self.window.until_us)
        )
        patients = ",".join(self.filters.patients)
        told = self._filters | {"patient": patients, "since": since, "until": until}
        return {name: value.replace(" ", "T") if name in _TIMES else value
                for name, value in told.items() if value}  # fmt: skip

    @property
    def _filters(self) -> dict[str, str]:
        told = asdict(self.filters)
        return {name: value for name, value in told.items() if value and name != "patients"}

    @property
    def address(self) -> str:
        return f"/search?{urlencode(self.asked)}"

    @property
    def reports(self) -> str:
        """The address of what can be made of it."""
        return f"/reports?{urlencode(self.asked)}"

    def beyond(self, last: Row) -> str:
        """The address of what comes after `last`."""
        place = f"{last['sealed_at']}/{last['origin']}/{last['index']}"
        return f"{self.address}&{urlencode({'before': place}, safe='/')}"


class SearchPage:
    """`can_ask` is whether there is a key to search by identifiers."""

    def __init__(self, site: Site, *, can_ask: bool) -> None:
        self._site = site
        self._can_ask = can_ask

    def routes(self) -> list[Route]:
        return [self._site.page("/search", "search", self.search)]

    async def search(self, visit: Visit) -> Response:
        search = Search.of(visit)
        before = visit.given("before", 512)
        await visit.look("search", tokens=search.filters.patients, **search.told, before=before)
        return await visit.stream(
            "search.html", self._found(visit, search), search=search, filters=search.filters,
            can_ask=self._can_ask,
        )  # fmt: skip

    async def _found(self, visit: Visit, search: Search) -> AsyncIterator[str]:
        """Rows of the page's table, and how it ends."""
        count, last = 0, None
        failed = False
        try:
            async for rows in walk(self._site.store, search, _LIMIT, visit.now_us):
                names = await visit.names([row["subject"] for row in rows])
                yield self._site.text("rows.html", rows=rows, names=names)
                count, last = count + len(rows), rows[-1] if rows else last
        except AwayError:
            failed = True
        older = search.beyond(last) if last and count >= _LIMIT and not failed else ""
        yield self._site.text(
            "search_end.html", failed=failed, count=count, search=search, older=older
        )


async def walk(store: Pool, search: Search, limit: int, now_us: int) -> AsyncIterator[list[Row]]:
    """What is found, the newest first, `limit` at most: of each part of the time, also where that
    is nothing. Raises `AwayError`."""
    window, after = search.window, search.after
    if after:
        window = replace(window, until_us=after.sealed_at + 1)
    shortest = _LONG_US if search.filters.names_somebody else _MINUTE_US
    for part in parts(window, now_us, shortest):
        found = await store.ask(pages.search, search.filters, part, limit, after)
        yield found
        limit -= len(found)
        if limit <= 0:
            return


def parts(window: Window, now_us: int, shortest_us: int = _MINUTE_US) -> Iterator[Window]:
    """`window`, which has a beginning, in parts, the newest first, each four times as long as the
    one before, up to a year: what is read beyond what is wanted is bounded, and each is short."""
    first, end, length = window.since_us or 0, window.until_us, shortest_us
    begin = now_us if end is None else end
    while True:
        begin = max(begin - length, first)
        yield Window(begin, end)
        if begin <= first:
            return
        end, length = begin, min(4 * length, _LONGEST_US)


def tokens_of(given: str) -> tuple[str, ...]:
    """Tokens with commas between them. Raises `HTTPException` for anything else: it may be an
    identifier, which belongs into no address and no record."""
    tokens = tuple(filter(None, given.split(",")))
    if not all(map(is_token, tokens)):
        raise HTTPException(
            400,
            "patient: want a token. By the identifier itself, look on the page Search: there it"
            " becomes a token, and is in no address.",
        )
    return tokens


def _place(given: str) -> Place | None:
    if not given:
        return None
    at, _, rest = given.partition("/")
    origin, _, index = rest.rpartition("/")
    if not (at.isdecimal() and origin and index.isdecimal() and max(int(at), int(index)) < MAX_INT):
        raise HTTPException(400, "before: want a place of a search, as the link Older has it.")
    return Place(int(at), origin, int(index))
