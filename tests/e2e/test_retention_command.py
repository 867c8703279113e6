"""`authz retention` against a real receiver whose log is years old."""

import json
import os
import subprocess

import pytest
from logs import SIGNER
from old_logs import Clock, OldLog, checked, us
from programs import AUTHZ, free_port, listens, run, until, world

from authz.ledger import Verifier
from authz.record.privacy import load_key
from authz.store.client import connect

ANN = "patient-ann-7"


class Setting:
    """A receiver that goes on with an old log, and the commands of an officer."""

    def __init__(self, where, directory, store):
        self.where, self.directory, self.store = where, directory, store
        self.address = f"127.0.0.1:{free_port()}"
        self.process = None

    def start(self):
        command = [*AUTHZ, "serve", "receiver", "--listen", self.address, "--store", self.store]
        command += ["--data-dir", self.directory / "log", "--privacy-key", self.key]
        with (self.directory / "receiver.log").open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=self.where.environment, stderr=log, stdout=log
            )
        assert until(lambda: listens(int(self.address.rpartition(":")[2])), 30)

    def kill(self):
        self.process.kill()
        self.process.wait()

    @property
    def key(self):
        return self.directory / "privacy.key"

    def authz(self, *arguments, code=0, plain=False):
        command = [*AUTHZ, "retention", *arguments, "--data-dir", self.directory / "officer"]
        command += [] if plain else ["--json"]
        environment = self.where.environment | {"COLUMNS": "200", "AUTHZ_STORE": self.store}
        environment["AUTHZ_EXT_AUTHZ__RECEIVER"] = self.address
        done = run(command, self.where, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert ANN not in done.stdout + done.stderr
        if code:
            return done.stderr
        return done.stdout if plain else json.loads(done.stdout)

    def old(self):
        query = "SELECT count() FROM audit_log WHERE sealed_at < '2020-01-01'"
        with connect(self.store) as client:
            return client.execute(query)[0][0]


@pytest.fixture
def setting(tmp_path, database, monkeypatch):
    with world() as where:
        made = Setting(where, tmp_path, database)
        token = load_key(made.key).token(ANN)
        with monkeypatch.context() as patch:
            patch.setattr("old_logs.PATIENTS", [token, "other"])
            log = OldLog(tmp_path / "log", database, Clock(patch))
            log.fill(times=[us(2019, 3, 10), us(2019, 4, 1), us(2026, 11, 1)])
            log.end()
        path = tmp_path / "log" / "log.key"
        path.write_text(SIGNER.private_text())
        path.chmod(0o600)
        made.start()
        yield made
        made.kill()


def test_from_hold_to_release(setting):
    """A hold on a patient keeps her records, years old, while the others' go; when it is released
    they go too. All of it is on record, and her identifier is nowhere."""
    trust = ["--trust", setting.directory / "log" / "trust.yaml"]
    why = ["--reason", "case 17", "--privacy-key", setting.key]
    held = setting.authz("hold", "--patient", ANN, *why)
    assert held["patients"] == 1
    assert until(lambda: setting.authz("show")["holds"], 20)
    was = setting.old()
    would = setting.authz("apply", "--dry-run", *trust)
    assert (would["dry_run"], setting.old()) == (True, was)
    told = setting.authz("apply", *trust)
    assert told["logs"] == would["logs"]
    assert told["holds"] == [held["id"]]
    assert told["months"] == [201903, 201904]
    assert 0 < setting.old() < was
    with connect(setting.store) as client:
        expiries = checked(client)
        [notice] = expiries.accepted()
        assert notice.place == (SIGNER.name, told["notice"]["index"])
        patients = client.execute(
            "SELECT uniqExact(patients) FROM disclosures WHERE sealed_at < '2020-01-01'"
        )
        assert patients == [(1,)]
    shown = setting.authz("show")
    assert [one["id"] for one in shown["holds"]] == [held["id"]]
    assert [one["records"] for one in shown["expired"]] == [told["logs"][0]["dropped"]]
    key = Verifier.parse(shown["key"])
    key.verify(notice.text, notice.signature)
    with connect(setting.store) as client:
        checked(client, writers=[key])
    assert setting.authz("release", held["id"], "--reason", "closed")["id"] == held["id"]
    assert until(lambda: not setting.authz("show")["holds"], 20)
    assert setting.authz("apply", *trust)["holds"] == []
    assert setting.old() == 2  # the writer's first notice, and the newest that is old enough
    with connect(setting.store) as client:
        checked(client)
    table = setting.authz("apply", plain=True)
    assert "nothing to drop" in table
    assert "no --trust" in table
    assert held["id"] not in setting.authz("show", plain=True).partition("Expired")[0]
    for path in setting.directory.rglob("*"):
        assert not path.is_file() or ANN.encode() not in path.read_bytes(), path


@pytest.mark.thorough
def test_without_a_receiver(setting):
    """What cannot be put on record is not dropped."""
    was = setting.old()
    setting.kill()
    assert "no receiver answers" in setting.authz("apply", code=3)
    assert setting.old() == was
    setting.start()
    setting.authz("apply")
    assert setting.old() < was


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["apply", "--older-than", "6x"], "--older-than '6x': want years or days"),
        (["apply", "--older-than", "5y"], "say why it may be: --override REASON"),
        (["apply", "--sealed-older-than", "1d"], "--sealed-older-than"),
        (["apply"], "--receiver is missing"),
        (["apply", "--dry-run"], "--store is missing"),
        (["apply", "--dry-run", "--trust", "no.yaml"], "--trust no.yaml"),
        (["hold", "--reason", "r"], "want one of --subject, --patient and --window"),
        (["hold", "--reason", "r", "--subject", "a", "--window", "b"], "want one of"),
        (["hold", "--reason", " ", "--subject", "a"], "--reason: want text"),
        (["hold", "--reason", "r", "--window", "2026-01-01"], "--window"),
        (["hold", "--reason", "r", "--window", "2026-02-01,2026-01-01"], "the later one last"),
        (["release", "hold-1", "--reason", "r"], "--store is missing"),
        (["show"], "--store is missing"),
    ],
)
def test_wrong_usage(tmp_path, arguments, text):
    """What could not be done as it was meant is refused before anything is done."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [*AUTHZ, "retention", *arguments], capture_output=True, text=True, env=environment,
        check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert not list(tmp_path.iterdir())
