"""What `authz init` writes really starts: `local` by its own script, and
bare hosts' services by the command lines of their units."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from programs import AUTHZ, World, free_port, listens, program, run, until, world

from authz.demo.people import AUDIENCE, ISSUER, PEOPLE, Keys
from authz.demo.stack import envoy_program
from authz.store import embedded
from authz.store.client import connect

CHART = "/fhir/Patient/p-0001"
STORED = "SELECT subject, allowed FROM requests"
WANTED = {("n.hazel", False), ("dr.alder", True)}


@dataclass(frozen=True, slots=True)
class Running:
    """A deployment, and where its Envoy is."""

    directory: Path
    envoy: str
    ours: World
    process: "subprocess.Popen[str] | subprocess.Popen[bytes]"
    store: str = ""
    keys: Keys | None = None


def programs(directory: Path, ours: World) -> None:
    """The program, and Envoy, on the PATH of this world."""
    found = directory / "bin"
    found.mkdir()
    (found / "authz").write_text(f'#!/bin/sh\nexec {shlex.join(AUTHZ)} "$@"\n')
    (found / "authz").chmod(0o755)
    (found / "envoy").symlink_to(envoy_program())
    ours.environment["PATH"] = f"{found}{os.pathsep}{ours.environment['PATH']}"
    ours.environment["PYTHON"] = sys.executable
    ours.environment["XDG_STATE_HOME"] = str(directory / "state")


def on_free_ports(*files: Path) -> None:
    """Other ports than the usual ones, the same in all these files."""
    for port in ("9191", "9292", "9393", "9464", "9465", "8000"):
        instead = str(free_port())
        for path in files:
            path.write_text(re.sub(rf"([:=]){port}\b", rf"\g<1>{instead}", path.read_text()))


def status(envoy: str, token: str | None) -> int:
    async def ask() -> int:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{envoy}{CHART}", headers=headers) as answer,
        ):
            return answer.status

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[Running]:
    """`authz init --platform local`, and its run.sh."""
    program("curl", "curl")
    directory = tmp_path_factory.mktemp("local")
    envoy = f"127.0.0.1:{free_port()}"
    with world() as ours:
        programs(directory, ours)
        command = ["init", "--platform", "local", "--listen", envoy, "--yes", directory / "site"]
        done = run([*AUTHZ, *command], ours, 180)
        assert done.returncode == 0, done.stdout + done.stderr
        site = directory / "site"
        on_free_ports(site / "authz.yaml", site / "envoy.env")
        # As in a terminal, also where the tests run in the background and so ignore SIGINT.
        command = ["env", "--default-signal=INT", site / "run.sh"]
        process = subprocess.Popen(
            command, env=ours.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            logs = {p.name: p.read_text() for p in (site / "data" / "logs").glob("*")}
            assert line == f"ready: http://{envoy}\n", line + json.dumps(logs, indent=1)
            yield Running(site, envoy, ours, process)
        finally:
            process.terminate()
            process.wait(90)
            process.stdout.close()


@pytest.mark.thorough
def test_local(local):
    """One command, and requests are allowed and denied; the log has them, is intact, and the next
    steps that it printed do what they say."""
    tokens = {
        name: (local.directory / "tokens" / f"{name}.jwt").read_text()
        for name in ("alder", "hazel")
    }
    assert until(lambda: status(local.envoy, tokens["alder"]) == 200, 30)
    assert until(lambda: status(local.envoy, tokens["hazel"]) == 403, 30)
    assert status(local.envoy, None) == 401
    store = re.search(r"store: (\S+)", (local.directory / "data" / "authz.yaml").read_text())[1]
    with connect(store) as client:
        assert until(lambda: set(client.execute(STORED)) >= WANTED, 30)
    steps = (local.directory / "NEXT.md").read_text()
    for command in ("verify", "lookup"):
        [line] = re.findall(rf"^   .*\bauthz {command} .*$", steps, re.MULTILINE)
        line = line.strip().rpartition('"$PATH" ')[2]
        done = run(["sh", "-c", line], local.ours, cwd=local.directory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {"verify": "intact: nothing changed", "lookup": "dr.alder"}[command] in done.stdout
    # Ctrl-C ends all of it: nothing is left running, and nothing unsent.
    os.killpg(local.process.pid, signal.SIGINT)
    logs = local.directory / "data" / "logs"
    ended = until(lambda: local.process.poll() is not None, 150)
    told = {path.name: path.read_text()[-2000:] for path in logs.glob("*")}
    assert ended, (local.ours.running(), told)
    assert local.process.returncode == 0
    assert local.ours.running() == {}
    for name in ("ext_authz", "receiver"):
        lines = (local.directory / "data" / "logs" / f"{name}.log").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        [end] = [one for one in told if "left_in_journal" in one]
        assert end["left_in_journal"] == 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory, opa) -> Iterator[Running]:
    """`authz init --platform bare-hosts`: the written tree in a directory of the test's, its
    services by their units' own commands; ClickHouse, and the service, are the user's."""
    program("envsubst", "gettext-base")
    directory = tmp_path_factory.mktemp("bare")
    keys = Keys()
    (directory / "jwks.json").write_text(json.dumps(keys.jwks()))
    service, envoy = free_port(), f"127.0.0.1:{free_port()}"
    server = embedded.start(directory / "clickhouse")
    try:
        with world() as ours:
            programs(directory, ours)
            words = [
                "--platform", "bare-hosts", "--upstream", f"127.0.0.1:{service}",
                "--listen", envoy, "--jwks", directory / "jwks.json", "--issuer", ISSUER,
                "--audience", AUDIENCE, "--durability", "receiver", "--cluster", "ward",
            ]  # fmt: skip
            done = run([*AUTHZ, "init", *words, "--yes", directory / "site"], ours, 180)
            assert done.returncode == 0, done.stdout + done.stderr
            etc = directory / "site" / "etc"
            (etc / "authz" / "receiver.env").write_text(f"AUTHZ_STORE={server.store}\n")
            for path in etc.rglob("*"):
                if path.suffix in (".service", ".conf", ".env", ".yaml"):
                    text = path.read_text()
                    if path.suffix != ".env" or path.name == "envoy.env":
                        text = text.replace("/etc/authz", str(etc / "authz"))
                    path.write_text(
                        text.replace("/run/authz-", f"{directory}/run-")
                        .replace("/var/lib/authz", f"{directory}/lib")
                        .replace("/usr/local/bin/envoy", envoy_program())
                        .replace("/usr/local/bin/opa", opa)
                        .replace("/opt/authz/bin/authz", str(directory / "bin" / "authz"))
                    )
            on_free_ports(etc / "authz" / "authz.yaml", etc / "authz" / "envoy.env")
            sample = [sys.executable, "-m", "authz.demo.fhir", "--listen", f"127.0.0.1:{service}"]
            started = [subprocess.Popen(sample, env=ours.environment)]
            try:
                names = ("opa", "receiver", "ext-authz", "envoy")
                started.extend(unit(etc, directory, name, ours) for name in names)
                port = int(envoy.rpartition(":")[2])
                assert until(lambda: listens(port), 60)
                yield Running(directory, envoy, ours, started[-1], server.store, keys)
            finally:
                for process in reversed(started):
                    process.terminate()
                    process.wait(60)
    finally:
        server.stop()


def unit(etc: Path, directory: Path, name: str, ours: World) -> "subprocess.Popen[bytes]":
    """The service of a unit and its drop-ins, as systemd would start it, but for who it is."""
    units = etc / "systemd" / "system"
    text = (units / f"authz-{name}.service").read_text()
    for path in sorted((units / f"authz-{name}.service.d").glob("*.conf")):
        text += path.read_text()
    text = text.replace("\\\n", " ")

    def values(key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)

    environment = dict(ours.environment)
    for file in values("EnvironmentFile"):
        for line in Path(file).read_text().splitlines():
            if line and not line.startswith("#"):
                variable, _, value = line.partition("=")
                environment[variable] = value
    for line in values("Environment"):
        variable, _, value = line.partition("=")
        environment[variable] = value.replace("%d", str(etc / "authz" / "keys"))
    (directory / f"run-{name}").mkdir()
    (directory / "lib").mkdir(exist_ok=True)
    for line in values("ExecStartPre"):
        subprocess.run(shlex.split(line), env=environment, check=True, timeout=60)
    [command] = values("ExecStart")
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(shlex.split(command), env=environment, stdout=log, stderr=log)


def test_bare_hosts(bare):
    """What units and configuration say fits together: allowed, denied, on record under the log's
    name, intact; and an answer waits for the receiver's disk."""
    alder, hazel = (bare.keys.token(PEOPLE[name]) for name in ("alder", "hazel"))
    assert until(lambda: status(bare.envoy, alder) == 200, 180), told(bare.directory)
    assert until(lambda: status(bare.envoy, hazel) == 403, 30)
    with connect(bare.store) as client:
        found = until(lambda: set(client.execute(STORED)) >= WANTED, 60)
        assert found, told(bare.directory)
        assert client.execute("SELECT DISTINCT origin FROM audit_log") == [("ward/receiver-1",)]
    trust = bare.directory / "lib" / "receiver" / "trust.yaml"
    done = run([*AUTHZ, "verify", "--store", bare.store, "--trust", trust], bare.ours)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "intact: nothing changed" in done.stdout


def told(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.glob("*.log"))
