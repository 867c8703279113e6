"""ClickHouse, as an event loop asks it: in threads, each with a connection of its own."""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from authz.errors import AuthzError
from authz.store.client import QUERY_ERRORS, Client, connect, explain

_CONNECTIONS = 8

P = ParamSpec("P")
T = TypeVar("T")

logger = structlog.get_logger()


class AwayError(Exception):
    """ClickHouse does not answer, or refuses; it is in the log why."""


class Pool:
    """A few connections; who finds all of them busy waits."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Client] = []
        self._free = asyncio.Semaphore(_CONNECTIONS)

    async def ask(
        self, question: Callable[Concatenate[Client, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `question` answers, a function of a client. Raises `AwayError`."""
        async with self._free:
            return await asyncio.to_thread(
                self._ask, lambda client: question(client, *args, **kwargs)
            )

    def _ask(self, question: Callable[[Client], T]) -> T:
        try:
            client = self._idle.pop()
        except IndexError:
            client = connect(self._url)
        try:
            answer = question(client)
        except QUERY_ERRORS as error:
            client.disconnect()
            logger.error("the store does not answer", error=str(explain(error, self._url)))
            raise AwayError from None
        except AuthzError as error:
            client.disconnect()
            logger.error("the store cannot be used", error=str(error))
            raise AwayError from None
        self._idle.append(client)
        return answer
