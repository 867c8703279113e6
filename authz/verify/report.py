"""What verification found, as plain values."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `kind` is stable; `first` to `last` are indexes in `origin`'s log
    (-1 where no record is concerned); `text` says it to a person."""

    kind: str
    origin: str
    first: int
    last: int
    text: str

    @property
    def where(self) -> str:
        if self.first < 0:
            return self.origin
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.origin} {span}"


@dataclass(slots=True)
class LogReport:
    """One log. `size` and `root` (base64) are of its newest checkpoint."""

    origin: str
    size: int = 0
    root: str = ""
    checkpoints: int = 0
    writers: int = 0
    doubles: int = 0
    expired: int = 0
    """How many records are gone under notices of expiry."""
    anchored: int = 0
    """How many records an anchor has seen as they are; what is beyond can still be rewritten."""
    witnessed: int = 0
    """The same of the witnesses, by the quorum that the trust file asks for."""
    notes: list[str] = field(default_factory=list)
    """What looks odd, and is in order."""
    findings: list[Finding] = field(default_factory=list)
    """Of each kind the first `MAX_FINDINGS`."""
    more_findings: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    """How many findings of each kind there are in all."""

    def add(self, finding: Finding) -> None:
        count = self.kinds[finding.kind] = self.kinds.get(finding.kind, 0) + 1
        if count <= MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.more_findings += 1

    def find(self, kind: str, first: int, last: int, text: str) -> Finding:
        finding = Finding(kind, self.origin, first, last, text)
        self.add(finding)
        return finding

    def replace(self, finding: Finding, other: Finding) -> None:
        """Say `other` in place of what was said before."""
        self.findings = [other if one is finding else one for one in self.findings]
        self.kinds[finding.kind] -= 1
        self.kinds[other.kind] = self.kinds.get(other.kind, 0) + 1


MAX_FINDINGS = 100


@dataclass(slots=True)
class Report:
    """`verified` is whether the logs are intact; gaps between decisions and accesses are told
    beside it, for they are about completeness, not about tampering."""

    logs: list[LogReport] = field(default_factory=list)
    schema: list[Finding] = field(default_factory=list)
    """What is wrong with the tables and views themselves; the origin is the table's name."""
    partial: bool = False
    """Only a part of the logs was checked, and the counts are what they tell of it."""
    checked: int = 0
    """How many records."""
    detached: list[str] = field(default_factory=list)
    """Months whose rows somebody has taken out of the table and kept beside it."""
    decisions: int = 0
    accesses: int = 0
    matched: int = 0
    allowed: int = 0
    denied: int = 0
    rejected_by_envoy: int = 0
    unanswered: int = 0
    pending: int = 0
    gaps: dict[str, int] = field(default_factory=dict)
    seconds: float = 0

    @property
    def findings(self) -> list[Finding]:
        return self.schema + [finding for log in self.logs for finding in log.findings]

    @property
    def records(self) -> int:
        return sum(log.size for log in self.logs)

    @property
    def verified(self) -> bool:
        return bool(self.logs) and not self.findings

    def log(self, origin: str) -> LogReport:
        """The log's own; a new one if nothing has been said of it yet."""
        for log in self.logs:
            if log.origin == origin:
                return log
        self.logs.append(LogReport(origin))
        return self.logs[-1]

    def to_json(self) -> dict[str, Any]:
        content = {"verified": self.verified, "records": self.records} | asdict(self)
        content["schema"] = [asdict(f) | {"where": f.where} for f in self.schema]
        for log, shown in zip(self.logs, content["logs"], strict=True):
            shown["findings"] = [asdict(f) | {"where": f.where} for f in log.findings]
        return content
