"""One Envoy's configuration as the checks look at it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from authz.config import Config
from authz.doctor.documents import Document, Mapping
from authz.doctor.findings import Finding, Level

HTTP_EXT_AUTHZ: Final = re.compile(r"\.http\.ext_authz\.v\w+\.ExtAuthz$")
NETWORK_EXT_AUTHZ: Final = re.compile(r"\.network\.ext_authz\.v\w+\.ExtAuthz$")
ANY_EXT_AUTHZ: Final = re.compile(r"\.ext_authz\.v\w+\.(ExtAuthz|FilterConfig)$")
PER_ROUTE: Final = re.compile(r"\.ext_authz\.v\w+\.ExtAuthzPerRoute$")
MANAGER: Final = re.compile(r"\.HttpConnectionManager$")


@dataclass(frozen=True, slots=True)
class Node:
    """A mapping somewhere in the configuration, and what it lies in."""

    value: Mapping
    names: tuple[str, ...] = ()
    """Of the listeners, filters, routes it lies in."""
    keys: tuple[str, ...] = ()
    type: str = ""
    """The type of the nearest message that has one."""
    outbound: bool = False
    """In a listener for what the service itself asks of others."""

    @property
    def own_type(self) -> str:
        return str(self.value.get("@type", ""))


@dataclass(frozen=True)
class Envoy:
    """A document, with what the deployment's own configuration says, if that was given."""

    document: Document
    config: Config | None = None

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(_walk(self.document.root, Node({})))

    def of(self, kind: re.Pattern[str]) -> Iterator[Node]:
        """Messages of this type, wherever they are."""
        return (node for node in self.nodes if kind.search(node.own_type))

    @property
    def managers(self) -> list[Node]:
        """The HTTP connection managers that requests to the service come in by. None in a manifest,
        which may hold a part of one."""
        if not self.document.is_envoy:
            return []
        return [node for node in self.of(MANAGER) if not node.outbound and self._reaches(node)]

    def filter_types(self, filters: list[Mapping]) -> list[str]:
        """The type of each entry; "" for one that comes by discovery and is not here."""
        found = items(self.document.root, "discovered")
        discovered = {str(item.get("name")): filter_type(item) for item in found}
        return [filter_type(entry) or discovered.get(str(entry.get("name")), "")
                for entry in filters]  # fmt: skip

    def part(self, node: Node) -> str:
        return ": ".join(filter(None, (self.document.name, " > ".join(node.names))))

    def fail(self, node: Node, seen: str, why: str, mend: str) -> Finding:
        return Finding(Level.FAIL, self.part(node), seen, why, mend)

    def warn(self, node: Node, seen: str, why: str, mend: str) -> Finding:
        return Finding(Level.WARN, self.part(node), seen, why, mend)

    def _reaches(self, manager: Node) -> bool:
        """Whether one of its routes leads to a cluster; yes where no route is to be seen."""
        table = manager.value.get("route_config")
        if "rds" in manager.value:
            wanted = section(manager.value, "rds").get("route_config_name")
            tables = items(self.document.root, "route_configs")
            table = next((found for found in tables if found.get("name") == wanted), None)
        if not isinstance(table, dict) or "vhds" in table:
            return True
        routes = [
            route for host in items(table, "virtual_hosts") for route in items(host, "routes")
        ]
        answered = ({"direct_response", "redirect", "non_forwarding_action"} & route.keys()
                    for route in routes)  # fmt: skip
        return not routes or not all(answered)


def items(value: Mapping, key: str) -> list[Mapping]:
    """The mappings in the list `key`."""
    found = value.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def texts(value: Mapping, key: str) -> list[str]:
    """What is in the list `key`, as text."""
    found = value.get(key)
    return [str(item) for item in found] if isinstance(found, list) else []


def section(value: Mapping, *keys: str) -> Mapping:
    """The mapping at `keys`, or {}."""
    for key in keys:
        inner = value.get(key)
        value = inner if isinstance(inner, dict) else {}
    return value


def filter_type(entry: Mapping) -> str:
    """The type of an HTTP or network filter's entry, also inside a matcher around it."""
    config = section(entry, "typed_config")
    inner = section(config, "extension_config", "typed_config")
    return str(inner.get("@type", "") or config.get("@type", ""))


def seconds(duration: object) -> float | None:
    """A duration as JSON writes it (`0.25s`); None for another form."""
    form = re.fullmatch(r"([0-9.]+)s", str(duration))
    try:
        return float(form[1]) if form else None
    except ValueError:
        return None


def from_dump(name: str, dump: Mapping) -> Document:
    """What `/config_dump` tells, all of it, in the form of a bootstrap."""
    listeners: list[Any] = []
    routes: list[Any] = []
    discovered: list[Any] = []
    others: list[Any] = []
    root: Mapping = {}
    for config in items(dump, "configs"):
        kind = str(config.get("@type", "")).rpartition(".")[2]
        if kind == "BootstrapConfigDump":
            # Its listeners are in the next part too, as they are in force.
            root = {**section(config, "bootstrap")}
            root.pop("static_resources", None)
        elif kind == "ListenersConfigDump":
            listeners += [section(item, "listener") for item in items(config, "static_listeners")]
            for item in items(config, "dynamic_listeners"):
                for state in ("active_state", "warming_state"):
                    if state in item:
                        listeners.append(section(item, state, "listener"))
        elif kind == "RoutesConfigDump":
            # The static ones are in their listeners.
            dynamic = items(config, "dynamic_route_configs")
            routes += [section(item, "route_config") for item in dynamic]
        elif kind == "EcdsConfigDump":
            filters = items(config, "ecds_filters")
            discovered += [section(item, "ecds_filter") for item in filters]
        else:
            others.append(config)
    root |= {"static_resources": {"listeners": listeners}, "route_configs": routes}
    return Document(name, {**root, "discovered": discovered, "others": others})


def _walk(value: Any, outer: Node) -> Iterator[Node]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, outer)
    if not isinstance(value, dict):
        return
    node = replace(
        outer,
        value=value,
        names=(*outer.names, *_name(value, outer)),
        type=str(value.get("@type", outer.type)),
        outbound=outer.outbound or value.get("traffic_direction") in {"OUTBOUND", 2},
    )
    yield node
    by_filter = node.keys[-1:] == ("typed_per_filter_config",)
    for key, item in value.items():
        names = (*node.names, key) if by_filter else node.names
        yield from _walk(item, replace(node, names=names, keys=(*node.keys, key)))


def _name(value: Mapping, outer: Node) -> tuple[str, ...]:
    """What a mapping adds to the place of what lies in it."""
    name = value.get("name")
    if isinstance(name, str) and name not in outer.names:
        return () if MANAGER.search(filter_type(value)) else (name,)
    if outer.keys[-1:] == ("routes",):
        match = section(value, "match")
        paths = [match[key] for key in ("prefix", "path", "path_separated_prefix") if key in match]
        return (" ".join(["route", *map(str, paths)]),)
    return ()
