"""The decision cache: sound, or off."""

import contextlib
import http.client
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from random import Random

import pytest

from authz.errors import UnavailableError
from authz.policy import cache
from authz.policy.cache import CachedEngine, cache_key, cacheable
from authz.policy.engine import Decisions
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

    def decide(self, documents, until):
        self.asked += len(documents)
        return Decisions(self.revision, [self.outcome(document) for document in documents])

    def outcome(self, document):
        method = document["attributes"]["request"]["http"].get("method")
        if document.get("parsed_path") == ["c"]:
            return UnavailableError("not now")
        return [self.revision, method, document.get("parsed_path")]


def same(one, other):
    return repr(one) == repr(other)


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
    """Over random requests, alone and together, and policy changes the answers are those of the
    engine, each its own, and most are not asked twice; what failed is."""
    random = Random(3)
    engine, bare = Engine(), Engine()
    cached = CachedEngine(engine)
    asked = failed = 0
    for step in range(1000):
        if step % 200 == 199:
            engine.revision = bare.revision = str(step)
        requests = [document(random) for _ in range(random.randint(1, 16))]
        before = deepcopy(requests)
        assert same(cached.decide(requests, 0), bare.decide(requests, 0))
        assert requests == before, "the documents are not changed"
        asked += len(requests)
        failed += len({cache_key(one) for one in requests if one["parsed_path"] == ["c"]})
    assert engine.asked - failed < 500 < asked


def test_many_threads():
    """Threads that ask at once, while the policy changes, get no answer of a revision that was
    gone when they asked."""
    engine = Engine()
    cached = CachedEngine(engine)
    wrong = []

    def work(seed):
        random = Random(seed)
        for _ in range(300):
            requests = [document(random) for _ in range(4)]
            known = int(engine.revision)
            outcomes = cached.decide(requests, 0).outcomes
            wrong.extend(one for one in outcomes if isinstance(one, list) and int(one[0]) < known)

    with ThreadPoolExecutor(6) as threads:
        running = [threads.submit(work, seed) for seed in range(5)]
        while not all(thread.done() for thread in running):
            engine.revision = str(int(engine.revision) + 1)
            time.sleep(0.001)
        for thread in running:
            thread.result()
    assert not wrong


def test_an_entry_lives_a_second(monkeypatch):
    """What was decided is asked again after a second at most."""
    now = [100.0]
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    engine = Engine()
    cached = CachedEngine(engine)
    request = document(Random(1))
    for seconds, asked in ((0, 1), (0.9, 1), (0.2, 2)):
        now[0] += seconds
        cached.decide([request], 0)
        assert engine.asked == asked


def test_a_decision_made_across_a_change_is_not_kept():
    """If the policy changed while it was asked, nobody knows which one answered."""
    engine = Engine()
    decide = engine.decide

    def changing(documents, until):
        answer = decide(documents, until)
        engine.revision += "1"
        return answer

    engine.decide = changing
    cached = CachedEngine(engine)
    for _ in range(3):
        cached.decide([document(Random(1))], 0)
    assert engine.asked == 3


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
