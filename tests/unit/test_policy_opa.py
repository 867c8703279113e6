"""An OPA server as the engine: batches that mix nobody's answer with another's."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from random import Random

import aiohttp
import pytest
import structlog
from certificates import Certificates
from programs import freeze

from authz.demo.stack import free_port
from authz.errors import UnavailableError, UsageError
from authz.policy.opa import OpaEngine, OpaOptions, is_wrapper, own, wrapper
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
QUERY = "envoy/authz/allow"
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


async def started(options, query):
    """An engine on a server that may still be starting."""
    deadline = time.monotonic() + 10
    while True:
        engine = OpaEngine(options, query)
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
    engine = await started(OpaOptions(server.url), query)
    try:
        yield engine
    finally:
        await engine.close()


def ask(engine, *asks, seconds=20):
    """The outcomes of (user, n) asked together; an error as its type."""
    documents = [{"user": user, "n": n} for user, n in asks]
    outcomes = engine.decide(documents, time.monotonic() + seconds).outcomes
    return [type(one) if isinstance(one, Exception) else one for one in outcomes]


def expected(asks):
    return [ANSWERS[user](n) for user, n in asks]


def test_everybody_gets_their_own_answer(server):
    """Whoever is asked about together, with undefined and failing decisions among them, by several
    threads at once, each gets the answer they would get alone."""

    def work(engine, seed):
        random = Random(seed)
        for _ in range(40):
            asks = [
                (random.choice(sorted(ANSWERS)), random.randrange(1000))
                for _ in range(random.randint(1, 16))
            ]
            assert ask(engine, *asks) == expected(asks)

    async def run():
        async with engine_of(server) as engine:
            calls = count_calls(engine)
            await asyncio.gather(*(asyncio.to_thread(work, engine, seed) for seed in range(4)))
            calls.clear()
            easy = [("true", n) for n in range(16)]
            assert ask(engine, *easy) == expected(easy)
            assert len(calls) == 1, "decisions that came together share a call"

    asyncio.run(run())


def count_calls(engine):
    calls = []
    post = engine._post

    def counted(url, document, until):
        calls.append(url)
        return post(url, document, until)

    engine._post = counted
    return calls


@pytest.mark.parametrize("call", ['uuid.rfc4122("x")', 'rand.intn("x", 1000000)', "opa.runtime()"])
def test_impure_policies_are_asked_singly(server, call):
    """A policy that calls what is no function of its input never shares a query."""
    server.write(
        f'package envoy.authz\n\nallow := {{"allowed": true, "body": json.marshal({call})}}\n'
    )

    async def run():
        async with engine_of(server) as engine:
            await settled(engine, lambda: not engine.reads.batchable)
            assert engine.most == 1
            calls = count_calls(engine)
            found = ask(engine, *[("true", 0)] * 20)
            assert len(calls) == 20
            if "uuid" in call:
                assert len({answer["body"] for answer in found}) == 20

    asyncio.run(run())


async def settled(engine, condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        with contextlib.suppress(UnavailableError):
            await engine.look()
        await asyncio.sleep(0.05)
    assert condition()


def test_policy_change_is_seen(server):
    """A changed policy decides at once, and its revision follows, with its text."""

    async def run():
        async with engine_of(server) as engine:
            before = engine.revision
            assert ask(engine, ("nobody", 0)) == [UNDEFINED]
            server.write(POLICY + '\nallow if input.user == "nobody"\n')
            await settled(engine, lambda: ask(engine, ("nobody", 0)) == [True])
            await settled(engine, lambda: engine.revision != before)
            assert b"nobody" in engine.archive
            assert hashlib.sha256(engine.archive).hexdigest() == engine.revision

    asyncio.run(run())


def test_opa_restarted(server):
    """While OPA is away nothing is decided; a new one, without the wrapper, is asked right."""
    asks = [("true", 1), ("nobody", 2), ("both", 3), ("object", 4)]

    async def run():
        async with engine_of(server) as engine:
            assert ask(engine, *asks) == expected(asks)
            server.stop()
            assert ask(engine, *asks) == [UnavailableError] * 4
            server.start()
            await settled(engine, lambda: ask(engine, ("true", 0)) == [True])
            assert ask(engine, *asks) == expected(asks)
            await settled(engine, lambda: engine.most > 1)
            assert ask(engine, *asks) == expected(asks)

    asyncio.run(run())


def test_others_ask_for_other_decisions(server):
    """Two who ask one OPA for different decisions each get those of their own, together too, and
    by a revision that stays: neither's wrapper is the other's, or a part of the policy."""
    (server.policies / "other.rego").write_text("package other\n\nallow := input.n > 2\n")
    asks = [("true", 1), ("nobody", 2), ("object", 4)]

    async def run():
        async with engine_of(server) as one, engine_of(server, "other/allow") as two:
            revisions = set()
            for _ in range(3):
                await one.look()
                await two.look()
                assert min(one.most, two.most) > 1
                assert ask(one, *asks) == expected(asks)
                assert ask(two, *asks) == [False, False, True]
                revisions |= {one.revision, two.revision}
            assert len(revisions) == 1

    asyncio.run(run())


def test_what_a_wrapper_is():
    """This version's and the one's before, of whatever decision; nothing that only looks so."""
    for query in (QUERY, "other/allow"):
        assert is_wrapper(wrapper(query))
        assert is_wrapper(wrapper(query, "authz_batch"))
        assert not is_wrapper(wrapper(query) + "\ndecisions[0] := true\n")
        assert not is_wrapper(wrapper(query, "envoy.authz"))
    assert not is_wrapper(POLICY)


def test_wrapper_removed(server):
    """If somebody deletes the wrapper, each is asked alone, and answered right, until it is there
    again."""
    asks = [("true", 1), ("nobody", 2), ("object", 4)]

    async def run():
        async with engine_of(server) as engine:
            connector = aiohttp.UnixConnector(str(server.socket))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.delete(f"http://opa/v1/policies/authz/batch/{own(QUERY)}") as response,
            ):
                assert response.status == 200
            assert ask(engine, *asks) == expected(asks)
            assert engine.most == 1
            await engine.look()
            assert engine.most > 1
            assert ask(engine, *asks) == expected(asks)

    asyncio.run(run())


def test_stuck_opa(server):
    """An OPA that does not answer is given up in time, and asked again when it is back."""

    async def run():
        async with engine_of(server) as engine:
            freeze(server.process.pid)
            began = time.monotonic()
            assert ask(engine, ("true", 1), ("true", 2), seconds=0.2) == [UnavailableError] * 2
            assert time.monotonic() - began < 5
            os.kill(server.process.pid, signal.SIGCONT)
            assert ask(engine, ("false", 0)) == [False]

    asyncio.run(run())


def test_start_errors(server, tmp_path):
    """No such rule, and no such server, are errors that say so."""

    async def run():
        await (await started(OpaOptions(server.url), "envoy/authz/allow")).close()
        with pytest.raises(UsageError, match="no rule"):
            await OpaEngine(OpaOptions(server.url), "envoy/authz/nothing").start()
        with pytest.raises(UnavailableError, match="does not answer"):
            await OpaEngine(OpaOptions(f"unix://{tmp_path / 'none.sock'}"), "a/b").start()

    asyncio.run(run())


AUTHORIZATION = """package system.authz

import rego.v1

default allow := false

allow if input.identity in ["the-token", "CN=authz"]
"""


@pytest.fixture(params=["tls", "token"])
def secured(request, opa, tmp_path):
    """An OPA over HTTPS that wants a client certificate, or a bearer token, and the options to
    reach it."""
    certificates = Certificates(tmp_path)
    ca, (cert, key) = certificates.ca_file, certificates.issue("127.0.0.1")
    policies = tmp_path / "policy"
    policies.mkdir()
    (policies / "policy.rego").write_text(POLICY)
    (policies / "authz.rego").write_text(AUTHORIZATION)
    address = f"127.0.0.1:{free_port()}"
    command = [opa, "run", "--server", "--addr", f"https://{address}", "--log-level", "error",
               "--tls-cert-file", cert, "--tls-private-key-file", key, "--tls-ca-cert-file", ca,
               "--authentication", request.param, "--authorization", "basic",
               policies]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    options = OpaOptions(f"https://{address}", ca=ca)
    if request.param == "tls":
        client_cert, client_key = certificates.issue("authz")
        yield replace(options, cert=client_cert, key=client_key)
    else:
        yield replace(options, token="the-token")
    process.kill()
    process.wait()


def test_tls_and_token(secured):
    """OPA is reached over HTTPS with a client certificate or a bearer token, and not without, nor
    if nothing vouches for its own certificate."""
    asks = [("true", 1), ("nobody", 2), ("object", 4)]

    async def run():
        engine = await started(secured, "envoy/authz/allow")
        assert ask(engine, *asks) == expected(asks)
        await engine.close()
        for change in ({"cert": None, "key": None, "token": None}, {"ca": None}):
            with pytest.raises(UnavailableError):
                await OpaEngine(replace(secured, **change), "envoy/authz/allow").start()

    asyncio.run(run())


def test_wrapper_in_the_bundle(opa, tmp_path):
    """Where the API may not be written to, a wrapper that was shipped with the policy serves."""
    policies = tmp_path / "policy"
    policies.mkdir()
    (policies / "policy.rego").write_text(POLICY)
    (policies / "authz.rego").write_text(
        'package system.authz\n\nimport rego.v1\n\nallow if input.method in {"GET", "POST"}\n'
    )
    socket = tmp_path / "opa.sock"
    command = [opa, "run", "--server", "--addr", f"unix://{socket}", "--log-level", "error",
               "--authorization", "basic", str(policies)]  # fmt: skip

    async def most():
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            engine = await started(OpaOptions(f"unix://{socket}"), "envoy/authz/allow")
            assert ask(engine, ("true", 1), ("nobody", 2)) == [True, UNDEFINED]
            with structlog.testing.capture_logs() as told:
                for _ in range(3):
                    engine._answered = b""  # as if OPA told of its modules in another order
                    await engine.look()
            assert told == [], "what was refused is not tried at each look"
            await engine.close()
            return engine.most
        finally:
            process.kill()
            process.wait()
            socket.unlink(missing_ok=True)

    assert asyncio.run(most()) == 1
    (policies / "wrapper.rego").write_text(wrapper("envoy/authz/allow"))
    assert asyncio.run(most()) > 1
