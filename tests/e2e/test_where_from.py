"""Where a request comes from is Envoy's word; whatever a client claims changes no record."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from live import Tuned, account, edited
from wire import filled, send_http1, send_http2

from authz.demo.people import PEOPLE
from authz.demo.stack import HOST, Part, envoy_program, free_port, running
from authz.store.client import connect

pytestmark = pytest.mark.thorough

CLIENT = "127.0.0.2"  # Envoy appends another address of this host to x-forwarded-for for 127.0.0.1
PROXY = HOST

FRONT = """
static_resources:
  listeners:
    - address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: front
                use_remote_address: true
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{match: {prefix: /}, route: {cluster: sidecar}}]
  clusters:
    - name: sidecar
      load_assignment:
        cluster_name: sidecar
        endpoints:
          - lb_endpoints:
              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: SIDECAR}}}
"""  # noqa: E501 - as Envoy has it

CLAIMS: dict[str, list[tuple[str, str]]] = {
    "nothing": [],
    "x-forwarded-for": [("x-forwarded-for", "203.0.113.9")],
    "x-forwarded-for of two": [("x-forwarded-for", "198.51.100.7, 203.0.113.9")],
    "x-forwarded-for twice": [("x-forwarded-for", ip) for ip in ("198.51.100.7", "203.0.113.9")],
    "x-forwarded-for of loopback": [("x-forwarded-for", "127.0.0.1")],
    "x-forwarded-for, private": [("x-forwarded-for", "10.1.2.3")],
    "x-forwarded-for, IPv6": [("x-forwarded-for", "2001:db8::5")],
    "x-forwarded-for with a port": [("x-forwarded-for", "203.0.113.9:80")],
    "x-forwarded-for, empty": [("x-forwarded-for", "")],
    "x-forwarded-for, commas": [("x-forwarded-for", "203.0.113.9,,")],
    "x-forwarded-for, text": [("x-forwarded-for", "unknown, 203.0.113.9")],
    "x-forwarded-for, long": [("x-forwarded-for", "203.0.113.9, {1.2.3.4, *300}5.6.7.8")],
    "x-real-ip": [("x-real-ip", "203.0.113.9")],
    "forwarded": [("forwarded", "for=203.0.113.9;by=203.0.113.8")],
    "x-envoy-external-address": [("x-envoy-external-address", "203.0.113.9")],
    "x-envoy-external-address twice": [("x-envoy-external-address", "203.0.113.9")] * 2,
    "x-envoy-internal": [("x-envoy-internal", "true"), ("x-forwarded-for", "10.0.0.1")],
    "other proxies' headers": [
        (name, "203.0.113.9")
        for name in ("true-client-ip", "cf-connecting-ip", "x-client-ip", "x-cluster-client-ip")
    ],
    "all at once": [
        (name, "203.0.113.9")
        for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-envoy-external-address")
    ],
}


@dataclass
class Site:
    """A stack, what leads to it, and the addresses in its records by trace id."""

    stack: Tuned
    address: str
    traces: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def addresses(self, kind: str) -> dict[str, list[str]]:
        """The `source_ip` of the records of `kind`, by the claim that was made."""
        return {name: self.recorded[kind].get(trace, []) for name, trace in self.traces.items()}


def opened(directory, hops: int) -> Iterator[Site]:
    settings = {"AUTHZ_EXT_AUTHZ__CLIENT_ADDRESS": "envoy"}
    bootstrap = edited(("xff_num_trusted_hops: 0", f"xff_num_trusted_hops: {hops}"))
    stack = Tuned(directory, bootstrap=bootstrap, ext_authz=settings, timeout_ms=2000)
    with running(stack, lambda _: None):
        site = Site(stack, stack.parts["envoy"].address)
        front = _front(site) if hops else None
        try:
            asyncio.run(_claim(site))
        finally:
            if front:
                front.stop()
        report = account(stack).report
        assert (report.verified, report.gaps) == (True, {})
        with connect(stack.store) as client:
            for kind, trace, source_ip in client.execute(
                "SELECT kind, trace_id, source_ip FROM audit_log WHERE trace_id != ''"
            ):
                found = site.recorded.setdefault(kind, {})
                found.setdefault(trace, []).append(source_ip)
        yield site


def _front(site: Site) -> Part:
    """A proxy before the stack's Envoy, which appends the client's address."""
    port = free_port()
    file = site.stack.data_dir / "front.yaml"
    sidecar = site.address.rpartition(":")[2]
    file.write_text(FRONT.replace("LISTEN", str(port)).replace("SIDECAR", sidecar))
    command = [envoy_program(), "-c", str(file), "--concurrency", "1", "--log-level", "warning",
               "--disable-hot-restart"]  # fmt: skip
    site.address = f"{HOST}:{port}"
    log = site.stack.data_dir / "logs" / "front.log"
    front = Part("front", command, log, address=site.address)
    front.start()
    front.wait_until_up()
    return front


async def _claim(site: Site) -> None:
    """Make each claim over HTTP/1.1 and HTTP/2."""
    token = site.stack.keys.token(PEOPLE["linden"])
    for name, headers in CLAIMS.items():
        for version in ("1.1", "2"):
            trace = secrets.token_hex(16)
            site.traces[f"{name} (HTTP/{version})"] = trace
            values = {"token": token, "trace": f"00-{trace}-{secrets.token_hex(8)}-01"}
            if version == "2":
                fixed = [[":method", "GET"], [":scheme", "http"], [":authority", HOST]]
                fixed += [[":path", "/fhir/metadata"], "{usual}"]
                frames = [{"headers": [*fixed, *map(list, headers)]}]
                heard = await send_http2(site.address, frames, values, 5, CLIENT)
            else:
                lines = "".join(f"{key}: {value}\r\n" for key, value in headers)
                text = f"GET /fhir/metadata HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
                text += f"authorization: Bearer {{token}}\r\ntraceparent: {{trace}}\r\n{lines}\r\n"
                heard = await send_http1(site.address, [filled(text, values)], 5, CLIENT)
            assert heard.statuses == [200], name


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """XFF_TRUSTED_HOPS 0, clients connect to the sidecar."""
    yield from opened(tmp_path_factory.mktemp("direct"), 0)


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """XFF_TRUSTED_HOPS 1, behind a proxy that appends to x-forwarded-for."""
    yield from opened(tmp_path_factory.mktemp("behind"), 1)


def everywhere(site: Site, address: str) -> dict[str, list[str]]:
    return {name: [address] for name in site.traces}


@pytest.mark.parametrize("kind", ["decision", "access"])
def test_direct(direct, kind):
    """Without a proxy, both records of a request name the peer, whatever it claims."""
    assert direct.addresses(kind) == everywhere(direct, CLIENT)


def test_behind_a_proxy(behind):
    """Behind a proxy, the access names whom the proxy saw, whatever that one claims."""
    assert behind.addresses("access") == everywhere(behind, CLIENT)


def test_decision_behind_a_proxy(behind):
    """Behind a proxy, the decision names the same address as the access."""
    assert behind.addresses("decision") == everywhere(behind, CLIENT)


def test_no_claim_is_in_the_log(direct, behind):
    """No address that was only claimed is anywhere in a record."""
    for site in (direct, behind):
        claimed = [ip for found in site.recorded.values() for ips in found.values() for ip in ips]
        assert set(claimed) <= {CLIENT, PROXY}
