"""What tests of a running stack share: requests that can be found again, and the count after."""

import asyncio
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from programs import until
from yarl import URL

from authz.demo.people import PEOPLE, Request
from authz.demo.stack import Stack
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import Report, verify_store

_SETTLE_SECONDS = 60
_MARKER = Request("linden", "GET", "/fhir/metadata")


class Tuned(Stack):
    """A stack whose ext-authz and receiver have settings of their own in their environment, and
    Envoy's bootstrap has values of its own."""

    def __init__(
        self, *args, ext_authz: Mapping[str, str] = {}, receiver: Mapping[str, str] = {},
        envoy: Mapping[str, str] = {}, **kwargs
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.envoy_values.update(envoy)
        self._settings = {"ext-authz": ext_authz, "receiver": receiver}

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        part = self.parts["ext-authz"]
        part.environment = {**part.environment, **self._settings["ext-authz"]}

    def _read_store(self, *args: Any) -> None:
        super()._read_store(*args)
        part = self.parts["receiver"]
        part.environment = {**part.environment, **self._settings["receiver"]}


def edited(*edits: tuple[str, str]) -> Callable[[str], str]:
    """For `Stack(bootstrap=...)`: each text, which must be there once, replaced by another."""

    def edit(text: str) -> str:
        for old, new in edits:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the bootstrap"
            text = text.replace(old, new)
        return text

    return edit


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request was answered; `trace` finds it in the log. Status 0: with nothing."""

    request: Request
    trace: str
    status: int
    sent: float = 0.0
    """`time.monotonic()` when it was sent."""


class Caller:
    """Sends requests through a stack's Envoy, each under a trace id of its own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._tokens = {name: stack.keys.token(who) for name, who in PEOPLE.items()}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Caller":
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session
        await self._session.close()

    def headers(self, request: Request, trace: str) -> dict[str, str]:
        headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01", **request.headers}
        if request.person:
            headers["authorization"] = f"Bearer {self._tokens[request.person]}"
        return headers

    async def send(self, request: Request, *, redirects: bool = False) -> Answer:
        return (await self.fetch(request, redirects=redirects))[0]

    async def fetch(
        self, request: Request, *, redirects: bool = False
    ) -> tuple[Answer, tuple[bytes, Mapping[str, str]]]:
        """The same, with the body as it came, compressed or not, and the headers."""
        assert self._session
        trace, sent = secrets.token_hex(16), time.monotonic()
        async with self._session.request(
            request.method,
            URL(self.stack.envoy + request.path, encoded=True),
            headers=self.headers(request, trace),
            data=request.body or None,
            allow_redirects=redirects,
        ) as response:
            try:
                body = await response.read()
            except aiohttp.ClientPayloadError:
                return Answer(request, trace, 0, sent), (b"", response.headers)
            return Answer(request, trace, response.status, sent), (body, response.headers)

    async def leave(self, request: Request, seconds: float, *, reset: bool) -> Answer:
        """Send on a connection of its own, and go away after `seconds` without a word."""
        trace = secrets.token_hex(16)
        host, _, port = self.stack.parts["envoy"].address.rpartition(":")
        lines = [f"{request.method} {request.path} HTTP/1.1", f"host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers(request, trace).items()]
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await asyncio.sleep(seconds)
        if reset:
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            writer.get_extra_info("socket").setsockopt(1, 13, linger)  # SOL_SOCKET, SO_LINGER
        writer.transport.abort()
        return Answer(request, trace, 0)


def during(
    disturb: Callable[[], None], stack: Stack, requests: Iterator[Request], workers: int = 4,
    answers: list[Answer] | None = None,
) -> list[Answer]:  # fmt: skip
    """The answers to `requests`, sent without a pause while `disturb` runs in a thread; `answers`
    is where they are put as they come."""
    answers = [] if answers is None else answers

    async def run() -> list[Answer]:
        done = asyncio.Event()
        async with Caller(stack) as caller:

            async def work() -> None:
                while not done.is_set():
                    request = next(requests)
                    try:
                        answers.append(await caller.send(request))
                    except aiohttp.ClientError:  # Envoy itself is away
                        answers.append(Answer(request, "", 0))
                    await asyncio.sleep(0.01)

            working = [asyncio.create_task(work()) for _ in range(workers)]
            try:
                await asyncio.to_thread(disturb)
            finally:
                done.set()
            await asyncio.gather(*working)
        return answers

    return asyncio.run(run())


def passed(answers: list[Answer], count: int) -> bool:
    """Wait until `count` more of `answers` were let through."""
    before = _let_through(answers)
    return until(lambda: _let_through(answers) >= before + count, 60)


def _let_through(answers: list[Answer]) -> int:
    return sum(answer.status == 200 for answer in answers)


@dataclass(frozen=True, slots=True)
class Row:
    """One record, as far as these tests ask."""

    kind: str
    decision_id: str
    allowed: bool
    reason_code: str
    status: int
    upstream: str
    details: str


@dataclass(slots=True)
class Account:
    """What the log holds, and what the verifier says of it. Lists are by trace id, in log order."""

    report: Report
    decisions: dict[str, list[Row]] = field(default_factory=dict)
    accesses: dict[str, list[Row]] = field(default_factory=dict)
    invented: int = 0
    """Accesses that name a decision nobody recorded."""
    doubled: list[tuple[str, int]] = field(default_factory=list)
    decision_ids: int = 0
    untraced: Counter[str] = field(default_factory=Counter)
    """Accesses without a trace id, by the reason that Envoy gives."""

    def missing(self, answers: Iterator[Answer] | list[Answer]) -> list[Answer]:
        """Those of `answers` that were let through without an allowed decision in the log, or
        refused by the policy without a denial in it."""
        return [
            answer
            for answer in answers
            if answer.status in (200, 201, 403)
            and [row.allowed for row in self.decisions.get(answer.trace, [])]
            != [answer.status != 403]
        ]


def account(stack: Stack) -> Account:
    """Wait until all that was sent is in ClickHouse, then read and verify it."""
    asyncio.run(settle(stack))
    return read(stack)


def read(stack: Stack) -> Account:
    """Read and verify what is in ClickHouse."""
    with connect(stack.store) as client:
        found = Account(verify_store(client, load_trust(stack.trust)))
        for trace, *values in client.execute(
            "SELECT trace_id, kind, decision_id, allowed, reason_code, status, upstream,"
            " response_details FROM audit_log WHERE trace_id != '' ORDER BY origin, index"
        ):
            row = Row(*values)
            rows = found.decisions if row.kind == "decision" else found.accesses
            rows.setdefault(trace, []).append(row)
        [(found.invented,)] = client.execute(
            "SELECT count() FROM accesses WHERE decision_id != ''"
            " AND decision_id NOT IN (SELECT decision_id FROM decisions)"
        )
        query = "SELECT response_details FROM accesses WHERE trace_id = ''"
        found.untraced.update(details for (details,) in client.execute(query))
        [(found.decision_ids,)] = client.execute("SELECT uniqExact(decision_id) FROM decisions")
        found.doubled = client.execute(
            "SELECT concat(writer, ' ', toString(writer_seq)) AS what, count() FROM audit_log"
            " WHERE writer_seq > 0 GROUP BY what HAVING count() > 1 UNION ALL"
            " SELECT concat(origin, ' ', toString(index)) AS what, count() FROM audit_log"
            " GROUP BY what HAVING count() > 1"
        )
        return found


ACCOUNTS = {"AUTHZ_RECEIVER__INTERVAL_SECONDS": "2", "AUTHZ_RECEIVER__GRACE_SECONDS": "4"}
"""For `Tuned(receiver=...)`: the receiver tells its account of itself soon."""
PATIENT = {**ACCOUNTS, "AUTHZ_RECEIVER__GRACE_SECONDS": "10"}
"""The same where observed answers break off: Envoy tells authz of that 5 s later."""


@dataclass(slots=True)
class Told:
    """What the logs say of themselves. `gaps` and `closed` are counts by kind, `sums` is the sum of
    all summaries' numbers, `notices` all of these notices' details."""

    gaps: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    notices: list[dict[str, Any]] = field(default_factory=list)


def told(store: str, seconds: float = 60) -> Told:
    """Wait until every decision and access is in an interval that its log has told, then read."""
    waiting = (
        "SELECT count() FROM (SELECT origin, max(index) AS newest FROM audit_log"
        " WHERE kind IN ('decision', 'access') GROUP BY origin) AS l LEFT JOIN"
        " (SELECT origin, max(JSONExtractUInt(details, 'end')) AS end FROM notices"
        " WHERE event = 'interval_summary' GROUP BY origin) AS t USING origin WHERE newest >= end"
    )
    until = time.monotonic() + seconds
    found = Told()
    with connect(store) as client:
        while client.execute(waiting) != [(0,)]:
            assert time.monotonic() < until, "not every interval has been told"
            time.sleep(0.2)
        for event, rule, details in client.execute(
            "SELECT event, rule, details FROM notices WHERE event IN"
            " ('gap', 'gap_closed', 'writer_lost', 'interval_summary') ORDER BY origin, index"
        ):
            values = json.loads(details)
            found.notices.append({"event": event, **values})
            if event == "interval_summary":
                found.sums.update({k: v for k, v in values.items() if isinstance(v, int)})
            elif event != "writer_lost":
                (found.gaps if event == "gap" else found.closed)[rule] += values["count"]
    return found


async def settle(stack: Stack) -> None:
    """Until all that was sent before is in ClickHouse.

    A request sent now comes last in its writer's chain and in Envoy's buffer: once its decision and
    access are there under a checkpoint, so is all before. Its own entry may be lost on a stream
    that was just cut, so one goes out every second, until one has arrived; then the last is waited
    for, which would else be the one thing that is pending.
    """
    until = time.monotonic() + _SETTLE_SECONDS
    traces: list[str] = []
    query = (
        "SELECT count() FROM accesses WHERE trace_id IN %(traces)s"
        " AND decision_id IN (SELECT decision_id FROM decisions WHERE trace_id IN %(traces)s)"
        " AND index < (SELECT max(size) FROM checkpoints)"
    )
    answers: list[Answer] = []
    async with Caller(stack) as caller:
        while time.monotonic() < until:
            answers.append(await caller.send(_MARKER))
            traces.append(answers[-1].trace)
            for _ in range(10):
                await asyncio.sleep(0.1)
                if _arrived(stack, query, traces):
                    while time.monotonic() < until and not _arrived(stack, query, traces[-1:]):
                        await asyncio.sleep(0.1)
                    return
    raise AssertionError(
        f"what was sent is not in ClickHouse after {_SETTLE_SECONDS} s\n{_evidence(stack, answers)}"
    )


def _evidence(stack: Stack, answers: list[Answer]) -> str:
    """What became of `answers`, the largest checkpoint, and the last that every part has said."""
    query = "SELECT trace_id, kind, index FROM audit_log WHERE trace_id IN %(traces)s"
    with connect(stack.store) as client:
        rows = client.execute(query, {"traces": [answer.trace for answer in answers]})
        lines = [f"checkpoint: {client.execute('SELECT max(size) FROM checkpoints')}"]
    for answer in answers:
        found = [f"{kind} {index}" for trace, kind, index in rows if trace == answer.trace]
        lines.append(f"{answer.status}: {', '.join(found) or 'nothing'}")
    for part in stack.parts.values():
        lines += [f"--- {part.name}", *part.told()[-15:]]
    return "\n".join(lines)


def _arrived(stack: Stack, query: str, traces: list[str]) -> bool:
    with connect(stack.store) as client:
        return bool(client.execute(query, {"traces": traces}) != [(0,)])


def said(stack: Stack, part: str, text: str) -> int:
    """How often `part` has written `text` to its log."""
    return stack.parts[part].log.read_text(errors="replace").count(text)


def replace(path: Path, text: str) -> None:
    """Write `path` as careful people do: all at once."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)  # noqa: PTH105 - reads like what it does
