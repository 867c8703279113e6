"""Findings as other systems take them: generic JSON, Alertmanager's API v2, Slack's blocks.

Without `phi` a message says which rule found something and when, about whom (or from what address),
and which records show it; never the evidence, which may hold paths, patients' tokens, and what
people have written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from authz.record import Record, place_of

SUMMARIES: Final[Mapping[str, str]] = MappingProxyType({
    "break_glass": "broke the glass more often than usual",
    "break_glass_no_reason": "broke the glass without a stated reason",
    "break_glass_unreviewed": "broke the glass, and nobody has reviewed it in time",
    "bulk_read": "read many more patients' records than usual",
    "bulk_requests": "sent many more requests than usual",
    "combination": "did several unusual things on one day",
    "denials": "was denied more often than usual",
    "failed_authentications": "many failed authentications from one address",
    "fast_read": "read many patients' records within an hour",
    "impossible_travel": "was in two places too far apart",
    "new_place": "came from a place never seen before",
    "off_hours": "worked at unusual hours",
    "relation": "looked at somebody close or well known, without a known reason",
    "service_drift": "a program's account did what it never did",
    "shared_credential": "one name was used in several places at once",
    "slow_read": "reads more patients' records from day to day",
    "slow_unexplained": "reads more records without a known reason from day to day",
    "tenant_volume": "all people together sent more requests than usual at that hour",
    "terminated": "an account was used of somebody who has left",
    "unexplained": "read more records without a known reason than usual",
})  # fmt: skip
"""What each rule finds, in words that name nobody."""

_ALERT = timedelta(hours=24)  # how long Alertmanager shows a finding that nobody resolves
_SLACK_HEADER, _SLACK_TEXT, _SLACK_FIELD = 150, 3000, 2000  # characters


@dataclass(frozen=True, slots=True)
class Manner:
    """How a finding is told: `subjects` lets a message name whom it is about, `phi` gives evidence,
    `link` is an address with ``{id}`` in it."""

    phi: bool = False
    subjects: bool = True
    link: str = ""


def generic(record: Record, manner: Manner, now: datetime) -> dict[str, Any]:  # noqa: ARG001 - as `FORMS` wants it
    """A message as Standard Webhooks has it: type, timestamp and data."""
    return {
        "type": "authz.finding.raised",
        "timestamp": _iso(record),
        "data": _told(record, manner),
    }


def alertmanager(record: Record, manner: Manner, now: datetime) -> list[dict[str, Any]]:
    """``postableAlerts``. A finding's labels are its own, so that one sent again is the same."""
    told = _told(record, manner)
    labels = {
        "alertname": "authz_finding",
        "severity": "critical" if told["lane"] == "act" else "warning",
        "finding": told["id"],
    }
    labels |= {name: told[name] for name in ("rule", "lane", "tenant", "subject") if name in told}
    if "source_ip" in told:
        labels["source_ip"] = told["source_ip"]
    notes = {"summary": told["summary"], "score": f"{told['score']:g}"}
    notes |= {"description": told["evidence"]} if "evidence" in told else {}
    notes["records"] = " ".join(told["records"])
    alert = {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": {name: value for name, value in notes.items() if value},
        "startsAt": told["time"],
        # Alertmanager would else resolve it after five minutes, and one from an outage at once.
        "endsAt": (now + _ALERT).isoformat(),
    }
    return [alert | ({"generatorURL": told["link"]} if "link" in told else {})]


def slack(record: Record, manner: Manner, now: datetime) -> dict[str, Any]:  # noqa: ARG001 - as `FORMS` wants it
    """An incoming webhook's blocks. All values are plain text: nothing in them mentions anybody or
    becomes a link."""
    told = _told(record, manner)
    title = f"{'Act now' if told['lane'] == 'act' else 'Review'}: {told['summary']}"
    about = told.get("subject") or told.get("source_ip") or "(not told)"
    fields = {"About": about, "Rule": told["rule"], "Time": told["time"], "Finding": told["id"]}
    fields |= {"Tenant": told["tenant"]} if "tenant" in told else {}
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(title, _SLACK_HEADER)},
        {
            "type": "section",
            "fields": [_plain(f"{name}\n{value}", _SLACK_FIELD) for name, value in fields.items()],
        },
    ]
    if told.get("evidence"):
        blocks.append({"type": "section", "text": _plain(told["evidence"], _SLACK_TEXT)})
    if "link" in told:
        blocks.append({"type": "section", "text": _plain(told["link"], _SLACK_TEXT)})
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": escaped, "blocks": blocks}


FORMS: Final[Mapping[str, Callable[[Record, Manner, datetime], Any]]] = MappingProxyType(
    {"generic": generic, "alertmanager": alertmanager, "slack": slack}
)


def _told(record: Record, manner: Manner) -> dict[str, Any]:
    """What a message may say. A value that is not there is left out, but for the first ones."""
    rule, score = str(record.get("rule", "")), record.get("score_milli", 0)
    identity = place_of(record)
    told: dict[str, Any] = {
        "id": identity,
        "time": _iso(record),
        "rule": rule,
        "lane": str(record.get("lane", "")),
        "score": score / 1000 if isinstance(score, int) else 0.0,
        "summary": SUMMARIES.get(rule, rule.replace("_", " ")),
        "records": record.get("records", []),
    }
    names = ["tenant"]
    names += ["subject", "source_ip"] if manner.subjects else []
    names += ["evidence", "details"] if manner.phi else []
    told |= {name: record[name] for name in names if record.get(name)}
    if manner.link:
        told["link"] = manner.link.replace("{id}", quote(identity, safe=""))
    return told


def _iso(record: Record) -> str:
    time = record.get("time", 0)
    assert isinstance(time, int)
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)).isoformat()


def _plain(text: str, most: int) -> dict[str, Any]:
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return {"type": "plain_text", "text": cut, "emoji": False}
