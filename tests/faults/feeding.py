"""A receiver as a process of its own, fed by both roads, and the count that must come out even.

A writer's record counts as acknowledged when its stream says so, an access log entry when the
receiver has answered the stream that it came by: it answers once all of it is on disk. What an
Envoy sent by a stream that was cut may be in the log or not, and is never sent again.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType, HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streams import Writer, now_us

from authz.demo.stack import free_port
from authz.errors import UsageError
from authz.journal.chain import policy_notice
from authz.record import DECIDED
from authz.store import embedded, migrations
from authz.store.client import QUERY_ERRORS, connect
from authz.trust import load_trust
from authz.verify import Report, verify_store

ORIGIN = "test/receiver"
NODE = "sidecar-0"
KILLED = -signal.SIGKILL
_SETTLE_SECONDS = 60
_STREAMS = 4  # of the Envoy's, at once
_CHANNEL = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
AUTHZ = (sys.executable, "-m", "authz")


class Site:
    """A directory for one receiver before the ClickHouse at `store`, and its process."""

    def __init__(self, directory: Path, store: str, **settings: str) -> None:
        self.directory = directory
        self.data_dir = directory / "receiver"
        self.store = store
        self.origin = ORIGIN
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.log = directory / "receiver.log"
        self.environment = os.environ | {
            "AUTHZ_STORE": store, "AUTHZ_RECEIVER__BATCH_SECONDS": "0.05", **settings
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def start(self, *before: str | Path, program: Sequence[str | Path] = AUTHZ) -> None:
        """Start `program` as the receiver; `before` is what runs it, such as strace."""
        command = [*before, *program, "serve", "receiver", "--listen", self.address]
        command += ["--data-dir", self.data_dir, "--origin", self.origin, "--metrics", self.metrics]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stderr=log, env=self.environment
            )

    @property
    def ended(self) -> int | None:
        """How the process ended, None while it runs."""
        assert self.process
        return self.process.poll()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def metric(self, name: str) -> float:
        """A metric without labels; for those that need no label."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    def rss(self) -> int:
        """Bytes of memory that the receiver holds."""
        assert self.process
        return rss(self.process.pid)

    def told(self, text: str) -> int:
        """How often its log says `text`."""
        return self.log.read_text(errors="replace").count(text) if self.log.exists() else 0


@contextlib.contextmanager
def site(directory: Path, store: str, **settings: str) -> Iterator[Site]:
    made = Site(directory, store, **settings)
    try:
        yield made
    finally:
        made.kill()


def rss(pid: int) -> int:
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) << 10


class Server:
    """An embedded ClickHouse of the test's own, which may be killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = free_port(), free_port()
        self.start()

    def start(self) -> None:
        while True:
            try:
                self._embedded = embedded.start(self._directory, *self._ports)
            except UsageError:
                time.sleep(0.1)  # who was just killed may still hold the port
            else:
                break
        self.store = self._embedded.store

    def kill(self) -> None:
        self._embedded.process.kill()
        self._embedded.process.wait()
        self._embedded.stop()

    def stop(self) -> None:
        self._embedded.stop()


@contextlib.contextmanager
def database(store: str) -> Iterator[str]:
    """The URL of an empty database with the schema, dropped afterwards."""
    name = f"t{uuid.uuid4().hex}"
    url = f"{store.rpartition('/')[0]}/{name}"
    with connect(store) as client:
        client.execute(f"CREATE DATABASE {name}")
    with connect(url) as client:
        migrations.migrate(client)
    yield url  # what failed is left to be looked at
    with connect(store) as client:
        client.execute(f"DROP DATABASE {name} SYNC")


class Feeder:
    """A writer and an Envoy before the receiver at `address`, and what they know of their records.

    `decided` are the decisions in order; `sure` the ids of those whose access was acknowledged,
    `unsure` of those whose access was sent by a stream that was cut.
    """

    def __init__(self, directory: Path, address: str) -> None:
        self._directory = directory
        self._address = address
        self.decided: list[str] = []
        self.sure: set[str] = set()
        self.unsure: set[str] = set()
        self._untold: list[str] = []
        self._telling: set[asyncio.Task[None]] = set()
        self.sealed = 0
        self._policies = itertools.count()

    async def __aenter__(self) -> "Feeder":
        self.writer = Writer(self._directory, self._address)
        await self.writer.__aenter__()
        self._channel = grpc.aio.insecure_channel(self._address, _CHANNEL)
        self.writer.write((self.writer.identity.start_notice(now_us(), "test"), b""))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await self._channel.close()
        await self.writer.__aexit__(*error)

    @property
    def acknowledged(self) -> int:
        """The writer's newest record that is acknowledged."""
        return self.writer.journal.next - 1 - self.writer.forwarder.unacknowledged

    @property
    def owed(self) -> bool:
        """Whether anything is not told or not acknowledged yet."""
        return bool(self._untold or self._telling or self.writer.forwarder.unacknowledged)

    def decide(self, count: int) -> None:
        """Write decisions, one of them with its sealed input; their accesses are to be told."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        entries = [(decision(name), b"") for name in ids]
        sealed = b"0123abcd." + ids[0].encode() * 20
        entries[0] = entries[0][0] | {"sealed": hashlib.sha256(sealed).hexdigest()}, sealed
        self.sealed += 1
        if next(self._policies) % 10 == 0:
            text = b"package p" + ids[0].encode()
            entries.append(policy_notice(now_us(), hashlib.sha256(text).hexdigest(), text))
        self.writer.write(*entries)
        if seq := self.writer.chain.place[0]:
            head = self.writer.identity.head_notice(now_us(), seq, self.writer.chain.place[1])
            self.writer.write((head, b""))
        self.decided += ids
        self._untold += ids

    def tell(self) -> None:
        """Begin a stream that tells the accesses not told yet, if the Envoy has one left."""
        if self._untold and len(self._telling) < _STREAMS:
            ids, self._untold = self._untold, []
            task = asyncio.create_task(self._tell(ids))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, ids: list[str]) -> None:
        self.unsure.update(ids)
        call = self._channel.stream_unary("/envoy.service.accesslog.v3.AccessLogService/"
                                          "StreamAccessLogs")(wait_for_ready=True)  # fmt: skip
        try:
            for place in range(0, len(ids), 10):
                await call.write(log_message(ids[place : place + 10], named=place == 0))
            await call.done_writing()
            await call
        except (grpc.RpcError, asyncio.InvalidStateError):
            return
        finally:
            call.cancel()
        self.unsure.difference_update(ids)
        self.sure.update(ids)

    async def feed(self, seconds: float, count: int = 5, pause: float = 0.01) -> None:
        """Decide and tell for some time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.decide(count)
            self.tell()
            await asyncio.sleep(pause)

    async def settle(self, seconds: float = _SETTLE_SECONDS) -> None:
        """Until everything is told and acknowledged."""
        until = time.monotonic() + seconds
        while self._untold or self._telling:
            self.tell()
            assert time.monotonic() < until, "the receiver does not take the access log"
            await asyncio.sleep(0.01)
        left = await self.writer.forwarder.drain(until - time.monotonic())
        assert left == 0, f"{left} not acknowledged; {self.writer.forwarder.refusal}"


def decision(name: str) -> dict[str, Any]:
    return {
        "kind": "decision", "decision_id": name, "time": now_us(), "allowed": True,
        "enforced": True, "subject": "dr.weber", "method": "GET", "path": "/Patient/{}",
    }  # fmt: skip


def metadata(record: dict[str, Any]) -> dict[str, Any]:
    """What an access repeats of it."""
    return {key: value for key, value in record.items() if key in DECIDED}


def log_message(ids: Sequence[str], *, named: bool) -> bytes:
    """What an Envoy sends of the accesses `ids`."""
    message = StreamAccessLogsMessage()
    if named:
        message.identifier.node.id = NODE
        message.identifier.log_name = "ingress"
    for name in ids:
        entry: HTTPAccessLogEntry = message.http_logs.log_entry.add()
        common = entry.common_properties
        common.access_log_type = AccessLogType.DownstreamEnd
        common.start_time.FromMicroseconds(now_us())
        common.upstream_wire_bytes_sent = 5
        common.upstream_remote_address.socket_address.address = "192.0.2.1"
        common.upstream_remote_address.socket_address.port_value = 80
        said = common.metadata.filter_metadata["envoy.filters.http.ext_authz"]
        said["decision_id"] = name
        said["authz"] = json.dumps(metadata(decision(name)))
        entry.request.request_method = 1
        entry.request.path = "/Patient/1"
        entry.response.response_code.value = 200
    return message.SerializeToString()


@dataclass(slots=True)
class Count:
    """What the log holds, and what is wrong with it."""

    report: Report
    wrong: list[str] = field(default_factory=list)


def check(site: Site, feeder: Feeder, seconds: float = _SETTLE_SECONDS) -> Count:
    """Wait until all that was acknowledged is stored; count, and verify."""
    written = feeder.writer.journal.next - 1
    until = time.monotonic() + seconds
    with connect(site.store) as client:
        while not _stored(client, written, feeder.sure) and time.monotonic() < until:
            time.sleep(0.02)
        count = Count(verify_store(client, load_trust(site.data_dir / "trust.yaml")))
        count.wrong += _wrong(client, feeder, written)
    report = count.report
    count.wrong += [
        f"{finding.kind} {finding.where}: {finding.text}" for finding in report.findings
    ]
    missing = len(feeder.decided) - report.accesses
    for kind, number in report.gaps.items():
        if kind != "no_access" or number > missing:
            count.wrong.append(f"{number} {kind}, where {missing} accesses are missing")
    if doubles := sum(log.doubles for log in report.logs):
        count.wrong.append(f"{doubles} rows doubled")
    return count


def _stored(client: Any, written: int, told: set[str]) -> bool:
    """Whether what was acknowledged is there, all of it under a checkpoint."""
    try:
        [(records, top)] = client.execute(
            "SELECT uniqExactIf(writer_seq, writer_seq > 0), max(index) + 1 FROM audit_log"
        )
        [(size,)] = client.execute("SELECT max(size) FROM checkpoints")
        accesses = client.execute("SELECT decision_id FROM audit_log WHERE kind = 'access'")
    except QUERY_ERRORS:
        return False
    return bool(records >= written and size >= top and told <= {name for (name,) in accesses})


def _wrong(client: Any, feeder: Feeder, written: int) -> Iterator[str]:
    query = "SELECT count(), uniqExact(writer_seq), max(writer_seq) FROM audit_log"
    found = client.execute(query + " WHERE writer_seq > 0")
    if found != [(written,) * 3]:
        yield f"the writer wrote {written} records; rows, different ones, newest: {found}"
    query = "SELECT decision_id FROM audit_log WHERE kind = 'decision' ORDER BY index"
    if [name for (name,) in client.execute(query)] != feeder.decided:
        yield "the decisions are not those made, in the order they were made"
    query = "SELECT decision_id, count() FROM audit_log WHERE kind = 'access' GROUP BY decision_id"
    found = dict(client.execute(query))
    if lost := feeder.sure - found.keys():
        yield f"{len(lost)} accesses acknowledged and lost"
    if doubled := [name for name, number in found.items() if number > 1]:
        yield f"{len(doubled)} accesses doubled"
    if invented := found.keys() - feeder.sure - feeder.unsure:
        yield f"{len(invented)} accesses that nobody told"
    found = client.execute("SELECT count(), uniqExact(index) FROM sealed_originals")
    if found != [(feeder.sealed, feeder.sealed)]:
        yield f"{feeder.sealed} sealed inputs; rows, different ones: {found}"
    query = "SELECT count(), uniqExact(revision) FROM policies"
    [(rows, revisions)] = client.execute(query)
    if rows != revisions:
        yield f"{revisions} policies are {rows} rows"


async def health(address: str) -> int:
    """The receiver's gRPC health, 0 when it does not answer."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return 0
        return int(answer.status)


async def ready(site: Site, seconds: float = 30) -> None:
    """Until the receiver serves, or has ended."""
    until = time.monotonic() + seconds
    while (
        site.ended is None and await health(site.address) != health_pb2.HealthCheckResponse.SERVING
    ):
        assert time.monotonic() < until, "the receiver does not come up"
        await asyncio.sleep(0.05)


Settings = Mapping[str, str]
