"""The periodic review for the compliance file: what was recorded, found, said and changed.

164.308(a)(1)(ii)(D) asks for regular reviews of activity; this is what such a review rests on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from authz.detect.break_glass import Review, Use, Uses
from authz.record import Record, details_of, place_of
from authz.record.shown import shown
from authz.report import findings
from authz.report.completeness import Completeness, section
from authz.report.document import Cell, Document, Section, count, date, lines
from authz.report.findings import Finding
from authz.report.messages import SUMMARIES
from authz.report.purposes import in_words
from authz.store import findings as stored
from authz.store import reports
from authz.store.client import Client
from authz.store.lookups import Window
from authz.store.reports import Counts
from authz.store.watched import DAY

_MOST = 50  # rows of what is counted by value
_REVISION_SHOWN = 12
# Of these each one is told; of all others, how many.
_CHANGES = (
    "block", "unblock", "legal_hold", "legal_release", "expired", "key_rotation", "feed_loaded",
    "log_started", "receiver_started", "writer_lost",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Day:
    """Of a day that is over: accesses to charts, each person's and chart's once, and how many of
    them no loaded reason explains."""

    date: str
    people: int
    charts: int
    unexplained: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy revision, and when it was loaded first in this time, and how often."""

    revision: str
    first: int
    loads: int
    record: str


@dataclass(frozen=True, slots=True)
class Periodic:
    """What there is to review. Times are microseconds since the epoch, UTC."""

    counts: Counts
    purposes: list[tuple[str, int, int]]
    denials: list[tuple[str, str, int, int]]
    """The most frequent: reason code, reason, how often, to how many people."""
    findings: list[Finding]
    uses: tuple[Use, ...]
    """Of break-glass."""
    reviews: Mapping[str, Review]
    """Of uses, by their id."""
    late: int
    """How many uses nobody has reviewed in time."""
    policies: list[Policy]
    changes: list[Record]
    """Notices of what was done to the system itself."""
    events: list[tuple[str, int]]
    days: list[Day]
    looks: list[tuple[str, str, int]]

    @property
    def charts(self) -> int:
        return sum(day.charts for day in self.days)

    @property
    def unexplained(self) -> int:
        return sum(day.unexplained for day in self.days)

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        told["findings"] = [one.to_json() for one in self.findings]
        told["charts"], told["unexplained"] = self.charts, self.unexplained
        return told


def periodic(client: Client, window: Window, now_us: int, hours: float) -> Periodic:
    """`hours` are those within which a use of break-glass is to be reviewed. Errors are
    `authz.store.client.QUERY_ERRORS`."""
    # A review comes after the use, so also after this time.
    glass = Uses.of(stored.glass(client, Window(window.since_us)))
    uses = tuple(use for use in glass.uses if use.sealed_at < (window.until_us or now_us + 1))
    late = sum(use.id not in glass.reviews and use.due(hours) <= now_us for use in uses)
    return Periodic(
        reports.counts(client, window), reports.purposes(client, window),
        reports.denials(client, window, _MOST), findings.find(client, window), uses,
        {use.id: glass.reviews[use.id] for use in uses if use.id in glass.reviews}, late,
        _policies(reports.notices(client, ["policy_loaded"], window)),
        reports.notices(client, _CHANGES, window), reports.events(client, window),
        _days(reports.notices(client, [DAY], window)), reports.looks(client, window, _MOST),
    )  # fmt: skip


def _policies(notices: Sequence[Record]) -> list[Policy]:
    by_revision: dict[str, list[Record]] = {}
    for record in notices:
        by_revision.setdefault(str(record.get("policy_revision", "")), []).append(record)
    return [
        Policy(revision, _time(own[0]), len(own), place_of(own[0]))
        for revision, own in by_revision.items()
    ]


def _days(notices: Sequence[Record]) -> list[Day]:
    """Each day as it was told last."""
    days: dict[str, Day] = {}
    for record in notices:
        told = details_of(record)
        day = told.get("date")
        values = (told.get(name) for name in ("people", "charts", "unexplained"))
        numbers = [value for value in values if isinstance(value, int)]
        if isinstance(day, str) and len(numbers) == 3:
            days[day] = Day(day, *numbers)
    return [days[one] for one in sorted(days)]


def document(
    found: Periodic, rests_on: Completeness, about: Sequence[tuple[str, Cell]], issuer: str
) -> Document:
    return Document(
        "Periodic review", tuple(about),
        (
            *_recorded(found), *_emergencies(found), _findings(found), *_system(found),
            _verdict(rests_on), section(rests_on),
        ),
        notes=("What was recorded in this time, for the compliance file.",), issuer=issuer,
    )  # fmt: skip


def _recorded(found: Periodic) -> list[Section]:
    counts = found.counts
    denied = counts.decisions - counts.allowed
    share = f"{found.unexplained / found.charts:.1%}" if found.charts else "not known"
    told = [
        ("decisions", counts.decisions), ("allowed", counts.allowed), ("denied", denied),
        ("not enforced (dry run)", counts.unenforced), ("accesses", counts.accesses),
        ("records of whose data answers held", counts.disclosures), ("people", counts.people),
    ]  # fmt: skip
    return [
        Section("In numbers", ("what", "how many"), tuple((a, f"{b:,}") for a, b in told)),
        Section(
            "Accesses to charts that no known reason explains",
            ("day", "people", "accesses", "unexplained"),
            tuple(
                (day.date, f"{day.people:,}", f"{day.charts:,}", f"{day.unexplained:,}")
                for day in found.days
            ),
            notes=(
                (f"Share over {count(len(found.days), 'day', 'days')}: {share}"
                f" ({found.unexplained:,} of {found.charts:,})."),
            ) if found.days else (),
            empty="No day was told by authz watch in this time.",
        ),
        Section(
            "Purposes of what was allowed", ("purpose", "times", "people"),
            tuple(
                (in_words(code) or "(not stated)", f"{times:,}", f"{who:,}")
                for code, times, who in found.purposes
            ),
            empty="Nothing was allowed.",
        ),
        Section(
            "Denials, the most frequent", ("reason", "code", "times", "people"),
            tuple((why, code, f"{times:,}", f"{who:,}") for code, why, times, who in found.denials),
            empty="Nothing was denied.",
        ),
    ]  # fmt: skip


def _emergencies(found: Periodic) -> list[Section]:
    rows = []
    for use in found.uses:
        review = found.reviews.get(use.id)
        said = lines("not reviewed")
        if review:
            verdict = review.verdict.replace("_", " ")
            said = lines(f"{verdict}, by {review.by} {date(review.time)}", review.reason)
        rows.append((
            lines(shown(use.time), use.id), lines(use.subject, ", ".join(use.roles)),
            f"{use.method} {use.path}".strip(), use.reason, said,
        ))  # fmt: skip
    waiting = len(found.uses) - len(found.reviews)
    return [
        Section(
            f"Broken glass: {len(found.uses):,}",
            ("time (UTC), record", "who", "what", "stated", "review"), tuple(rows),
            notes=(f"{waiting:,} not reviewed, {found.late:,} of them late.",) if waiting else (),
            empty="Nobody broke the glass.",
        )
    ]  # fmt: skip


def _findings(found: Periodic) -> Section:
    rows = tuple(
        (
            lines(shown(one.time), one.id), lines(one.lane, one.rule),
            one.subject or (f"(nobody) from {one.source_ip}" if one.source_ip else "(everybody)"),
            SUMMARIES.get(one.rule, one.rule.replace("_", " ")),
            lines(one.state, *(f"{said.act} by {said.by}: {said.reason}" for said in one.said)),
        )
        for one in found.findings
    )  # fmt: skip
    open_ = sum(one.is_open for one in found.findings)
    acting = sum(one.is_open and one.lane == "act" for one in found.findings)
    return Section(
        f"Findings: {len(rows):,}",
        ("time (UTC), id", "lane, rule", "about", "what", "state, and what was said"),
        rows,
        notes=(f"{open_:,} open, {acting:,} of them to act on.",) if rows else (),
        empty="Nothing was found.",
    )


def _system(found: Periodic) -> list[Section]:
    policies = tuple(
        (shown(one.first), one.revision[:_REVISION_SHOWN], f"{one.loads:,}", one.record)
        for one in found.policies
    )
    changes = tuple(
        (
            lines(shown(_time(record)), place_of(record)),
            str(record.get("event", "")).replace("_", " "),
            str(details_of(record).get("by", "")),
            lines(
                str(record.get("subject", "")),
                str(record.get("reason", "")) or str(details_of(record).get("reason", "")),
            ),
        )
        for record in found.changes
    )
    return [
        Section(
            "Policies", ("loaded first (UTC)", "revision", "times", "record"), policies,
            notes=("The text of each: authz policy show REVISION.",) if policies else (),
            empty="No policy was loaded in this time.",
        ),
        Section(
            "Changes and holds", ("time (UTC), record", "what", "by", "whom, why"), changes,
            empty="None.",
        ),
        Section(
            "What the log tells of itself", ("notice", "times"),
            tuple((event.replace("_", " "), f"{times:,}") for event, times in found.events),
            empty="Nothing.",
        ),
        Section(
            "Who looked at the log", ("with", "who", "times"),
            tuple((command, who, f"{times:,}") for command, who, times in found.looks),
            empty="Nobody.",
        ),
    ]  # fmt: skip


def _verdict(rests_on: Completeness) -> Section:
    verdict, gaps = rests_on.verdict, rests_on.gaps
    said = "not run for this report (authz report --trust FILE)"
    if verdict:
        said = f"{'intact' if verdict.intact else 'NOT INTACT'}: {verdict.text}"
    return Section(
        "Verification and gaps", ("what", "result"),
        (
            ("authz verify", said),
            ("gaps", lines(*(f"{kind}: {times:,}" for kind, times in gaps.items())) or "none"),
            ("answers of which it is not known in full whose data they held",
             f"{rests_on.unresolved:,}"),
        ),
    )  # fmt: skip


def _time(record: Record) -> int:
    value = record.get("time", 0)
    return value if isinstance(value, int) else 0
