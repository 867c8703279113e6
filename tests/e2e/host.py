"""A host of its own on this machine: a systemd that is process 1 of its namespaces. Needs root.

It has this machine's files, a copy of /etc, new and empty /opt, /usr/local/bin, /run, /tmp and
/var/lib, no units but those that are put there, and no network but loopback.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from programs import CHECKOUT, until

UNITS = Path("/etc/systemd/system")
_SYSTEMD = Path("/lib/systemd/systemd")
_TARGETS = ("sysinit", "basic", "multi-user", "timers", "network-online", "shutdown", "boot")
_PYTHON = "/opt/python/bin/python3"
_UNSHARE = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--net",
            "--uts", "--ipc", "--cgroup")  # fmt: skip
_START = r"""
set -eu
mount --make-rprivate /
mount --make-rshared /
cp -a /etc "$KEPT/etc"
rm -rf "$KEPT"/etc/systemd/system/*
mount --bind "$KEPT/etc" /etc
mount -t tmpfs tmpfs /opt
mkdir -p /opt/src /opt/site /opt/python /opt/authz/bin
mount --bind "$SRC" /opt/src
mount --bind "$SITE" /opt/site
mount --bind "$PREFIX" /opt/python
cp "$KEPT"/programs/authz "$KEPT"/programs/envoy /opt/authz/bin
for new in /usr/local/bin /var/lib /run; do mount -t tmpfs -o mode=755 tmpfs $new; done
cp "$OPA" /usr/local/bin/opa
mkdir /run/units
for target in $TARGETS; do echo '[Unit]' > /run/units/$target.target; done
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
export container=other SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units
exec "$SYSTEMD" --system --unit=boot.target --log-target=console --show-status=false
"""


@dataclass
class Host:
    pid: int
    """Of its process 1, as seen from outside."""

    def run(
        self, script: str, seconds: float = 120, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """What a shell does there, in the checkout; ended at the first command that fails."""
        command = ["nsenter", "--target", str(self.pid), "--all",
                   "sh", "-eu", "-c", f"cd /opt/src\n{script}"]  # fmt: skip
        path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            command, env={"PATH": path, **environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip

    def do(self, script: str, seconds: float = 120, **environment: str) -> str:
        """The same; it must succeed. What it printed."""
        done = self.run(script, seconds, **environment)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def path(self, path: str | Path) -> Path:
        """A file of it, as seen from outside."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextlib.contextmanager
def host(kept: Path, opa: str) -> Iterator[Host]:
    """One that is up; `kept` is a directory for what is kept of it outside."""
    _programs(kept / "programs")
    group = _cgroups() / f"authz-{secrets.token_hex(3)}"
    group.mkdir()
    environment = {
        "KEPT": str(kept), "SRC": str(CHECKOUT), "OPA": opa, "SYSTEMD": str(_SYSTEMD),
        "SITE": sysconfig.get_path("platlib"), "PREFIX": sys.base_prefix,
        "TARGETS": " ".join(_TARGETS), "PATH": os.environ["PATH"],
    }  # fmt: skip
    enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    command = ["sh", "-c", enter, "sh", *_UNSHARE, "sh", "-c", _START]
    with (kept / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        first = until(lambda: _child(process.pid), 30)
        assert first, (kept / "systemd.log").read_text()
        made = Host(first)
        up = until(lambda: made.run("systemctl is-active boot.target").returncode == 0, 60)
        assert up, (kept / "systemd.log").read_text()
        yield made
    finally:
        process.kill()  # and with it, all of them
        process.wait()
        assert until(lambda: _remove(group), 30)


def _programs(directory: Path) -> None:
    """As pip would install them; users of the host's own cannot read a checkout elsewhere."""
    directory.mkdir()
    start = (
        "#!/bin/sh\nexport LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/src:/opt/site"
        f" PYTHONDONTWRITEBYTECODE=1\nexec {_PYTHON}"
    )
    envoy = "import sys; from envoy._main import main; sys.exit(main())"
    for name, rest in (("authz", "-m authz"), ("envoy", f"-c '{envoy}'")):
        (directory / name).write_text(f'{start} {rest} "$@"\n')
        (directory / name).chmod(0o755)


def _cgroups() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")


def _remove(group: Path) -> bool:
    """Whether nothing is left of a control group; it is busy until its processes are gone."""
    inner = [one for one in group.rglob("*") if one.is_dir()]
    try:
        for one in [*sorted(inner, reverse=True), group]:
            one.rmdir()
    except OSError:
        return False
    return True


def _child(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(children[0]) if children else 0
