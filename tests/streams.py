"""The two ends of the record stream for tests: a receiver without its store, and a writer."""

import asyncio
import hashlib
import time

import grpc
from logs import SIGNER

from authz.blocks import Blocks
from authz.journal.chain import Chain, load_identity, split
from authz.journal.commit import Committer
from authz.journal.segments import Journal
from authz.receiver.sequence import Log
from authz.record.resource import Resources
from authz.serve import grpc_server
from authz.serve.forward import CHANNEL_OPTIONS, Forwarder
from authz.serve.intake import Intake

FAR = 4_000_000_000_000_000


def now_us():
    return time.time_ns() // 1000


def opening(receiver):
    """Opens a channel as a writer does."""
    return lambda: grpc.aio.insecure_channel(receiver, CHANNEL_OPTIONS)


async def until(true, seconds=10):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class Receiver:
    """A receiver without its store, on a socket in `directory`."""

    def __init__(self, directory, *, synced=True, **more):
        """`more` is for its `Intake`."""
        self.directory = directory
        self.options = {"synced": synced, **more}
        self.address = f"unix://{directory}/r"

    async def __aenter__(self):
        self.journal = Journal(self.directory / "receiver" / "journal", start=0)
        self.log = Log(self.directory / "receiver", self.journal, SIGNER)
        self.committer = Committer(self.journal, self.log)
        resources = Resources((), ())
        self.intake = Intake(self.log, self.committer, resources, None, **self.options)
        handlers, health = self.intake.handlers(), grpc_server.Health([])
        self.server = await grpc_server.start(self.address, handlers, health)
        return self

    async def __aexit__(self, *_):
        await self.server.stop(0)
        await self.intake.settle()
        await self.committer.drain()
        self.committer.close()
        self.log.close()
        self.journal.close()

    def payloads(self):
        reader = self.journal.reader(0)
        found = reader.take(10_000)
        reader.close()
        return found

    def events(self):
        """The event of each record in the log, empty for those without."""
        from orjson import loads

        return [loads(split(payload)[0]).get("event", "") for payload in self.payloads()]


class Writer:
    """A writer as ext-authz is one, with its blocks."""

    def __init__(self, directory, receiver):
        directory.mkdir(exist_ok=True)
        self.journal = Journal(directory / "journal")
        self.identity = load_identity(directory / "writer.json")
        self.chain = Chain(self.identity.writer, self.journal)
        self.blocks = Blocks.load(directory / "blocks.json")
        self.versions = []
        self.durable = asyncio.Event()
        self.forwarder = Forwarder(
            self.journal, self.identity, "", opening(receiver), self.durable, self._take
        )

    def _take(self, told):
        self.versions.append(told.version)
        self.blocks.replace(told)

    async def __aenter__(self):
        self._running = asyncio.create_task(self.forwarder.run())
        return self

    async def __aexit__(self, *_):
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.journal.close()

    def write(self, *entries):
        self.journal.append(self.chain.frame(list(entries), self.journal.next))
        self.chain.committed()
        self.durable.set()

    def blocked(self, subject):
        return self.blocks.find(subject, now_us()) is not None


def named(attachment):
    return hashlib.sha256(attachment).hexdigest()
