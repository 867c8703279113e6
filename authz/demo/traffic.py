"""The demo's requests, sent for real through Envoy, and how they were answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from authz.demo.people import PEOPLE, Keys, Request, plan

_CONCURRENCY = 16


@dataclass(slots=True)
class Sent:
    """What was sent and came back. `unexpected` are requests answered otherwise than the sample
    policy says they should be."""

    decided: int = 0
    rejected: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)


async def send(
    envoy: str, keys: Keys, requests: int, seconds: float | None,
    progress: Callable[[int, Request, int], None] = lambda _count, _request, _status: None,
) -> Sent:  # fmt: skip
    """Send the plan's requests through `envoy`, for at most `seconds`."""
    sent = Sent()
    tokens = {name: keys.token(person) for name, person in PEOPLE.items()}
    todo = plan(requests)
    until = time.monotonic() + seconds if seconds else None
    connector = aiohttp.TCPConnector(limit=_CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work(todo: Iterator[Request]) -> None:
            for request in todo:
                if until and time.monotonic() > until:
                    return
                status = await _send_one(session, envoy, request, tokens)
                _note(sent, request, status)
                progress(sent.decided, request, status)

        await asyncio.gather(*(work(todo) for _ in range(_CONCURRENCY)))
    return sent


async def _send_one(
    session: aiohttp.ClientSession, envoy: str, request: Request, tokens: dict[str, str]
) -> int:
    headers = dict(request.headers)
    if request.person:
        headers["authorization"] = f"Bearer {tokens[request.person]}"
    url = URL(envoy + request.path, encoded=True)
    async with session.request(
        request.method, url, headers=headers, data=request.body or None, allow_redirects=False
    ) as response:
        await response.read()
        return response.status


def _note(sent: Sent, request: Request, status: int) -> None:
    if request.expect == "rejected":
        sent.rejected += 1
        fits = status in (400, 401)
    else:
        sent.decided += 1
        denied = status == 403
        sent.outcomes["denied" if denied else "allowed"] += 1
        fits = denied == (request.expect == "deny") and status < 500
    if not fits:
        sent.unexpected.append(
            f"{request.person or 'nobody'} {request.method}: wanted {request.expect}, got {status}"
        )
