"""Entries that a real Envoy loses are seen in its counters, though Envoy does not notice."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import structlog
from sidecar import Sidecar, manager, sidecar

from authz.receiver.envoys import Envoys
from authz.receiver.losses import Losses

NODE = "sidecar-0"
GRACE_SECONDS = 1.5
POLL_SECONDS = 0.3


@contextlib.asynccontextmanager
async def watched(ours: Sidecar, losses: Losses) -> AsyncIterator[None]:
    """`losses` hears of this Envoy, as in the receiver but sooner."""
    envoys = Envoys([f"unix://{ours.admin}"], losses, ours.log.received, poll_seconds=POLL_SECONDS)
    running = asyncio.create_task(envoys.run())
    try:
        await asyncio.sleep(1)
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def send(ours: Sidecar, client: aiohttp.ClientSession, count: int) -> None:
    for number in range(count):
        headers = ours.headers(str(number))
        async with client.get(f"{ours.url}/answer", headers=headers) as response:
            assert response.status == 200
        await asyncio.sleep(0.005)


async def flushed(ours: Sidecar) -> dict[str, int]:
    """Envoy's counters, once its buffers are empty."""
    async with asyncio.timeout(10):
        while True:
            counters = await ours.counters()
            if counters["logs_written"] == counters["grpc_entries_flushed"]:
                return counters
            await asyncio.sleep(0.1)


async def settled(ours: Sidecar) -> int:
    """How many entries have arrived, once none is under way: a second without one."""
    while True:
        arrived = ours.log.received(NODE)
        await asyncio.sleep(1)
        if arrived and ours.log.received(NODE) == arrived:
            return arrived


async def found(losses: Losses, wanted: dict[str, int]) -> dict[str, int]:
    """What is told: in some time that is longer than the grace time, and until it is `wanted`."""
    told: dict[str, int] = {}
    end = time.monotonic() + 30
    await asyncio.sleep(GRACE_SECONDS + 5 * POLL_SECONDS)
    while True:
        for lost in losses.take():
            assert lost.node == NODE
            assert lost.since < lost.until
            told[lost.kind] = told.get(lost.kind, 0) + lost.count
        if told == wanted or time.monotonic() > end:
            return told
        await asyncio.sleep(0.1)


def live(directory, story: Callable[..., Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        losses = Losses(GRACE_SECONDS)
        async with (
            sidecar(directory, **options) as ours,
            aiohttp.ClientSession() as client,
            watched(ours, losses),
        ):
            await story(ours, client, losses)

    asyncio.run(run())


def test_a_receiver_that_is_cut_off(tmp_path):
    """What Envoy sends while its receiver is away is told as lost, to the last entry, and nothing
    of before or after; Envoy's own counters of failures do not move."""

    async def story(ours: Sidecar, client: aiohttp.ClientSession, losses: Losses) -> None:
        await send(ours, client, 100)
        await flushed(ours)
        await ours.log.stop()
        before = len(ours.log.entries())
        await send(ours, client, 150)
        counters = await flushed(ours)
        assert counters["logs_dropped"] == counters["grpc_entries_flush_failed"] == 0
        await ours.log.start()
        await send(ours, client, 100)
        await flushed(ours)
        arrived = await settled(ours)
        assert 0 < before < arrived
        assert 350 - arrived >= 100
        lost = {"envoy_lost": 350 - arrived}
        assert await found(losses, lost) == lost

    live(tmp_path, story, workers=2)


@pytest.mark.thorough
def test_traffic_alone_is_no_loss(tmp_path):
    """As long as all of it comes, nothing is told, also while entries are always under way, and
    over a start of Envoy whose buffer was sent."""

    async def story(ours: Sidecar, client: aiohttp.ClientSession, losses: Losses) -> None:
        traffic = [asyncio.create_task(send(ours, client, 200)) for _ in range(2)]
        assert await found(losses, {}) == {}
        await asyncio.gather(*traffic)
        await flushed(ours)
        ours.kill()
        await ours.start()
        await send(ours, client, 20)
        assert await found(losses, {}) == {}
        assert ours.log.received(NODE) == 420

    live(tmp_path, story)


def test_what_envoy_drops(tmp_path):
    """What finds the buffer full, since the receiver reads no more, is told as dropped; and as
    lost, what was under way when it went."""

    def small(document: dict[str, Any]) -> None:
        [log] = manager(document)["access_log"]
        log["typed_config"]["common_config"]["buffer_size_bytes"] = 4000
        for cluster in document["static_resources"]["clusters"]:
            if cluster["name"] == "receiver":
                [options] = cluster["typed_extension_protocol_options"].values()
                http2 = options["explicit_http_config"]["http2_protocol_options"]
                http2["initial_stream_window_size"] = 65535

    async def story(ours: Sidecar, client: aiohttp.ClientSession, losses: Losses) -> None:
        async with ours.log.deaf():
            while (await ours.counters())["logs_dropped"] == 0:
                await send(ours, client, 50)
        await send(ours, client, 10)
        counters = await flushed(ours)
        lost = {
            "envoy_dropped": counters["logs_dropped"],
            "envoy_lost": counters["grpc_entries_flushed"] - await settled(ours),
        }
        assert await found(losses, lost) == lost

    live(tmp_path, story, edit=small)


@pytest.mark.thorough
def test_an_envoy_with_several_receivers(tmp_path):
    """Of an Envoy whose log goes to two places nothing is told as lost, and that is said."""

    def two(document: dict[str, Any]) -> None:
        for cluster in document["static_resources"]["clusters"]:
            if cluster["name"] == "receiver":
                [places] = cluster["load_assignment"]["endpoints"]
                other = {"socket_address": {"address": "127.0.0.1", "port_value": 9}}
                places["lb_endpoints"].append({"endpoint": {"address": other}})

    async def story(ours: Sidecar, client: aiohttp.ClientSession, losses: Losses) -> None:
        await ours.log.stop()
        await send(ours, client, 50)
        await flushed(ours)
        assert await found(losses, {}) == {}

    with structlog.testing.capture_logs() as lines:
        live(tmp_path, story, edit=two)
    assert [(line["node"], line["receivers"]) for line in lines if "receivers" in line] == [
        (NODE, 2)
    ]


@pytest.mark.thorough
def test_an_admin_interface_that_is_away(tmp_path):
    """It is said once, is a metric, and is no loss; and once more when it is back."""

    async def story(ours: Sidecar, client: aiohttp.ClientSession, losses: Losses) -> None:
        ours.kill()
        assert await found(losses, {}) == {}
        await ours.start()
        await send(ours, client, 10)
        assert await found(losses, {}) == {}

    with structlog.testing.capture_logs() as lines:
        live(tmp_path, story)
    assert [line["event"].rpartition(" ")[2] for line in lines] == ["answers", "away", "answers"]
