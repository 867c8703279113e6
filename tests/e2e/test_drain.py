"""How Envoy is stopped: `drain.sh` loses nothing of the access log, and a plain SIGTERM does."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from pages import block
from programs import CHECKOUT, program
from sidecar import Sidecar, decision_id, sidecar

from authz.demo.stack import deploy_dir

SCRIPT = deploy_dir() / "envoy" / "drain.sh"
OPTIONS = ("--drain-time-s", "3", "--drain-strategy", "immediate")

Stop = Callable[[Sidecar], Awaitable[None]]


@dataclass
class Traffic:
    """What was answered, and what of it the access log has."""

    answered: dict[str, float] = field(default_factory=dict)
    logged: set[str] = field(default_factory=set)
    stopping: float = 0

    @property
    def lost(self) -> set[str]:
        return self.answered.keys() - self.logged

    @property
    def after(self) -> int:
        """How many were answered after the stop had begun."""
        return sum(when > self.stopping for when in self.answered.values())


@pytest.fixture(scope="module", autouse=True)
def _curl() -> None:
    program("curl", "curl")


async def drain(ours: Sidecar, seconds: int = 60) -> tuple[int, str]:
    """The exit code, and what was said."""
    process = await asyncio.create_subprocess_exec(
        str(SCRIPT), str(ours.admin), str(seconds), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def terminate(ours: Sidecar) -> None:
    assert ours.process
    ours.process.send_signal(signal.SIGTERM)
    assert await ours.end() == 0


async def stopped_under_traffic(directory: Path, stop: Stop) -> Traffic:
    """Requests on kept and on new connections, some of them slow, before, while and after Envoy is
    stopped."""
    traffic = Traffic()
    ended = asyncio.Event()
    async with sidecar(directory, workers=2, options=OPTIONS) as ours:

        async def work(worker: int) -> None:
            connector = aiohttp.TCPConnector(force_close=worker % 2 == 0)
            path = "/answer?s=1.5" if worker == 0 else "/answer"
            number = 0
            async with aiohttp.ClientSession(connector=connector) as client:
                while not ended.is_set():
                    number += 1
                    name = f"{worker} {number}"
                    try:
                        headers = ours.headers(name)
                        async with client.get(ours.url + path, headers=headers) as response:
                            await response.read()
                            assert response.status == 200
                            traffic.answered[f"id of {name}"] = time.monotonic()
                    except (aiohttp.ClientError, OSError):
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.01)

        working = [asyncio.create_task(work(worker)) for worker in range(6)]
        await asyncio.sleep(1.5)
        traffic.stopping = time.monotonic()
        await stop(ours)
        ended.set()
        await asyncio.gather(*working)
        await asyncio.sleep(0.5)
        traffic.logged = {decision_id(entry) for entry in ours.log.of("DownstreamEnd")}
    return traffic


@pytest.mark.thorough
def test_a_stop_that_drains(tmp_path):
    """Under traffic, by the README's command, every request that was answered, also while Envoy
    drained, has its access."""

    async def stop(ours: Sidecar) -> None:
        assert ours.process
        command = block("deploy/envoy/README.md", "deploy/envoy/drain.sh")
        given = {"ADMIN_SOCKET": str(ours.admin), "ENVOY_PID": str(ours.process.pid)}
        stopping = await asyncio.create_subprocess_shell(
            command, cwd=CHECKOUT, env=os.environ | given
        )
        assert await stopping.wait() == 0
        assert await ours.end() == 0

    traffic = asyncio.run(stopped_under_traffic(tmp_path, stop))
    assert traffic.after > 50
    assert traffic.lost == set()


def test_a_plain_sigterm(tmp_path):
    """Without it, answered requests of up to the last second are lost: that is what it is for."""
    for attempt in range(5):  # it may come right after a flush
        traffic = asyncio.run(stopped_under_traffic(tmp_path / str(attempt), terminate))
        if traffic.lost:
            break
    assert traffic.lost
    last = max(traffic.answered.values())
    assert all(last - traffic.answered[name] < 1.5 for name in traffic.lost)


def test_what_is_under_way_is_waited_for(tmp_path):
    """A long answer ends before, and a connection that only stays open is not waited for."""

    async def run() -> None:
        async with (
            sidecar(tmp_path, options=OPTIONS) as ours,
            aiohttp.ClientSession() as idle,
            aiohttp.ClientSession() as client,
        ):
            async with idle.get(f"{ours.url}/answer", headers=ours.headers("idle")) as response:
                await response.read()
            url = f"{ours.url}/stream?s=6"
            async with client.get(url, headers=ours.headers("long")) as response:
                draining = asyncio.create_task(drain(ours, 60))
                assert len(await response.read()) == 60
            assert not draining.done()
            assert await draining == (0, "")
            stats = await ours.ask("/stats?filter=^http.ingress.downstream_cx_active$")
            assert stats != "http.ingress.downstream_cx_active: 0\n"
            ended = {decision_id(entry) for entry in ours.log.of("DownstreamEnd")}
            assert ended == {"id of idle", "id of long"}

    asyncio.run(run())


def test_what_lasts_too_long(tmp_path):
    """What is still under way when the time is up is said, with exit code 1; so is, with 2, an
    Envoy that would drain for longer than that, which is left as it is, or one that is away."""

    async def run() -> None:
        async with (
            sidecar(tmp_path, options=OPTIONS) as ours,
            aiohttp.ClientSession() as client,
            client.get(f"{ours.url}/stream?s=30", headers=ours.headers("long")),
        ):
            code, said = await drain(ours, 3)
            assert code == 2
            assert said.startswith("Envoy drains for 3 s: start it with --drain-time-s 5 ")
            async with client.get(f"{ours.url}/answer", headers=ours.headers("next")) as response:
                assert response.headers.get("connection") != "close"
            assert await drain(ours, 4) == (1, "after 4 s still under way in Envoy: 1\n")
            ours.kill()
            code, said = await drain(ours, 4)
            assert code == 2
            assert said.startswith("curl: (")

    asyncio.run(run())
