"""Backups of the database by the documentation's own statements: what `authz verify` says after."""

import json
import re

import pytest
import yaml
from logs import SIGNER, TestLog
from programs import CHECKOUT
from rights import as_user, authz, serving, shipped

from authz.anchors import put
from authz.store.client import connect

PAGE = (CHECKOUT / "docs" / "clickhouse.md").read_text()
STATEMENT = r"^((?:BACKUP|RESTORE|DROP) DATABASE `authz`.*?)(?=^[A-Z]|^```|^authz)"
WHOLE, MORE, _, DROP, RESTORE = re.findall(STATEMENT, PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("backups")
    place = {"/var/lib/clickhouse-backups": str(directory / "backups")}
    shipped(directory / "clickhouse", "backups.xml", place)
    with serving(directory / "clickhouse", "10-authz.xml") as running:
        yield running


class Site:
    """A log that its receiver stores, an anchor of it, and backups whose names are this test's."""

    def __init__(self, directory, store):
        self.directory, self.store = directory, store
        self.admin = connect(store.replace("/authz", "/default"))
        self.admin.execute("DROP DATABASE IF EXISTS authz SYNC")
        self.admin.execute("CREATE DATABASE authz")
        self.log = TestLog(directory, as_user(store, "migrator"))
        self.log.store = as_user(store, "receiver")
        self.log.restart()
        (directory / "anchor").mkdir()
        log = {"origin": SIGNER.name, "keys": [str(SIGNER.verifier)], "anchors": ["anchor"]}
        (directory / "anchored.yaml").write_text(yaml.safe_dump({"logs": [log]}))
        (directory / "trust.yaml").write_text(yaml.safe_dump({"logs": [log | {"anchors": []}]}))

    def seal(self):
        """A hundred more records, and their checkpoint into the anchor."""
        said = {"kind": "decision", "subject": "dr.alder", "time": 10**15}
        self.log.append([said | {"decision_id": f"d{n}"} for n in range(100)])
        batch = self.log.seal()
        put(self.directory / "anchor", SIGNER.name, batch.first + 100, batch.note)

    def backup(self, statement):
        with connect(as_user(self.store, "backup")) as client:
            client.execute(self._named(statement))

    def restore(self, statement):
        """The backup that `statement` made, in place of all that is there."""
        made = re.search(r"TO (Disk\(.*?\))", statement)[1]
        self.admin.execute(DROP)
        self.admin.execute(self._named(re.sub(r"Disk\(.*\)", made, RESTORE)))

    def _named(self, statement):
        return statement.replace("'authz-2026", f"'{self.directory.name}")

    def verify(self, trust, state=None):
        """The exit code of `authz verify` as the auditor, and the findings' kinds and places."""
        given = ["--state", self.directory / state] if state else []
        environment = {"AUTHZ_STORE": as_user(self.store, "auditor")}
        line = ["verify", "--trust", self.directory / f"{trust}.yaml", *given, "--json"]
        code, output = authz(environment, *line)
        assert code in (0, 1), output
        told = json.loads(output)
        [log] = told["logs"]
        return code, {(one["kind"], one["first"], one["last"]) for one in log["findings"]}

    def close(self):
        self.log.end()
        self.admin.disconnect()


@pytest.fixture
def site(server, tmp_path):
    made = Site(tmp_path, server.store)
    yield made
    made.close()


def test_restored_whole(site):
    """What an increment on top of a backup restores is all there was, by what was accepted before
    and by the anchor; the receiver goes on, and its aggregates with it."""
    site.seal()
    site.backup(WHOLE)
    site.seal()
    assert site.verify("anchored", "verified.json") == (0, set())
    site.backup(MORE)
    site.restore(MORE)
    assert site.verify("anchored", "verified.json") == (0, set())
    site.seal()
    assert site.verify("anchored", "verified.json") == (0, set())
    with connect(site.store) as admin:
        assert admin.execute("SELECT sum(decisions) FROM activity_hourly") == [(300,)]


@pytest.mark.thorough
def test_a_backup_that_is_too_old(site):
    """One from before the newest checkpoint is intact by itself. Who has accepted that checkpoint,
    or has it in an anchor, is told which records are gone; and that stays, when the log goes on."""
    site.seal()
    site.backup(WHOLE)
    site.seal()
    assert site.verify("trust", "verified.json") == (0, set())
    site.restore(WHOLE)
    assert site.verify("trust") == (0, set())
    assert site.verify("trust", "verified.json") == (1, {("rollback", 100, 199)})
    assert site.verify("anchored") == (1, {("anchor_rollback", 100, 199)})
    site.seal()
    code, found = site.verify("trust")
    assert code == 1
    assert ("missing", 100, 199) in found
