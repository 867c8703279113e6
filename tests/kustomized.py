"""deploy/kubernetes as a cluster would get it: its overlays, built."""

import base64
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from manifests import go_program

KUBERNETES = Path(__file__).parents[1] / "deploy" / "kubernetes"
OVERLAYS = ("autoscaled", "on-disk", "opa-per-node", "demo")
PODS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods of one workload. `found` are all objects of its overlay."""

    name: str
    namespace: str
    labels: dict[str, str]
    spec: Object
    found: tuple[Object, ...]

    @property
    def containers(self) -> list[Object]:
        """In the order in which they start."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> Object:
        [one] = [one for one in self.containers if one["name"] == name]
        return one

    def object(self, kind: str, name: str) -> Object | None:
        """One of this namespace."""
        for one in self.found:
            meta = one["metadata"]
            if (one["kind"], meta["name"], meta.get("namespace")) == (kind, name, self.namespace):
                return one
        return None

    def environment(self, container: Object, called: str = "") -> dict[str, str]:
        """The variables that the container gets, as the kubelet puts them together; secrets that
        are not here are called by their names. `called` is the pod's."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            reference = source["configMapRef"]
            values = self.object("ConfigMap", reference["name"])
            assert values or reference.get("optional"), reference
            found |= values["data"] if values else {}
        for variable in container.get("env", []):
            found[variable["name"]] = self._value(variable, found, called or f"{self.name}-0")
        return found

    def _value(self, variable: Object, before: dict[str, str], called: str) -> str:
        if "value" in variable:
            return expanded(variable["value"], before)
        [(kind, source)] = variable["valueFrom"].items()
        if kind == "fieldRef":
            return {"metadata.name": called, "metadata.namespace": self.namespace}[
                source["fieldPath"]
            ]
        assert kind == "secretKeyRef", kind
        secret = self.object("Secret", source["name"])
        return text_of(secret, source["key"]) if secret else f"{source['name']}/{source['key']}"

    def command(self, container: Object, called: str = "") -> list[str]:
        """Without the image's entrypoint."""
        environment = self.environment(container, called)
        words = [*container.get("command", []), *container.get("args", [])]
        return [expanded(word, environment) for word in words]


def text_of(secret: Object, key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


def expanded(text: str, environment: dict[str, str]) -> str:
    """With ``$(NAME)`` filled in."""
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text


@functools.cache
def built(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay."""
    return build(KUBERNETES / "overlays" / overlay)


def build(directory: Path) -> tuple[Object, ...]:
    done = subprocess.run(
        [go_program("kustomize", KUSTOMIZE), "build", str(directory)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # what is deprecated is told there
    return tuple(yaml.safe_load_all(done.stdout))


def pods(found: tuple[Object, ...]) -> Iterator[Pod]:
    for one in found:
        if one["kind"] in PODS:
            meta, template = one["metadata"], one["spec"]["template"]
            labels = template["metadata"]["labels"]
            yield Pod(meta["name"], meta["namespace"], labels, template["spec"], found)


def pod(overlay: str, name: str) -> Pod:
    [one] = [one for one in pods(built(overlay)) if one.name == name]
    return one
