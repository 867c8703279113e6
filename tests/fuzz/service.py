"""The Check service under test: all of it but gRPC, with real parts, and what it is given."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from jwt.utils import base64url_decode
from prometheus_client import generate_latest

from authz.blocks import Block, Blocks
from authz.config import ExtAuthz
from authz.errors import UnavailableError
from authz.identity.config import IdentityConfig, IssuerConfig
from authz.identity.sources import Identities
from authz.journal.chain import Chain, ChainError, chain_hash, check_link, split
from authz.journal.group import GroupCommit
from authz.journal.segments import Journal
from authz.policy.cache import HITS, CachedEngine
from authz.policy.opa import OpaEngine, OpaOptions
from authz.record import Entry
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources
from authz.record.sealing import SealingKey, seal
from authz.serve.check import CheckService
from authz.serve.core_server import Exchange

from .judge import BLOCKED, faults, leaks
from .mutation import SECRET, Requests, Tokens
from .oracle import POLICY, NoReading, Oracle

MOST: Final = 16  # Checks in a batch
ROUND: Final = 4096  # requests between two looks at the journal
_LATE: Final = 0.004  # the part of Checks whose client waits moments only
_ASKED: Final = 0.005  # the part of decisions that OPA is asked for once more
_MAX_REQUEST: Final = 8192
_ISSUER: Final = "https://idp.fuzz"
_AUDIENCE: Final = "fhir"


class Answered(Exchange):
    """A call without gRPC: keeps its answers."""

    __slots__ = ("answers", "decision_id", "late")

    def __init__(self, request: bytes, seconds: float) -> None:
        super().__init__(None, time.time() + seconds)
        self.late = seconds < 1
        """Whether it may be denied for want of time."""
        self.request = request
        self.answers: list[bytes] = []
        self.decision_id = ""

    def answer(self, response: bytes) -> None:
        self.answers.append(response)


class Watched(CheckService):
    """Tells each exchange its decision's id, which a late answer does not name."""

    def _begin(self, exchange: Exchange) -> Any:
        check = super()._begin(exchange)
        assert isinstance(exchange, Answered)
        exchange.decision_id = check.decision_id
        return check


@dataclass(frozen=True, slots=True)
class Finding:
    """A request that was not answered as it should be. Number -1: it is about no one request."""

    number: int
    fault: str
    wire: bytes = b""


@dataclass(slots=True)
class Result:
    """What one worker saw."""

    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    cached: int = 0
    asked: int = 0
    """How many decisions OPA was asked for once more."""
    early_rss: int = 0
    """Bytes, after the first fifth."""
    late_rss: int = 0


@contextlib.contextmanager
def opa_running(program: str, directory: Path) -> Iterator[Path]:
    """A real OPA with the policy, on a unix socket."""
    policy, address = directory / "policy.rego", directory / "opa.sock"
    policy.write_text(POLICY)
    command = [program, "run", "--server", "--log-level", "error", "--addr", f"unix://{address}"]
    with subprocess.Popen([*command, str(policy)]) as process:
        try:
            yield address
        finally:
            process.terminate()


class Trial:
    """One process's part: `run` it once."""

    def __init__(self, seed: int, opa: Path, directory: Path) -> None:
        self.seed = seed
        self._directory = directory
        self._opa = opa
        self._lines: list[str] = []
        structlog.configure(processors=[self._log], cache_logger_on_first_use=False)
        self._handler = _Lines(self._lines)
        logging.getLogger().addHandler(self._handler)
        tokens, issued, keys = _tokens(seed)
        self.requests = Requests(seed, tokens)
        self._oracle = Oracle(issued)
        (directory / "jwks.json").write_text(json.dumps(keys))
        self._loop = asyncio.new_event_loop()
        self._engine = OpaEngine(OpaOptions(f"unix://{opa}"), "envoy/authz/allow")
        self._looping = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._looping.start()
        self._wait(self._started())
        issuer = IssuerConfig(
            issuer=_ISSUER, audiences=(_AUDIENCE,), jwks=str(directory / "jwks.json")
        )
        identities = Identities(IdentityConfig(sources=("jwt", "jwt_authn"), issuers=(issuer,)))
        self._journal = Journal(directory / "journal", sync=False, segment_bytes=4 << 20)
        self._keeper: GroupCommit[Entry] = GroupCommit(self._journal, Chain("fuzz", self._journal))
        blocks = Blocks(directory / "blocks.json", {BLOCKED: Block(BLOCKED, 2**53 - 1, "x", "o/1")})
        self._service = Watched(
            ExtAuthz(timeout_ms=60_000, max_request_bytes=_MAX_REQUEST), identities, blocks,
            CachedEngine(self._engine), self._keeper, PrivacyKey.of(bytes(range(32))), Resources(),
            seal=partial(seal, SealingKey.of(bytes(32))),
        )  # fmt: skip
        self._head, self._next = "", 1  # of the journal, as far as it was read
        self.result = Result()
        threading.Thread(target=self._service.watch_deadlines, daemon=True).start()

    async def _started(self) -> None:
        for attempt in range(100):
            try:
                await self._engine.start()
            except UnavailableError:
                if attempt == 99:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _log(self, _logger: object, method: str, event: dict[str, Any]) -> Any:
        self._lines.append(f"{method} {event}")
        raise structlog.DropEvent

    def run(self, first: int, count: int, threads: int, tell: Callable[[int], None]) -> Result:
        """Requests `first` to `first + count`. `tell` gets how many more are done."""
        result = self.result
        hits = HITS._value.get()
        with ThreadPoolExecutor(threads) as pool:
            for begin in range(first, first + count, ROUND):
                size = min(ROUND, first + count - begin)
                self._round(range(begin, begin + size), pool)
                tell(size)
                if not result.early_rss and begin + size - first >= count // 5:
                    result.early_rss = _rss()
        result.late_rss = _rss()
        result.cached = int(HITS._value.get() - hits)
        if self._keeper.lost:
            result.findings.append(Finding(-1, f"{self._keeper.lost} records lost"))
        if SECRET in generate_latest().decode():
            result.findings.append(Finding(-1, "a metric shows a secret"))
        return result

    def close(self) -> None:
        self._service.close()
        self._keeper.close()
        self._journal.close()
        self._wait(self._engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._looping.join()
        self._loop.close()
        logging.getLogger().removeHandler(self._handler)
        structlog.reset_defaults()

    def again(self, wire: bytes) -> list[str]:
        """The faults of `wire`, alone; to make a finding smaller."""
        exchange = Answered(wire, 60)
        self._service.handle([exchange])
        records = self._read()
        self._lines.clear()
        return list(self._faults(exchange, records.get(exchange.decision_id, []), Random(0)))

    def _round(self, numbers: range, pool: ThreadPoolExecutor) -> None:
        random = Random(self.seed ^ numbers.start)
        batches, at = [], numbers.start
        while at < numbers.stop:
            size = min(random.randint(1, MOST), numbers.stop - at)
            batches.append(range(at, at + size))
            at += size
        exchanges = [one for batch in pool.map(self._handle, batches) for one in batch]
        records = self._read()
        for number, exchange in zip(numbers, exchanges, strict=True):
            of_it = records.pop(exchange.decision_id, [])
            if of_it:
                self.result.reasons[of_it[-1].get("reason_code", "")] += 1
            for fault in self._faults(exchange, of_it, random):
                self.result.findings.append(Finding(number, fault, exchange.request))
        if records:
            self.result.findings.append(Finding(-1, f"{len(records)} records of no request"))
        for line in self._lines:
            if SECRET in line or "a bug" in line:
                self.result.findings.append(Finding(-1, "log: " + line.replace(SECRET, "<secret>")))
        self._lines.clear()

    def _handle(self, numbers: range) -> list[Answered]:
        random = Random(numbers.start)
        exchanges = [
            Answered(
                self.requests.make(number),
                0.05 + random.random() / 100 if random.random() < _LATE else 60,
            )
            for number in numbers
        ]
        self._service.handle(exchanges)  # type: ignore[arg-type]
        return exchanges

    def _read(self) -> dict[str, list[Mapping[str, Any]]]:
        """The records since the last time, by decision; the journal is trimmed up to them."""
        self._keeper.drain()
        number = self._next
        reader = self._journal.reader(number)
        found: dict[str, list[Mapping[str, Any]]] = {}
        while payloads := reader.take(10_000):
            for payload in payloads:
                form, sealed = split(payload)
                try:
                    record = check_link(form, "fuzz", number, self._head)
                except ChainError as error:
                    self.result.findings.append(Finding(-1, f"a record that is none: {error}"))
                    record = orjson.loads(form)
                if SECRET.encode() in sealed:
                    self.result.findings.append(Finding(-1, "a sealed input that is open"))
                found.setdefault(str(record.get("decision_id")), []).append(record)
                self._head = chain_hash(form)
                number += 1
        reader.close()
        self.result.records += number - self._next
        self._next = number
        self._journal.trim(number)
        return found

    def _faults(
        self, exchange: Answered, records: list[Mapping[str, Any]], random: Random
    ) -> Iterator[str]:
        wire, answers = exchange.request, exchange.answers
        yield from faults(wire, answers, records, self._oracle, late=exchange.late)
        for payload in (*answers, orjson.dumps(records)):
            if leaks(payload, wire):
                yield "a secret in the answer or the record"
        decided = bool(records) and records[-1].get("reason_code") in ("allowed", "denied")
        if decided and random.random() < _ASKED:
            yield from self._ask(wire, allowed=bool(records[-1].get("allowed")))

    def _ask(self, wire: bytes, *, allowed: bool) -> Iterator[str]:
        """Whether OPA, asked for this alone by Python's own HTTP client, says the same."""
        try:
            expected = self._oracle.expected(wire)
        except NoReading:
            return
        if expected.guessed:
            return
        self.result.asked += 1
        connection = _Unix(self._opa)
        try:
            body = json.dumps({"input": expected.document})
            connection.request("POST", "/v1/data/envoy/authz/allow", body)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        said = answer.get("result")
        if (said if isinstance(said, bool) else (said or {}).get("allowed")) is not allowed:
            yield "OPA, asked alone, says otherwise"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("opa")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tokens(
    seed: int,
) -> tuple[Tokens, dict[tuple[str, bytes], Mapping[str, Any]], dict[str, Any]]:
    """Tokens to send, those that count as the oracle knows them, and the issuer's JWK set."""
    random = Random(seed)
    ours = Ed25519PrivateKey.from_private_bytes(random.randbytes(32))
    others = Ed25519PrivateKey.from_private_bytes(random.randbytes(32))
    now = int(time.time())
    good: list[str] = []
    issued = {}
    claims: dict[str, Any] = {
        "iss": _ISSUER, "aud": _AUDIENCE, "exp": now + 7 * 86_400, "hush": SECRET
    }  # fmt: skip
    people: Sequence[Mapping[str, Any]] = (
        {"sub": "dr.ash", "roles": ["physician"]}, {"sub": "n.birch", "roles": ["nurse", "x"]},
        {"sub": "r.cedar", "roles": ["researcher"]}, {"sub": "nobody"},
        {"sub": BLOCKED, "roles": ["physician", "nurse"]},
        {"sub": "dr.\u00e9lan", "roles": "physician"},
        {"sub": "all", "roles": ["physician", "nurse"]},
        {"sub": "odd", "roles": [1, None, "nurse", {"a": "physician"}]},
        {"sub": "line\nfeed", "roles": ["physician"]}, {"sub": "s" * 400, "roles": ["physician"]},
    )  # fmt: skip
    for person in people:
        token = jwt.encode({**claims, **person}, ours, "EdDSA", {"kid": "k1"})
        signed, _, signature = token.rpartition(".")
        roles = person.get("roles", [])
        roles = [roles] if isinstance(roles, str) else [one for one in roles if type(one) is str]
        issued[signed, base64url_decode(signature)] = {"sub": person["sub"], "roles": roles}
        good.append(token)
    person = people[0]
    bad = [
        jwt.encode({**claims, **person, **change}, key, "EdDSA", {"kid": name})
        for change, key, name in (
            ({"exp": now - 3600}, ours, "k1"), ({"nbf": now + 3600}, ours, "k1"),
            ({"iss": "x"}, ours, "k1"), ({"aud": "x"}, ours, "k1"), ({"exp": "soon"}, ours, "k1"),
            ({}, others, "k1"), ({}, ours, "k2"), ({"sub": ""}, ours, "k1"),
        )
    ]  # fmt: skip
    bad.append(jwt.encode({**claims, **person}, "", "none"))
    public = OKPAlgorithm.to_jwk(ours.public_key(), as_dict=True)
    return Tokens(good, bad), issued, {"keys": [{**public, "kid": "k1", "use": "sig"}]}
