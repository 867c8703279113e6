"""Pods of an overlay, run as a kubelet runs them, on this machine: containers in their order,
probes, restarts, hooks, and the end in the order of Kubernetes 1.37 (pkg/kubelet/kuberuntime,
kuberuntime_termination_order.go). Each pod is a host of a network of its own.

ConfigMaps and Secrets are mounted as a kubelet mounts them; a Service is a name in /etc/hosts, so
its port must be the pod's.
"""

import base64
import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from containers import Container, Mount
from image import Image
from kustomized import Object, Pod

from tests.faults.network import Network

_DELAY = 0.5  # between attempts, where a kubelet takes longer and longer


@dataclass(slots=True)
class Node:
    """What all pods have in common."""

    directory: Path
    network: Network
    images: Mapping[str, Image]
    hosts: Path


@dataclass(slots=True)
class Running:
    """One pod. `called` is its name, and its host's."""

    node: Node
    pod: Pod
    called: str
    containers: dict[str, Container] = field(default_factory=dict)
    seconds: float = 0
    """From its start until it was ready."""
    restarts: dict[str, int] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    """Containers that had to be killed at the end."""
    hooks: dict[str, int] = field(default_factory=dict)
    """How preStop hooks ended."""
    _leaving: threading.Event = field(default_factory=threading.Event)
    _watch: "threading.Thread | None" = None

    @property
    def directory(self) -> Path:
        return self.node.directory / self.called

    def start(self, patience: float = 400) -> None:
        """Returns once it is ready. Raises `AssertionError` with the last words of what is not."""
        begin = time.monotonic()
        for spec in self.pod.spec.get("initContainers", []):
            if spec.get("restartPolicy") == "Always":
                self._begin(spec)
                self._until_started(spec, begin + patience)
            else:
                self._to_its_end(spec, begin + patience)
        for spec in self.pod.spec["containers"]:
            if self.pod.spec.get("restartPolicy") == "OnFailure":
                self._to_its_end(spec, begin + patience)
            else:
                self._begin(spec)
        if self.pod.spec.get("restartPolicy") != "OnFailure":
            self._watch = threading.Thread(target=self._restart, daemon=True)
            self._watch.start()
            for spec in self.pod.spec["containers"]:
                self._until_started(spec, begin + patience)
        self.seconds = time.monotonic() - begin

    def stop(self) -> None:
        """As the kubelet does: every preStop at once; the main containers; then the sidecars, the
        last first, each after its own preStop and the end of those after it."""
        grace = self.pod.spec.get("terminationGracePeriodSeconds", 30)
        deadline = time.monotonic() + grace
        self._leaving.set()
        if self._watch:
            self._watch.join()
        with ThreadPoolExecutor(16) as pool:
            hooks = {name: pool.submit(self._pre_stop, name, grace) for name in self.containers}

            def end(name: str) -> None:
                hooks[name].result()
                if not self.containers[name].stop(max(deadline - time.monotonic(), 2)):
                    self.killed.append(name)

            main = [spec["name"] for spec in self.pod.spec["containers"]]
            list(pool.map(end, [name for name in self.containers if name in main]))
            for name in reversed([name for name in self.containers if name not in main]):
                end(name)

    def kill(self) -> None:
        """Whatever is left, at once."""
        self._leaving.set()
        for container in self.containers.values():
            container.stop(0)

    def port(self, wanted: Object) -> int:
        """The container's, of a Service's."""
        name = wanted.get("targetPort", wanted["name"])
        ports = [port for one in self.pod.containers for port in one.get("ports", [])]
        [number] = [port["containerPort"] for port in ports if port["name"] == name]
        return int(number)

    def logs(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def _begin(self, spec: Object) -> None:
        made = self._container(spec)
        made.start()
        self.containers[spec["name"]] = made

    def _to_its_end(self, spec: Object, deadline: float) -> None:
        """Until it ends well."""
        while True:
            made = self._container(spec)
            made.start()
            if made.wait(max(deadline - time.monotonic(), 1)) == 0:
                return
            assert time.monotonic() < deadline, self._last_words(spec["name"])
            time.sleep(_DELAY)

    def _until_started(self, spec: Object, deadline: float) -> None:
        name, probes = spec["name"], [spec.get("startupProbe"), spec.get("readinessProbe")]
        for probe in filter(None, probes):
            while not self._probe(spec, probe):
                assert time.monotonic() < deadline, self._last_words(name)
                if not self.containers[name].running and not self._watch:
                    self._begin(spec)
                time.sleep(_DELAY)

    def _restart(self) -> None:
        """What ends is started again."""
        specs = {spec["name"]: spec for spec in self.pod.containers}
        while not self._leaving.wait(_DELAY):
            for name, container in list(self.containers.items()):
                if not container.running and not self._leaving.is_set():
                    self.restarts[name] = self.restarts.get(name, 0) + 1
                    self._begin(specs[name])

    def _last_words(self, name: str) -> str:
        return f"{self.called}/{name}: {self.logs(name)[-3000:]}"

    def _pre_stop(self, name: str, grace: float) -> None:
        hook = self.pod.container(name).get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(min(hook["sleep"]["seconds"], grace))
        if "exec" in hook:
            done = self.containers[name].run(*hook["exec"]["command"], seconds=grace)
            self.hooks[name] = done.returncode

    def _probe(self, spec: Object, probe: Object) -> bool:
        """One attempt, from where the kubelet is: outside of the pod, at its address."""
        if "exec" in probe:
            return self.containers[spec["name"]].run(*probe["exec"]["command"]).returncode == 0
        [(how, asked)] = [(key, probe[key]) for key in ("httpGet", "tcpSocket") if key in probe]
        ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
        host, port = self.node.network.address(self.called), ports[asked["port"]]
        try:
            with self.node.network.on(self.called):
                if how == "tcpSocket":
                    with socket.create_connection((host, port), 1):
                        return True
                connection = http.client.HTTPConnection(host, port, timeout=5)
                if asked.get("scheme") == "HTTPS":
                    trusting = ssl._create_unverified_context()  # noqa: S323 - as a kubelet's
                    connection = http.client.HTTPSConnection(
                        host, port, timeout=5, context=trusting
                    )
                with contextlib.closing(connection):
                    connection.request("GET", asked["path"])
                    return connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False

    def _container(self, spec: Object) -> Container:
        context = self.pod.spec.get("securityContext", {}) | spec["securityContext"]
        image = self.node.images[spec["image"].rpartition("/")[2].partition(":")[0]]
        words = self.pod.command(spec, self.called)
        group = context.get("runAsGroup", context["runAsUser"])
        groups = [group, *([context["fsGroup"]] if "fsGroup" in context else [])]
        mounts = [
            Mount(self._volume(one["name"]), one["mountPath"], one.get("readOnly", False))
            for one in spec.get("volumeMounts", [])
        ]
        self.directory.mkdir(exist_ok=True)
        return Container(
            image, words if "command" in spec else [*image.entrypoint, *words],
            self.pod.environment(spec, self.called),
            [*mounts, Mount(self.node.hosts, "/etc/hosts", read_only=True)],
            context["runAsUser"], groups, self.directory / f"{spec['name']}.log",
            self.node.network.command(self.called, []),
        )  # fmt: skip

    def _volume(self, name: str) -> Path:
        """The directory behind a volume, made when it is needed first."""
        place = self.directory / "volumes" / name
        if place.exists():
            return place
        group = self.pod.spec.get("securityContext", {}).get("fsGroup", 0)
        [volume] = [one for one in self.pod.spec["volumes"] if one["name"] == name] or [{}]
        place.mkdir(parents=True)
        if "configMap" in volume:
            held = self.pod.object("ConfigMap", volume["configMap"]["name"])
            assert held, volume
            files = {key: text.encode() for key, text in held["data"].items()}
            _mounted(place, files, volume["configMap"].get("defaultMode", 0o644), group)
        elif "secret" in volume:
            held = self.pod.object("Secret", volume["secret"]["secretName"])
            assert held, volume
            files = {key: base64.b64decode(text) for key, text in held["data"].items()}
            _mounted(place, files, volume["secret"].get("defaultMode", 0o644), group)
        elif "emptyDir" in volume:
            os.chown(place, 0, group)
            place.chmod(0o2777 if group else 0o777)
        else:  # a claim's; what it holds outlives the pod
            os.chown(place, 0, group)
            place.chmod(0o2775)
        return place


def _mounted(place: Path, files: Mapping[str, bytes], mode: int, group: int) -> None:
    """Files as a kubelet lays them: replaced all at once, by a link."""
    version = place / f"..{time.time_ns()}"
    version.mkdir()
    for name, content in files.items():
        path = version / name
        path.write_bytes(content)
        path.chmod(mode | (0o440 if group else 0))
        os.chown(path, 0, group)
        if not (place / name).is_symlink():
            (place / name).symlink_to(Path("..data") / name)
    fresh = place / "..fresh"
    fresh.symlink_to(version.name)
    fresh.replace(place / "..data")


def names(found: Sequence[Object], instances: Mapping[str, Pod]) -> dict[str, list[str]]:
    """What each instance is called in DNS: by its services, by its own name in a headless one."""
    told: dict[str, list[str]] = {name: [] for name in instances}
    for service in found:
        if service["kind"] != "Service":
            continue
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        for called, pod in instances.items():
            selected = service["spec"]["selector"].items() <= pod.labels.items()
            if selected and pod.namespace == namespace:
                for prefix in ("", f"{called}."):
                    told[called] += [
                        f"{prefix}{name}", f"{prefix}{name}.{namespace}",
                        f"{prefix}{name}.{namespace}.svc",
                    ]  # fmt: skip
    return told


def write_hosts(path: Path, network: Network, told: Mapping[str, Sequence[str]]) -> None:
    lines = [
        f"{network.address(called)} {' '.join([called, *more])}" for called, more in told.items()
    ]
    path.write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
