"""A log of which a part has expired verifies; what is missing beside that does not."""

import pytest
from logs import SIGNER, TRUST
from old_logs import Clock, OldLog, apply, order, us

from authz.record import form
from authz.store import rows
from authz.verify import verify_store
from authz.verify.logs import Window

ORIGIN = SIGNER.name
KEYS = {SIGNER.name: (SIGNER.verifier,)}


@pytest.fixture
def log(tmp_path, database, monkeypatch):
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0.1)
    log = OldLog(tmp_path, database, Clock(monkeypatch), SIGNER)
    log.client.settings["mutations_sync"] = 1
    log.fill()
    yield log
    log.end()


def found(client, **part):
    report = verify_store(client, TRUST, **part)
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def test_expired_by_the_rules(log):
    """What is gone under a notice is no finding, and is counted; writers' chains go on."""
    assert found(log.client) == []
    outcome = apply(log, order(keys=KEYS))
    report = verify_store(log.client, TRUST, state := {})
    assert report.findings == []
    assert report.logs[0].expired == sum(part.dropped for part in outcome.logs) > 0
    assert verify_store(log.client, TRUST, state, incremental=True).verified


def test_windows(log):
    """So it is for a window before, across and behind what has expired."""
    apply(log, order(keys=KEYS))
    for since, until in (
        (us(2018, 1, 1), us(2019, 12, 1)),
        (us(2019, 1, 1), us(2024, 1, 1)),
        (us(2021, 1, 1), us(2040, 1, 1)),
    ):
        assert found(log.client, window=Window(since, until)) == []


@pytest.mark.thorough
def test_missing_beside_what_expired(log):
    """A record that no notice names is missed, before, in and behind an expired part."""
    apply(log, order(keys=KEYS))
    there = [row[0] for row in log.client.execute("SELECT index FROM audit_log ORDER BY index")]
    kept = there[1]
    for index in (there[0], kept, there[-3]):
        [record] = rows.read(log.client, "audit_log", ORIGIN, index, index + 1)
        log.client.execute(f"ALTER TABLE audit_log DELETE WHERE index = {index}")
        assert ("missing", index, index) in found(log.client)
        rows.insert(log.client, [form(record)])
    assert found(log.client) == []


def test_forged(log):
    """Rows that are deleted, with a notice slipped into the table that excuses them: both show."""
    outcome = apply(log, order(keys=KEYS))
    [notice] = rows.read(
        log.client, "audit_log", ORIGIN, outcome.notice_index, outcome.notice_index + 1
    )
    details = str(notice["details"])
    ends = [part.end for part in outcome.logs]
    size = log.client.execute("SELECT max(index) + 1 FROM audit_log")[0][0]
    there = [row[0] for row in log.client.execute("SELECT index FROM audit_log ORDER BY index")]
    later = next(index for index in there if index > ends[0])
    log.client.execute(f"ALTER TABLE audit_log DELETE WHERE index = {later}")
    forged = {**notice, "index": size, "details": details.replace('"gone":"', f'"gone":"{later},')}
    rows.insert(log.client, [form(forged)])
    kinds = {kind for kind, *_ in found(log.client)}
    assert "unsealed" in kinds
    assert kinds & {"missing", "forged_expiry"}


def test_changed_notice(log):
    """A notice that was changed in the table excuses nothing in silence."""
    apply(log, order(keys=KEYS))
    log.client.execute(
        "ALTER TABLE audit_log UPDATE details = replaceOne(details, '\"first\":0', '\"first\":1')"
        " WHERE event = 'expired'"
    )
    kinds = {kind for kind, *_ in found(log.client)}
    assert kinds & {"changed", "forged_expiry", "missing"}
    assert "changed" in kinds
