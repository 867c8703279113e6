"""What a changed policy would have decided, beside what was decided: who gains, who loses.

Pure but for the questions to OPA. A decision can be replayed if the policy made it, and if the new
policy reads nothing of what was not sealed (credentials, bodies).
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from authz.policy.builtins import TIMED
from authz.policy.rego_ast import Reads
from authz.policy.verdict import Audit, PolicyError, read_verdict
from authz.record.resource import Resources
from authz.record.sealing import SealError, SealingKey, key_id_of, unseal

Change = Literal["gains", "loses", "same", "not replayable"]

OUTSIDE: Final = frozenset({"http.send", "net.lookup_ip_addr", "opa.runtime"})
"""A review must not ask others about patients, and their answers were others then."""

_DECIDED_BY_POLICY: Final = frozenset({"allowed", "denied", "policy_error", "dry_run"})


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision on record, and the input it was made on; `why_not` says why that is not there."""

    decision_id: str
    allowed: bool = False
    reason: str = ""
    reason_code: str = ""
    subject: str = ""
    roles: tuple[str, ...] = ()
    method: str = ""
    resource_type: str = ""
    path: str = ""
    document: dict[str, Any] = field(default_factory=dict)
    removed: tuple[tuple[str, ...], ...] = ()
    patients: tuple[str, ...] = ()
    """In clear, to take them out of what is shown."""
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One decision, replayed."""

    change: Change
    recorded: Recorded
    reason: str = ""
    """The new policy's reason; why not, for what cannot be replayed."""

    def to_json(self) -> dict[str, Any]:
        was = self.recorded
        return {
            "decision_id": was.decision_id, "change": self.change, "subject": was.subject,
            "roles": list(was.roles), "method": was.method, "resource_type": was.resource_type,
            "path": was.path, "before": was.reason, "after": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Changes that are alike, for people."""

    change: Change
    subject: str
    roles: tuple[str, ...]
    method: str
    resource_type: str
    path: str
    before: str
    after: str


@dataclass(slots=True)
class Replay:
    """The sum of outcomes. `changed` are those that gain or lose; `notes` say what is doubtful."""

    changed: list[Outcome] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    not_replayable: Counter[str] = field(default_factory=Counter)
    other_reason: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.change] += 1
        if outcome.change == "not replayable":
            self.not_replayable[outcome.reason] += 1
        elif outcome.change != "same":
            self.changed.append(outcome)
        elif outcome.reason != outcome.recorded.reason:
            self.other_reason += 1

    @property
    def exit_code(self) -> int:
        """0 the same, 1 changes, 3 nothing was replayed or not all could be."""
        if self.changed:
            return 1
        return 0 if self.counts["same"] and not self.not_replayable else 3

    def groups(self) -> list[tuple[Group, int]]:
        """Gains first, then by how many."""
        found = Counter(
            Group(
                each.change, each.recorded.subject, each.recorded.roles, each.recorded.method,
                each.recorded.resource_type, each.recorded.path, each.recorded.reason, each.reason,
            )
            for each in self.changed
        )  # fmt: skip
        return sorted(found.items(), key=lambda pair: (pair[0].change, -pair[1], str(pair[0])))

    def people(self, change: Change) -> int:
        """How many people gain, or lose, something."""
        return len({each.recorded.subject for each in self.changed if each.change == change})

    def counted(self) -> dict[str, Any]:
        """What may be shown to who must not learn whose requests these were."""
        return {
            "gains": self.counts["gains"],
            "loses": self.counts["loses"],
            "people_who_gain": self.people("gains"),
            "people_who_lose": self.people("loses"),
            "same": self.counts["same"],
            "same_for_another_reason": self.other_reason,
            "not_replayable": dict(self.not_replayable),
            "notes": self.notes,
        }

    def to_json(self) -> dict[str, Any]:
        return self.counted() | {
            "changes": [outcome.to_json() for outcome in self.changed],
            "groups": [asdict(group) | {"count": count} for group, count in self.groups()],
        }


class Decides(Protocol):
    """What makes the decisions: `opa_ask.Asked`."""

    async def decide(
        self, documents: Sequence[dict[str, Any]], *, together: bool
    ) -> list[object]: ...


def opened(
    decision_id: str,
    ciphertext: bytes,
    decision: Mapping[str, Any] | None,
    key: SealingKey,
    resources: Resources,
) -> Recorded:
    """A decision on record (its values by name, `hash` its sealed input's) with its input opened;
    where that fails, with the reason why."""
    if decision is None:
        return Recorded(decision_id, why_not="its decision is not in the log")
    told = Recorded(
        decision_id, decision["allowed"], decision["reason"], decision["reason_code"],
        decision["subject"], tuple(decision["roles"]), decision["method"],
        decision["resource_type"], decision["path"],
    )  # fmt: skip
    if decision["hash"] and hashlib.sha256(ciphertext).hexdigest() != decision["hash"]:
        return replace(told, why_not="the sealed input is not the one on record")
    if key_id_of(ciphertext) != key.id:
        return replace(told, why_not=f"sealed with another key ({key_id_of(ciphertext)})")
    try:
        found = unseal(key, ciphertext, decision_id)
    except SealError:
        return replace(told, why_not="the sealed input was changed")
    http = found.document.get("attributes", {}).get("request", {}).get("http", {})
    asked = resources.read(http.get("method", ""), http.get("path", ""))
    patients = asked.patients + ((asked.id,) if asked.id else ())
    return replace(told, document=found.document, removed=found.removed, patients=patients)


async def run(
    opa: Decides, known: Reads, recorded: Iterable[Recorded], *, chunk: int = 256
) -> AsyncIterator[Outcome]:
    """Each decision with what the policy behind `opa`, which reads `known`, says of it now."""
    for part in _chunks(recorded, chunk):
        able = []
        for each in part:
            if why_not := each.why_not or _why_not(each, known):
                yield Outcome("not replayable", each, why_not)
            else:
                able.append(each)
        answers = await opa.decide([each.document for each in able], together=known.batchable)
        for each, answer in zip(able, answers, strict=True):
            yield _compare(each, answer)


def doubts(known: Reads) -> list[str]:
    """What a reader of the result should know about this policy."""
    timed = sorted(known.calls & TIMED)
    if not timed:
        return []
    return [f"the policy calls {', '.join(timed)}: what changes may be the clock's doing"]


def _why_not(each: Recorded, known: Reads) -> str:
    if each.reason_code not in _DECIDED_BY_POLICY:
        return f"not decided by the policy ({each.reason_code})"
    if outside := sorted(known.calls & OUTSIDE):
        return f"the policy calls {', '.join(outside)}"
    if known.unknown:
        return f"the policy calls {', '.join(sorted(known.unknown))}, which is not known here"
    needed = [place for place in each.removed if known.may_read(place)]
    if not needed:
        return ""
    kinds = sorted({_kind(place) for place in needed})
    return f"needs {' and '.join(kinds)} (not sealed)"


def _kind(place: tuple[str, ...]) -> str:
    if place[-1:] in (("body",), ("rawBody",), ("parsed_body",)):
        return "the body"
    if "headers" in place or "headerMap" in place:
        return "credentials in headers"
    return "credentials in the path or query"


def _compare(was: Recorded, answer: object) -> Outcome:
    if isinstance(answer, PolicyError):
        allowed, reason, audit = False, str(answer), Audit()
    else:
        try:
            verdict = read_verdict(answer)
        except PolicyError as error:
            allowed, reason, audit = False, str(error), Audit()
        else:
            allowed, reason, audit = verdict.allowed, verdict.audit.reason, verdict.audit
    hidden = {*audit.patients, *was.patients}
    shown = replace(was, reason=_without(was.reason, hidden))
    change: Change = "same" if allowed == was.allowed else "gains" if allowed else "loses"
    return Outcome(change, shown, _without(reason, hidden))


def _without(text: str, identifiers: Iterable[str]) -> str:
    """No patient in clear, whatever a policy writes into its reasons."""
    for identifier in sorted(identifiers, key=len, reverse=True):
        if identifier:
            text = text.replace(identifier, "{patient}")
    return text


def _chunks(recorded: Iterable[Recorded], size: int) -> Iterator[list[Recorded]]:
    part: list[Recorded] = []
    for each in recorded:
        part.append(each)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
