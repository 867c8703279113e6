"""Risk: what findings say of people, for the policy to decide on (`input.authz.risk`).

A finding of the lane `act` or `review` is in force for some hours from when it came into the log.
The last word of a person on it counts: explained ends it, confirmed begins its hours anew,
acknowledged changes nothing. The receiver's set is a fold over its log (`after`) and travels to the
writers with the blocks (`authz.blocks`), who show it to the policy (`shown`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from authz.record import Record
from authz.v1 import stream_pb2 as pb

LANES: Final = ("act", "review")  # the worst first
HOURS: Final = 24.0  # unless `receiver.risk_hours` says otherwise
EXPLAINED: Final = "finding_explained"
CONFIRMED: Final = "finding_confirmed"

_HOUR_US: Final = 3600 * 1_000_000
# So long after it was raised, or confirmed last, a finding can still be confirmed. Longer than the
# most that `receiver.risk_hours` may be.
_KEPT_US: Final = 14 * 24 * _HOUR_US


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` is ``<origin>@<index>``. Raised at `since_us`; its hours count from `counts_us`."""

    id: str
    subject: str
    lane: str
    rule: str
    score_milli: int
    since_us: int
    counts_us: int
    explained: bool = False

    @classmethod
    def from_row(cls, row: object) -> "Finding":
        """Raises `TypeError` or `ValueError` for what `to_row` did not make."""
        *texts, score_milli, since_us, counts_us, explained = _row(row, 8)
        id_, subject, lane, rule = _strings(texts)
        if not isinstance(explained, bool):
            raise TypeError
        return cls(
            id_, subject, lane, rule, _number(score_milli), _number(since_us), _number(counts_us),
            explained,
        )  # fmt: skip

    def to_row(self) -> list[object]:
        return [
            self.id, self.subject, self.lane, self.rule, self.score_milli, self.since_us,
            self.counts_us, self.explained,
        ]  # fmt: skip


Findings = Mapping[str, Finding]
"""By id. What was explained is among them: it may be confirmed later."""


def after(findings: Findings, records: Sequence[Record]) -> Findings:
    """`findings` once `records` of a log, its next in order, have followed; the very same if those
    change none. What is long over by the log's own clock is forgotten."""
    changes = [record for record in records if tells(record)]
    if not changes:
        return findings
    held = dict(findings)
    for record in changes:
        held |= {finding.id: finding for finding in _changed(held, record)}
    if held == findings:
        return findings
    kept = _number(changes[-1].get("sealed_at", 0)) - _KEPT_US
    return {id_: finding for id_, finding in held.items() if finding.counts_us > kept}


def in_force(findings: Findings, hours: float, now_us: int) -> list[pb.Risk]:
    """What writers are told."""
    lasts = round(hours * _HOUR_US)
    return [
        pb.Risk(
            subject=one.subject, lane=one.lane, rules=[one.rule] if one.rule else [],
            score_milli=one.score_milli, since_us=one.since_us, until_us=one.counts_us + lasts,
            ids=[one.id],
        )
        for one in findings.values()
        if not one.explained and now_us < one.counts_us + lasts
    ]  # fmt: skip


def tells(record: Record) -> bool:
    """Whether `record` raises a finding on somebody, or says what became of one."""
    kind, event = record.get("kind"), record.get("event")
    if kind == "finding":
        return bool(event == "raised" and record.get("subject") and record.get("lane") in LANES)
    return kind == "notice" and event in (EXPLAINED, CONFIRMED)


def _changed(held: Findings, record: Record) -> Iterator[Finding]:
    """The finding that `record` raises, or those it speaks of, as they are from then on."""
    sealed_at = _number(record.get("sealed_at", 0))
    if record["kind"] == "finding":
        id_ = f"{record.get('origin', '')}@{record.get('index', 0)}"
        yield Finding(
            id_, str(record["subject"]), str(record["lane"]), str(record.get("rule", "")),
            _number(record.get("score_milli", 0)), sealed_at, sealed_at,
        )  # fmt: skip
        return
    named = record.get("records", [])
    for finding in [held[id_] for id_ in named if id_ in held] if isinstance(named, list) else []:
        if record["event"] == EXPLAINED:
            yield replace(finding, explained=True)
        else:
            yield replace(finding, explained=False, counts_us=sealed_at)


@dataclass(frozen=True, slots=True)
class Risk:
    """What a writer was told of one subject, until `until_us`."""

    subject: str
    lane: str
    rules: tuple[str, ...]
    score_milli: int
    since_us: int
    until_us: int
    ids: tuple[str, ...]

    @classmethod
    def told(cls, risk: pb.Risk) -> "Risk":
        return cls(
            risk.subject, risk.lane, tuple(risk.rules), risk.score_milli, risk.since_us,
            risk.until_us, tuple(risk.ids),
        )  # fmt: skip

    @classmethod
    def from_row(cls, row: object) -> "Risk":
        """Raises `TypeError` or `ValueError` for what `to_row` did not make."""
        subject, lane, rules, score_milli, since_us, until_us, ids = _row(row, 7)
        subject, lane = _strings([subject, lane])
        if not isinstance(rules, list) or not isinstance(ids, list):
            raise TypeError
        return cls(
            subject, lane, _strings(rules), _number(score_milli), _number(since_us),
            _number(until_us), _strings(ids),
        )  # fmt: skip

    def to_row(self) -> list[object]:
        return [
            self.subject, self.lane, list(self.rules), self.score_milli, self.since_us,
            self.until_us, list(self.ids),
        ]  # fmt: skip


def shown(risks: Iterable[Risk], now_us: int) -> dict[str, object] | None:
    """`risks`, of one person, as a policy sees them together; None if none is in force.

    `lane` is the worst, `score` the highest, `since` when the newest was raised, `until` when the
    last ends: whole seconds since the epoch, as in a token's claims. A lane that this version does
    not know counts as the worst.
    """
    there = [risk for risk in risks if now_us < risk.until_us]
    if not there:
        return None
    lanes = {risk.lane for risk in there}
    return {
        "lane": "review" if lanes == {"review"} else "act",
        "rules": sorted({rule for risk in there for rule in risk.rules}),
        "score": max(risk.score_milli for risk in there) / 1000,
        "since": max(risk.since_us for risk in there) // 1_000_000,
        "until": max(risk.until_us for risk in there) // 1_000_000,
        "findings": sorted({id_ for risk in there for id_ in risk.ids}),
    }


def _row(value: object, length: int) -> list[object]:
    if not isinstance(value, list) or len(value) != length:
        raise TypeError
    return value


def _strings(values: Sequence[object]) -> tuple[str, ...]:
    texts = tuple(value for value in values if isinstance(value, str))
    if len(texts) < len(values):
        raise TypeError
    return texts


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value
