"""An OPA server as the engine: concurrent decisions asked in one HTTP call.

A small wrapper policy decides each item of a batch ``with input as`` that item. Its answer is an
object keyed by item number: an undefined decision is a missing key, and can never shift one
person's allow onto another, as it would in an array. One conflict fails a whole query in OPA; the
items of a failed batch are asked one by one. A policy that calls something impure (``uuid``,
``http.send``, ...) is never batched, nor where the wrapper cannot be loaded.

opa-python-client does all but the hot path; that is aiohttp, which it is built on.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from opa_client.errors import ConnectionsError, RegoParseError
from opa_client.opa_async import AsyncOpaClient

from authz.errors import AuthzError, UnavailableError, UsageError
from authz.policy.rego_ast import Reads, reads
from authz.policy.verdict import UNDEFINED, PolicyError

_MODULE = "authz/batch"
_PACKAGE = "authz_batch"
_MAX_BATCH = 16
_MAX_WAIT_SECONDS = 0.003
_WATCH_SECONDS = 0.5
_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=2)

logger = structlog.get_logger()

Item = tuple[dict[str, object], "asyncio.Future[object]"]


def wrapper(query: str) -> str:
    """The wrapper policy for the decision `query`; it may be shipped in the bundle as well."""
    return (
        f"package {_PACKAGE}\n\nimport rego.v1\n\n"
        "decisions[key] := decision if {\n"
        "\tsome key, item in input.items\n"
        f"\tdecision := data.{query.replace('/', '.')} with input as item\n"
        "}\n"
    )


@dataclass(frozen=True, slots=True)
class OpaOptions:
    """How to reach the server: `url` is http(s)://host:port or unix:///path."""

    url: str
    token: str | None = None


class OpaEngine:
    """Decides by asking OPA for `query` (``envoy/authz/allow``)."""

    def __init__(self, options: OpaOptions, query: str) -> None:
        self._options = options
        self._query = query
        self._batches = False
        self.revision = ""
        self.reads: Reads | None = None
        self._pending: list[Item] = []
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0  # items that OPA is deciding
        self._company = 1.0  # how many Checks are usually under way together
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect, learn about the policy, load the wrapper. Raises `AuthzError`."""
        parts = urlsplit(self._options.url)
        if parts.scheme == "unix":
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(parts.path, limit=64)
            base = "http://opa"
        else:
            connector = aiohttp.TCPConnector(limit=64)
            base = f"{parts.scheme}://{parts.netloc}"
        headers = {"content-type": "application/json"}
        if self._options.token:
            headers["authorization"] = f"Bearer {self._options.token}"
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=_TIMEOUT, json_serialize=_dumps
        )
        self._client = _Client(self._session, base)
        self._single = f"{base}/v1/data/{self._query}"
        self._batch = f"{base}/v1/data/{_PACKAGE}/decisions"
        try:
            await self._look()
            if not await self._is_defined():
                raise UsageError(
                    f"--decision {self._query}: OPA at {self._options.url} has no rule of that name"
                )
        except AuthzError:
            await self.close()
            raise

    async def decide(self, document: dict[str, object]) -> object:
        """The decision for an input document, `UNDEFINED` for none.

        Raises `PolicyError` when evaluation fails, `UnavailableError` when OPA does not answer.
        """
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._pending.append((document, future))
        waiting = len(self._pending)
        self._company = max(self._company, float(min(waiting + self._asked, _MAX_BATCH)))
        if not self._batches or waiting >= round(self._company):
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_MAX_WAIT_SECONDS, self._waited_enough)
        return await future

    async def watch(self) -> None:
        """Notice policy changes, and OPA's coming and going."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            before = self.revision
            try:
                await self._look()
            except UnavailableError as error:
                logger.error("OPA does not answer", error=str(error))
            if self.revision != before:
                logger.info("policy changed", revision=self.revision)

    async def close(self) -> None:
        await self._session.close()

    def _waited_enough(self) -> None:
        # Fewer came than usually do: expect less next time.
        self._timer = None
        self._company = max(1.0, (self._company + len(self._pending)) / 2)
        self._flush()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items = [item for item in self._pending if not item[1].done()]
        self._pending = []
        if items:
            self._asked += len(items)
            call = asyncio.get_running_loop().create_task(self._ask(items))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _ask(self, items: list[Item]) -> None:
        try:
            if self._batches:
                await self._ask_together(items)
            else:
                await asyncio.gather(*(self._ask_singly(item) for item in items))
        finally:
            self._asked -= len(items)

    async def _ask_together(self, items: list[Item]) -> None:
        keyed = {str(number): document for number, (document, _) in enumerate(items)}
        try:
            decisions = await self._post(self._batch, {"items": keyed})
        except PolicyError as error:
            if len(items) == 1:
                _fail(items[0], error)
            else:
                await asyncio.gather(*(self._ask_singly(item) for item in items))
            return
        except UnavailableError as error:
            for item in items:
                _fail(item, error)
            return
        if not isinstance(decisions, dict):
            # The wrapper is gone (OPA was restarted): no decision was made by it.
            self._batches = False
            await asyncio.gather(*(self._ask_singly(item) for item in items))
            return
        for number, (_, future) in enumerate(items):
            if not future.done():
                future.set_result(decisions.get(str(number), UNDEFINED))

    async def _ask_singly(self, item: Item) -> None:
        if item[1].done():
            return
        try:
            result = await self._post(self._single, item[0])
        except (PolicyError, UnavailableError) as error:
            _fail(item, error)
        else:
            if not item[1].done():
                item[1].set_result(result)

    async def _post(self, url: str, document: object) -> object:
        try:
            async with self._session.post(url, data=orjson.dumps({"input": document})) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"OPA does not answer ({type(error).__name__})") from None
        except (TypeError, ValueError) as error:
            raise PolicyError(f"the input cannot be sent to OPA ({type(error).__name__})") from None
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UnavailableError(f"OPA answers {status} with something that is no JSON") from None
        if status == 200:
            return answer.get("result", UNDEFINED)
        codes = [str(error.get("code")) for error in answer.get("errors", ())]
        if codes and all(code.startswith("eval_") for code in codes):
            raise PolicyError(f"evaluation fails: {', '.join(codes)}")
        raise UnavailableError(f"OPA answers {status} ({answer.get('code')})")

    async def _look(self) -> None:
        """Read the policy's text and tree; see that the wrapper is there."""
        try:
            policies = await self._client.policies()
        except (ConnectionsError, aiohttp.ClientError, TimeoutError, OSError):
            raise UnavailableError(f"OPA at {self._options.url} does not answer") from None
        ours = wrapper(self._query)
        theirs = [policy for policy in policies if policy["raw"] != ours]
        revision = _revision({policy["id"]: policy["raw"] for policy in theirs})
        if revision != self.revision or self.reads is None:
            self.reads = reads([policy["ast"] for policy in theirs])
            self.revision = revision
        batches = self.reads.batchable
        if batches and len(theirs) == len(policies):
            batches = await self._load_wrapper(ours)
        if batches != self._batches:
            logger.info("decisions are asked", together=batches)
            self._batches = batches

    async def _load_wrapper(self, text: str) -> bool:
        try:
            await self._client.update_policy_from_string(text, _MODULE)
        except (ConnectionsError, RegoParseError, aiohttp.ClientError) as error:
            logger.warning(
                "the wrapper policy is not accepted; asking singly", error=str(error)[:200]
            )
            return False
        return True

    async def _is_defined(self) -> bool:
        policies = await self._client.policies()
        package, _, rule = self._query.rpartition("/")
        for policy in policies:
            path = "/".join(str(term["value"]) for term in policy["ast"]["package"]["path"][1:])
            names = (head["head"].get("name") for head in policy["ast"].get("rules", ()))
            if path == package and rule in names:
                return True
        return False


class _Client(AsyncOpaClient):  # type: ignore[misc] # it has no types
    """opa-python-client over our session, which may go to a unix socket."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        super().__init__()
        self.root_url = f"{base}/v1"
        self._session = session

    async def policies(self) -> list[dict[str, Any]]:
        """``GET /v1/policies``: id, raw text and syntax tree of each module."""
        async with self._request("GET", f"{self.root_url}/policies") as response:
            if response.status != 200:
                raise ConnectionsError("policies", f"HTTP {response.status}")
            answer = orjson.loads(await response.read())
        found: list[dict[str, Any]] = answer.get("result", [])
        return found


def _revision(texts: dict[str, str]) -> str:
    return hashlib.sha256(orjson.dumps(texts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _fail(item: Item, error: Exception) -> None:
    if not item[1].done():
        item[1].set_exception(error)


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
