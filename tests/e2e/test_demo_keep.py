"""``authz demo --keep``: what stays up, how soon a request is stored, what it tells to try."""

import base64
import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import AUTHZ, World, listens, program, run, until, world

from authz.ledger import Checkpoint, open_note
from authz.store.client import connect
from authz.trust import load_trust

_START_SECONDS = 60
_STORED_SECONDS = 2  # from the answer to the row

_PEOPLE = {
    "alder": (200, "dr.alder", ["physician"], "physician on the care team"),
    "ginkgo": (403, "f.ginkgo", [], "no role"),
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A demo that was left running, and what it printed of itself."""

    process: "subprocess.Popen[str]"
    addresses: dict
    world: World
    temporary: Path

    def ask(self, person: str, agent: str) -> str:
        """The status line of `person`'s look at a chart through Envoy; `agent` finds its record."""
        token = self.addresses["tokens"][person]
        url = f"{self.addresses['envoy']}/fhir/Patient/p-0001"
        command = ["curl", "-sS", "-i", "-A", agent, "-H", f"authorization: Bearer {token}", url]
        done = run(command, self.world)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[0]


@contextlib.contextmanager
def kept(temporary: Path, *options: str) -> Iterator[Kept]:
    """``authz demo --keep --json``, up; `temporary` is where its data directory goes."""
    command = [*AUTHZ, "demo", "--keep", "--json", "--requests", "0", *options]
    with (
        world({**os.environ, "TMPDIR": str(temporary)}) as ours,
        (temporary / "stderr").open("w") as stderr,
        subprocess.Popen(
            command,
            env=ours.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, (temporary / "stderr").read_text()
            yield Kept(process, json.loads(line), ours, temporary)
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Kept]:
    with kept(tmp_path_factory.mktemp("kept")) as running:
        yield running


def agent() -> str:
    return f"e2e-{secrets.token_hex(8)}"


def test_addresses(demo):
    """The one JSON object names everything by the keys of the contract, and all of it is there."""
    told = demo.addresses
    names = "envoy store http console ext_authz receiver trust data_dir tokens"
    assert set(told) == set(names.split())
    for name in ("envoy", "store", "http", "console", "ext_authz", "receiver"):
        port = re.search(r":(\d+)(/\w*)?$", told[name])
        assert port, told[name]
        assert listens(int(port[1])), told[name]
    assert told["store"].startswith("clickhouse://admin:")
    assert Path(told["data_dir"]).is_relative_to(demo.temporary)
    assert load_trust(Path(told["trust"]))
    assert {"alder", "ginkgo"} <= set(told["tokens"])
    assert all(token.count(".") == 2 for token in told["tokens"].values())


@pytest.mark.parametrize("person", _PEOPLE)
def test_row_soon_after_the_answer(demo, person):
    """Within two seconds of its answer a request is in ClickHouse: who, by what role, and why."""
    status, *who = _PEOPLE[person]
    mine = agent()
    with connect(demo.addresses["store"]) as client:
        line = demo.ask(person, mine)
        answered = time.monotonic()
        query = (
            "SELECT subject, roles, reason, decision_id FROM requests WHERE user_agent = %(agent)s"
        )
        while not (rows := client.execute(query, {"agent": mine})):
            assert time.monotonic() - answered < _STORED_SECONDS
            time.sleep(0.02)
        took = time.monotonic() - answered
    assert line == f"HTTP/1.1 {status} {'OK' if status == 200 else 'Forbidden'}"
    [(*found, decision_id)] = rows
    assert found == who
    assert decision_id
    assert took < _STORED_SECONDS


def test_one_row_for_a_request(demo):
    """Once Envoy has told of it too, the request still is one row, now with what became of it."""
    mine = agent()
    demo.ask("alder", mine)
    with connect(demo.addresses["store"]) as client:

        def told() -> list[tuple]:
            query = "SELECT kind, status, allowed FROM requests WHERE user_agent = %(agent)s"
            rows = client.execute(query, {"agent": mine})
            return rows if ("access", 200, True) in rows else []

        assert until(told, 10) == [("access", 200, True)]


def test_with_debians_client(demo):
    """A client as old as Debian's reads who looked and why, where it is given plain types."""
    client = program("clickhouse-client", "clickhouse-client")
    mine = agent()
    demo.ask("alder", mine)
    store = re.fullmatch(r"clickhouse://(.*):(.*)@(.*):(\d+)/(.*)", demo.addresses["store"])
    user, password, host, port, database = store.groups()
    query = (
        "SELECT toString(time), subject, arrayStringConcat(roles, ','), reason, decision_id,"
        f" toString(allowed) FROM requests WHERE user_agent = '{mine}' FORMAT TSV"
    )
    command = [client, "--host", host, "--port", port, "--user", user, "--password", password,
               "--database", database, "--query", query]  # fmt: skip

    def rows() -> str:
        done = run(command, demo.world)
        assert done.returncode == 0, done.stderr
        return done.stdout

    at, *what, decision_id, allowed = until(rows, _STORED_SECONDS).rstrip("\n").split("\t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", at)
    assert what == ["dr.alder", "physician", "physician on the care team"]
    assert decision_id
    assert allowed in ("1", "true")


@pytest.mark.thorough
@pytest.mark.parametrize("background", [False, True])
def test_sigterm_stops_everything(tmp_path, background):
    """SIGTERM ends every part, removes the temporary data, and shows no traceback; also where a
    shell has started it in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if background else None
    with kept(tmp_path) as demo:
        if background:
            signal.signal(signal.SIGINT, before)
        assert (
            len(demo.world.running()) >= 7
        )  # demo, service, ext-authz, receiver, Envoy, 2 x store
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(60) == 0
        assert demo.world.running() == {}
    told = (tmp_path / "stderr").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "stopping"
    assert [path.name for path in tmp_path.iterdir()] == ["stderr"]


class Terminal:
    """A terminal of 80 columns with a program in the foreground."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._us, them = os.openpty()
        os.set_blocking(self._us, False)
        self.shown = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=them,
            stdout=them,
            stderr=them,
            env={**environment, "TERM": "xterm", "COLUMNS": "80"},
        )
        os.close(them)

    def shows(self, text: str) -> bool:
        """Whether `text` has been shown by now."""
        with contextlib.suppress(BlockingIOError, OSError):
            while more := os.read(self._us, 65536):
                colourless = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", more)
                self.shown += colourless.decode().replace("\r\n", "\n")
        return text in self.shown

    def type(self, keys: bytes) -> None:
        os.write(self._us, keys)

    def end(self) -> int:
        """The exit code of the program, once it has ended."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.shows("")  # or it would wait for somebody to read
            time.sleep(0.02)
        self.shows("")
        return self.process.wait(0)

    def close(self) -> None:
        """Close the window."""
        if self._us >= 0:
            os.close(self._us)
            self._us = -1


@contextlib.contextmanager
def terminal(temporary: Path, *options: str) -> Iterator[tuple[Terminal, World]]:
    """``authz demo`` in a terminal."""
    with world({**os.environ, "TMPDIR": str(temporary)}) as ours:
        window = Terminal([*AUTHZ, "demo", *options], ours.environment)
        try:
            yield window, ours
        finally:
            window.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                window.process.wait(30)
            window.close()


def test_what_it_tells_to_try(tmp_path):
    """Each command that the demo prints does what is said of it, and Ctrl-C ends it all."""
    with terminal(tmp_path, "--keep", "--requests", "20") as (window, ours):
        assert until(lambda: window.shows("Ctrl-C stops it."), _START_SECONDS), window.shown
        lines = window.shown.splitlines()
        commands = {
            above: line for above, line in itertools.pairwise(lines) if above.startswith("# ")
        }
        # The store has what was asked last within two seconds: people are no faster than that.
        (
            allowed, denied, recorded, over_http, seen, did, change, changed, metrics, intact,
        ) = commands.values()  # fmt: skip
        assert _tried(allowed, ours).startswith("HTTP/1.1 200 OK")
        assert _tried(denied, ours).startswith("HTTP/1.1 403 Forbidden")
        time.sleep(_STORED_SECONDS)
        if shutil.which("clickhouse-client"):
            rows = [line.split("\t") for line in _tried(recorded, ours).splitlines()]
            assert {"dr.alder", "n.hazel"} <= {row[1] for row in rows}
        told = _tried(over_http, ours)
        assert re.search(r"subject: +dr\.alder\n.*\nreason: +physician on the care team\n", told)
        assert re.search(r"subject: +n\.hazel\n.*\nreason: +not on the care team\n", told)
        assert "the rules behind it: authz policy show" in _tried(seen, ours)
        assert "denied" in _tried(seen, ours) or "allowed" in _tried(seen, ours)
        assert "not on the care team" in _tried(did, ours)
        assert _tried(change, ours) == ""
        assert until(lambda: _tried(changed, ours).startswith("HTTP/1.1 200 OK"), 10)
        assert 'outcome="denied",reason_code="denied"' in _tried(metrics, ours)
        assert "intact: nothing changed" in _tried(intact, ours)
        window.type(b"\x03")
        assert window.end() == 0
        assert ours.running() == {}
    assert "Traceback" not in window.shown
    assert list(tmp_path.iterdir()) == []


def _tried(command: str, ours: World) -> str:
    done = run(["sh", "-c", command], ours)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.thorough
def test_chosen_data_is_kept_and_used_again(tmp_path):
    """The checkpoint in a terminal can be copied whole; with --data-dir its log is gone on with."""
    data = tmp_path / "data"
    with terminal(tmp_path, "--requests", "20", "--data-dir", str(data)) as (demo, _):
        assert demo.end() == 0, demo.shown
    [log] = load_trust(data / "receiver" / "trust.yaml")
    start = demo.shown.index(f"\n{log.origin}\n") + 1
    note = re.match(r"[^\n]+\n\d+\n[^\n]+\n\n[^\n]+\n", demo.shown[start:])
    assert note, demo.shown[start:]
    text, _ = open_note(note[0], log.keys)
    shown = Checkpoint.parse(text)
    with kept(tmp_path, "--data-dir", str(data)) as again:
        assert Path(again.addresses["data_dir"]) == data
        state = tmp_path / "verified.json"
        accepted = {
            shown.origin: {"size": shown.size, "root": base64.b64encode(shown.root).decode()}
        }
        state.write_text(json.dumps(accepted))
        verify = [*AUTHZ, "verify", "--store", again.addresses["store"], "--state", state]
        done = run([*verify, "--trust", again.addresses["trust"], "--json"], again.world)
        report = json.loads(done.stdout)
        assert report["verified"] is True, report
        assert report["decisions"] == 20
        assert json.loads(state.read_bytes())[shown.origin]["size"] > shown.size


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("starting", "Ctrl-C twice"),
        ("sending", "Ctrl-C"),
        ("sending", "closed"),
    ],
)
def test_ended_early(tmp_path, when, how):
    """A demo that is ended before its end is not a success, leaves nothing, and says no more."""
    text = {"starting": "starting clickhouse", "sending": "first answer"}[when]
    with terminal(tmp_path, "--requests", "100000") as (window, ours):
        assert until(lambda: window.shows(text), _START_SECONDS), window.shown
        if how == "closed":
            window.close()
        else:
            window.type(b"\x03")
        if how == "Ctrl-C twice":
            time.sleep(0.5)
            window.type(b"\x03")
        assert window.end() == 3
        assert ours.running() == {}
    assert "Traceback" not in window.shown
    assert list(tmp_path.iterdir()) == []
