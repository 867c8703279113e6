"""Containers without an engine: bubblewrap gives a process its own root, which it cannot write to,
and takes every right away, as Kubernetes' level `restricted` does.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from image import Image


@dataclass(frozen=True, slots=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(slots=True)
class Container:
    """One process, process 1 of its own, in the network namespace that `enter` leads to."""

    image: Image
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    user: int
    groups: Sequence[int]
    log: Path
    enter: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = None
    pid: int = 0
    _all: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self._all = {**self.image.environment, "HOME": "/", **self.environment}
        read, write = os.pipe()
        line = [*self.enter, "bwrap", "--ro-bind", self.image.root, "/", "--dev", "/dev",
                "--proc", "/proc"]  # fmt: skip
        for mount in self.mounts:
            how = "--ro-bind" if mount.read_only else "--bind"
            self._place(mount)
            line += [how, mount.source, mount.target]
        line += ["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts",
                 "--info-fd", str(write), "--clearenv"]  # fmt: skip
        for name, value in self._all.items():
            line += ["--setenv", name, value]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, line), "--", *self._unprivileged(), *self.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write],
                start_new_session=True,
            )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as info:
            told = info.read()
        assert told, self.log.read_text()
        self.pid = json.loads(told)["child-pid"]

    def _place(self, mount: Mount) -> None:
        """Somewhere to mount it: an engine makes that in a layer of the container's own."""
        place = self.image.root / mount.target.lstrip("/")
        if mount.source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()

    def _unprivileged(self) -> list[str]:
        groups = ",".join(map(str, self.groups))
        return [
            "setpriv", f"--reuid={self.user}", f"--regid={self.groups[0]}", f"--groups={groups}",
            "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
        ]  # fmt: skip

    def inside(self, *command: str) -> list[str]:
        """What runs a command in it, as `kubectl exec` does."""
        settings = [f"{name}={value}" for name, value in self._all.items()]
        return [
            "nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--root",
            "--wd", "env", "-i", *settings, *self._unprivileged(), *command,
        ]  # fmt: skip

    def run(self, *command: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.inside(*command), capture_output=True, text=True, check=False, timeout=seconds
        )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        assert self.process
        return self.process.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """SIGTERM to its process 1, and SIGKILL after so long; whether it ended by itself."""
        deadline = time.monotonic() + seconds
        self._signal(signal.SIGTERM)
        while self.running and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self.running:
            return True
        self._signal(signal.SIGKILL)
        self.wait(10)
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
