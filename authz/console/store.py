"""ClickHouse, as an event loop asks it: in threads, each with a connection of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from starlette.concurrency import iterate_in_threadpool

from authz.errors import AuthzError
from authz.store.client import QUERY_ERRORS, Client, connect, explain

_CONNECTIONS = 8
_STREAMS = 2  # at once: each has a connection for as long as somebody takes what comes

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
        self._streams = asyncio.Semaphore(_STREAMS)

    async def ask(
        self, question: Callable[Concatenate[Client, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `question` answers, a function of a client. Raises `AwayError`."""
        async with self._free:
            return await asyncio.to_thread(
                self._ask, lambda client: question(client, *args, **kwargs)
            )

    async def stream(
        self, question: Callable[[Client], Generator[bytes, None, None]]
    ) -> AsyncIterator[bytes]:
        """What `question` yields, of any length. Raises `AwayError`, also in the midst of it."""
        async with self._streams:
            client = connect(self._url)
            answer = question(client)
            try:
                async for piece in iterate_in_threadpool(answer):
                    yield piece
            except QUERY_ERRORS as error:
                logger.error("the store does not answer", error=str(explain(error, self._url)))
                raise AwayError from None
            except AuthzError as error:
                logger.error("the store cannot be used", error=str(error))
                raise AwayError from None
            finally:
                # Also where nobody wants the rest. A query may be under way, which is waited for.
                asyncio.get_running_loop().run_in_executor(None, _end, client, answer)

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


def _end(client: Client, answer: Generator[bytes, None, None]) -> None:
    answer.close()
    client.disconnect()
