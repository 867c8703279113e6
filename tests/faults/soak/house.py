"""The whole house: every part a process of its own, on disks and with clocks and certificates that
can be taken away.

    load -> envoy-1 -> ext-authz-1 (OPA server, fsync; answers observed)   -> receiver
            envoy-2 -> ext-authz-2 (embedded, durability receiver; held)      -> clickhouse

Writers and Envoys speak to the receiver over mutual TLS. A part that ends is started again after a
moment, as a supervisor would; that it ended by itself is kept in `ended`.
"""

import asyncio
import contextlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from certificates import Certificates
from grpc_health.v1 import health_pb2, health_pb2_grpc
from programs import until

from authz.demo.people import AUDIENCE, ISSUER, Keys
from authz.demo.stack import HOST, Part, deploy_dir, envoy_program, free_port
from authz.envoy.bootstrap import render
from authz.record.privacy import load_key
from authz.store.client import connect

ORIGIN = "soak/receiver"
SIDECARS = (1, 2)
ENVOYS = ("envoy-1", "envoy-2")
CHECKERS = ("ext-authz-1", "ext-authz-2")
PARTS = ("service", "opa", "clickhouse", "receiver", *CHECKERS, *ENVOYS)
CLOCKED = (*CHECKERS, "receiver")  # the parts whose clock can be set
DISKS = {"ext-authz-1": 48 << 20, "ext-authz-2": 48 << 20, "receiver": 96 << 20,
         "clickhouse": 1 << 30}  # fmt: skip
ACCOUNTS = {
    "AUTHZ_RECEIVER__INTERVAL_SECONDS": "3",
    "AUTHZ_RECEIVER__GRACE_SECONDS": "6",
    "AUTHZ_RECEIVER__BATCH_SECONDS": "0.2",
}
_LEFT = 32 << 20  # bytes on ClickHouse's disk: half of what it keeps free
_AGAIN_SECONDS = 0.5  # until a part that ended is started again
_TERM_SECONDS = 90  # a part that has not ended by then hangs


@dataclass(slots=True)
class Ended:
    """A part that ended otherwise than it was told to; `during` are the disasters of the time."""

    part: str
    code: int
    words: str
    during: tuple[str, ...]


@dataclass
class House:
    directory: Path
    disks: bool
    """Whether data directories are small disks of their own, which can be full."""
    parts: dict[str, Part] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """The parts that are to run, and are started again if they do not."""
    store: str = ""
    ended: list[Ended] = field(default_factory=list)
    starts: Counter[str] = field(default_factory=Counter)
    under_way: list[str] = field(default_factory=list)
    """Names of the disasters that are under way."""
    keys: Keys = field(default_factory=Keys)

    def __post_init__(self) -> None:
        self._clocks: dict[str, mmap.mmap] = {}
        self._again: dict[str, float] = {}
        self._certificates = Certificates(self.directory)
        self.tls: dict[str, tuple[Path, Path]] = {}
        self._environment: dict[str, str] = {}
        (self.directory / "logs").mkdir()
        self._lay_out()

    # -- what it is made of

    def _lay_out(self) -> None:
        for name, size in DISKS.items():
            (self.directory / name).mkdir()
            if self.disks:
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs",
                                self.directory / name], check=True)  # fmt: skip
        load_key(self.directory / "privacy.key")
        (self.directory / "jwks.json").write_text(json.dumps(self.keys.jwks()))
        shutil.copytree(deploy_dir() / "opa", self.directory / "policy",
                        ignore=shutil.ignore_patterns("*_test.rego"))  # fmt: skip
        for name in ("receiver", *CHECKERS, *ENVOYS, "hostile"):
            self.certify(name)
        clock = self._clock_program()
        ports = {name: free_port() for name in PARTS}
        self._add("service", ports, [sys.executable, "-m", "authz.demo.fhir", "--listen",
                                     f"{HOST}:{ports['service']}"])  # fmt: skip
        opa = shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))
        assert opa, "needs OPA: go install github.com/open-policy-agent/opa@v1.22.2"
        self._add("opa", ports, [
            opa, "run", "--server", "--log-level", "error", "--addr", f"{HOST}:{ports['opa']}",
            str(self.directory / "policy")])  # fmt: skip
        self._add("clickhouse", ports, self._authz(
            "clickhouse", "--data-dir", self.directory / "clickhouse", "--tcp",
            ports["clickhouse"], "--http", free_port(), "--json"))  # fmt: skip
        cert, key = self.tls["receiver"]
        self._add("receiver", ports, self._authz(
            "receiver", "--listen", f"{HOST}:{ports['receiver']}", "--origin", ORIGIN,
            "--data-dir", self.directory / "receiver", "--privacy-key",
            self.directory / "privacy.key", "--metrics", f"{HOST}:{free_port()}"),
            AUTHZ_RECEIVER__TLS_CERT=str(cert), AUTHZ_RECEIVER__TLS_KEY=str(key),
            AUTHZ_RECEIVER__TLS_CLIENT_CA=str(self._certificates.ca_file),
            AUTHZ_RECEIVER__ENVOY_ADMINS=json.dumps(
                [f"unix://{self.admin(number)}" for number in SIDECARS]),
            **ACCOUNTS)  # fmt: skip
        for number in SIDECARS:
            self._add_sidecar(number, ports)
        for name in CLOCKED if clock else ():
            self._give_clock(name, clock)

    def _add_sidecar(self, number: int, ports: dict[str, int]) -> None:
        checker, envoy = f"ext-authz-{number}", f"envoy-{number}"
        held = number == 2
        policy = str(self.directory / "policy") if held else f"http://{HOST}:{ports['opa']}"
        cert, key = self.tls[checker]
        self._add(checker, ports, self._authz(
            "ext-authz", "--listen", f"{HOST}:{ports[checker]}", "--policy", policy,
            "--data-dir", self.directory / checker, "--receiver", f"{HOST}:{ports['receiver']}",
            "--privacy-key", self.directory / "privacy.key", "--durability",
            "receiver" if held else "fsync", "--metrics", f"{HOST}:{free_port()}"),
            AUTHZ_EXT_AUTHZ__RECEIVER_CA=str(self._certificates.ca_file),
            AUTHZ_EXT_AUTHZ__RECEIVER_CERT=str(cert), AUTHZ_EXT_AUTHZ__RECEIVER_KEY=str(key),
            AUTHZ_EXT_AUTHZ__TIMEOUT_MS="1000", AUTHZ_EXT_AUTHZ__CLIENT_ADDRESS="envoy",
            AUTHZ_EXT_AUTHZ__HEAD_SECONDS="2", AUTHZ_DISCLOSURE__ROUTES='["/fhir"]')  # fmt: skip
        values: dict[str, str | int] = {
            "LISTEN_ADDRESS": HOST, "LISTEN_PORT": ports[envoy],
            "ADMIN_SOCKET": str(self.admin(number)),
            "AUTHZ_HOST": HOST, "AUTHZ_PORT": ports[checker], "AUTHZ_TIMEOUT": "1s",
            "RECEIVER_HOST": HOST, "RECEIVER_PORT": ports["receiver"],
            "SERVICE_HOST": HOST, "SERVICE_PORT": ports["service"],
            "JWKS_FILE": str(self.directory / "jwks.json"), "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE, "NODE_ID": envoy, "NODE_CLUSTER": "soak",
            "XFF_TRUSTED_HOPS": 0, "OBSERVE_OFF": "true" if held else "false",
            "HOLD_OFF": "false" if held else "true",
        }  # fmt: skip
        template = (deploy_dir() / "envoy" / "envoy.yaml").read_text()
        document = yaml.safe_load(render(template, values))
        [cluster] = [one for one in document["static_resources"]["clusters"]
                     if one["name"] == "receiver"]  # fmt: skip
        cluster["transport_socket"] = self._transport_socket(envoy)
        bootstrap = self.directory / f"{envoy}.yaml"
        bootstrap.write_text(yaml.safe_dump(document))
        command = [envoy_program(), "-c", str(bootstrap), "--concurrency", "1", "--log-level",
                   "error", "--disable-hot-restart"]  # fmt: skip
        self._add(envoy, ports, command)

    def _transport_socket(self, envoy: str) -> dict[str, Any]:
        """Mutual TLS whose certificate Envoy reads again when its secret is replaced."""
        source = {"path_config_source": {"path": str(self._secret(envoy))}}
        validation = {"trusted_ca": {"filename": str(self._certificates.ca_file)}}
        secret = {"name": envoy, "sds_config": {"resource_api_version": "V3", **source}}
        return {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
                ".UpstreamTlsContext",
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [secret],
                    "validation_context": validation,
                },
            },
        }

    def _secret(self, envoy: str) -> Path:
        return self.directory / f"{envoy}.secret.yaml"

    def _add(self, name: str, ports: dict[str, int], command: list[str], **env: str) -> None:
        log = self.directory / "logs" / f"{name}.log"
        self.parts[name] = Part(name, command, log, env, f"{HOST}:{ports[name]}")

    def _authz(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "authz", "serve", *map(str, arguments)]

    def admin(self, number: int) -> Path:
        return self.directory / f"admin-{number}.sock"

    @property
    def trust(self) -> Path:
        return self.directory / "receiver" / "trust.yaml"

    def address(self, name: str) -> str:
        return self.parts[name].address

    # -- certificates

    def certify(self, name: str, seconds: float = 86_400) -> None:
        """A new certificate for `name`, good for so long, or expired since so long."""
        cert, key = self._certificates.issue(HOST, days=seconds / 86_400, file=name)  # type: ignore[arg-type]
        self.tls[name] = cert, key
        if name in ENVOYS:
            versions = [path.with_name(f"{path.stem}-{time.time_ns()}{path.suffix}")
                        for path in (cert, key)]  # fmt: skip
            for path, version in zip((cert, key), versions, strict=True):
                shutil.copy(path, version)
            resource = {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": name,
                "tls_certificate": {
                    "certificate_chain": {"filename": str(versions[0])},
                    "private_key": {"filename": str(versions[1])},
                },
            }
            fresh = self.directory / f".{name}.new"
            fresh.write_text(yaml.safe_dump({"resources": [resource]}))
            fresh.replace(self._secret(name))

    def credentials(self, name: str) -> grpc.ChannelCredentials:
        cert, key = self.tls[name]
        return grpc.ssl_channel_credentials(
            self._certificates.ca_file.read_bytes(), key.read_bytes(), cert.read_bytes()
        )

    # -- clocks

    def _clock_program(self) -> Path | None:
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        program = self.directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", program, source, "-ldl"],
                       check=True)  # fmt: skip
        return program

    def _give_clock(self, name: str, program: Path) -> None:
        path = self.directory / f"{name}.clock"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._clocks[name] = mmap.mmap(file.fileno(), 8)
        part = self.parts[name]
        more = {"LD_PRELOAD": str(program), "SOAK_CLOCK": str(path)}
        part.environment = {**part.environment, **more}

    @property
    def clocked(self) -> list[str]:
        return list(self._clocks)

    def set_clock(self, name: str, seconds: float) -> None:
        """Ahead of the true time by so much, or behind it."""
        self._clocks[name][:] = struct.pack("<q", round(seconds * 1e9))

    # -- disks

    def fill(self, name: str) -> Path:
        """Fill the disk of a part; the file that does. ClickHouse's is filled until it takes no
        more: it keeps some room, since a merge that runs out of it spoils what it merges."""
        ballast = self.directory / name / "ballast"
        left = _LEFT if name == "clickhouse" else 0
        with ballast.open("wb") as file:
            step = 1 << 20
            while step >= 4096:
                disk = os.statvfs(file.fileno())
                if disk.f_bavail * disk.f_frsize - step < left:
                    step >>= 4
                    continue
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    step >>= 4
        return ballast

    # -- processes

    def start(self) -> None:
        for name in PARTS:
            self._start(name)
            if name in ("clickhouse", "opa"):
                self.parts[name].wait_until_up()
            if name == "clickhouse":
                self._read_store()
            self.kept.add(name)

    def _start(self, name: str) -> None:
        self.starts[name] += 1
        if name in ENVOYS:
            self.admin(int(name[-1])).unlink(missing_ok=True)
        self.parts[name].start()

    def _read_store(self) -> None:
        part = self.parts["clickhouse"]
        ready = until(lambda: [line for line in part.told() if line.startswith('{"store"')], 60)
        self.store = json.loads(ready[-1])["store"]
        receiver = self.parts["receiver"]
        receiver.environment = {**receiver.environment, "AUTHZ_STORE": self.store}

    async def keep(self) -> None:
        """Until cancelled: what is to run is started again when it has ended."""
        while True:
            for name in PARTS:
                process = self.parts[name].process
                if name not in self.kept or (process and process.poll() is None):
                    continue
                now = time.monotonic()
                if name not in self._again:
                    self._again[name] = now + _AGAIN_SECONDS
                    if process:
                        self._note(name, process.returncode)
                elif now > self._again[name]:
                    del self._again[name]
                    self._start(name)
            await asyncio.sleep(0.05)

    def _note(self, name: str, code: int) -> None:
        words = self.parts[name].told()[-1:] or [""]
        self.ended.append(Ended(name, code, words[0][:300], tuple(self.under_way)))

    def signal(self, name: str, number: int, *, group: bool = False) -> bool:
        """Whether there was such a process."""
        process = self.parts[name].process
        if process is None or process.poll() is not None:
            return False
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        return True

    def kill(self, name: str) -> None:
        """SIGKILL, with all children; it is not started again until it is `kept`."""
        self.kept.discard(name)
        if self.signal(name, signal.SIGKILL, group=True):
            process = self.parts[name].process
            assert process
            process.wait()
        self.parts[name].process = None

    async def terminate(self, name: str) -> str:
        """SIGTERM; what is wrong with how it ended, if anything is."""
        self.kept.discard(name)
        process = self.parts[name].process
        if not self.signal(name, signal.SIGTERM):
            self.parts[name].process = None
            return ""
        assert process
        deadline = time.monotonic() + _TERM_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        code = process.poll()
        # Whoever is told to go before it can listen to that ends as any program does.
        good = (0, -signal.SIGTERM)
        self.kill(name)
        if code is None:
            return f"{name} did not end within {_TERM_SECONDS} s of SIGTERM"
        return "" if code in good else f"{name} ended with {code} at SIGTERM"

    def running(self, name: str) -> bool:
        process = self.parts[name].process
        return process is not None and process.poll() is None

    async def health(self, name: str) -> str:
        """Empty if it serves."""
        credentials = self.credentials("hostile") if name == "receiver" else None
        address = self.address(name)
        async with (
            grpc.aio.secure_channel(address, credentials) if credentials
            else grpc.aio.insecure_channel(address)
        ) as channel:  # fmt: skip
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=5
                )
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name} {error.details()}"
        serving = health_pb2.HealthCheckResponse.SERVING
        return "" if answer.status == serving else "not serving"

    def query(self, query: str, **parameters: object) -> list[Any]:
        """The rows; raises one of `QUERY_ERRORS` while the database is away."""
        with connect(self.store) as client:
            rows: list[Any] = client.execute(query, parameters)
            return rows

    def rss(self) -> dict[str, int]:
        """Bytes that each of our servers holds."""
        found = {}
        for name in (*CHECKERS, "receiver"):
            if (process := self.parts[name].process) is not None:
                pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
                found[name] = int(pages) * os.sysconf("SC_PAGE_SIZE")
        return found

    def close(self) -> None:
        for name in PARTS:
            self.kill(name)
        for name in DISKS if self.disks else ():
            subprocess.run(["umount", "-l", self.directory / name], check=False)


@contextlib.contextmanager
def house(directory: Path, *, disks: bool) -> Iterator[House]:
    made = House(directory, disks)
    try:
        yield made
    finally:
        made.close()
