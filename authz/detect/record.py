"""A finding as a record of the log."""

import hashlib
import json
from datetime import UTC, datetime

from authz.detect.detector import Finding, Total
from authz.detect.usual import DAY_US
from authz.record import SCHEMA_VERSION, Record, clean, notice
from authz.store.watched import DAY


def finding_record(finding: Finding) -> Record:
    """Of kind ``finding``; its details name the `key`, which is the same if it is told again."""
    details = {"cause": finding.cause, "key": key_of(finding)}
    return clean(
        {
            "kind": "finding", "schema": SCHEMA_VERSION, "event": "raised", "time": finding.time,
            "subject": finding.subject, "tenant": finding.tenant, "source_ip": finding.address,
            "rule": finding.rule, "lane": finding.lane,
            "score_milli": round(finding.score * 1000), "evidence": finding.evidence,
            "records": list(finding.records),
            "details": json.dumps(details, sort_keys=True, separators=(",", ":")),
        }
    )  # fmt: skip


def day_notice(total: Total) -> Record:
    """How a day was that is over; `day` is its number since the epoch, by the people's clock."""
    begin = datetime.fromtimestamp(total.date * DAY_US / 1_000_000, UTC)
    told = {
        "day": total.date, "date": begin.date().isoformat(), "people": total.people,
        "charts": total.charts, "unexplained": total.unexplained,
    }  # fmt: skip
    return notice(DAY, (total.date + 1) * DAY_US, told)


def key_of(finding: Finding) -> str:
    """The same for a finding that is made again from the same records."""
    what = [finding.subject, finding.address, finding.cause, finding.lane, finding.records[-1:]]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def to_json(finding: Finding) -> dict[str, object]:
    """One line of ``authz watch --json``."""
    return {
        "time": datetime.fromtimestamp(finding.time / 1_000_000, UTC).isoformat(),
        "subject": finding.subject or finding.address,
        "rule": finding.rule,
        "lane": finding.lane,
        "score": finding.score,
        "evidence": finding.evidence,
        "records": list(finding.records),
    }
