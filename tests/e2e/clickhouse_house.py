"""A house whose processes and commands are the database users of deploy/clickhouse: what each of
them asks is asked once, for the tests of what it needed for that."""

import asyncio
import subprocess

import httpx2 as httpx
import pytest
from logs import SIGNER
from old_logs import Clock, OldLog, us
from pages import DOCS, blocks
from programs import AUTHZ, CHECKOUT, free_port, listens, until, world
from rights import as_user, authz, serving, shipped
from test_documentation import _check

from authz.record.privacy import load_key
from authz.store.client import connect

FILES = ("10-authz.xml", "30-authz-tenant.xml")
WHY = ("--reason", "yearly audit")
TENANTS = ("lakeside", "hillside", "")
OLD = [us(2019, 3, 10), us(2019, 4, 1), us(2026, 11, 1)]
PAGES = ("queries.md", "record.md", "lookups.md", "detection.md", "completeness.md")


class House:
    """A receiver, an ext-authz and a database, each as in production; and commands."""

    def __init__(self, directory, store, ours):
        self.directory, self.store, self.ours = directory, store, ours
        self.receiver = f"127.0.0.1:{free_port()}"
        self.ext_authz = f"127.0.0.1:{free_port()}"
        self.privacy = directory / "privacy.key"
        self.trust = directory / "receiver" / "trust.yaml"
        self.processes = []

    def run(self, user, command, *arguments):
        """A command's exit code and what it prints, when it runs as `user`."""
        environment = {
            "AUTHZ_STORE": as_user(self.store, user), "AUTHZ_EXT_AUTHZ__RECEIVER": self.receiver,
            "AUTHZ_PRIVACY__KEY": str(self.privacy),
            "XDG_STATE_HOME": str(self.directory / "state"),
        }  # fmt: skip
        return authz(environment, *command.split(), *arguments)

    def does(self, user, command, *arguments):
        """The same of a command that must be done."""
        code, output = self.run(user, command, *arguments)
        assert code == 0, f"{user}: authz {command}: {output}"
        return output

    def serve(self, what, address, *arguments, **environment):
        command = [*AUTHZ, "serve", what, "--listen", address, *map(str, arguments)]
        environment = self.ours.environment | environment
        environment["AUTHZ_PRIVACY__KEY"] = str(self.privacy)
        environment["AUTHZ_DATA_DIR"] = str(self.directory / what)
        with (self.directory / f"{what}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        assert until(lambda: listens(int(address.rpartition(":")[2])), 90)

    def place(self, tenant):
        """Where a decision of theirs is."""
        query = "SELECT concat(origin, '@', toString(index)) FROM decisions WHERE tenant ="
        with connect(self.store) as admin:
            return admin.execute(f"{query} '{tenant}' ORDER BY index LIMIT 1")[0][0]

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The house, with a log that is years old, and every command that asks the database done."""
    directory = tmp_path_factory.mktemp("rights")
    place = {"/var/lib/clickhouse-backups": str(directory / "backups")}
    shipped(directory / "clickhouse", "backups.xml", place)
    with serving(directory / "clickhouse", *FILES) as server, world() as ours:
        house = House(directory, server.store, ours)
        for _ in range(2):
            house.does("migrator", "migrate")
        token = load_key(house.privacy).token
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("old_logs.PATIENTS", [token("p-1"), token("p-2")])
            log = OldLog(directory / "receiver", server.store, Clock(patch))
            log.fill(times=OLD)
            for tenant in TENANTS:
                log.tell(*of_tenant(tenant, token(f"p-{tenant}")))
            log.end()
        key = directory / "receiver" / "log.key"
        key.write_text(SIGNER.private_text())
        key.chmod(0o600)
        try:
            serve(house)
            command(house)
            with connect(house.store) as admin:
                query = "SELECT toUnixTimestamp64Micro(now64(6))"
                [(house.done_us,)] = admin.execute(query)
            yield house
        finally:
            house.stop()


def of_tenant(tenant, patient):
    """A request's records, and a finding."""
    request = {
        "time": us(2026, 11, 20), "subject": f"dr.{tenant}", "roles": ["physician"],
        "tenant": tenant, "decision_id": f"d-{tenant}", "allowed": True, "enforced": True,
        "patients": [patient], "resource_type": "Patient", "action": "R",
    }  # fmt: skip
    yield {"kind": "decision", **request}
    yield {"kind": "access", **request, "upstream": "10.0.0.1:80"}
    yield {"kind": "disclosure", **request}
    yield {**request, "kind": "finding", "event": "raised", "rule": "bulk_read", "lane": "act"}


def serve(house):
    ours = house.directory
    house.serve(
        "receiver", house.receiver, AUTHZ_STORE=as_user(house.store, "receiver"),
        AUTHZ_RECEIVER__INTERVAL_SECONDS="2", AUTHZ_RECEIVER__GRACE_SECONDS="3",
    )  # fmt: skip
    house.serve(
        "ext-authz", house.ext_authz, "--policy", CHECKOUT / "deploy" / "opa",
        AUTHZ_EXT_AUTHZ__RECEIVER=house.receiver, AUTHZ_PRIVACY__SEAL_INPUTS="true",
    )  # fmt: skip
    asyncio.run(_check(house.ext_authz))
    with connect(house.store) as client:
        stored = "SELECT count() FROM sealed_originals WHERE sealed_at > now() - 600"
        assert until(lambda: client.execute(stored) != [(0,)], 60), (
            ours / "receiver.log"
        ).read_text()


def command(house):
    ours = house.directory
    told = ("--data-dir", ours / "officer", *WHY)
    (ours / "feeds").mkdir()
    for name, text in {
        "people": "subject,role,status\ndr.alder,physician,active\n",
        "patients": "patient,surname,household,vip\np-1,Reed,,true\n",
        "care_team": "subject,patient,from,until\ndr.alder,p-1,,\n",
        "census": "department,patient,from,until\nicu,p-1,,\n",
    }.items():
        (ours / "feeds" / f"{name}.csv").write_text(text)
    house.does("feeds", "feeds load", ours / "feeds", "--data-dir", ours / "loader")
    house.does("reader", "feeds show")
    with connect(house.store) as admin:
        admin.execute("SYSTEM FLUSH LOGS")  # the log of queries is there from its first rows on
    house.does(
        "watch", "watch", "--once", "--data-dir", ours / "watch", "--receiver", house.receiver
    )
    house.does("auditor", "export", "-o", ours / "bundle", *told)
    house.does("reader", "export", "--format", "csv", "-o", ours / "month", *told)
    house.does("reader", "prove", f"{SIGNER.name}@3", "-o", ours / "proof", *told)
    house.does("reader", "lookup", "--patient", "p-1", *told)
    house.does("reader", "report disclosures", "--patient", "p-1", *told)
    house.does("reader", "report user", "--subject", "dr.alder", *told)
    house.does("reader", "report breach", "--subject", "dr.alder", "--since", "30d", *told)
    house.does("reader", "report review", "--trust", house.trust, *told)
    house.does("reader", "findings list", "--data-dir", ours / "officer")
    house.does("reader", "findings breakglass", "--data-dir", ours / "officer")
    with connect(house.store) as client:
        decided = "SELECT concat(origin, '@', toString(index)) FROM decisions WHERE sealed != ''"
        newest = f"{decided} ORDER BY sealed_at DESC LIMIT 1"
        [(place,)] = client.execute(newest)
    house.does("reader", "policy show", place)
    sealing = ("--key", ours / "ext-authz" / "sealing.key", "--since", "1d")
    house.does("reader", "policy replay", "--policy", CHECKOUT / "deploy" / "opa", *sealing)
    with connect(as_user(house.store, "reader")) as client:
        for block in blocks(DOCS, "sql"):
            if block.page.name in PAGES and not block.text.startswith("ALTER"):
                client.execute(block.text)
    pages = f"127.0.0.1:{free_port()}"
    house.serve(
        "console", pages, AUTHZ_STORE=as_user(house.store, "reader"),
        AUTHZ_EXT_AUTHZ__RECEIVER=house.receiver, AUTHZ_CONSOLE__EVERYONE="o.ash",
        AUTHZ_CONSOLE__EVERYONE_ROLES='["privacy-officer"]',
        AUTHZ_CONSOLE__POLICY=str(CHECKOUT / "deploy" / "opa" / "console.rego"),
        AUTHZ_CONSOLE__TRUST=str(house.trust),
    )  # fmt: skip
    for path in ("/", "/person/dr.alder", "/policy", f"/record/{place}", f"/proof/{place}"):
        assert httpx.get(f"http://{pages}{path}", timeout=60).status_code == 200, path
    for user in ("auditor", "reader"):
        output = house.does(user, "verify", "--trust", house.trust)
        assert "intact: nothing changed" in output, output
    hold = ("--subject", "dr.elm", "--reason", "case 17", "--data-dir", ours / "officer")
    house.does("reader", "retention hold", *hold)
    assert until(lambda: "case 17" in house.does("reader", "retention show"), 90)
    rule = ("--older-than", "6y", "--trust", house.trust, "--data-dir", ours / "expiry")
    assert "dropped" in house.does("retention", "retention apply", *rule)
    of_tenant = ("--data-dir", ours / "tenant", *WHY)
    house.does("reader_lakeside", "lookup", "--patient", "p-lakeside", *of_tenant)
    house.does("reader_lakeside", "prove", house.place("lakeside"), "-o", ours / "own", *of_tenant)
    with connect(as_user(house.store, "backup")) as client:
        client.execute("BACKUP DATABASE authz TO Disk('backups', 'whole')")
        more = "SETTINGS base_backup = Disk('backups', 'whole')"
        client.execute(f"BACKUP DATABASE authz TO Disk('backups', 'more') {more}")
