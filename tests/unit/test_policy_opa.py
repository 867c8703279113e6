"""An OPA server as the engine: batches that mix nobody's answer with another's."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from random import Random

import aiohttp
import pytest

from authz.errors import UnavailableError, UsageError
from authz.policy.opa import OpaEngine, OpaOptions
from authz.policy.verdict import UNDEFINED, PolicyError

POLICY = """package envoy.authz

import rego.v1

allow := true if input.user == "true"

allow := false if input.user == "false"

allow := {"allowed": true, "headers": {"x-n": sprintf("%d", [input.n])}} if input.user == "object"

allow := {"allowed": false, "audit": {"subject": input.user}} if input.user in ["denied", "both"]

allow := "text" if input.user == "text"

allow := true if input.user == "both"
"""

ANSWERS = {
    "true": lambda _: True,
    "false": lambda _: False,
    "object": lambda n: {"allowed": True, "headers": {"x-n": str(n)}},
    "denied": lambda _: {"allowed": False, "audit": {"subject": "denied"}},
    "text": lambda _: "text",
    "nobody": lambda _: UNDEFINED,
    "both": lambda _: PolicyError,
}
pytestmark = pytest.mark.opa


class Server:
    """A real OPA on a unix socket, with its policy in a directory it watches."""

    def __init__(self, program, directory):
        self._program = program
        self.policies = directory / "policy"
        self.policies.mkdir()
        self.socket = directory / "opa.sock"
        self.write(POLICY)
        self.start()

    @property
    def url(self):
        return f"unix://{self.socket}"

    def write(self, text):
        (self.policies / "policy.rego").write_text(text)

    def start(self):
        command = [self._program, "run", "--server", "--watch", "--log-level", "error",
                   "--addr", self.url, str(self.policies)]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.socket.exists():
            time.sleep(0.02)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)


@pytest.fixture
def server(opa, tmp_path):
    server = Server(opa, tmp_path)
    yield server
    server.stop()


async def started(url, query):
    """An engine on a server that may still be starting."""
    deadline = time.monotonic() + 10
    while True:
        engine = OpaEngine(OpaOptions(url), query)
        try:
            await engine.start()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return engine


@contextlib.asynccontextmanager
async def engine_of(server, query="envoy/authz/allow"):
    engine = await started(server.url, query)
    try:
        yield engine
    finally:
        await engine.close()


async def outcome(engine, user, n=0):
    try:
        return await engine.decide({"user": user, "n": n})
    except PolicyError:
        return PolicyError


def test_everybody_gets_their_own_answer(server):
    """Whoever is asked about together, with undefined and failing decisions among them, each gets
    the answer they would get alone."""
    random = Random(7)

    async def run():
        async with engine_of(server) as engine:
            calls = count_calls(engine)
            asked = 0
            for _ in range(60):
                size = random.randint(1, 40)
                asks = [
                    (random.choice(sorted(ANSWERS)), random.randrange(1000)) for _ in range(size)
                ]
                asked += size
                found = await asyncio.gather(*(outcome(engine, *ask) for ask in asks))
                assert found == [ANSWERS[user](n) for user, n in asks]
            easy = [("true", n) for n in range(300)]
            calls.clear()
            await asyncio.gather(*(outcome(engine, *ask) for ask in easy))
            assert len(calls) < 60, "concurrent decisions share calls"

    asyncio.run(run())


def count_calls(engine):
    calls = []
    post = engine._post

    async def counted(url, document):
        calls.append(url)
        return await post(url, document)

    engine._post = counted
    return calls


def test_alone_means_no_waiting(server):
    """One decision at a time is asked at once: company is waited for only where there is some."""

    async def run():
        async with engine_of(server) as engine:
            for _ in range(20):
                await outcome(engine, "true")
            assert engine._timer is None
            assert engine._company == 1

    asyncio.run(run())


@pytest.mark.parametrize("call", ['uuid.rfc4122("x")', 'rand.intn("x", 1000000)', "opa.runtime()"])
def test_impure_policies_are_asked_singly(server, call):
    """A policy that calls what is no function of its input never shares a query."""
    server.write(
        f'package envoy.authz\n\nallow := {{"allowed": true, "body": json.marshal({call})}}\n'
    )

    async def run():
        async with engine_of(server) as engine:
            await settled(engine, lambda: not engine.reads.batchable)
            calls = count_calls(engine)
            found = await asyncio.gather(*(outcome(engine, "true") for _ in range(20)))
            assert len(calls) == 20
            if "uuid" in call:
                assert len({answer["body"] for answer in found}) == 20

    asyncio.run(run())


async def settled(engine, condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        with contextlib.suppress(UnavailableError):
            await engine._look()
        await asyncio.sleep(0.05)
    assert condition()


def test_policy_change_is_seen(server):
    """A changed policy decides at once, and its revision follows."""

    async def run():
        async with engine_of(server) as engine:
            watching = asyncio.create_task(engine.watch())
            before = engine.revision
            assert await outcome(engine, "nobody") is UNDEFINED
            server.write(POLICY + '\nallow if input.user == "nobody"\n')
            changed = time.monotonic()
            while await outcome(engine, "nobody") is UNDEFINED:
                assert time.monotonic() < changed + 10
                await asyncio.sleep(0.01)
            while engine.revision == before:
                assert time.monotonic() < changed + 10
                await asyncio.sleep(0.01)
            watching.cancel()

    asyncio.run(run())


def test_opa_restarted(server):
    """While OPA is away nothing is decided; a new one, without the wrapper, is asked right."""

    async def run():
        async with engine_of(server) as engine:
            assert await outcome(engine, "true") is True
            server.stop()
            with pytest.raises(UnavailableError):
                await engine.decide({"user": "true"})
            server.start()
            await settled(engine, lambda: True)
            asks = [("true", 1), ("nobody", 2), ("both", 3), ("object", 4)]
            found = await asyncio.gather(*(outcome(engine, *ask) for ask in asks))
            assert found == [ANSWERS[user](n) for user, n in asks]

    asyncio.run(run())


def test_wrapper_removed(server):
    """If somebody deletes the wrapper, each is asked alone, and answered right."""

    async def run():
        async with engine_of(server) as engine:
            assert await outcome(engine, "true") is True
            connector = aiohttp.UnixConnector(str(server.socket))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.delete("http://opa/v1/policies/authz/batch") as response,
            ):
                assert response.status == 200
            asks = [("true", 1), ("nobody", 2), ("object", 4)]
            found = await asyncio.gather(*(outcome(engine, *ask) for ask in asks))
            assert found == [ANSWERS[user](n) for user, n in asks]

    asyncio.run(run())


def test_slow_opa_does_not_hold_who_left(server):
    """Somebody who stopped waiting is asked for no more, and hinders nobody."""

    async def run():
        async with engine_of(server) as engine:
            os.kill(server.process.pid, signal.SIGSTOP)
            asks = [asyncio.create_task(outcome(engine, "true")) for _ in range(5)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.gather(*asks)
            os.kill(server.process.pid, signal.SIGCONT)
            assert await outcome(engine, "false") is False

    asyncio.run(run())


def test_start_errors(server, tmp_path):
    """No such rule, and no such server, are errors that say so."""

    async def run():
        await (await started(server.url, "envoy/authz/allow")).close()
        with pytest.raises(UsageError, match="no rule"):
            await OpaEngine(OpaOptions(server.url), "envoy/authz/nothing").start()
        with pytest.raises(UnavailableError, match="does not answer"):
            await OpaEngine(OpaOptions(f"unix://{tmp_path / 'none.sock'}"), "a/b").start()

    asyncio.run(run())
