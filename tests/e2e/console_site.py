"""A console with a real receiver, ClickHouse and policy, for the tests that ask it."""

import contextlib
import re
import subprocess
import time

import httpx2 as httpx
import pytest
import yaml
from programs import AUTHZ, CHECKOUT, free_port, listens, until
from receiving import receiving

from authz.record.privacy import load_key
from authz.store.client import connect

ORIGIN = "test/receiver"
MANY = 230  # requests: more than one page of a search
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A receiver with requests in its log."""
    directory = tmp_path_factory.mktemp("console")
    with receiving(clickhouse, directory, "console", ORIGIN) as there:
        there.tell(requests(load_key(directory / "privacy.key")))
        with connect(there.store) as client:
            count = "SELECT count() FROM decisions"
            assert until(lambda: client.execute(count)[0][0] >= 13 + MANY, 30)
        (directory / "names").mkdir()
        (directory / "names" / "people.csv").write_text("subject,name\ndr.alder,Dr Alder\n")
        (directory / "names" / "patients.csv").write_text("patient,name\np-1,Hazel Reed\n")
        yield there


def requests(key):
    now = time.time_ns() // 1000
    for number in range(12):
        allowed = number % 4 > 0
        yield {
            "kind": "decision", "time": now - number * 60_000_000, "decision_id": f"d-{number}",
            "subject": "dr.alder" if number % 2 else "n.reed", "roles": ["physician"],
            "allowed": allowed, "enforced": True, "reason_code": "allowed" if allowed else "denied",
            "reason": "on the care team" if allowed else HOSTILE, "action": "R", "method": "GET",
            "path": "/fhir/Patient/{id}", "resource_type": "Patient", "source_ip": "10.1.2.3",
            "patients": [key.token(f"p-{number % 3}")], "purpose": "TREAT",
        }  # fmt: skip
    for number in range(MANY):
        yield {
            "kind": "decision", "time": now, "decision_id": f"m-{number}", "subject": "m.moss",
            "allowed": True, "enforced": True, "action": "R", "method": "GET",
            "path": "/fhir/Observation/{id}", "resource_type": "Observation",
            "resource_id": f"o-{number}", "patients": [key.token("p-9")],
        }  # fmt: skip
    yield {
        "kind": "finding", "event": "raised", "time": now, "subject": "n.reed", "rule": "bulk_read",
        "lane": "act", "score_milli": 5000, "records": ["d-0"], "evidence": f"40 {HOSTILE}.",
        "details": '{"cause":"volume"}',
    }  # fmt: skip
    yield {
        "kind": "decision", "time": now, "decision_id": "glass", "subject": "dr.alder",
        "allowed": True, "break_glass": True, "reason": "unconscious", "method": "GET",
        "path": "/fhir/Patient/{id}", "patients": [key.token("p-1")],
    }  # fmt: skip


@contextlib.contextmanager
def console(site, *, port=None, identity=None, store=None, **console_options):
    """The console, with these options; an HTTP client of it that follows no redirect."""
    directory = site.directory
    port = port or free_port()
    settings = {
        "data_dir": str(directory / f"data-{port}"),
        "ext_authz": {"receiver": site.address},
        "privacy": {"key": str(directory / "privacy.key")},
        "identity": identity or {},
        "console": {
            "listen": f"127.0.0.1:{port}",
            "policy": str(CHECKOUT / "deploy" / "opa" / "console.rego"),
            "trust": str(directory / "receiver" / "trust.yaml"),
            "directory": str(directory / "names"),
        }
        | console_options,
    }
    path = directory / f"console-{port}.yaml"
    path.write_text(yaml.safe_dump(settings))
    environment = site.ours.environment | {"AUTHZ_STORE": store or site.store}
    command = [*AUTHZ, "serve", "console", "--config", path]
    with (directory / f"console-{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            assert until(lambda: listens(port) or process.poll() is not None, 120)
            assert process.poll() is None, (directory / f"console-{port}.log").read_text()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            process.terminate()
            assert process.wait(60) == 0


def looks(site, who=""):
    """Each look on record: who, at what, why, whose data, and what else was asked. Of one person,
    in the order in which they looked: those of several consoles arrive as they come."""
    with connect(site.store) as client:
        query = (
            "SELECT subject, JSONExtractString(details, 'command'), reason, patients, details"
            " FROM notices WHERE event = 'look' AND (subject = %(who)s OR %(who)s = '')"
            " ORDER BY index"
        )
        return client.execute(query, {"who": who})


def mark_in(text):
    return re.search(r'name="mark" value="([^"]+)"', text)[1]


def token_in(site, name):
    return load_key(site.directory / "privacy.key").token(name)


def finding(site):
    with connect(site.store) as client:
        [(origin, index)] = client.execute("SELECT origin, index FROM findings")
    return f"{origin}@{index}"
