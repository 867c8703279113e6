"""A real Envoy with the shipped bootstrap, and around it what a test watches it by: a Check server
that allows, a service, and an end of the access log that keeps every entry as it came.

Everything but Envoy runs in the test's own event loop.
"""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import yaml
from aiohttp import web
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.message import Message

from authz.demo.people import AUDIENCE, ISSUER, PEOPLE, Keys
from authz.demo.stack import HOST, deploy_dir, envoy_program, free_port
from authz.envoy.access_log import http_access, identifier, tcp_access
from authz.envoy.bootstrap import render

_START_SECONDS = 30
_ALS = "envoy.service.accesslog.v3.AccessLogService"
_CHECK = "envoy.service.auth.v3.Authorization"

Edit = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Log:
    """The end of the access log: `message`s by node, and whether it is up."""

    listen: str
    messages: list[tuple[str, StreamAccessLogsMessage]] = field(default_factory=list)
    _server: "grpc.aio.Server | None" = None

    async def start(self) -> None:
        handler = grpc.stream_unary_rpc_method_handler(
            self._take,
            StreamAccessLogsMessage.FromString,
            StreamAccessLogsResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(_ALS, {"StreamAccessLogs": handler})
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([service])
        self._server.add_insecure_port(self.listen)
        await self._server.start()

    async def stop(self) -> None:
        """At once: what is on its way is lost."""
        if self._server:
            await self._server.stop(None)
            self._server = None

    async def _take(
        self, messages: AsyncIterator[StreamAccessLogsMessage], _: object
    ) -> StreamAccessLogsResponse:
        node = ""
        async for message in messages:
            node = identifier(message)[0] or node
            self.messages.append((node, message))
        return StreamAccessLogsResponse()

    @contextlib.asynccontextmanager
    async def deaf(self) -> AsyncIterator[None]:
        """In its place, something that takes connections and reads nothing."""
        await self.stop()
        host, _, port = self.listen.rpartition(":")

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writers.append(writer)

        writers: list[asyncio.StreamWriter] = []
        async with await asyncio.start_server(connected, host, int(port)):
            yield
            for writer in writers:
                writer.transport.abort()
        await self.start()

    def entries(self) -> list[Message]:
        """As they came."""
        found: list[Message] = []
        for _, message in self.messages:
            found += [*message.http_logs.log_entry, *message.tcp_logs.log_entry]
        return found

    def received(self, node: str) -> int:
        """How many entries this node has sent that arrived."""
        told = (message for name, message in self.messages if name == node)
        return sum(len(m.http_logs.log_entry) + len(m.tcp_logs.log_entry) for m in told)

    def of(self, kind: str) -> list[Message]:
        """Those of this type (`DownstreamEnd`, ...)."""
        wanted = AccessLogType.Value(kind)
        return [e for e in self.entries() if e.common_properties.access_log_type == wanted]


def decision_id(entry: Message) -> str:
    """What the entry names, or ""."""
    read = tcp_access if hasattr(entry, "connection_properties") else http_access
    said = read(entry).get("authz", {})
    assert isinstance(said, dict)
    return str(said.get("decision_id", ""))


def manager(document: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager of the shipped bootstrap."""
    [listener] = document["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


async def _check(request: CheckRequest, _: object) -> CheckResponse:
    answer = CheckResponse()
    answer.ok_response.SetInParent()
    told = request.attributes.request.http.headers.get("x-name", "a connection")
    said = json.dumps({"subject": "dr.alder", "allowed": True})
    answer.dynamic_metadata.update({"decision_id": f"id of {told}", "authz": said})
    return answer


async def _answer(request: web.Request) -> web.StreamResponse:
    """`/answer?s=0.3`: after that long. `/stream?s=3`: a byte every tenth of a second for so long.
    `/socket`: a WebSocket that says what is said to it."""
    seconds = float(request.query.get("s", "0"))
    if request.path.endswith("/socket"):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket
    if request.path.endswith("/stream"):
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client has gone
            for _ in range(round(seconds * 10)):
                await response.write(b".")
                await asyncio.sleep(0.1)
        return response
    await asyncio.sleep(seconds)
    return web.Response(text="answer")


@dataclass(slots=True)
class Sidecar:
    """Envoy, where it listens, and the access log that it writes."""

    node: str
    url: str
    admin: Path
    log: Log
    bootstrap: Path
    token: str
    workers: int = 1
    options: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = None
    ports: dict[str, int] = field(default_factory=dict)

    async def start(self) -> None:
        command = [envoy_program(), "-c", str(self.bootstrap), "--log-level", "warning",
                   "--concurrency", str(self.workers), "--disable-hot-restart",
                   *self.options]  # fmt: skip
        with self.bootstrap.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        async with asyncio.timeout(_START_SECONDS):
            while True:
                assert self.process.poll() is None, self.bootstrap.with_suffix(".log").read_text()
                with contextlib.suppress(OSError, aiohttp.ClientError):
                    if await self.ask("/ready") == "LIVE\n":
                        return
                await asyncio.sleep(0.05)

    async def ask(self, path: str, *, post: bool = False) -> str:
        """What the admin interface answers."""
        connector = aiohttp.UnixConnector(str(self.admin))
        async with aiohttp.ClientSession(connector=connector) as session:
            send = session.post if post else session.get
            async with send(f"http://envoy{path}") as response:
                return await response.text()

    async def counters(self) -> dict[str, int]:
        """Envoy's counters of its gRPC access log, by the last part of their names."""
        text = await self.ask("/stats?filter=grpc_access_log")
        pairs = (line.split(": ") for line in text.splitlines())
        return {name.rpartition(".")[2]: int(value) for name, value in pairs}

    def headers(self, name: str) -> dict[str, str]:
        """For a request whose decision will be `id of {name}`."""
        return {"authorization": f"Bearer {self.token}", "x-name": name}

    async def end(self) -> int:
        """Wait until Envoy has ended, as it was told to."""
        assert self.process
        return await asyncio.to_thread(self.process.wait, 60)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.asynccontextmanager
async def sidecar(
    directory: Path,
    edit: Edit = lambda _: None,
    *,
    node: str = "sidecar-0",
    workers: int = 1,
    options: Sequence[str] = (),
) -> AsyncIterator[Sidecar]:
    """An Envoy that is up; `edit` may change its bootstrap."""
    keys = Keys()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "jwks.json").write_text(json.dumps(keys.jwks()))
    ports = {name: free_port() for name in ("listen", "authz", "receiver", "service", "tcp")}
    admin = directory / "admin.sock"
    values: dict[str, str | int] = {
        "LISTEN_ADDRESS": HOST, "LISTEN_PORT": ports["listen"], "ADMIN_SOCKET": str(admin),
        "AUTHZ_HOST": HOST, "AUTHZ_PORT": ports["authz"], "AUTHZ_TIMEOUT": "5s",
        "RECEIVER_HOST": HOST, "RECEIVER_PORT": ports["receiver"],
        "SERVICE_HOST": HOST, "SERVICE_PORT": ports["service"],
        "JWKS_FILE": str(directory / "jwks.json"), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
        "NODE_ID": node, "NODE_CLUSTER": "test", "XFF_TRUSTED_HOPS": 0,
        "OBSERVE_OFF": "true", "HOLD_OFF": "true",
    }  # fmt: skip
    template = (deploy_dir() / "envoy" / "envoy.yaml").read_text()
    document = yaml.safe_load(render(template, values))
    edit(document)
    bootstrap = directory / "envoy.yaml"
    bootstrap.write_text(yaml.safe_dump(document))

    check = grpc.unary_unary_rpc_method_handler(
        _check, CheckRequest.FromString, CheckResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(_CHECK, {"Check": check})]
    )
    server.add_insecure_port(f"{HOST}:{ports['authz']}")
    await server.start()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, ports["service"]).start()
    log = Log(f"{HOST}:{ports['receiver']}")
    await log.start()
    url = f"http://{HOST}:{ports['listen']}"
    token = keys.token(PEOPLE["alder"])
    ours = Sidecar(node, url, admin, log, bootstrap, token, workers, options, ports=ports)
    try:
        await ours.start()
        yield ours
    finally:
        ours.kill()
        await log.stop()
        await runner.cleanup()
        await server.stop(None)
