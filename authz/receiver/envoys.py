"""Asks Envoys, by their admin interfaces, what they say of their access logs."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import aiohttp
import structlog

from authz.receiver.losses import Losses, Said
from authz.receiver.metrics import ENVOY_UP

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_QUIET_SECONDS: Final = 0.2
"""If nothing came for so long after Envoy was asked, nothing that it had sent was under way."""
_LOOK_AGAIN: Final = 60
"""Every so many times it is asked where else the log goes."""

# Its one field that every start changes is when the bootstrap was loaded. (`/server_info` has the
# node too, and 120 KB of extensions.)
_WHO: Final = "/config_dump?mask=bootstrap.node.id,last_updated"
_COUNTERS: Final = "/stats?format=json&filter=^access_logs[.]grpc_access_log[.]"
_LISTENERS: Final = ("static_listeners", "dynamic_listeners")
# The last three: what answers is no Envoy.
_NO_ANSWER: Final = (
    aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError, AttributeError
)  # fmt: skip
_GRPC_LOG: Final = re.compile(r"\.(Http|Tcp)GrpcAccessLogConfig$")

logger = structlog.get_logger()


class Envoys:
    """Those whose whole access log comes to this receiver, by their admin interfaces' addresses.

    One that does not answer is no loss: a log line, and `authz_receiver_envoy_up`.
    """

    def __init__(
        self,
        admins: Sequence[str],
        losses: Losses,
        received: Callable[[str], int],
        behind: Callable[[], bool] = lambda: False,
        poll_seconds: float = 5,
    ) -> None:
        """`received`: entries of any kind that came from a node since this process began.
        `behind`: whether what came is not taken, because the disk does not take it: then what is
        missing is not lost."""
        self._admins = [_Admin(address) for address in admins]
        self._losses = losses
        self._received = received
        self._behind = behind
        self._poll_seconds = poll_seconds
        self._began = (time.time_ns() - time.monotonic_ns()) // 1000

    async def run(self) -> None:
        """Ask all of them every few seconds, for ever."""
        async with AsyncExitStack() as stack:
            for admin in self._admins:
                await admin.open(stack)
            while self._admins:
                await self.ask()
                await asyncio.sleep(self._poll_seconds)

    async def ask(self) -> None:
        """Ask all of them, once."""
        answers = [one for one in await asyncio.gather(*map(self._ask, self._admins)) if one]
        nodes = Counter(said.node for said, _ in answers)
        now = self._began + time.monotonic_ns() // 1000  # a clock that is never set back
        for said, received in answers:
            if nodes[said.node] > 1:  # what came from them cannot be told apart
                self._losses.hear(replace(said, comparable=False), None, now)
            else:
                self._losses.hear(said, received, now)

    async def _ask(self, admin: "_Admin") -> tuple[Said, int | None] | None:
        before = self._received(admin.node)
        try:
            said = await admin.said()
        except _NO_ANSWER as error:
            admin.tell(up=False, error=type(error).__name__)
            return None
        admin.tell(up=True)
        await asyncio.sleep(_QUIET_SECONDS)
        after = self._received(said.node)
        same = before == after and admin.node == said.node and not self._behind()
        admin.node = said.node
        return said, after if same else None


class _Admin:
    """One Envoy's admin interface."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.node = ""
        self._up: bool | None = None
        self._base = "http://envoy" if address.startswith("unix://") else address
        self._session: aiohttp.ClientSession | None = None
        self._run, self._asked, self._receivers_known = "", 0, 0

    async def open(self, stack: AsyncExitStack) -> None:
        local = self.address.startswith("unix://")
        path = self.address.removeprefix("unix://")
        connector = aiohttp.UnixConnector(path) if local else aiohttp.TCPConnector()
        session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        self._session = await stack.enter_async_context(session)

    def tell(self, *, up: bool, error: str = "") -> None:
        ENVOY_UP.labels(self.address).set(up)
        if up != self._up:
            self._up = up
            if up:
                logger.info("envoy's admin interface answers", admin=self.address)
            else:
                logger.warning("envoy's admin interface is away", admin=self.address, error=error)

    async def said(self) -> Said:
        node, run = await self._who()
        stats = await self._get(_COUNTERS)
        if await self._who() != (node, run):
            raise ValueError("it was started again while it was asked")
        counters = {one["name"].rpartition(".")[2]: one["value"] for one in stats["stats"]}
        if run != self._run or self._asked >= _LOOK_AGAIN:
            receivers = len(await self._receivers())
            if receivers > 1 >= self._receivers_known:
                logger.warning(
                    "envoy's access log goes to several receivers: what it lost is not known here",
                    node=node, receivers=receivers,
                )  # fmt: skip
            self._run, self._asked, self._receivers_known = run, 0, receivers
        self._asked += 1
        return Said(
            node, run,
            # Before 1.39 there was only the other.
            int(counters.get("grpc_entries_flushed", counters.get("logs_written", 0))),
            int(counters.get("logs_dropped", 0)),
            comparable=self._receivers_known <= 1,
        )  # fmt: skip

    async def _who(self) -> tuple[str, str]:
        [dump] = (await self._get(_WHO))["configs"]
        return str(dump["bootstrap"]["node"]["id"]), str(dump["last_updated"])

    async def _receivers(self) -> set[str]:
        """Where its gRPC access logs go."""
        clusters: set[str] = set()
        found: set[str] = set()
        for resource in _LISTENERS:
            for service in _services(await self._get(f"/config_dump?resource={resource}")):
                if cluster := service.get("envoy_grpc", {}).get("cluster_name"):
                    clusters.add(str(cluster))
                else:
                    found.add(str(service.get("google_grpc", {}).get("target_uri")))
        told = await self._get("/clusters?format=json")
        for one in told.get("cluster_statuses", ()):
            if one["name"] in clusters:
                found |= {json.dumps(host["address"]) for host in one.get("host_statuses", ())}
        return found

    async def _get(self, path: str) -> Any:
        assert self._session
        async with self._session.get(self._base + path) as response:
            response.raise_for_status()
            return json.loads(await response.read())


def _services(value: Any) -> Iterator[dict[str, Any]]:
    """The gRPC services of all access logs in `value`."""
    if isinstance(value, list):
        for item in value:
            yield from _services(item)
    elif isinstance(value, dict):
        if _GRPC_LOG.search(str(value.get("@type", ""))):
            yield value.get("common_config", {}).get("grpc_service", {})
        for item in value.values():
            yield from _services(item)
