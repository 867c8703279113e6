"""Findings, and what people say of them: a finding's state is a fold over notices.

Somebody who has seen a finding acknowledges it; it stays open until somebody explains it (there was
a reason) or confirms it (there was none). The last of these two counts. Nobody closes a finding
about themselves: what they say of it is shown, and changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from authz.record import Record, clean, details_of, notice, place_of
from authz.store import findings as stored
from authz.store.client import Client
from authz.store.lookups import EVER, Window

State = Literal["open", "acknowledged", "explained", "confirmed"]
Act = Literal["acknowledged", "explained", "confirmed"]

_ACTS: dict[str, Act] = {
    "finding_acknowledged": "acknowledged",
    "finding_explained": "explained",
    "finding_confirmed": "confirmed",
}
_EVENTS = {act: event for event, act in _ACTS.items()}


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody said of a finding. Times are microseconds since the epoch, UTC."""

    act: Act
    by: str
    reason: str
    time: int
    record: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding as it stands."""

    id: str
    """``ORIGIN@INDEX`` of its record."""
    time: int
    sealed_at: int
    lane: str
    rule: str
    subject: str
    """Empty where nobody came to be known; then it is `source_ip` that it is about."""
    source_ip: str
    tenant: str
    score_milli: int
    evidence: str
    records: tuple[str, ...]
    """Decision ids, and ``ORIGIN@INDEX`` of what has none."""
    details: dict[str, Any]
    said: tuple[Said, ...]
    """Oldest first."""

    @property
    def counts(self) -> Said | None:
        """What its state comes from."""
        others = [one for one in self.said if not self.subject or one.by != self.subject]
        final = [one for one in others if one.act != "acknowledged"]
        told = final or others
        return told[-1] if told else None

    @property
    def state(self) -> State:
        return self.counts.act if self.counts else "open"

    @property
    def is_open(self) -> bool:
        return self.state in ("open", "acknowledged")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"state": self.state, "open": self.is_open}


def find(client: Client, window: Window = EVER, subject: str = "", lane: str = "") -> list[Finding]:
    """The findings of a time, oldest first."""
    found = stored.raised(client, window, subject, lane)
    since = min((_sealed(record) for record in found), default=0)
    return fold(found, stored.said(client, since) if found else ())


def find_one(client: Client, origin: str, index: int) -> Finding | None:
    """The finding at a place; None if what is there is none."""
    found = [
        record for record in stored.at(client, [(origin, index)])
        if record.get("kind") == "finding" and record.get("event") == "raised"
    ]  # fmt: skip
    if not found:
        return None
    return fold(found, stored.said(client, _sealed(found[0]), [place_of(found[0])]))[0]


def fold(raised: Iterable[Record], said: Iterable[Record]) -> list[Finding]:
    """Findings with what was said of each, both in the order in which they were sealed."""
    by_finding: dict[str, list[Said]] = {}
    for record in said:
        by, act = details_of(record).get("by"), _ACTS.get(str(record.get("event")))
        if act is None or not isinstance(by, str) or not by:
            continue
        one = Said(act, by, str(record.get("reason", "")), _time(record), place_of(record))
        for finding in _texts(record, "records"):
            by_finding.setdefault(finding, []).append(one)
    return [_finding(record, by_finding.get(place_of(record), ())) for record in raised]


def opinion(act: Act, finding: Finding, reason: str, by: str, time_us: int) -> Record:
    """Says that `by` acknowledges, explains or confirms `finding`, and why."""
    told = notice(_EVENTS[act], time_us, {"by": by}, rule=finding.rule, records=[finding.id])
    return told | clean({"subject": finding.subject, "reason": reason})


def _finding(record: Record, said: Sequence[Said]) -> Finding:
    def told(name: str) -> str:
        return str(record.get(name, ""))

    score = record.get("score_milli", 0)
    return Finding(
        id=place_of(record), time=_time(record), sealed_at=_sealed(record), lane=told("lane"),
        rule=told("rule"), subject=told("subject"), source_ip=told("source_ip"),
        tenant=told("tenant"), score_milli=score if isinstance(score, int) else 0,
        evidence=told("evidence"), records=_texts(record, "records"),
        details=details_of(record), said=tuple(said),
    )  # fmt: skip


def _time(record: Record) -> int:
    value = record.get("time", 0)
    return value if isinstance(value, int) else 0


def _sealed(record: Record) -> int:
    value = record.get("sealed_at", 0)
    return value if isinstance(value, int) else 0


def _texts(record: Record, name: str) -> tuple[str, ...]:
    value = record.get(name)
    return tuple(value) if isinstance(value, list) else ()
