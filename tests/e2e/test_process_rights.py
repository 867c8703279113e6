"""What each process touches: the files that it opens, and whom it connects to, by strace."""

import asyncio
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import yaml
from programs import CHECKOUT, free_port, listens, program, until, world
from test_documentation import _check

from authz.record.privacy import load_key
from authz.store.client import connect

pytestmark = pytest.mark.thorough

TRACED = CHECKOUT / "tests" / "faults" / "traced.py"
CALLS = "openat,open,creat,mkdir,unlink,rename,renameat,renameat2,connect"
# Of the system and of the program itself: read by every process.
SYSTEM = (
    sys.prefix, sys.base_prefix, str(CHECKOUT / "authz"), str(TRACED.parent),
    "/etc", "/usr", "/lib", "/proc", "/sys", "/dev", "/var/db/zoneinfo",
)  # fmt: skip
# What anybody may read.
PUBLIC = {"checkpoint", "trust.yaml"}


class Traced:
    """A process, and what it was seen to do."""

    def __init__(self, directory, ours, name, address, *arguments, **environment):
        """`address` is where it listens, or serves its metrics."""
        self.name, self.log = name, directory / f"{name}.strace"
        self.told = directory / f"{name}.log"
        self.home = directory / name
        command = [sys.executable, TRACED, "-y", "-e", f"trace={CALLS}", "-o", self.log, "--"]
        if name == "watch":
            command += [name, "--metrics", address, *arguments]
        else:
            command += ["serve", name, "--listen", address, *arguments]
        environment = ours.environment | {"AUTHZ_DATA_DIR": str(self.home)} | environment
        with self.told.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=log, cwd=directory
            )
        port = int(address.rpartition(":")[2])
        assert until(lambda: listens(port) or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.told.read_text()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) == 0, self.told.read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    @property
    def changed(self):
        """The files that it wrote, made, moved or removed."""
        return {path for path, how in self._files() if how != "read"}

    @property
    def read(self):
        """The files that are none of the system's and that it read."""
        return {
            path for path, how in self._files() if how == "read" and not path.startswith(SYSTEM)
        }

    @property
    def peers(self):
        """Whom it connected to: ports of this host, other addresses, sockets by their path."""
        text = self.log.read_text()
        found = set(re.findall(r"connect\(.*?sin6?_port=htons\((\d+)\)", text))
        assert not set(re.findall(r'sin_addr=inet_addr\("(.*?)"\)', text)) - {"127.0.0.1"}
        return {int(port) for port in found} | set(re.findall(r'sun_path=@?"(.*?)"', text))

    def _files(self):
        for line in self.log.read_text().splitlines():
            made = re.search(r'openat\((?:AT_FDCWD|\d+)<(.*?)>, "(.*?)", ([A-Z_|]+)', line)
            if made:
                path = str(Path(made[1]) / made[2])
                if " = -1 ENOENT" not in line:
                    yield path, "write" if re.search("WRONLY|RDWR|CREAT", made[3]) else "read"
                continue
            for path in re.findall(r'"(/.*?)"', line) if "connect(" not in line else ():
                yield path, "change"


@pytest.fixture(scope="module")
def house(clickhouse, tmp_path_factory):
    """Each, traced through a start, a request, a page and a stop."""
    program("strace", "strace")
    directory = tmp_path_factory.mktemp("touched")
    name = "touched"
    store = f"{clickhouse.store.rpartition('/')[0]}/{name}"
    ports = {part: free_port() for part in ("receiver", "ext-authz", "console", "watch")}
    at = {part: f"127.0.0.1:{port}" for part, port in ports.items()}
    keys, policy = directory / "keys", directory / "policy"
    keys.mkdir()
    load_key(keys / "privacy.key")
    policy.symlink_to(CHECKOUT / "deploy" / "opa")
    settings = {
        "privacy": {"key": str(keys / "privacy.key")},
        "ext_authz": {"receiver": at["receiver"]},
        "console": {
            "policy": str(policy / "console.rego"), "trust": str(directory / "trust.yaml"),
            "everyone": "o.ash", "everyone_roles": ["privacy-officer"],
        },
    }  # fmt: skip
    (directory / "authz.yaml").write_text(yaml.safe_dump(settings))
    given = ("--config", directory / "authz.yaml")
    with connect(clickhouse.store) as admin, world() as ours:
        admin.execute(f"CREATE DATABASE {name}")
        parts = []
        try:
            stored = {"AUTHZ_STORE": store}
            parts += [Traced(directory, ours, "receiver", at["receiver"], *given, **stored)]
            (directory / "trust.yaml").write_text(
                (directory / "receiver" / "trust.yaml").read_text()
            )
            parts.append(
                Traced(directory, ours, "ext-authz", at["ext-authz"], *given, "--policy", policy)
            )
            asyncio.run(_check(at["ext-authz"]))
            count = f"SELECT count() FROM {name}.decisions"
            assert until(lambda: admin.execute(count) != [(0,)], 60)
            parts.append(Traced(directory, ours, "console", at["console"], *given, **stored))
            page = httpx.get(f"http://{at['console']}/", timeout=60)
            assert page.status_code == 200
            watch = Traced(directory, ours, "watch", at["watch"], *given, **stored)
            parts.append(watch)
            assert until(lambda: ports["receiver"] in watch.peers, 60)
            for part in reversed(parts):
                part.stop()
            ports["clickhouse"] = urlsplit(store).port
            yield SimpleNamespace(directory=directory, parts=parts, ports=ports)
        finally:
            for part in parts:
                part.kill()
            admin.execute(f"DROP DATABASE {name}")


def test_writes_its_own_directory(house):
    """And nothing else: no temporary file, no other's directory."""
    for part in house.parts:
        home = f"{part.home}/"
        assert {path for path in part.changed if path.startswith(home)}, part.name
        others = {path for path in part.changed if not f"{path}/".startswith(home)}
        assert others <= {"/dev/null"}, part.name


def test_reads_what_it_is_given(house):
    """Besides its own directory: its configuration, the keys and the policy that this names. The
    key of patients' tokens is not for watch, which has no feeds here."""
    given = {house.directory / "authz.yaml", house.directory / "keys" / "privacy.key"}
    rego = set((CHECKOUT / "deploy" / "opa").iterdir())
    policy = {house.directory / "policy" / file.name for file in rego} | {
        house.directory / "policy"
    }
    allowed = {"receiver": given, "ext-authz": given | policy, "console": given | policy}
    allowed["watch"] = {house.directory / "authz.yaml"}
    allowed["console"].add(house.directory / "trust.yaml")
    for part in house.parts:
        read = {Path(path) for path in part.read if not path.startswith(f"{part.home}/")}
        folders = {path for path in read if path.is_dir()}
        assert read - folders <= allowed[part.name], part.name
        assert given & allowed[part.name] <= read, part.name
        assert not [one for one in house.parts if one is not part and one.home in folders]


def test_connects_to_its_peers(house):
    """ext-authz to the receiver, the receiver to the database, console and watch to both; nobody
    else."""
    peers = {part.name: part.peers - {"/var/run/nscd/socket"} for part in house.parts}
    assert peers == {
        "ext-authz": {house.ports["receiver"]},
        "receiver": {house.ports["clickhouse"]},
        "console": {house.ports["clickhouse"], house.ports["receiver"]},
        "watch": {house.ports["clickhouse"], house.ports["receiver"]},
    }


def test_files_are_their_owners(house):
    """What a process keeps is readable by its user alone, but for what is published anyway."""
    for part in house.parts:
        files = [path for path in part.home.rglob("*") if path.is_file()]
        assert files
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        assert {name for name, mode in modes.items() if mode != 0o600} <= PUBLIC
