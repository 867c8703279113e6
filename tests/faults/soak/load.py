"""The load, and its own account of it: requests through both Envoys, mutated Checks past them, and
mutated access logs past everybody. What is answered is kept, and nothing else is believed."""

import asyncio
import itertools
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import aiohttp
import grpc
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from yarl import URL

from authz.demo.people import PEOPLE, Request, plan
from tests.faults.feeding import log_message
from tests.fuzz import mutation

from .house import CHECKERS, SIDECARS, House

WORKERS = 3  # for each Envoy
_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 20
_PROBE = Request("linden", "GET", "/fhir/metadata")
HOSTILE = "hostile"  # the node of mutated access logs, unless that is mutated too


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request was answered; status 0: with nothing, or not in full."""

    trace: str
    sidecar: int
    status: int
    sent: float
    ended: float
    expect: str
    shown: bool
    """Whether its answer is one whose patients are told."""


@dataclass
class Load:
    house: House
    seed: int
    answers: list[Answer] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    """Mutated Checks by how they were answered."""
    allowed: set[str] = field(default_factory=set)
    """The decisions of mutated Checks that were allowed."""
    messages: Counter[str] = field(default_factory=Counter)
    """Mutated messages of access logs, by how their streams ended."""

    def __post_init__(self) -> None:
        keys = self.house.keys
        self._tokens = {name: keys.token(who, 7 * 86_400) for name, who in PEOPLE.items()}
        self._requests = _endless(self.seed)

    async def run(self) -> None:
        """Until cancelled."""
        connector = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=patience) as session,
            asyncio.TaskGroup() as group,
        ):
            for number in SIDECARS:
                for _ in range(WORKERS):
                    group.create_task(self._work(session, number))
            for place, name in enumerate(CHECKERS):
                group.create_task(self._mutated_checks(name, Random(self.seed + place)))
            group.create_task(self._mutated_logs(Random(self.seed)))

    async def _work(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            answer = await self.send(session, number, next(self._requests))
            self.answers.append(answer)
            await asyncio.sleep(_PAUSE_SECONDS if answer.status else 0.2)

    async def send(self, session: aiohttp.ClientSession, number: int, request: Request) -> Answer:
        trace, sent, status = secrets.token_hex(16), time.monotonic(), 0
        headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01", **request.headers}
        if request.person:
            headers["authorization"] = f"Bearer {self._tokens[request.person]}"
        url = URL(f"http://{self.house.address(f'envoy-{number}')}{request.path}", encoded=True)
        try:
            async with session.request(
                request.method, url, headers=headers, data=request.body or None,
                allow_redirects=False,
            ) as response:  # fmt: skip
                await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        return Answer(trace, number, status, sent, time.monotonic(), request.expect,
                      request.path.startswith("/fhir"))  # fmt: skip

    async def probe(self, number: int) -> Answer:
        """A request that is allowed if the house stands."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            answer = await self.send(session, number, _PROBE)
        self.answers.append(answer)
        return answer

    async def _mutated_checks(self, name: str, random: Random) -> None:
        tokens = mutation.Tokens([self._tokens["alder"]], [self._tokens["oak"][:-4]])
        requests = mutation.Requests(self.seed, tokens)
        requests._bases += [_honest().SerializeToString()] * 20
        async with grpc.aio.insecure_channel(self.house.address(name)) as channel:
            ask = channel.unary_unary("/envoy.service.auth.v3.Authorization/Check",
                                      response_deserializer=CheckResponse.FromString)  # fmt: skip
            for number in itertools.count(random.randrange(1 << 30)):
                try:
                    answer = await ask(requests.make(number), timeout=5)
                except grpc.aio.AioRpcError as error:
                    self.checks[error.code().name] += 1
                    await asyncio.sleep(0.2)
                    continue
                if answer.HasField("ok_response"):
                    self.checks["allowed"] += 1
                    self.allowed.add(answer.dynamic_metadata["decision_id"])
                else:
                    self.checks[str(answer.denied_response.status.code)] += 1
                await asyncio.sleep(0.1)

    async def _mutated_logs(self, random: Random) -> None:
        """Streams of what no Envoy sends, from somebody who has a certificate."""
        while True:
            credentials = self.house.credentials("hostile")
            address = self.house.address("receiver")
            async with grpc.aio.secure_channel(address, credentials) as channel:
                tell = channel.stream_unary("/envoy.service.accesslog.v3.AccessLogService/"
                                            "StreamAccessLogs")  # fmt: skip
                try:
                    call = tell(timeout=20)
                    for place in range(random.choice((1, 3, 10))):
                        await call.write(_mutated_log(random, named=place == 0))
                        self.messages["sent"] += 1
                        await asyncio.sleep(0.1)
                    await call.done_writing()
                    await call
                    self.messages["taken"] += 1
                except grpc.aio.AioRpcError as error:
                    self.messages[error.code().name] += 1
                except asyncio.InvalidStateError:
                    self.messages["cut"] += 1
            await asyncio.sleep(0.2)


def _endless(seed: int) -> Iterator[Request]:
    for number in itertools.count(seed):
        yield from plan(500, number)


def _honest() -> CheckRequest:
    """A Check that the policy allows."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.host = "GET", "/fhir/metadata", "ehr.local"
    http.headers[":method"], http.headers[":path"] = http.method, http.path
    claims = {"iss": "https://idp.example", "sub": "svc.linden", "roles": ["lab_feed", "probe"],
              "tenant": "lakeside", "purpose": "TREAT"}  # fmt: skip
    metadata = request.attributes.metadata_context.filter_metadata[mutation.JWT_AUTHN]
    metadata["verified_jwt"] = claims
    return request


def _mutated_log(random: Random, *, named: bool) -> bytes:
    ids = [str(uuid.UUID(int=random.getrandbits(128))) for _ in range(random.choice((1, 2, 20)))]
    message = StreamAccessLogsMessage.FromString(log_message(ids, named=named))
    if named:
        message.identifier.node.id = HOSTILE
    for _ in range(random.choice((0, 1, 1, 3))):
        random.choice((mutation._any_field, mutation._less, mutation._twice))(message, random)  # type: ignore[arg-type]
    wire: bytes = message.SerializeToString()
    if random.random() < 0.3:
        wire = random.choice(mutation._BYTE_CHANGES)(
            wire, random, [wire, log_message(ids, named=True)]
        )
    return wire
