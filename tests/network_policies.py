"""NetworkPolicies as a CNI enforces them: who may open a connection to whom."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kustomized import Object, pods


@dataclass(frozen=True)
class Peer:
    """Pods that are alike, or (without a namespace) what is outside the cluster."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    ports: dict[str, int] = field(default_factory=dict, hash=False)


OUTSIDE = Peer("outside")


def peers(found: Iterable[Object]) -> Iterator[Peer]:
    """The pods of an overlay."""
    for one in pods(tuple(found)):
        ports = {
            port["name"]: port["containerPort"]
            for container in one.containers
            for port in container.get("ports", [])
        }
        yield Peer(one.name, one.namespace, one.labels, ports)


class Network:
    """The policies of `found`. Of a namespace that is not there, its name is its only label."""

    def __init__(self, found: Iterable[Object]) -> None:
        found = list(found)
        self._policies = [one for one in found if one["kind"] == "NetworkPolicy"]
        self._namespaces = {
            one["metadata"]["name"]: one["metadata"].get("labels", {})
            for one in found
            if one["kind"] == "Namespace"
        }

    def lets(self, source: Peer, target: Peer, port: int) -> bool:
        """Whether `source` may connect to this port: its own policies and those of `target`."""
        sends = self._allowed("Egress", source, target, target, port)
        return sends and self._allowed("Ingress", target, source, target, port)

    def _allowed(self, way: str, of: Peer, other: Peer, target: Peer, port: int) -> bool:
        mine = [
            policy
            for policy in self._policies
            if policy["metadata"]["namespace"] == of.namespace
            and way in policy["spec"]["policyTypes"]
            and _selects(policy["spec"]["podSelector"], of.labels)
        ]
        key, ends = ("egress", "to") if way == "Egress" else ("ingress", "from")
        return not mine or any(
            self._among(other, rule.get(ends), of.namespace)
            and _opens(rule.get("ports"), target, port)
            for policy in mine
            for rule in policy["spec"].get(key, [])
        )

    def _among(self, peer: Peer, selectors: list[Object] | None, here: str) -> bool:
        return selectors is None or any(self._is(peer, one, here) for one in selectors)

    def _is(self, peer: Peer, selector: Object, here: str) -> bool:
        assert not selector.keys() - {"namespaceSelector", "podSelector"}, selector
        if not peer.namespace:
            return False
        name = {"kubernetes.io/metadata.name": peer.namespace}
        labels = self._namespaces.get(peer.namespace, {}) | name
        if "namespaceSelector" in selector:
            there = _selects(selector["namespaceSelector"], labels)
        else:
            there = peer.namespace == here
        return there and _selects(selector.get("podSelector", {}), peer.labels)


def _opens(ports: list[Object] | None, target: Peer, port: int) -> bool:
    return ports is None or any(
        (target.ports.get(one["port"]) if isinstance(one["port"], str) else one["port"]) == port
        and one.get("protocol", "TCP") == "TCP"
        for one in ports
    )


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert not selector.keys() - {"matchLabels", "matchExpressions"}, selector
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In", one
        if labels.get(one["key"]) not in one["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
