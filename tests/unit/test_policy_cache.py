"""The decision cache: sound, or off."""

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import time
from copy import deepcopy
from random import Random

import pytest
from cachetools import TTLCache

from authz.policy import cache
from authz.policy.cache import CachedEngine, cache_key, cacheable
from authz.policy.rego_ast import Reads, reads

HEAD = "package t\n\nimport rego.v1\n\n"
HTTP = "input.attributes.request.http"

CACHEABLE = {
    "a field": f'allow if {HTTP}.method == "GET"',
    "a header": f'allow if {HTTP}.headers["x-user"] == "a"',
    "object.get": f'allow if object.get({HTTP}.headers, "x-user", "") == "a"',
    "a function's argument": f"allow if f({HTTP}.path)\n\nf(x) if x == 1",
    "a local": f'allow if {{\n\tx := {HTTP}.method\n\tx == "GET"\n}}',
    "a comprehension": "allow if {\n\ty := [1 | input.parsed_path[_] == 3]\n\tcount(y) > 0\n}",
    "the address": 'allow if input.attributes.source.address.socketAddress.address == "1"',
    "claims": 'allow if input.attributes.metadataContext.filterMetadata["a.b"].sub == "x"',
}
NOT = {
    "the time": f"allow if {HTTP[:-5]}.time.seconds > 1",
    "the time by brackets": 'allow if input["attributes"]["request"]["time"]["seconds"] > 1',
    "the request id": f'allow if {HTTP}.headers["x-request-id"] == "a"',
    "a trace header by get": f'allow if object.get({HTTP}.headers, "traceparent", "") == "a"',
    "the stream id": f'allow if {HTTP}.id == "a"',
    "the port": "allow if input.attributes.source.address.socketAddress.portValue > 1",
    "any header": f'allow if {{\n\tsome k in ["a"]\n\t{HTTP}.headers[k] == "x"\n}}',
    "all headers": f"allow if count({HTTP}.headers) > 1",
    "the whole input": "allow if {\n\tx := input\n\tx.a\n}",
    "the input walked": 'allow if walk(input, [_, "x"])',
    "the input given away": "allow if f(input)\n\nf(x) if x.a",
    "all of http": f"h := {HTTP}\n\nallow if h.id == 1",
    "the clock": "allow if time.now_ns() > 1",
    "chance": 'allow if rand.intn("x", 2) == 1',
    "http.send": 'allow if http.send({"method": "GET", "url": "x"}).status_code == 200',
    "two locals": f'allow if {{\n\tsome x in [{HTTP}.id, "a"]\n\tx == "a"\n}}',
    "object.get of a computed key": f'k := "id"\n\nallow if object.get({HTTP}, k, "") == "a"',
    "object.get by path": f'allow if object.get({HTTP}, ["headers", "x-request-id"], "") == "a"',
    "json.filter": f'allow if json.filter({HTTP}, ["id"]).id == "a"',
}


@pytest.fixture(scope="module")
def tree_of(opa):
    """A module's syntax tree, from OPA's server: what its API gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [opa, "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level", "error"],
        stderr=subprocess.DEVNULL,
    )

    def ask(method, body=None):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request(method, "/v1/policies/t", body)
            response = connection.getresponse()
            answer = json.load(response)
            assert response.status == 200, answer
            return answer

    def tree(text):
        deadline = time.monotonic() + 20
        while True:
            try:
                ask("PUT", HEAD + text)
                return ask("GET")["result"]["ast"]
            except ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    yield tree
    process.kill()
    process.wait()


@pytest.mark.opa
@pytest.mark.parametrize("text", CACHEABLE.values(), ids=CACHEABLE)
def test_what_may_be_cached(tree_of, text):
    """A policy that reads no volatile field is recognised, so that the cache is of use."""
    assert cacheable(reads([tree_of(text)]))


@pytest.mark.opa
@pytest.mark.parametrize("text", NOT.values(), ids=NOT)
def test_what_may_not_be_cached(tree_of, text):
    """A policy that reads a volatile field, however written, or calls something impure, is not
    cached."""
    assert not cacheable(reads([tree_of(text)]))


class Engine:
    """Decides by the fields it says it reads; counts how often it was asked."""

    def __init__(self, paths=(("attributes", "request", "http", "method"), ("parsed_path",))):
        self.revision = "1"
        self.reads = Reads(frozenset(paths), frozenset())
        self.asked = 0

    async def decide(self, document):
        self.asked += 1
        method = document["attributes"]["request"]["http"].get("method")
        return [self.revision, method, document.get("parsed_path")]


def document(random):
    """A request; few different ones in what matters, all different in what does not."""
    return {
        "attributes": {
            "request": {
                "time": {"seconds": random.randrange(10**9), "nanos": 3},
                "http": {
                    "id": str(random.random()),
                    "method": random.choice(["GET", "PUT"]),
                    "headers": {"x-request-id": str(random.random()), "x": random.choice("ab")},
                },
            },
            "source": {"address": {"socketAddress": {"address": "10.0.0.1",
                                                     "portValue": random.randrange(65536)}}},
        },
        "parsed_path": [random.choice("abc")],
    }  # fmt: skip


def test_cached_is_uncached():
    """Over random requests and policy changes the answers are those of the engine, and most are
    not asked twice."""
    random = Random(3)

    async def run():
        engine, bare = Engine(), Engine()
        cached = CachedEngine(engine)
        for step in range(3000):
            if step % 500 == 499:
                engine.revision = bare.revision = str(step)
            request = document(random)
            before = deepcopy(request)
            assert await cached.decide(request) == await bare.decide(request)
            assert request == before, "the document is not changed"
        assert engine.asked < 500

    asyncio.run(run())


def test_an_entry_lives_a_second(monkeypatch):
    """What was decided is asked again after a second at most."""
    now = [100.0]
    monkeypatch.setattr(cache, "TTLCache", lambda n, s: TTLCache(n, s, lambda: now[0]))

    async def run():
        engine = Engine()
        cached = CachedEngine(engine)
        request = document(Random(1))
        for seconds, asked in ((0, 1), (0.9, 1), (0.2, 2)):
            now[0] += seconds
            await cached.decide(request)
            assert engine.asked == asked

    asyncio.run(run())


def test_a_decision_made_across_a_change_is_not_kept():
    """If the policy changed while it was asked, nobody knows which one answered."""

    async def run():
        engine = Engine()
        decide = engine.decide

        async def changing(document):
            answer = await decide(document)
            engine.revision += "1"
            return answer

        engine.decide = changing
        cached = CachedEngine(engine)
        for _ in range(3):
            await cached.decide(document(Random(1)))
        assert engine.asked == 3

    asyncio.run(run())


def test_the_key_holds_all_else():
    """Every part of a request but the volatile ones makes another key."""
    base = document(Random(1))
    other = document(Random(1))
    other["attributes"]["request"]["http"]["headers"]["x"] = "z"
    assert cache_key(base) != cache_key(other)
    other = {**base, "parsed_body": {"a": 1}}
    assert cache_key(base) != cache_key(other)
    other = {**base, "source_principal": "spiffe://x"}
    assert cache_key(base) != cache_key(other)
    assert cache_key(base) == cache_key(json.loads(json.dumps(base)))
    assert cache_key({}) == cache_key({})
