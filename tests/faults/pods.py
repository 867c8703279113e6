r"""Two services that call each other, each a pod with its own Envoy and ext-authz; one OPA, one
receiver, and ClickHouse elsewhere. Every link is mutual TLS (to ClickHouse TLS), and can be cut.

    fhir: service <- envoy <-\    /-> opa       (asked by both ext-authz)
          ext-authz           ----
    lab:  service <- envoy <-/    \-> receiver  (both ext-authz's decisions, both access logs)
          ext-authz                    \-> cloud: envoy -> clickhouse

A pod is a network namespace. What is private to it (service, ext-authz, Envoy's way out) listens on
its loopback, as containers of one pod do; so does the embedded ClickHouse, with an Envoy for TLS in
front of it.
"""

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from certificates import Certificates
from live import ACCOUNTS, Answer
from programs import until

from authz.demo.people import AUDIENCE, ISSUER, PEOPLE, Keys, Request
from authz.demo.stack import HOST, Part, deploy_dir, envoy_program
from authz.envoy.bootstrap import render
from authz.record.privacy import load_key

from .network import Network, network

SERVICES = {"fhir": "lab", "lab": "fhir"}
"""Each service, and the one that it calls."""
HOSTS = (*SERVICES, "opa", "receiver", "cloud")
PORTS = {"service": 8000, "check": 9191, "ingress": 8443, "out": 15001, "receiver": 9292,
         "opa": 8181, "clickhouse": 9000, "cloud": 9440}  # fmt: skip
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
_TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def workload(name: str) -> str:
    return f"spiffe://clinic.example/ns/default/sa/{name}"


@dataclass
class Pods:
    directory: Path
    opa: str
    net: Network
    keys: Keys = field(default_factory=Keys)
    parts: dict[str, Part] = field(default_factory=dict)
    store: str = ""
    """On the host `cloud`."""

    def __post_init__(self) -> None:
        self._certificates = Certificates(self.directory)
        (self.directory / "logs").mkdir()
        (self.directory / "jwks.json").write_text(json.dumps(self.keys.jwks()))
        load_key(self.directory / "privacy.key")
        self._tokens = {name: self.keys.token(person) for name, person in PEOPLE.items()}
        self._add_opa()
        self._add_cloud()
        self._add_receiver()
        for name in SERVICES:
            self._add_pod(name)

    @property
    def trust(self) -> Path:
        return self.directory / "receiver" / "trust.yaml"

    def start(self) -> None:
        """All parts, each when those that it needs are up."""
        for name, part in self.parts.items():
            if name == "receiver":
                self._read_store()
            part.start()
            with self.net.on(name.partition(" ")[0]):
                part.wait_until_up()

    def stop(self) -> None:
        for part in reversed(self.parts.values()):
            part.stop()

    # -- what it is made of

    def _add_opa(self) -> None:
        cert, key = self._certify("opa")
        command = [
            self.opa, "run", "--server", "--log-level", "error", "--skip-version-check",
            "--addr", f"https://{self._at('opa', 'opa')}", "--tls-cert-file", cert,
            "--tls-private-key-file", key, "--tls-ca-cert-file", self._ca,
            "--authentication", "tls", str(deploy_dir() / "opa"),
        ]  # fmt: skip
        self._add("opa", command, self._at("opa", "opa"))

    def _add_cloud(self) -> None:
        address = f"{HOST}:{PORTS['clickhouse']}"
        self._add("cloud clickhouse", self._authz(
            "clickhouse", "--data-dir", self.directory / "clickhouse", "--tcp",
            PORTS["clickhouse"], "--http", 8123, "--json"), address)  # fmt: skip
        proxy = {"@type": _TCP, "stat_prefix": "clickhouse", "cluster": "clickhouse"}
        chain = {
            "transport_socket": self._socket("cloud", "DownstreamTlsContext"),
            "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
        }
        listener = {"name": "cloud", "filter_chains": [chain],
                    "address": _socket_address(self.net.address("cloud"), "cloud")}  # fmt: skip
        resources = {"listeners": [listener],
                     "clusters": [_cluster("clickhouse", HOST, "clickhouse")]}  # fmt: skip
        self._add_envoy("cloud", {"static_resources": resources}, self._at("cloud", "cloud"))

    def _add_receiver(self) -> None:
        cert, key = self._certify("receiver")
        self._add("receiver", self._authz(
            "receiver", "--listen", self._at("receiver", "receiver"), "--origin", "pods/receiver",
            "--data-dir", self.directory / "receiver",
            "--privacy-key", self.directory / "privacy.key"),
            self._at("receiver", "receiver"), **ACCOUNTS,
            AUTHZ_RECEIVER__TLS_CERT=cert, AUTHZ_RECEIVER__TLS_KEY=key,
            AUTHZ_RECEIVER__TLS_CLIENT_CA=self._ca)  # fmt: skip

    def _add_pod(self, name: str) -> None:
        cert, key = self._certify(name)
        address = f"{HOST}:{PORTS['service']}"
        command = [sys.executable, "-m", "authz.demo.fhir", "--listen", address]
        self._add(f"{name} service", command, address)
        tls = {f"AUTHZ_EXT_AUTHZ__{of}_{what}": path for of in ("OPA", "RECEIVER")
               for what, path in (("CA", self._ca), ("CERT", cert), ("KEY", key))}  # fmt: skip
        address = f"{HOST}:{PORTS['check']}"
        self._add(f"{name} ext-authz", self._authz(
            "ext-authz", "--listen", address, "--policy", f"https://{self._at('opa', 'opa')}",
            "--data-dir", self.directory / name, "--receiver", self._at("receiver", "receiver"),
            "--privacy-key", self.directory / "privacy.key"),
            address, AUTHZ_EXT_AUTHZ__CLIENT_ADDRESS="envoy", AUTHZ_EXT_AUTHZ__TIMEOUT_MS="1000",
            **tls)  # fmt: skip
        self._add_envoy(name, self._bootstrap(name), self._at(name, "ingress"))

    def _add_envoy(self, name: str, bootstrap: dict[str, Any], address: str) -> None:
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(bootstrap))
        command = [envoy_program(), "-c", str(path), "--concurrency", "1",
                   "--log-level", "error", "--disable-hot-restart"]  # fmt: skip
        self._add(f"{name} envoy", command, address)

    def _bootstrap(self, name: str) -> dict[str, Any]:
        """deploy/envoy's, with the TLS of its README, and a way out to the other service."""
        values: dict[str, str | int] = {
            "LISTEN_ADDRESS": self.net.address(name), "LISTEN_PORT": PORTS["ingress"],
            "ADMIN_SOCKET": str(self.directory / f"{name}.sock"),
            "AUTHZ_HOST": HOST, "AUTHZ_PORT": PORTS["check"], "AUTHZ_TIMEOUT": "1s",
            "RECEIVER_HOST": self.net.address("receiver"), "RECEIVER_PORT": PORTS["receiver"],
            "SERVICE_HOST": HOST, "SERVICE_PORT": PORTS["service"],
            "JWKS_FILE": str(self.directory / "jwks.json"), "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE, "NODE_ID": name, "NODE_CLUSTER": name,
            "XFF_TRUSTED_HOPS": 0, "OBSERVE_OFF": "true", "HOLD_OFF": "true",
        }  # fmt: skip
        template = (deploy_dir() / "envoy" / "envoy.yaml").read_text()
        document: dict[str, Any] = yaml.safe_load(render(template, values))
        [ingress] = document["static_resources"]["listeners"]
        chain = ingress["filter_chains"][0]
        chain["transport_socket"] = self._socket(name, "DownstreamTlsContext",
                                                 require_client_certificate=True)  # fmt: skip
        manager = chain["filters"][0]["typed_config"]
        manager["forward_client_cert_details"] = "SANITIZE_SET"
        clusters = document["static_resources"]["clusters"]
        [receiver] = [one for one in clusters if one["name"] == "receiver"]
        receiver["transport_socket"] = self._socket(name, "UpstreamTlsContext", peer="receiver")
        other = SERVICES[name]
        to_other = _cluster("other", self.net.address(other), "ingress")
        to_other["transport_socket"] = self._socket(name, "UpstreamTlsContext", peer=other)
        clusters.append(to_other)
        document["static_resources"]["listeners"].append(_way_out())
        return document

    def _socket(self, name: str, kind: str, peer: str = "", **more: object) -> dict[str, Any]:
        cert, key = self._certify(name)
        trusted: dict[str, Any] = {"trusted_ca": {"filename": self._ca}}
        if peer:
            san = {"san_type": "URI", "matcher": {"exact": workload(peer)}}
            trusted["match_typed_subject_alt_names"] = [san]
        files = {"certificate_chain": {"filename": cert}, "private_key": {"filename": key}}
        common = {"tls_certificates": [files], "validation_context": trusted}
        config = {"@type": f"{_TLS}.{kind}", "common_tls_context": common, **more}
        return {"name": "envoy.transport_sockets.tls", "typed_config": config}

    @property
    def _ca(self) -> str:
        return str(self._certificates.ca_file)

    def _certify(self, name: str) -> tuple[str, str]:
        """The certificate of a workload and its key, made once."""
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        if not cert.exists():
            self._certificates.issue(self.net.address(name), uri=workload(name), file=name)
        return str(cert), str(key)

    def _at(self, host: str, port: str) -> str:
        return f"{self.net.address(host)}:{PORTS[port]}"

    def _authz(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "authz", "serve", *map(str, arguments)]

    def _add(self, name: str, command: list[str], address: str, **environment: str) -> None:
        """A part of the host that its name begins with."""
        inside = self.net.command(name.partition(" ")[0], command)
        log = self.directory / "logs" / f"{name.replace(' ', '-')}.log"
        self.parts[name] = Part(name, inside, log, environment, address)

    def _read_store(self) -> None:
        part = self.parts["cloud clickhouse"]
        ready = until(lambda: [line for line in part.told() if line.startswith('{"store"')], 60)
        self.store = json.loads(ready[-1])["store"]
        way = self.store.replace(f"{HOST}:{PORTS['clickhouse']}", self._at("cloud", "cloud"))
        receiver = self.parts["receiver"]
        secure = f"{way}?secure=true&ca_certs={self._ca}"
        receiver.environment = {**receiver.environment, "AUTHZ_STORE": secure}

    # -- traffic

    def call(self, caller: str, requests: list[Request]) -> list[Answer]:
        """How the other service answers `requests` of `caller`, one after the other."""
        with self.net.on(caller):
            return asyncio.run(self._call(iter(requests), lambda: True))

    def call_for(self, seconds: float, requests: list[Request]) -> dict[str, list[Answer]]:
        """Both services call each other, for so long; the answers by caller."""
        end = time.monotonic() + seconds

        def run(caller: str) -> list[Answer]:
            with self.net.on(caller):
                repeated = (request for _ in iter(int, 1) for request in requests)
                return asyncio.run(self._call(repeated, lambda: time.monotonic() < end))

        async def both() -> list[list[Answer]]:
            return await asyncio.gather(*(asyncio.to_thread(run, name) for name in SERVICES))

        return dict(zip(SERVICES, asyncio.run(both()), strict=True))

    async def _call(self, requests: Iterator[Request], more: Callable[[], bool]) -> list[Answer]:
        answers = []
        async with aiohttp.ClientSession(f"http://{HOST}:{PORTS['out']}") as session:
            for request in requests:
                if not more():
                    break
                trace, sent = secrets.token_hex(16), time.monotonic()
                headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
                if request.person:
                    headers["authorization"] = f"Bearer {self._tokens[request.person]}"
                async with session.get(request.path, headers=headers) as response:
                    await response.read()
                    answers.append(Answer(request, trace, response.status, sent))
                await asyncio.sleep(0.02)
        return answers


def _socket_address(address: str, port: str) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": PORTS[port]}}


def _cluster(name: str, address: str, port: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _socket_address(address, port)}}
    return {
        "name": name, "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }  # fmt: skip


def _way_out() -> dict[str, Any]:
    """What a service calls the other one by: plain on its own loopback, mutual TLS from there."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "other", "timeout": "5s"}}
    manager = {
        "@type": f"{_HTTP}.HttpConnectionManager", "stat_prefix": "out",
        "route_config": {"virtual_hosts": [{"name": "other", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}
        ],
    }  # fmt: skip
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": "out", "address": _socket_address(HOST, "out"),
        "filter_chains": [{"filters": filters}],
    }  # fmt: skip


@contextlib.contextmanager
def pods(directory: Path, opa: str) -> Iterator[Pods]:
    """All of it, up."""
    with network(*HOSTS) as net:
        made = Pods(directory, opa, net)
        try:
            made.start()
            yield made
        finally:
            made.stop()
