"""What the console's pages ask of the database."""

import time

import pytest
from logs import TestLog

from authz.store import pages
from authz.store.client import connect


@pytest.fixture
def client(database):
    with connect(database) as client:
        yield client


def decision(number, subject, patient, **more):
    return {
        "kind": "decision", "time": time.time_ns() // 1000, "decision_id": f"d{number}",
        "subject": subject, "roles": ["physician"], "patients": [f"k.{patient}"], "allowed": True,
    } | more  # fmt: skip


def test_a_patient_in_two_tenants_is_one(client, database, tmp_path):
    """Of a person's day and of their peers', each patient counts once."""
    log = TestLog(tmp_path, database)
    log.append([
        decision(0, "dr.alder", 1, tenant="lakeside"), decision(1, "dr.alder", 1, tenant="hill"),
        decision(2, "dr.alder", 2), *(decision(3 + n, "dr.birch", n % 4) for n in range(8)),
    ])  # fmt: skip
    log.seal()
    log.end()
    [day] = pages.person_days(client, "dr.alder")
    assert (day.requests, day.patients, day.role_patients) == (3, 2, 3.0)
