"""A log over HTTP, as C2SP tlog-tiles has it: checkpoint, tiles, and for some the entries.

``/<origin>/checkpoint``, ``/<origin>/tile/...``, ``/<origin>/tile/entries/...``; where there is one
log only, also without its origin. Tiles are hashes and tell nothing of anybody, so they are for all
who reach the port. Entries are the records: they are for those with the token.
"""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from authz.console import metrics
from authz.console.store import AwayError, Pool
from authz.errors import UsageError
from authz.files import is_open
from authz.ledger import HASH_BYTES, Place
from authz.ledger.tiles import ENTRIES, pack, width_at
from authz.ledger.tree import TILE_WIDTH
from authz.store import checkpoints, tiles

_LOGS_SECONDS = 10  # how long it is believed which logs there are
_LEAST_TOKEN = 32
_BINARY = "application/octet-stream"
_YEAR = "max-age=31536000, immutable"

logger = structlog.get_logger()

Answer = Callable[[Request, str], Awaitable[Response]]


def load_token(path: Path) -> bytes:
    """The token in a file, without the spaces around it. Raises `UsageError`."""
    try:
        if is_open(path):
            raise UsageError(f"{path}: others may read this token; run: chmod 600 {path}")
        token = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"console.entries_token_file {path}: {error.strerror}") from None
    if len(token) < _LEAST_TOKEN:
        raise UsageError(
            f"{path}: want a token of {_LEAST_TOKEN} characters or more;"
            " make one: openssl rand -hex 32"
        )
    return token


@dataclass(slots=True)
class LogApi:
    """The logs in `store`. Entries are for who shows the token in `token_file`, which is read each
    time; without such a file they are for nobody."""

    store: Pool
    token_file: Path | None = None
    _sizes: dict[str, int] = field(default_factory=dict)
    """Of logs that were asked for: at least so large."""
    _logs: tuple[float, list[str]] = (0.0, [])
    """Which logs there are, until some time of a stopwatch."""

    def routes(self) -> list[Route]:
        packed = (Middleware(GZipMiddleware, minimum_size=1024),)
        return [
            *self._route("checkpoint", "checkpoint", self._checkpoint),
            *self._route("tile/entries/{place:path}", "entries", self._entries, packed),
            *self._route("tile/{place:path}", "tile", self._tile),
        ]

    def _route(
        self, path: str, what: str, answer: Answer, middleware: tuple[Middleware, ...] = ()
    ) -> list[Route]:
        """Without a log's origin, and with it: which may itself hold slashes."""

        async def endpoint(request: Request) -> Response:
            with metrics.SECONDS.labels(what).time():
                try:
                    response = await answer(request, await self._origin(request))
                except HTTPException as refusal:
                    response = _refused(refusal.status_code, refusal.detail, refusal.headers)
                except AwayError:
                    response = _refused(503, "the store is away", {"retry-after": "5"})
            metrics.REQUESTS.labels(what, str(response.status_code)).inc()
            return response

        return [
            Route(f"/{prefix}{path}", endpoint, methods=["GET"], middleware=middleware)
            for prefix in ("", "{origin:path}/")
        ]

    async def _origin(self, request: Request) -> str:
        """The log that is meant."""
        if "origin" in request.path_params:
            return str(request.path_params["origin"])
        until, known = self._logs
        if time.monotonic() > until:
            known = list(await self.store.ask(checkpoints.sizes))
            self._logs = time.monotonic() + _LOGS_SECONDS, known
        if len(known) == 1:
            return known[0]
        if known:
            raise HTTPException(404, "there are several logs; ask for one: /<origin>/checkpoint")
        raise HTTPException(404, "there is no log yet")

    async def _checkpoint(self, _: Request, origin: str) -> Response:
        newest = await self._newest(origin)
        headers = {"cache-control": "max-age=1"}
        return PlainTextResponse(newest, headers=headers)  # text/plain; charset=utf-8

    async def _newest(self, origin: str) -> str:
        newest = await self.store.ask(tiles.newest_checkpoint, origin)
        if newest is None:
            raise HTTPException(404, "no such log")
        self._sizes[origin], note = newest
        return note

    async def _tile(self, request: Request, origin: str) -> Response:
        place = await self._place(request, origin, "tile/")
        [data] = await self.store.ask(lambda client: tiles.Tiles(client, origin)([place]))
        wanted = place.width * HASH_BYTES
        if len(data) < wanted:
            logger.error("a tile is missing: run authz verify", origin=origin, tile=place.path)
            raise HTTPException(500, "this tile is missing")
        headers = {"cache-control": f"public, {_YEAR}"}
        return Response(data[:wanted], media_type=_BINARY, headers=headers)

    async def _entries(self, request: Request, origin: str) -> Response:
        self._admit(request)
        place = await self._place(request, origin, "tile/entries/")
        first = place.index * TILE_WIDTH
        end = first + place.width
        found = await self.store.ask(tiles.leaves, origin, first, end)
        if any(index not in found for index in range(first, end)):
            raise HTTPException(404, "some of these entries are gone")
        told = {"origin": origin, "entries": place.path}
        if any(len(leaves) > 1 for leaves in found.values()):
            logger.error("two records claim one place: run authz verify", **told)
            raise HTTPException(500, "two entries claim one place")
        try:
            data = pack([leaf for index in range(first, end) for leaf in found[index]])
        except ValueError as error:
            logger.error("an entry is too large for its bundle", error=str(error), **told)
            raise HTTPException(500, "an entry is too large for its bundle") from None
        logger.info("entries given out", **told)
        # Kept by whoever showed the token, and nobody in between.
        headers = {"cache-control": f"private, {_YEAR}"}
        return Response(data, media_type=_BINARY, headers=headers)

    async def _place(self, request: Request, origin: str, under: str) -> Place:
        """The place that is asked for, if the log reaches as far."""
        place = Place.parse(f"{under}{request.path_params['place']}")
        if place is None or (place.level == ENTRIES) != (under == "tile/entries/"):
            raise HTTPException(404, "no such tile")
        if self._width(place, origin) < place.width:
            await self._newest(origin)
        if self._width(place, origin) < place.width:
            raise HTTPException(404, "beyond the checkpoint")
        return place

    def _width(self, place: Place, origin: str) -> int:
        return width_at(place.level, place.index, self._sizes.get(origin, 0))

    def _admit(self, request: Request) -> None:
        if self.token_file is None:
            raise HTTPException(403, "entries are not given out here")
        try:
            wanted = load_token(self.token_file)
        except UsageError as error:
            logger.error("entries are given to nobody", error=str(error))
            raise HTTPException(403, "entries are not given out now") from None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(_hash(given.encode()), _hash(wanted))
        if scheme.lower() != "bearer" or not same:
            raise HTTPException(401, "want the token", {"www-authenticate": "Bearer"})


def _hash(data: bytes) -> bytes:
    """Of one length, so that a comparison tells nothing of the token's."""
    return hashlib.sha256(data).digest()


def _refused(status: int, text: str, headers: Mapping[str, str] | None) -> Response:
    more = {"cache-control": "no-store", **(headers or {})}
    return PlainTextResponse(f"{text}\n", status, headers=more)
