"""Hosts on one machine: network namespaces, each with an address of its own, joined by a bridge.

The bridge is in a namespace too, so that the machine's own network knows nothing of all this.
"""

import contextlib
import ctypes
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_BRIDGE = "bridge"


class Network:
    """The hosts `names`, once they are made."""

    def __init__(self, names: Sequence[str]) -> None:
        self._token = secrets.token_hex(3)
        self._names = names

    def make(self) -> None:
        """Needs root."""
        self._run("ip", "netns", "add", self._namespace(_BRIDGE))
        self._at(_BRIDGE, "ip", "link", "add", "bridge", "type", "bridge")
        self._at(_BRIDGE, "ip", "link", "set", "bridge", "up")
        for name in self._names:
            self._join(name)

    def _join(self, name: str) -> None:
        self._run("ip", "netns", "add", self._namespace(name))
        self._at(name, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", name,
                 "netns", self._namespace(_BRIDGE))  # fmt: skip
        self._at(_BRIDGE, "ip", "link", "set", name, "master", "bridge", "up")
        self._at(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._at(name, "ip", "link", "set", device, "up")

    def address(self, name: str) -> str:
        return f"10.77.0.{self._names.index(name) + 1}"

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """What runs `command` on a host; it becomes that process."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """What this thread connects to meanwhile is what `name` can reach."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as here,
            Path("/run/netns", self._namespace(name)).open("rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def cut(self, name: str) -> None:
        """Take the host's cable out: what is on its way is lost, and nobody is told."""
        self._at(_BRIDGE, "ip", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        self._at(_BRIDGE, "ip", "link", "set", name, "up")

    def close(self) -> None:
        for name in (*self._names, _BRIDGE):
            subprocess.run(["ip", "netns", "delete", self._namespace(name)], check=False)

    def _namespace(self, name: str) -> str:
        return f"authz-{self._token}-{name}"

    def _at(self, name: str, *command: str) -> None:
        self._run(*self.command(name, command))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    made = Network(names)
    try:
        made.make()
        yield made
    finally:
        made.close()
