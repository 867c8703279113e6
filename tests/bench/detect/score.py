"""How findings hold against the truth: recall, alerts, evidence, delay. Pure.

Findings are the lines of `authz watch --replay`: `time` (microseconds, or ISO 8601), `subject`,
`rule`, `lane` (act or review), `score`, `evidence`, `records`. A finding about no person names its
address as the subject, or as `address` or `source_ip`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from tests.bench.detect.truth import Misuse

DAY_US: Final = 86_400_000_000
LANES: Final = ("act", "review")


@dataclass(frozen=True, slots=True)
class Finding:
    time_us: int
    names: frozenset[str]  # whom it is about: a subject, an address
    rule: str
    lane: str
    evidence: str
    records: frozenset[str]

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> "Finding":
        """Raises `KeyError` or `ValueError` for what is no finding."""
        if line["lane"] not in LANES:
            raise ValueError(f"lane: want act or review, not {line['lane']!r}")
        names = (line.get(name, "") for name in ("subject", "address", "source_ip"))
        return cls(
            _microseconds(line["time"]),
            frozenset(name for name in names if name),
            line["rule"],
            line["lane"],
            line.get("evidence", ""),
            frozenset(line.get("records", ())),
        )


def _microseconds(time: int | str) -> int:
    if isinstance(time, int):
        return time
    when = datetime.fromisoformat(time)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1e6)


@dataclass(frozen=True, slots=True)
class Recall:
    """How many of a kind were caught, and after how long half of those were."""

    caught: int
    of: int
    delay_p50_s: float = 0.0

    @property
    def share(self) -> float:
        return self.caught / self.of if self.of else 0.0


@dataclass(frozen=True, slots=True)
class Lane:
    """Alerts of one lane once training is over. `true` ones are about a misuse; `repeated` are
    those of them that tell of nothing that was not told before."""

    alerts: int
    true: int
    repeated: int
    per_1000: float  # user-days
    false_per_1000: float


@dataclass(frozen=True, slots=True)
class Score:
    kinds: Mapping[str, Recall]
    overall: Recall
    acted: Recall  # by the lane `act` alone
    lanes: Mapping[str, Lane]
    false_alerts: Mapping[tuple[str, str], int]  # by lane and rule
    evidenced: float  # the share of alerts that have evidence and records
    delay_p50_s: float  # from a misuse's first record to its first alert
    delay_p95_s: float
    missed: Sequence[Misuse]


def catches(finding: Finding, misuse: Misuse, daily: Collection[str] = ()) -> bool:
    """Whether `finding` is about `misuse`: it names who did it (an address, where nobody could be
    told), comes within its time and a day, and shows one of its records. The rules `daily` add up
    a day's requests, and show some of them: for these the time is enough."""
    return (
        bool(finding.names & {misuse.subject or misuse.address})
        and misuse.begin_us <= finding.time_us <= misuse.end_us + DAY_US
        and (finding.rule in daily or not finding.records.isdisjoint(misuse.records))
    )


def score(
    findings: Iterable[Mapping[str, Any]],
    truth: Sequence[Misuse],
    user_days: int,
    after_us: int = 0,
    daily: Collection[str] = (),
) -> Score:
    """`user_days` are those from `after_us` on, when training is over. Alerts before do not count,
    and neither does misuse that had ended by then."""
    counted = sorted(
        (one for one in map(Finding.read, findings) if one.time_us >= after_us),
        key=lambda one: one.time_us,
    )
    due = [misuse for misuse in truth if misuse.end_us >= after_us]
    suspects: dict[str, list[Misuse]] = {}
    for misuse in due:
        suspects.setdefault(misuse.subject or misuse.address, []).append(misuse)
    first: dict[Misuse, int] = {}  # when it was told
    acted: set[Misuse] = set()
    alerts, true, repeated = Counter[str](), Counter[str](), Counter[str]()
    false_alerts = Counter[tuple[str, str]]()
    for one in counted:
        candidates = (misuse for name in one.names for misuse in suspects.get(name, ()))
        about = [misuse for misuse in candidates if catches(one, misuse, daily)]
        alerts[one.lane] += 1
        if about:
            true[one.lane] += 1
            repeated[one.lane] += all(misuse in first for misuse in about)
        else:
            false_alerts[one.lane, one.rule] += 1
        for misuse in about:
            first.setdefault(misuse, one.time_us)
        if one.lane == "act":
            acted.update(about)
    thousands = max(user_days, 1) / 1000
    delays = [(time - misuse.begin_us) / 1e6 for misuse, time in first.items()]
    evidenced = sum(bool(one.evidence.strip() and one.records) for one in counted)
    return Score(
        kinds={kind: _recall(kind, due, first) for kind in sorted({each.kind for each in due})},
        overall=Recall(len(first), len(due), _quantile(delays, 0.5)),
        acted=Recall(len(acted), len(due)),
        lanes={
            lane: Lane(
                alerts[lane],
                true[lane],
                repeated[lane],
                alerts[lane] / thousands,
                (alerts[lane] - true[lane]) / thousands,
            )
            for lane in LANES
        },
        false_alerts=dict(false_alerts.most_common()),
        evidenced=evidenced / len(counted) if counted else 1.0,
        delay_p50_s=_quantile(delays, 0.5),
        delay_p95_s=_quantile(delays, 0.95),
        missed=[misuse for misuse in due if misuse not in first],
    )


def _recall(kind: str, due: Sequence[Misuse], first: Mapping[Misuse, int]) -> Recall:
    delays = [(time - each.begin_us) / 1e6 for each, time in first.items() if each.kind == kind]
    return Recall(len(delays), sum(each.kind == kind for each in due), _quantile(delays, 0.5))


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else 0.0


class UserDays:
    """Counts, while records pass, on how many days how many subjects made a request."""

    def __init__(self, after_us: int = 0, midnight_us: int = 0) -> None:
        """`midnight_us`: any midnight where the people are."""
        self._after, self._midnight = after_us, midnight_us
        self._day, self._subjects, self._count = -1, set[str](), 0

    def add(self, record: Mapping[str, Any]) -> None:
        """`record` is not of an earlier day than the one before."""
        if record["time"] < self._after or not (subject := record.get("subject")):
            return
        if (day := (record["time"] - self._midnight) // DAY_US) != self._day:
            self._count += len(self._subjects)
            self._day, self._subjects = day, set()
        self._subjects.add(subject)

    @property
    def count(self) -> int:
        return self._count + len(self._subjects)
