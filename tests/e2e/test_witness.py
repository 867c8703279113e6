"""A receiver with an anchor and a witness that nobody here wrote, filippo.io/torchwood's
litewitness over HTTP. It is killed and comes back; then the log's key is rotated."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faults.feeding import AUTHZ, ORIGIN, Feeder, check, ready, site
from programs import free_port, listens, program, until

from authz.keys import LOG_KEY, NEXT_KEY, read_key
from authz.ledger import Checkpoint, NoteError, Verifier, open_note, root_at
from authz.store.client import connect
from authz.store.tiles import Tiles
from authz.trust import load_trust
from authz.verify.witnessed import Witnessed, read_anchors

pytestmark = pytest.mark.alone

NAME = "witness.example/lite"
REFUSAL = "does not accept the log's key"


@pytest.fixture(scope="session")
def litewitness():
    """The witness's program. Without it its tests are skipped, and in CI that is a failure."""
    found = shutil.which("litewitness", path=f"{os.environ['PATH']}:{Path.home() / 'go' / 'bin'}")
    if found is None:
        reason = "needs litewitness: go install filippo.io/torchwood/cmd/litewitness@v0.6.1"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Litewitness:
    """The witness, its key in an ssh-agent, its logs in a database of its own."""

    def __init__(self, binary):
        self._binary = binary
        self._directory = Path(tempfile.mkdtemp())  # a socket's path must be short
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._agent = subprocess.Popen(
            [program("ssh-agent", "openssh-client"), "-D", "-a", self._directory / "agent"],
            stdout=subprocess.DEVNULL,
        )
        key = Ed25519PrivateKey.generate()
        public = key.public_key()
        self.key = Verifier(NAME, public.public_bytes_raw(), cosigns=True)
        path = self._directory / "key"
        path.touch(0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        assert until((self._directory / "agent").exists, 10)
        where = os.environ | {"SSH_AUTH_SOCK": str(self._directory / "agent")}
        subprocess.run(["ssh-add", "-q", path], env=where, check=True)
        shown = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True)
        self._fingerprint = re.search(rb"SHA256:\S+", shown.stdout)[0].decode()

    def start(self):
        command = [self._binary, "-name", NAME, "-key", self._fingerprint]
        command += ["-listen", f"127.0.0.1:{self._port}", "-ssh-agent", self._directory / "agent"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "-db", self._directory / "db"], stderr=log)
        assert until(lambda: listens(self._port), 20), (self._directory / "log").read_text()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def _database(self):
        return contextlib.closing(sqlite3.connect(self._directory / "db", timeout=20))

    def accept(self, key):
        """What `witnessctl add-log` and `witnessctl add-key` do."""
        with self._database() as database, database:
            empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
            database.execute("INSERT OR IGNORE INTO log VALUES (?, 0, ?)", (key.name, empty))
            database.execute("INSERT INTO key VALUES (?, ?)", (key.name, str(key)))

    @property
    def size(self):
        """What it has cosigned last, by its own account."""
        with self._database() as database:
            return database.execute("SELECT tree_size FROM log").fetchone()[0]

    def close(self):
        self.kill()
        self._agent.kill()
        self._agent.wait()
        shutil.rmtree(self._directory)


@dataclass
class Life:
    """What came of it."""

    sizes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    up: dict[str, float] = field(default_factory=dict)
    cosigned: list[tuple[int, str]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rotated: bool = False
    trust: Path = Path()
    kept: list[str] = field(default_factory=list)
    verdicts: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)


def metric(receiver, name):
    with urlopen(f"http://{receiver.metrics}/metrics", timeout=5) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else None


@pytest.fixture(scope="module")
def life(litewitness, clickhouse, tmp_path_factory):
    from faults.feeding import database

    directory = tmp_path_factory.mktemp("witness")
    anchor = directory / "worm"
    anchor.mkdir()
    with (
        contextlib.closing(Litewitness(litewitness)) as witness,
        database(clickhouse.store) as store,
    ):
        witness.start()
        witnesses = json.dumps([{"url": witness.url, "key": str(witness.key)}])
        settings = {
            "AUTHZ_RECEIVER__ANCHORS": json.dumps([str(anchor)]),
            "AUTHZ_RECEIVER__WITNESSES": witnesses,
            "AUTHZ_RECEIVER__ANCHOR_SECONDS": "0.2",
        }
        with site(directory, store, **settings) as receiver:
            yield asyncio.run(live(witness, receiver, anchor))


async def live(witness, receiver, anchor):
    life = Life(trust=receiver.directory / "trust.yaml")

    async def see(moment, true):
        """Wait until `true`, and write down where all stand."""
        for _ in range(600):
            if await asyncio.to_thread(true):
                break
            await asyncio.sleep(0.1)
        life.sizes[moment] = witness.size
        life.stored[moment] = int(receiver.metric("authz_receiver_tree_size"))
        life.up[moment] = metric(receiver, f'authz_receiver_anchor_up{{anchor="{NAME}"}}')

    receiver.start()
    await ready(receiver)
    witness.accept(read_key(receiver.data_dir / LOG_KEY).verifier)
    async with Feeder(receiver.directory / "writer", receiver.address) as feeder:
        await feeder.feed(1)
        await see("up", lambda: witness.size > 50)
        witness.kill()
        before = witness.size
        await feeder.feed(1.5)
        await see("away", lambda: events(receiver) == ["anchor_away"])
        judge(life, "away", receiver, witness, anchor)
        witness.start()
        await see("back", lambda: witness.size > before and len(events(receiver)) == 2)
        done = subprocess.run(
            [*AUTHZ, "keys", "rotate", "--data-dir", receiver.data_dir, "--json"],
            check=True, capture_output=True,
        )  # fmt: skip
        refused = receiver.told(REFUSAL)
        await feeder.feed(1)
        await see("rotated", lambda: receiver.told(REFUSAL) > refused)
        witness.accept(Verifier.parse(json.loads(done.stdout)["key"]))
        before = witness.size
        up = f'authz_receiver_anchor_up{{anchor="{NAME}"}}'
        next_key = receiver.data_dir / NEXT_KEY
        await see(
            "accepted",
            lambda: witness.size > before and metric(receiver, up) == 1 and not next_key.exists(),
        )
        life.rotated = not next_key.exists()
        await feeder.settle()
        count = await asyncio.to_thread(check, receiver, feeder)
        life.wrong += count.wrong
    assert receiver.stop() == 0, receiver.log.read_text()
    await asyncio.to_thread(judge, life, "stopped", receiver, witness, anchor)
    with connect(receiver.store) as client:
        rows = client.execute("SELECT size, note FROM checkpoints ORDER BY size")
        life.cosigned += [(size, note) for size, note in rows if signed(note, witness.key)]
        query = "SELECT event, JSONExtractString(details, 'anchor') FROM notices"
        query += " WHERE event LIKE 'anchor%' ORDER BY index"
        life.events += client.execute(query)
    life.kept += sorted(path.name for path in (anchor / "test%2Freceiver").iterdir())
    return life


def events(receiver):
    with connect(receiver.store) as client:
        query = "SELECT event FROM notices WHERE event LIKE 'anchor%' ORDER BY index"
        return [event for (event,) in client.execute(query)]


def signed(note, key):
    try:
        return bool(open_note(note, [key]))
    except NoteError:
        return False


def judge(life, moment, receiver, witness, anchor):
    """As `authz verify` does with a trust file that demands both."""
    content = yaml.safe_load((receiver.data_dir / "trust.yaml").read_text())
    [log] = content["logs"]
    log["anchors"] = [str(anchor)]
    log["witnesses"] = {"quorum": 1, "keys": [str(witness.key)]}
    life.trust.write_text(yaml.safe_dump(content))
    [trusted] = load_trust(life.trust)
    seen = Witnessed(trusted, read_anchors(trusted))
    with connect(receiver.store) as client:
        rows = client.execute("SELECT size, note FROM checkpoints ORDER BY size")
        for _, note in rows:
            seen.add(Checkpoint.parse(note), note)
        newest = max(size for size, _ in rows)
        assert seen.sizes(newest) == []
        tiles = Tiles(client, ORIGIN)
        found = list(seen.findings(newest, lambda size: root_at(size, tiles)))
    life.verdicts[moment] = (seen.anchored, seen.witnessed, [f.kind for f in found])


def test_recording_goes_on(life):
    """With the witness killed, everything goes on being recorded, stored and anchored."""
    assert life.wrong == []
    assert life.stored["away"] > life.stored["up"]
    assert life.sizes["away"] < life.stored["away"]
    anchored, witnessed, found = life.verdicts["away"]
    assert found == []
    assert witnessed < anchored


def test_the_gap_shows(life):
    """It shows in the metrics, in the log of the receiver, and in the audit log itself."""
    assert (life.up["up"], life.up["away"], life.up["back"]) == (1, 0, 1)
    assert life.events[:2] == [("anchor_away", NAME), ("anchor_back", NAME)]


def test_the_witness_catches_up(life):
    """Once it is back it has what it missed. A stop may come between an anchor and the witness."""
    assert life.sizes["back"] > life.sizes["away"]
    anchored, witnessed, found = life.verdicts["stopped"]
    assert found == []
    assert anchored >= witnessed == max(size for size, _ in life.cosigned)
    assert witnessed >= life.sizes["accepted"]


def test_a_rotation_wants_the_witness_to_know(life):
    """It cosigns nothing that a key signed which it was not given, and everything after."""
    assert life.rotated
    assert life.up["rotated"] == 0
    assert life.up["accepted"] == 1
    assert life.sizes["accepted"] > life.sizes["rotated"]


def test_its_cosignatures_are_beside_the_checkpoints(life):
    """Each cosigned checkpoint is a row of its own, and a file beside the plain one."""
    [log] = load_trust(life.trust)
    assert len(life.cosigned) > 3
    for size, note in life.cosigned:
        text, both = open_note(note, [*log.keys, *log.witnesses])
        assert len(both) == 2
        assert Checkpoint.parse(text).size == size
        if size < life.cosigned[-1][0]:  # the stop may come before the newest one's file
            assert {f"{size:016}", f"{size:016}.1"} <= set(life.kept)
