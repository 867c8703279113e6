"""At the end: what the log says against what the load saw. Every entry of `wrong` is a fault."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from live import told

from .disasters import Struck, loses_accesses, loses_disclosures
from .house import CHECKERS, ENVOYS, House
from .load import Answer, Load

_BEFORE_SECONDS = 3  # Envoy sends an entry up to half a second after the answer, on a busy machine
_TOLD_SECONDS = 120
_MOST_NAMED = 5
_REAL = frozenset(f"envoy:{name}" for name in ENVOYS)
# Gaps that a disaster may cause, with what it does. All others are wrong, or are of the mutated
# access logs, which tell of accesses to decisions that nobody made.
_EXPLAINED = {
    "no_access": "Envoy was killed, or could not reach the receiver",
    "no_disclosure": "the same, or ext-authz was away while the answer passed",
    "envoy_lost": "as no_access, told from Envoy's own counters",
    "envoy_dropped": "the receiver read nothing, and Envoy's buffer was full",
    "no_decision": "",
    "writer_away": "",
}


@dataclass(slots=True)
class Decision:
    decision_id: str
    allowed: bool
    discloses: bool
    reason_code: str


@dataclass(slots=True)
class Reckoning:
    wrong: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    told_gaps: Counter[str] = field(default_factory=Counter)
    """Gap notices of our own Envoys and writers, by kind, less those that were closed."""
    requests: Counter[str] = field(default_factory=Counter)
    """By answer."""
    passed: int = 0
    lost_accesses: int = 0
    """Of them, those whose access is missing, each at the time of a disaster that explains it."""
    lost_disclosures: int = 0
    mutated: int = 0
    """Decisions on mutated Checks."""

    def say(self, what: str, some: Sequence[object]) -> None:
        if some:
            named = ", ".join(map(str, some[:_MOST_NAMED]))
            self.wrong.append(f"{len(some)} {what}: {named}")


def reckon(house: House, load: Load, struck: Sequence[Struck], report: dict[str, Any]) -> Reckoning:
    """With everything told and stored. `report` is what ``authz verify --json`` printed."""
    found = Reckoning(report=report)
    log = _Log(house)
    found.requests.update(_answer(answer) for answer in load.answers)
    _answered(found, load, log, struck)
    _unmatched(found, load, log, struck)
    _mutated(found, load, log)
    _verified(found, log, report)
    _told(found, house, len(load.answers) - sum(log.entries[name] for name in _REAL))
    _doubled(found, house)
    _parts(found, house)
    return found


class _Log:
    """The log's records, as far as they are held against the load."""

    def __init__(self, house: House) -> None:
        self.decisions: dict[str, list[Decision]] = defaultdict(list)
        self.traces: dict[str, list[Decision]] = defaultdict(list)
        for name, trace, *values in house.query(
            "SELECT decision_id, argMax(trace_id, index), argMax(allowed, index),"
            " argMax(discloses, index), argMax(reason_code, index) FROM decisions"
            " GROUP BY decision_id"
        ):
            one = Decision(name, *values)
            self.decisions[name].append(one)
            self.traces[trace].append(one)
        self.entries: Counter[str] = Counter()
        """Accesses by who told them."""
        self.accesses: Counter[str] = Counter()
        """Of each decision."""
        self.invented: Counter[str] = Counter()
        self.bypasses: Counter[str] = Counter()
        for name, writer, reached, number in house.query(
            "SELECT decision_id, writer, upstream != '' AS reached, count() FROM accesses"
            " GROUP BY ALL"
        ):
            self.entries[writer] += number
            if name in self.decisions:
                self.accesses[name] += number
            elif name:
                self.invented[writer] += number
            elif reached:
                self.bypasses[writer] += number
        self.unanswered = _names(
            house,
            "SELECT decision_id FROM decisions WHERE request_id != '' AND request_id IN"
            " (SELECT request_id FROM accesses WHERE decision_id = '' AND upstream = '')",
        )
        """Decisions that Envoy gave up waiting for, or whose client did: nothing was reached."""
        self.disclosures = _names(house, "SELECT DISTINCT decision_id FROM disclosures")
        self.shown = self.decisions.keys() & _names(
            house,
            "SELECT decision_id FROM accesses WHERE discloses AND upstream != '' AND status > 0"
            " AND NOT (status IN (500, 502, 503, 504) AND"
            " (startsWith(response_details, 'upstream_reset_')"
            " OR startsWith(response_details, 'ext_proc_error')))",
        )
        """Those whose answers were shown, or were to be."""


def _names(house: House, query: str) -> set[str]:
    return {name for (name,) in house.query(query)}


def _answer(answer: Answer) -> str:
    return str(answer.status) if answer.status else "none"


def _passed(answer: Answer) -> bool:
    """Whether the service answered it: only Envoy and authz have the other statuses."""
    return 200 <= answer.status < 300 or answer.status == 404


def _answered(found: Reckoning, load: Load, log: _Log, struck: Sequence[Struck]) -> None:
    """What was let through was decided and recorded so; what was refused, as refused."""
    unrecorded, forbidden, unrefused, unseen, undisclosed, doubled = [], [], [], [], [], []
    for answer in load.answers:
        decisions = log.traces.get(answer.trace, [])
        if len(decisions) > 1:
            doubled.append(answer.trace)
        if answer.status == 403 and [one.allowed for one in decisions] != [False]:
            unrefused.append(answer.trace)
        if not _passed(answer):
            continue
        found.passed += 1
        if answer.expect != "allow":
            forbidden.append(answer.trace)
        if [one.allowed for one in decisions] != [True]:
            unrecorded.append(f"{answer.trace} (sidecar {answer.sidecar}, {answer.status})")
            continue
        [decision] = decisions
        if decision.decision_id not in log.accesses:
            found.lost_accesses += 1
            if not _lost(answer, struck, accesses=True):
                unseen.append(f"{answer.trace} (sidecar {answer.sidecar})")
        if decision.discloses and decision.decision_id not in log.disclosures:
            found.lost_disclosures += 1
            if answer.sidecar == 2 or not _lost(answer, struck, accesses=False):
                undisclosed.append(f"{answer.trace} (sidecar {answer.sidecar})")
    found.say("let through, and no allowed decision is in the log", unrecorded)
    found.say("let through that the policy denies", forbidden)
    found.say("refused with 403, and no denial is in the log", unrefused)
    found.say("let through, whose access is missing for no reason", unseen)
    found.say("let through, whose disclosure is missing for no reason", undisclosed)
    found.say("requests with several decisions", doubled)


def _lost(answer: Answer, struck: Sequence[Struck], *, accesses: bool) -> bool:
    """Whether a disaster explains that its access, or its disclosure, is missing."""
    envoy = f"envoy-{answer.sidecar}"
    return any(
        one.begun - _BEFORE_SECONDS <= answer.ended and answer.sent <= one.mended
        for one in struck
        if (accesses and loses_accesses(one.disaster, envoy))
        or (not accesses and loses_disclosures(one.disaster, answer.sidecar))
    )


def _unmatched(found: Reckoning, load: Load, log: _Log, struck: Sequence[Struck]) -> None:
    """Gaps of the kinds that disasters cause: the verifier's count is ours, to the last one, and
    each of our Envoys' is of a time that explains it."""
    answers = {answer.trace: answer for answer in load.answers}
    missing = [one for some in log.decisions.values() for one in some
               if one.allowed and one.decision_id not in log.accesses
               and one.decision_id not in log.unanswered]  # fmt: skip
    told = found.report["gaps"].get("no_access", 0)
    if told != len(missing):
        found.wrong.append(f"{len(missing)} decisions without access; verify says {told}")
    unshown = log.shown - log.disclosures
    told = found.report["gaps"].get("no_disclosure", 0)
    if told != len(unshown):
        found.wrong.append(f"{len(unshown)} accesses without disclosure; verify says {told}")
    traces = {one.decision_id: trace for trace, some in log.traces.items() for one in some}
    unexplained = []
    for name, accesses in [(one.decision_id, True) for one in missing] + [
        (name, False) for name in unshown
    ]:
        answer = answers.get(traces[name])
        if answer and not _lost(answer, struck, accesses=accesses):
            unexplained.append(f"{traces[name]} ({'access' if accesses else 'disclosure'})")
    found.say("unmatched at a time without a disaster that explains it", unexplained)


def _mutated(found: Reckoning, load: Load, log: _Log) -> None:
    real = {answer.trace for answer in load.answers}
    found.mutated = sum(len(some) for trace, some in log.traces.items() if trace not in real)
    lost = [name for name in load.allowed
            if [one.allowed for one in log.decisions.get(name, [])] != [True]]  # fmt: skip
    found.say("mutated Checks allowed, and not in the log as allowed", lost)
    faults = [one.decision_id for some in log.decisions.values() for one in some
              if one.reason_code == "internal_error"]  # fmt: skip
    found.say("decisions with internal_error", faults)
    found.say("invented accesses of our Envoys", sorted(_REAL & log.invented.keys()))
    found.say("bypasses of our Envoys", sorted(_REAL & log.bypasses.keys()))


def _verified(found: Reckoning, log: _Log, report: dict[str, Any]) -> None:
    if not report["verified"]:
        findings = [*report["schema"], *(one for log in report["logs"] for one in log["findings"])]
        found.say("findings of authz verify",
                  [f"{one['kind']} {one['where']} {one['text']}" for one in findings])  # fmt: skip
    if report["pending"]:
        found.wrong.append(f"{report['pending']} are pending though all is told")
    if doubles := sum(log["doubles"] for log in report["logs"]):
        found.wrong.append(f"{doubles} rows doubled")
    if report["decisions"] != len(log.decisions):
        found.wrong.append(f"{len(log.decisions)} decisions; verify says {report['decisions']}")


def _told(found: Reckoning, house: House, lost: int) -> None:
    """What the log tells of itself: no gap of our Envoys and writers but of the kinds that the
    disasters explain, and what it told and closed is what the verifier counts. Of Envoys' own
    counters, no more than the `lost` entries that are missing."""
    try:
        notices = told(house.store, _TOLD_SECONDS).notices
    except AssertionError as error:
        found.wrong.append(str(error))
        return
    ours = _REAL | _names(house, "SELECT DISTINCT writer FROM decisions")
    closed: Counter[str] = Counter()
    everything: Counter[str] = Counter()
    for notice in notices:
        if notice["event"] == "gap":
            everything[notice["kind"]] += notice["count"]
            if notice["source"] in ours or notice["source"].removeprefix("envoy:") in ENVOYS:
                found.told_gaps[notice["kind"]] += notice["count"]
        elif notice["event"] == "gap_closed":
            closed[notice["kind"]] += notice["count"]
        elif notice["event"] == "writer_lost":
            found.wrong.append(f"a writer is told as lost: {json.dumps(notice)}")
    for kind in ("no_access", "no_disclosure"):
        left = everything[kind] - closed[kind]
        if left != (counted := found.report["gaps"].get(kind, 0)):
            found.wrong.append(f"{left} {kind} told in the log and not closed; verify: {counted}")
        found.told_gaps[kind] -= closed[kind]
    said = found.told_gaps["envoy_lost"] + found.told_gaps["envoy_dropped"] - closed["envoy_lost"]
    if said > lost:
        found.wrong.append(f"{said} entries told as lost by Envoys; {lost} are missing")
    found.say("kinds of gap that no disaster explains",
              [f"{number} {kind}" for kind, number in found.told_gaps.items()
               if kind not in _EXPLAINED])  # fmt: skip


def _doubled(found: Reckoning, house: House) -> None:
    for what, key, where in (
        ("places of a writer's chain twice", "writer, writer_seq", "writer_seq > 0"),
        ("places of the log twice", "origin, index", "1"),
        ("accesses to a decision twice", "decision_id",
         f"kind = 'access' AND writer IN {tuple(sorted(_REAL))} AND decision_id != ''"),
        # One that could not be recorded in time is told once more, as held back.
        ("disclosures twice", "decision_id, reason_code, details", "kind = 'disclosure'"),
    ):  # fmt: skip
        rows = house.query(f"SELECT {key} FROM audit_log WHERE {where} GROUP BY {key}"
                           " HAVING count() > 1")  # fmt: skip
        found.say(what, rows)


def _parts(found: Reckoning, house: House) -> None:
    """Whoever ended by itself had a reason and said it in a line; nobody left a traceback."""
    found.say("ends without a reason",
              [f"{one.part} {one.code} {one.words}" for one in house.ended
               if one.code not in (2, 3) or not one.during])  # fmt: skip
    for name in (*CHECKERS, "receiver", "clickhouse"):
        found.say(f"tracebacks of {name}", [*_tracebacks(house, name)])


def _tracebacks(house: House, name: str) -> Iterator[str]:
    lines = iter(house.parts[name].log.read_text(errors="replace").splitlines())
    for line in lines:
        if "Traceback" in line:
            if line.startswith("{"):
                yield line[-300:]
            else:
                yield next((last for last in lines if not last.startswith((" ", "Traceback"))), "")
