"""Who saw a patient: when, in what role, why, and what. One line for each request.

Decisions, accesses and disclosures are used together (`authz.store.lookups`) and folded: a request
is what its records say of it, and `records` name them, so that each line can be proven.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from authz.report.explained import Asked, Explanation, explanations
from authz.store import lookups, timelines
from authz.store.client import Client
from authz.store.lookups import EVER, Concerned, Row, Totals, Window
from authz.store.timelines import Seen

Known = Literal["request", "answer"]
Outcome = Literal["allowed", "denied", "dry-run", "unasked", "rejected"]

_ACTIONS = {"C": "create", "R": "read", "U": "update", "D": "delete"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request that concerns a patient. Times are microseconds since the epoch, UTC."""

    time: int
    subject: str
    """Empty if nobody was identified."""
    roles: tuple[str, ...]
    tenant: str
    purpose: str
    reason: str
    break_glass: bool
    action: str
    resource_type: str
    path: str
    method: str
    source_ip: str
    outcome: Outcome
    """What was decided: `dry-run` is a denial that was not enforced; `unasked` is let through
    without a decision, `rejected` refused by Envoy without one."""
    answered: bool
    """Whether an answer of the service was seen."""
    status: int
    """What the client got, as far as it is told; 0 if it is not."""
    known: tuple[Known, ...]
    """How it is known that it concerns a patient: the request named them, the answer held them."""
    patients: tuple[int, ...]
    """Which of the patients asked for, counted from 1."""
    decision_id: str
    policy_revision: str
    """Of the policy that decided; ``authz policy show`` prints its text. Empty without one."""
    records: tuple[str, ...]
    """``<origin>/<index>`` of the records that say so."""
    explained: tuple[Explanation, ...] = ()
    """What is known to give a reason to look at each of these patients; not those of whom nothing
    is."""

    @property
    def allowed(self) -> bool:
        """Whether it was let through by a decision that says so."""
        return self.outcome == "allowed"

    @property
    def doing(self) -> str:
        """What was done, in a word: E stands for searches, and for whatever else there is."""
        searches = self.method in ("GET", "POST") and "$" not in self.path
        return _ACTIONS.get(self.action, "search" if searches else "execute")


@dataclass(frozen=True, slots=True)
class Lookup:
    """The answer. The counts are of all requests found, of which `requests` are the newest."""

    requests: tuple[Request, ...]
    """Newest last."""
    total: int
    people: int
    denied: int
    first: int
    last: int
    unresolved: int
    """Answers of the time asked for of which it is not known in full whose data they held."""
    disclosures: bool
    """Whether records of that time say whose data answers held. With none, nothing is known but
    what requests named."""
    other_keys: tuple[str, ...]
    """Privacy keys that patients are recorded under and that were not given: what was recorded
    under these was not searched."""
    feeds: tuple[str, ...] = ()
    """The feeds of reasons that are loaded. With none, nothing could explain a request."""

    @property
    def more(self) -> int:
        """How many older requests are not among `requests`."""
        return max(0, self.total - len(self.requests))

    def to_json(self) -> dict[str, Any]:
        told = asdict(self) | {"more": self.more}
        requests = [asdict(request) | {"allowed": request.allowed} for request in self.requests]
        return told | {"requests": requests}


def look_up(
    client: Client, patients: Sequence[Sequence[str]], window: Window = EVER, limit: int = 1000
) -> Lookup:
    """What concerns `patients`, each given by their tokens under each key there was.

    Errors are `authz.store.client.QUERY_ERRORS`. Record the look first (`authz.report.looks`).
    """
    return _look_up(client, patients, window, limit)[0]


def look_up_with_days(
    client: Client, patients: Sequence[Sequence[str]], window: Window, limit: int
) -> tuple[Lookup, list[Seen]]:
    """The same, and on which days whose requests, of all there are, concerned any of the patients:
    the newest first."""
    found, concerned = _look_up(client, patients, window, limit)
    if concerned.records is not None:
        return found, timelines.of_records(concerned.records)
    tokens = [token for own in patients for token in own]
    return found, timelines.of_patient(client, tokens, window)


def _look_up(
    client: Client, patients: Sequence[Sequence[str]], window: Window, limit: int
) -> tuple[Lookup, Concerned]:
    numbers = {token: number for number, own in enumerate(patients, 1) for token in own}
    tokens = list(numbers)
    concerned = lookups.newest(client, tokens, window, limit)
    requests = fold(lookups.records(client, tokens, concerned, window), numbers)
    asked = [Asked(one.subject, one.time, one.patients) for one in requests]
    feeds, explained = explanations(client, numbers, asked)
    requests = [replace(one, explained=why) for one, why in zip(requests, explained, strict=True)]
    counted = concerned.totals
    if len(concerned.requests) < limit:
        counted = _count(requests)  # whose subject only their decision may know
    keys = {token.partition(".")[0] for token in tokens}
    answers = lookups.unresolved(client, window)
    found = Lookup(
        requests=tuple(requests),
        total=counted.requests,
        people=counted.people,
        denied=counted.denied,
        first=counted.first_us,
        last=requests[-1].time if requests else 0,
        unresolved=answers.unresolved,
        disclosures=answers.disclosures,
        other_keys=tuple(sorted(lookups.other_keys(client, keys, window))),
        feeds=feeds,
    )
    return found, concerned


def _count(requests: Sequence[Request]) -> Totals:
    """Of all requests there are, oldest first."""
    people = {request.subject for request in requests} - {""}
    denied = sum(request.outcome in ("denied", "rejected") for request in requests)
    return Totals(len(requests), len(people), denied, requests[0].time if requests else 0)


def fold(rows: Iterable[Row], numbers: Mapping[str, int]) -> list[Request]:
    """The requests that `rows` are of, oldest first; `numbers` are their patients', by token."""
    by_request: dict[object, dict[str, Row]] = {}
    for row in rows:
        place = f"{row['origin']}/{row['index']}"
        by_request.setdefault(row["decision_id"] or (place,), {})[place] = row
    folded = [_request(of_one, numbers) for of_one in by_request.values()]
    return sorted(folded, key=lambda request: (request.time, request.records))


_NEAREST = ("decision", "access", "disclosure")


def _request(by_place: dict[str, Row], numbers: Mapping[str, int]) -> Request:
    """What the records of one request say together. Who and why are the decision's to say, and
    what it does not say (or no decision is there to say) the others fill in."""
    rows = sorted(by_place.values(), key=lambda row: _NEAREST.index(row["kind"]))

    def said(name: str) -> Any:
        return next((row[name] for row in rows if row[name]), rows[0][name])

    accesses = [row for row in rows if row["kind"] == "access"]
    named = [row for row in rows if row["tokens"]]
    known: list[Known] = []
    if any(row["kind"] != "disclosure" for row in named):
        known.append("request")
    if any(row["kind"] == "disclosure" for row in named):
        known.append("answer")
    disclosures = [row for row in rows if row["kind"] == "disclosure"]
    answers = disclosures + [row for row in accesses if row["upstream"]]
    return Request(
        time=said("time"),
        subject=said("subject"),
        roles=tuple(said("roles")),
        tenant=said("tenant"),
        purpose=said("purpose"),
        reason=said("reason"),
        break_glass=bool(said("break_glass")),
        action=said("action"),
        resource_type=said("resource_type"),
        path=said("path"),
        method=said("method"),
        source_ip=said("source_ip"),
        outcome=_outcome(rows),
        answered=bool(answers),
        status=max(row["status"] for row in accesses or disclosures or rows),
        known=tuple(known),
        patients=tuple(sorted({numbers[token] for row in named for token in row["tokens"]})),
        decision_id=rows[0]["decision_id"],
        policy_revision=said("policy_revision"),
        records=tuple(sorted(by_place, key=_in_order)),
    )  # fmt: skip


def _outcome(rows: Sequence[Row]) -> Outcome:
    """`rows` are of one request, its decision first."""
    if not rows[0]["decision_id"]:
        let_in = any(row["upstream"] or row["kind"] == "disclosure" for row in rows)
        return "unasked" if let_in else "rejected"
    deciding = [row for row in rows if row["kind"] != "disclosure"]
    if any(not row["allowed"] and row["enforced"] for row in deciding):
        return "denied"
    return "dry-run" if any(not row["allowed"] for row in deciding) else "allowed"


def _in_order(place: str) -> tuple[str, int]:
    origin, _, index = place.rpartition("/")
    return origin, int(index)
