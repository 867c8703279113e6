"""The load: a process that is Envoys and ext-authz instances to a receiver.

What it sends it makes beforehand where that can be, so that it is no slower than what it measures.
"""

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import grpc
import uvloop

from authz.journal.chain import Chain, Identity
from authz.journal.segments import Journal
from authz.ledger import Signer
from authz.serve.forward import CHANNEL_OPTIONS, Forwarder
from tests.bench.receiver.replay import WRITER, Request, World, message

_ENVOYS = 8
_ENTRIES = 250  # of one message, when sent without a pause: about a second of one Envoy
_STEP_SECONDS = 0.02  # a writer's records wait so long for others: authz/serve/writer.py
_METHOD = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"


@dataclass(frozen=True)
class Sent:
    """When each request was, and when it was told: microseconds, by account."""

    decisions: list[tuple[int, int]]
    accesses: list[tuple[int, int]]


class Load:
    """The process, from outside. Every call returns when the process has done it."""

    def __init__(self, address: str) -> None:
        here, there = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=_run, args=(address, there), daemon=True)
        self._process.start()
        self._pipe = here
        self._answer()

    def prepare(self, count: int) -> int:
        """Make `count` requests; returns how many of them have a decision."""
        return self._call("prepare", count)

    def decide(self) -> None:
        """Send the decisions of what was prepared; all are acknowledged then."""
        self._call("decide")

    def access(self) -> None:
        """Send its accesses; all are handed to the transport then."""
        self._call("access")

    def paced(self, rate: int, seconds: int, flush: float) -> Sent:
        """Both accounts of `rate` requests a second, as writers tell them, and Envoys which send
        their buffers every `flush` seconds."""
        return self._call("paced", rate, seconds, flush)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.terminate()

    def _call(self, *command: object) -> Any:
        self._pipe.send(command)
        return self._answer()

    def _answer(self) -> Any:
        done, value = self._pipe.recv()
        if not done:
            raise RuntimeError(f"the load failed: {value}")
        return value


def _run(address: str, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(_serve(address, pipe, Path(directory)))


async def _serve(address: str, pipe: Connection, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    ends = _Ends(address, directory)
    running = asyncio.create_task(ends.forwarder.run())
    pipe.send((True, None))
    while True:
        try:
            name, *values = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            break
        try:
            pipe.send((True, await getattr(ends, name)(*values)))
        except Exception as error:  # noqa: BLE001 - it is told to whoever asked
            pipe.send((False, repr(error)))
    running.cancel()


class _Ends:
    """The near ends of all streams."""

    def __init__(self, address: str, directory: Path) -> None:
        self._world = World()
        self._journal = Journal(directory / "journal", sync=False)
        identity = Identity(directory / "writer.json", Signer(WRITER, os.urandom(32)))
        self._chain = Chain(identity.writer, self._journal)
        self._durable = asyncio.Event()

        def connect() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)

        self.forwarder = Forwarder(self._journal, identity, "", connect, self._durable)
        self._nodes = [f"sidecar-{number}" for number in range(_ENVOYS)]
        # Each Envoy has a connection of its own.
        self._channels = [
            grpc.aio.insecure_channel(
                address, [("grpc.use_local_subchannel_pool", 1), ("bench.envoy", number)]
            )
            for number in range(_ENVOYS)
        ]
        self._calls = [channel.stream_unary(_METHOD)() for channel in self._channels]
        self._new = [True] * _ENVOYS
        self._messages: list[list[bytes]] = []
        self._prepared: list[Request] = []

    async def prepare(self, count: int) -> int:
        now = time.time_ns() // 1000
        requests = self._world.requests(count)
        self._messages = [[] for _ in range(_ENVOYS)]
        for number, first in enumerate(range(0, count, _ENTRIES)):
            envoy = number % _ENVOYS
            told = [
                (request, now + n)
                for n, request in enumerate(requests[first : first + _ENTRIES], first)
            ]
            self._messages[envoy].append(message(told, self._name(envoy)))
        decided = [r for n, request in enumerate(requests) if (r := request.decision(now + n))]
        self._write(decided)
        return len(decided)

    async def decide(self) -> None:
        self._durable.set()
        while await self.forwarder.drain(600):
            raise TimeoutError("decisions are not acknowledged")

    async def access(self) -> None:
        async def tell(call: Any, messages: Sequence[bytes]) -> None:
            for data in messages:
                await call.write(data)

        await asyncio.gather(*map(tell, self._calls, self._messages))

    async def paced(self, rate: int, seconds: int, flush: float) -> Sent:
        sent = Sent([], [])
        random = Random(2)
        buffered: list[list[tuple[Request, int]]] = [[] for _ in range(_ENVOYS)]
        began = time.time()
        flushes = [began + flush * (1 + n / _ENVOYS) for n in range(_ENVOYS)]
        made = 0
        ended = began + seconds + 2 * flush
        while (now := time.time()) < ended:
            due = min(int((now - began) * rate), rate * seconds)
            decided = []
            for number, request in enumerate(self._world.requests(due - made), made):
                at_us = int((began + number / rate) * 1e6)
                if record := request.decision(at_us):
                    decided.append(record)
                buffered[random.randrange(_ENVOYS)].append((request, at_us))
            made = due
            if decided:
                self._write(decided)
                self._durable.set()
                sent.decisions.extend((int(r["time"]), int(now * 1e6)) for r in decided)
            for envoy in range(_ENVOYS):
                if flushes[envoy] <= now:
                    flushes[envoy] += flush
                    told, buffered[envoy] = buffered[envoy], []
                    if told:
                        await self._calls[envoy].write(message(told, self._name(envoy)))
                        sent.accesses.extend((at_us, int(now * 1e6)) for _, at_us in told)
            await asyncio.sleep(max(0.0, now + _STEP_SECONDS - time.time()))
        return sent

    def _write(self, records: Sequence[Any]) -> None:
        """Into the writer's journal, from where the forwarder takes them once told."""
        framed = self._chain.frame([(record, b"") for record in records], self._journal.next)
        self._journal.append(framed)
        self._chain.committed()

    def _name(self, envoy: int) -> str:
        """The node's name, for the first message of its stream."""
        new, self._new[envoy] = self._new[envoy], False
        return self._nodes[envoy] if new else ""
