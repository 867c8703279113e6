"""What each subject does in a day is kept up as records come in: the view `baselines`."""

import random
from collections import defaultdict

import pytest
from logs import SIGNER, TestLog

from authz.detect.detector import network_of
from authz.store import migrations
from authz.store.client import connect

_DAY_US = 86_400_000_000
_COLUMNS = "requests, denials, bytes_out, patients, paths, hours, networks, countries"


@pytest.fixture
def client(database):
    with connect(database) as client:
        yield client


def drawn(number):
    """Records of a few people on one day, each request with its second half."""
    some = random.Random(number)
    for n in range(number):
        subject = some.choice(["", "dr.alder", "n.reed"])
        request = {
            "time": 1_764_000_000_000_000 + some.randrange(_DAY_US),
            "subject": subject,
            "roles": [{"dr.alder": "physician"}.get(subject, "nurse"), "staff"],
            "tenant": some.choice(["lakeside", "hillside"]),
            "decision_id": f"d{n}",
            "allowed": some.random() < 0.8,
            "path": some.choice(["", "/Patient/{id}", "/Observation"]),
            "patients": [f"k.{some.randrange(9)}" for _ in range(some.randrange(3))],
            "source_ip": some.choice(["", "10.1.2.3", "10.1.2.77", "2001:db8:1:2::3", "pipe"]),
            "country": some.choice(["", "NO", "SE"]),
        }
        yield request | {"kind": "decision"}
        yield request | {"kind": "access", "bytes_out": some.randrange(5000)}


def told(records):
    """What the view has to say of them, reckoned here."""
    usual = defaultdict(lambda: [0, 0, 0, set(), set(), set(), set(), set()])
    for record in records:
        if not record["subject"]:
            continue
        one = usual[record["tenant"], record["roles"][0], record["subject"]]
        decision = record["kind"] == "decision"
        one[0] += decision
        one[1] += decision and not record["allowed"]
        one[2] += record.get("bytes_out", 0)
        one[3].update(record["patients"])
        one[4].update({record["path"]} - {""})
        one[5].add(record["time"] // 3_600_000_000 % 24)
        one[6].update({record["source_ip"]} - {""} and {network_of(record["source_ip"])})
        one[7].update({record["country"]} - {""})
    return {
        who: [*one[:3], len(one[3]), len(one[4]), *map(sorted, one[5:])]
        for who, one in usual.items()
    }


def shown(client):
    rows = client.execute(f"SELECT tenant, role, subject, {_COLUMNS} FROM baselines")
    return {
        (tenant, role, subject): [*counts[:5], *map(sorted, counts[5:])]
        for tenant, role, subject, *counts in rows
    }


def test_kept_up_as_records_come(client, database, tmp_path):
    """Over several batches, and as exactly as if all were counted at once."""
    log = TestLog(tmp_path, database)
    records = list(drawn(400))
    for begin in range(0, len(records), 150):
        log.append(records[begin : begin + 150])
        log.seal()
    log.end()
    assert shown(client) == told(records)


def test_days_before_the_migration(client):
    """Of a log that was there already, the days that are over are added, once."""
    for statements in migrations.MIGRATIONS[:6]:
        for statement in statements(migrations.Layout("")):
            client.execute(statement)
    records = list(drawn(100))
    names = list(records[1])
    columns = ", ".join((*names, "origin", "index", "sealed_at"))
    day = 1_764_000_000_000_000
    rows = [
        [*(record.get(name, 0) for name in names), SIGNER.name, index, day + index]
        for index, record in enumerate(records)
    ]
    client.execute(f"INSERT INTO audit_log ({columns}) VALUES", rows)
    for _ in range(2):
        for statement in migrations.MIGRATIONS[6](migrations.Layout("")):
            client.execute(statement)
    assert shown(client) == told(records)
