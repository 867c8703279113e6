"""Findings for tests, as `authz watch` raises them."""

from authz.record import Record

NOON = 1_795_000_000_000_000
HOUR = 3_600_000_000
HOSTILE = "[red]a[/]\x1b[31m\u202e"


def finding(number: int = 0, **more: object) -> Record:
    """A finding whose evidence holds what must not be sent without leave."""
    return {
        "kind": "finding", "event": "raised", "schema": 4, "time": NOON + number,
        "subject": "dr.alder", "tenant": "lakeside", "rule": "bulk_read", "lane": "act",
        "score_milli": 6250, "records": ["test/receiver@0", "test/receiver@1"],
        "evidence": f"40 patients within an hour, such as 0123abcd.token ({number})",
        "details": '{"patients":40}',
    } | more  # fmt: skip


def use(number: int = 0, **more: object) -> Record:
    """An allowed decision with break-glass."""
    return {
        "kind": "decision", "time": NOON + number, "decision_id": f"d-{number}",
        "subject": "dr.fir", "roles": ["emergency_physician"], "tenant": "lakeside",
        "allowed": True, "enforced": True,
        "break_glass": True, "method": "GET", "path": "/fhir/Patient/{id}",
        "patients": ["0123abcd.token"], "reason": "break-glass by emergency_physician: unconscious",
    } | more  # fmt: skip
