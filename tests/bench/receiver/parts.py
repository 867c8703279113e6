"""What runs: a receiver and its ClickHouse, each a process whose CPU and memory are read."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from authz.demo.stack import HOST, Part, free_port
from authz.store import embedded

_TICK = os.sysconf("SC_CLK_TCK")
ORIGIN = "bench/receiver"


def cpu_seconds(pid: int) -> float:
    """Of the process and its threads so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class Served:
    """A receiver at `address`, and its ClickHouse with the URL `store`."""

    address: str
    store: str
    receiver: int
    clickhouse: int
    """Process ids."""

    def check(self) -> None:
        """Raises `ProcessLookupError` when the receiver has ended."""
        os.kill(self.receiver, 0)


@contextlib.contextmanager
def receiver(work: Path) -> Iterator[Served]:
    """Both, started as an operator would start them."""
    server = embedded.start(work / "clickhouse")
    address = f"{HOST}:{free_port()}"
    command = [sys.executable, "-m", "authz", "serve", "receiver", "--listen", address,
               "--origin", ORIGIN, "--data-dir", str(work / "receiver")]  # fmt: skip
    part = Part("receiver", command, work / "receiver.log", {"AUTHZ_STORE": server.store}, address)
    try:
        part.start()
        part.wait_until_up()
        assert part.process is not None
        yield Served(address, server.store, part.process.pid, server.process.pid)
    finally:
        part.stop()
        server.stop()
