"""Questions to an OPA server about its policy, and decisions for many inputs. Nothing is changed
there: the wrapper policy is used where it is loaded already.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson

from authz.errors import UnavailableError
from authz.policy.opa import OpaOptions, decision_in, is_wrapper, session, wrapper
from authz.policy.verdict import UNDEFINED, PolicyError

_BATCH: Final = 64
_TOGETHER: Final = 8
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=5)  # a review may take its time


@dataclass(frozen=True, slots=True)
class Module:
    """A module of a policy: its id, its text, and OPA's syntax tree of it."""

    name: str
    text: str
    tree: Mapping[str, Any]


class Asked:
    """An OPA server, to be asked for decisions at `query` (``envoy/authz/allow``)."""

    def __init__(self, session: aiohttp.ClientSession, base: str, url: str, query: str) -> None:
        self._session = session
        self._base = base
        self._url = url
        self._query = query
        self._wrapped = False

    async def modules(self) -> list[Module]:
        """The policy's modules, without wrappers. Raises `UnavailableError`."""
        status, answer = await self._call("GET", f"{self._base}/v1/policies")
        if status != 200:
            raise UnavailableError(f"OPA at {self._url} answers {status} when asked for its policy")
        ours = wrapper(self._query)
        found = [Module(each["id"], each["raw"], each["ast"]) for each in answer.get("result", [])]
        self._wrapped = any(module.text == ours for module in found)
        theirs = [module for module in found if not is_wrapper(module.text)]
        return sorted(theirs, key=lambda module: module.name)

    async def decide(
        self, documents: Sequence[Mapping[str, Any]], *, together: bool
    ) -> list[object]:
        """Each document's decision: a JSON value, `UNDEFINED`, or a `PolicyError`.

        Raises `UnavailableError`.
        """
        if together and self._wrapped:
            answers: list[object] = []
            for start in range(0, len(documents), _BATCH):
                answers += await self._decide_batch(documents[start : start + _BATCH])
            return answers
        return await self._decide_singly(documents)

    async def _decide_batch(self, documents: Sequence[Mapping[str, Any]]) -> list[object]:
        package = wrapper(self._query).split()[1]
        keyed = {str(number): document for number, document in enumerate(documents)}
        url = f"{self._base}/v1/data/{package}/decisions"
        status, answer = await self._call("POST", url, {"input": {"items": keyed}})
        decisions = answer.get("result")
        if status != 200 or not isinstance(decisions, dict):
            return await self._decide_singly(documents)  # one conflict fails the whole query
        return [decisions.get(str(number), UNDEFINED) for number in range(len(documents))]

    async def _decide_singly(self, documents: Sequence[Mapping[str, Any]]) -> list[object]:
        limit = asyncio.Semaphore(_TOGETHER)

        async def decide(document: Mapping[str, Any]) -> object:
            async with limit:
                url = f"{self._base}/v1/data/{self._query}"
                status, answer = await self._call("POST", url, {"input": document})
            try:
                return decision_in(status, answer)
            except PolicyError as error:
                return error

        return await asyncio.gather(*(decide(document) for document in documents))

    async def _call(self, method: str, url: str, body: object = None) -> tuple[int, dict[str, Any]]:
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._session.request(method, url, data=data) as response:
                return response.status, orjson.loads(await response.read() or b"{}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(
                f"OPA at {self._url} does not answer ({type(error).__name__}); is it running?"
            ) from None
        except orjson.JSONDecodeError:
            raise UnavailableError(f"what answers at {self._url} is no OPA") from None


@contextlib.asynccontextmanager
async def asking(options: OpaOptions, query: str) -> AsyncIterator[Asked]:
    """A connection to the server at ``http(s)://`` or ``unix://``."""
    async with session(options, _TIMEOUT) as opened:
        yield Asked(opened, options.base, options.url, query)
