"""An overlay as it runs: its pods, and what a site has beside them: certificates, secrets,
ClickHouse, a server of policy bundles.

ClickHouse is the embedded one, since its image cannot be had here; of OPA and Envoy there are the
programs, in the Debian that the image is made of.
"""

import base64
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from certificates import Certificates
from image import Image
from kubelet import Node, Running, names, write_hosts
from kustomized import KUBERNETES, Object, built, pods
from programs import CHECKOUT
from relay import Relay

from authz.demo.people import PEOPLE, Keys
from tests.faults.network import Network, network

OUTSIDE = "outside"
_CLICKHOUSE = 19000
_BUNDLES = 8000
_VALUES = ("authz-values-", "authz-site-")


@dataclass(slots=True)
class Cluster:
    """`instances` are its pods by name, whether they run or not."""

    overlay: str
    directory: Path
    network: Network
    found: tuple[Object, ...]
    instances: dict[str, Running]
    authority: Certificates
    keys: Keys
    store: str

    @property
    def plain(self) -> bool:
        return self.overlay == "demo"

    def start(self, *called: str) -> None:
        """These pods, or all; at once, as they come in a cluster."""
        wanted = [self.instances[name] for name in called or self.instances]
        with ThreadPoolExecutor(16) as pool:
            for _ in pool.map(Running.start, wanted):
                pass

    def stop(self) -> None:
        """Applications first: what they have under way is told to the receiver."""
        order = sorted(self.instances.values(), key=lambda one: "receiver" in one.called)
        for running in order:
            running.stop()

    def token(self, name: str, called: str = "fhir-0") -> str:
        """Somebody's, good at this pod."""
        if self.plain:
            shown = self.instances[called].containers["fhir"].run("cat", f"/run/demo/{name}.jwt")
            assert shown.returncode == 0, shown.stderr
            return shown.stdout
        return self.keys.token(PEOPLE[name])

    def url(self, called: str = "fhir-0") -> str:
        scheme = "http" if self.plain else "https"
        return f"{scheme}://{self.network.address(called)}:8443"

    def context(self) -> ssl.SSLContext | None:
        """For clients of the application."""
        if self.plain:
            return None
        return ssl.create_default_context(cafile=self.authority.ca_file)

    def state(self) -> Object:
        """For kubectl.py."""
        services = {}
        for each in self.found:
            if each["kind"] == "Service":
                for called, running in self.instances.items():
                    if each["spec"]["selector"].items() <= running.pod.labels.items():
                        services[each["metadata"]["name"]] = {
                            str(port["port"]): (
                                self.network.command(called, []),
                                running.port(port),
                            )
                            for port in each["spec"]["ports"]
                        }
        return {
            "overlay": str(KUBERNETES / "overlays" / self.overlay),
            "namespace": self.instances["receiver-0"].pod.namespace,
            "services": services,
            "pods": {
                called: {name: one.inside() for name, one in running.containers.items()}
                for called, running in self.instances.items()
            },
        }

    def authz(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command in the receiver's container, as by kubectl exec."""
        container = self.instances["receiver-0"].containers["authz"]
        return container.run("authz", *arguments, seconds=120)


@contextlib.contextmanager
def cluster(
    overlay: str, directory: Path, images: Mapping[str, Image], opa: str, more: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Nothing of it runs yet but what is outside. `more` are further pods, such as `fhir-1`."""
    found = built(overlay)
    called = [f"{one.name}-0" for one in pods(found) if one.name != "clickhouse"]
    with network(OUTSIDE, *called, *more) as hosts, contextlib.ExitStack() as stack:
        authority, keys = Certificates(directory), Keys()
        store, process = _clickhouse(directory, hosts)
        stack.callback(_end, process)
        with hosts.on(OUTSIDE):
            relay = Relay(f"127.0.0.1:{_CLICKHOUSE}", (hosts.address(OUTSIDE), 9000))
        stack.callback(relay.close)
        bundles, public = _bundles(directory)
        server = subprocess.Popen(
            hosts.command(OUTSIDE, [sys.executable, "-m", "http.server", str(_BUNDLES)]),
            cwd=bundles, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        stack.callback(_end, server)
        brought = _brought(found, authority, keys, public)
        there = tuple(_told(each, hosts, store) for each in (*found, *brought))
        instances = {f"{one.name}-0": one for one in pods(there) if one.name != "clickhouse"}
        instances |= {name: instances[f"{name.rpartition('-')[0]}-0"] for name in more}
        path = directory / "hosts"
        told = names(there, instances)
        write_hosts(path, hosts, told | {OUTSIDE: ["clickhouse"]})
        node = Node(directory / "pods", hosts, images, path)
        node.directory.mkdir()
        made = Cluster(overlay, directory, hosts, there, {}, authority, keys, store)
        made.instances = {name: Running(node, pod, name) for name, pod in instances.items()}
        try:
            yield made
        finally:
            for running in made.instances.values():
                running.kill()


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(60)
    if process.stdout:
        process.stdout.close()


def _clickhouse(directory: Path, hosts: Network) -> tuple[str, "subprocess.Popen[str]"]:
    """The store's URL as pods say it, and the server."""
    command = [sys.executable, "-m", "authz", "serve", "clickhouse", "--data-dir",
               str(directory / "clickhouse"), "--tcp", str(_CLICKHOUSE), "--json"]  # fmt: skip
    with (directory / "clickhouse.log").open("w") as log:
        process = subprocess.Popen(
            hosts.command(OUTSIDE, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=log, text=True, cwd=CHECKOUT,
        )  # fmt: skip
    assert process.stdout
    store = json.loads(process.stdout.readline())["store"]
    return store.replace(f"127.0.0.1:{_CLICKHOUSE}", "clickhouse:9000"), process


def _bundles(directory: Path) -> tuple[Path, str]:
    """A directory to serve, with the sample policy signed, and the public key."""
    place = directory / "bundles"
    (place / "authz").mkdir(parents=True)
    private, public = directory / "bundle.key", directory / "bundle.pem"
    for command in (
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private],
        ["openssl", "ec", "-in", private, "-pubout", "-out", public],
        [sys.executable, "-m", "authz", "policy", "build", "--policy", CHECKOUT / "deploy" / "opa",
         "--signing-key", private, "--revision", "1", "-o", place / "authz" / "bundle.tar.gz"],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return place, public.read_text()


def _brought(
    found: Sequence[Object], authority: Certificates, keys: Keys, public: str
) -> Iterator[Object]:
    """What a site brings along, by the names under which pods ask for it."""
    spaces = {one.namespace for one in pods(tuple(found))}
    for namespace in spaces:
        yield _object("ConfigMap", "opa-bundle-key", namespace, {"bundle.pem": public})
        yield _object("ConfigMap", "authz-jwks", namespace, {"jwks.json": json.dumps(keys.jwks())})
        yield _secret("authz-privacy", namespace, {"privacy.key": "5e" * 32 + "\n"})
        yield _secret("console-oidc", namespace, {"client-secret": "said to nobody"})
        for name in ("receiver", "reader", "migrator"):
            yield _secret(f"clickhouse-{name}", namespace, {"store": ""})
    for each in found:
        if each["kind"] == "Certificate" and not each["spec"].get("isCA"):
            cert, key = authority.issue(*each["spec"]["dnsNames"])
            files = {
                "tls.crt": cert.read_text(),
                "tls.key": key.read_text(),
                "ca.crt": authority.ca_file.read_text(),
            }
            yield _secret(each["spec"]["secretName"], each["metadata"]["namespace"], files)


def _object(kind: str, name: str, namespace: str, data: Mapping[str, str]) -> Object:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}, "data": dict(data)}


def _secret(name: str, namespace: str, files: Mapping[str, str]) -> Object:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in files.items()}
    return _object("Secret", name, namespace, data)


def _told(each: Object, hosts: Network, store: str) -> Object:
    """With the addresses that there are here, and more time for a machine that is busy."""
    bundles = f"http://{hosts.address(OUTSIDE)}:{_BUNDLES}"
    text = yaml.safe_dump(each).replace("https://bundles.example.org", bundles)
    told: Object = yaml.safe_load(text)
    if told["kind"] == "Secret" and "store" in told["data"]:
        told["data"]["store"] = base64.b64encode(store.encode()).decode()
    if told["kind"] == "ConfigMap" and told["metadata"]["name"].startswith(_VALUES):
        told["data"] |= {"AUTHZ_TIMEOUT": "5s", "AUTHZ_EXT_AUTHZ__TIMEOUT_MS": "5000"}
    return told
