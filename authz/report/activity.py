"""The activity report of a person: each of their operations, with time, confirmed roles, reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from authz.report.access import operation
from authz.report.completeness import Completeness, section
from authz.report.document import Cell, Document, Section, count, listed
from authz.report.lookup import Request, fold
from authz.report.people import Patient, Person
from authz.report.purposes import in_words
from authz.store import lookups
from authz.store.client import Client
from authz.store.lookups import Window

_MOST_PATIENTS = 5  # shown of one request


@dataclass(frozen=True, slots=True)
class Activity:
    requests: tuple[Request, ...]
    """The newest of them, the newest last; their `patients` are counted in `tokens` from 1."""
    tokens: tuple[str, ...]
    total: int
    denied: int

    @property
    def more(self) -> int:
        """How many older requests are not among `requests`."""
        return max(0, self.total - len(self.requests))

    def to_json(self) -> dict[str, Any]:
        told = asdict(self) | {"more": self.more, "patients": len(self.tokens)}
        told["requests"] = [
            asdict(one)
            | {"allowed": one.allowed, "patients": [self.tokens[n - 1] for n in one.patients]}
            for one in self.requests
        ]
        return told


def activity(client: Client, subject: str, window: Window, limit: int) -> Activity:
    """What `subject` did. Errors are `authz.store.client.QUERY_ERRORS`."""
    counted, found = lookups.of_person(client, subject, window, limit)
    rows = list(found)
    tokens = dict.fromkeys(token for row in rows for token in row["tokens"])
    numbers = {token: number for number, token in enumerate(tokens, 1)}
    return Activity(tuple(fold(rows, numbers)), tuple(tokens), counted.requests, counted.denied)


def document(
    found: Activity, people: Mapping[str, Person], patients: Mapping[str, Patient],
    rests_on: Completeness, about: Sequence[tuple[str, Cell]], issuer: str,
) -> Document:  # fmt: skip
    """`patients` are those whose identifiers are known, by token."""
    notes = [
        (
            f"{count(found.total, 'operation', 'operations')}, {found.denied:,} denied,"
            f" about {count(len(found.tokens), 'patient', 'patients')}."
        )
    ]
    if found.more:
        notes.append(
            f"The newest {len(found.requests):,} are in this report, {found.more:,} older ones are"
            " not (authz report --limit)."
        )

    def whom(request: Request) -> str:
        tokens = [found.tokens[number - 1] for number in request.patients]
        names = [patients[one].identifier if one in patients else one for one in tokens]
        return f"about {listed(names, _MOST_PATIENTS)}" if names else ""

    kinds = Counter(
        (one.resource_type or "(other)", one.doing, in_words(one.purpose) or "(not stated)",
         one.outcome)
        for one in found.requests
    )  # fmt: skip
    return Document(
        "Activity report",
        tuple(about),
        (
            Section(
                "In sum", ("what", "done", "purpose", "outcome", "times"),
                tuple((*kind, f"{times:,}") for kind, times in kinds.most_common()),
                empty="Nothing.",
            ),
            Section(
                "Each operation",
                ("time (UTC), records", "who, confirmed roles", "why", "what", "outcome"),
                tuple(operation(one, people, whom=whom(one)) for one in found.requests),
                empty="No record in this time names this person.",
            ),
            section(rests_on),
        ),
        notes=tuple(notes),
        issuer=issuer,
    )  # fmt: skip
