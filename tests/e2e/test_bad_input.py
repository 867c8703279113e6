"""What a person gets wrong is told in one line that names the mend, soon, with its exit code."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from mistakes import COULD_NOT_TELL, MISTAKES, USAGE, Mistake, Site, unreachable
from programs import AUTHZ, CHECKOUT, free_port, listens, run, until, world

from authz.store import migrations
from authz.store.client import connect

_SECONDS = 60  # a mistake is told, and nothing waits; on a machine that does other things too
_POLICY = CHECKOUT / "deploy" / "opa"


@dataclass(frozen=True, slots=True)
class Outcome:
    exit_code: int | None  # None: it went on
    told: str
    seconds: float


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory) -> Iterator[Site]:
    """A site where everything a mistake needs is there already."""
    files = tmp_path_factory.mktemp("site")
    base = clickhouse.store.rpartition("/")[0]
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(world())
        client = stack.enter_context(connect(clickhouse.store))
        for name in ("bad_input", "bad_input_newer"):
            client.execute(f"CREATE DATABASE {name}")
            stack.callback(client.execute, f"DROP DATABASE {name}")
            with connect(f"{base}/{name}") as database:
                migrations.migrate(database)
        client.execute(
            "INSERT INTO bad_input_newer.schema_versions (version) VALUES",
            [(migrations.VERSION + 1,)],
        )
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        used: set[int] = set()

        def free() -> int:
            while (port := free_port()) in used:
                pass
            used.add(port)
            return port

        made = Site(files, ours, f"{base}/bad_input", f"{base}/bad_input_newer", taken, free, {})
        _occupy(made, stack)
        yield made


def _occupy(site: Site, stack: contextlib.ExitStack) -> None:
    """Start a server of each kind, and stop one receiver again."""
    socket_path = site.new()
    commands = {
        "ext_authz": site.ext_authz(listen=f"unix://{socket_path}"),
        "receiver": site.receiver(),
        "stopped": site.receiver(origin="test/stopped"),
        "clickhouse": site.clickhouse(tcp=str(site.free())),
    }
    site.occupied["socket"] = str(socket_path)
    servers = {}
    for name, command in commands.items():
        site.occupied[name] = command[command.index("--data-dir") + 1]
        log = stack.enter_context((site.files / f"{name}.log").open("w"))
        server = subprocess.Popen(
            [*AUTHZ, *command],
            env=site.world.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        stack.callback(server.wait, 60)
        stack.callback(server.terminate)
        servers[name] = server
    for name, command in commands.items():
        place = command[command.index("--tcp" if name == "clickhouse" else "--listen") + 1]
        up = socket_path.exists if name == "ext_authz" else lambda: listens(int(port))  # noqa: B023 - called in the loop
        port = place.rpartition(":")[2]
        assert until(up, 30), (site.files / f"{name}.log").read_text()
    stored = Path(site.occupied["stopped"], "state.json")
    assert until(stored.exists, 30)
    servers["stopped"].send_signal(signal.SIGTERM)
    assert servers["stopped"].wait(30) == 0


@pytest.fixture(scope="module")
def outcomes(site) -> dict[str, Outcome]:
    """What came of each mistake, by its name; all are made at once, as far as two cores go."""

    def make(mistake: Mistake) -> Outcome:
        begun = time.monotonic()
        command = [*AUTHZ, *mistake.command(site)]
        environment = {**site.world.environment, **mistake.environment}
        try:
            done = run(command, site.world, 2 * _SECONDS, env=environment, cwd=site.files)
        except subprocess.TimeoutExpired as error:
            return Outcome(None, (error.stderr or b"").decode(), 2 * _SECONDS)
        return Outcome(done.returncode, done.stderr, time.monotonic() - begun)

    with ThreadPoolExecutor(3) as pool:
        made = pool.map(make, MISTAKES)
        return {mistake.name: outcome for mistake, outcome in zip(MISTAKES, made, strict=True)}


def test_each_mistake_is_made_once():
    """No two mistakes have one name, or one of them would not be looked at."""
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.thorough
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake(outcomes, mistake):
    """A mistake ends the command soon, with its exit code and one line that says what to mend."""
    outcome = outcomes[mistake.name]
    lines = outcome.told.splitlines()
    if mistake.is_up:
        lines = [line for line in lines if not line.startswith("{")]
    assert len(lines) == 1, outcome.told[-300:]
    assert lines[0].startswith("authz: ")
    missing = [word for word in mistake.words if word not in lines[0]]
    assert not missing, lines[0]
    assert "secret-word" not in lines[0]
    assert outcome.exit_code == mistake.exit_code
    assert outcome.seconds < _SECONDS


@pytest.mark.thorough
def test_what_was_taken_is_left_alone(outcomes, site):
    """Mistakes do no harm: the file in a socket's place is there, and the servers in use go on."""
    assert [path.read_text() for path in site.files.rglob("precious")] == ["data"]
    assert Path(site.occupied["socket"]).is_socket()
    log = Path(site.occupied["clickhouse"], "clickhouse.log")
    config = (site.files / "clickhouse.log").read_text()
    assert "Traceback" not in config
    tcp = Path(site.occupied["clickhouse"], "clickhouse-local.xml").read_text()
    assert listens(int(tcp.partition("<tcp_port>")[2].partition("<")[0]))
    assert log.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "ext-authz", "--polcy", "x"],
        ["serve", "clickhouse", "--tcp", "99999"],
        ["serve", "nothing"],
        ["verify"],
        ["demo", "--requests", "-1"],
    ],
    ids=" ".join,
)
def test_the_option_parser_tells(command):
    """What the option parser refuses is a usage error too, without a traceback."""
    with world() as ours:
        done = run([*AUTHZ, *command], ours)
    assert done.returncode == USAGE
    assert "Usage: authz" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_newer_value_than_the_file(tmp_path):
    """The environment overrides the file, and an option both, so one mistake hides no other."""
    file = tmp_path / "authz.yaml"
    file.write_text("ext_authz: {policy: /of/the/file}\n")
    command = [*AUTHZ, "serve", "ext-authz", "--config", str(file), "--data-dir", str(tmp_path)]
    with world() as ours:
        environment = {**ours.environment, "AUTHZ_EXT_AUTHZ__POLICY": "/of/the/environment"}
        told = [
            run(command, ours).stderr,
            run(command, ours, env=environment).stderr,
            run([*command, "--policy", "/of/the/option"], ours, env=environment).stderr,
        ]
    assert [line.split()[2].rstrip(":") for line in told] == [
        "/of/the/file",
        "/of/the/environment",
        "/of/the/option",
    ]


def test_json(site):
    """With --json a mistake leaves standard output empty: half a result is none."""
    done = run([*AUTHZ, *site.verify(store=unreachable(site)), "--json"], site.world)
    assert done.stdout == ""
    assert done.returncode == COULD_NOT_TELL
