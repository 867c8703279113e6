"""Requests as columns: what both ordinary days and misuse are made of, by the same code."""

from dataclasses import dataclass, fields
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.bench.detect.places import From
from tests.bench.detect.population import (
    BILLING,
    CLERK,
    EMERGENCY,
    IT,
    LAB,
    NURSE,
    PHARMACIST,
    PHYSICIAN,
    RESEARCHER,
    ROLES,
    SERVICE,
    Bools,
    Ints,
    People,
)


class Path(NamedTuple):
    method: str
    path: str
    type: str
    action: str
    named: bool  # whether it names a patient
    bytes: float


PATHS: Final = (
    Path("GET", "/fhir/Patient/{id}", "Patient", "R", True, 2e3),
    Path("GET", "/fhir/Observation", "Observation", "E", True, 2e4),
    Path("GET", "/fhir/Encounter", "Encounter", "E", True, 6e3),
    Path("GET", "/fhir/MedicationRequest", "MedicationRequest", "E", True, 9e3),
    Path("GET", "/fhir/DiagnosticReport", "DiagnosticReport", "E", True, 1.5e4),
    Path("GET", "/fhir/DocumentReference", "DocumentReference", "E", True, 2.5e4),
    Path("GET", "/fhir/AllergyIntolerance", "AllergyIntolerance", "E", True, 2e3),
    Path("GET", "/fhir/Condition", "Condition", "E", True, 5e3),
    Path("GET", "/fhir/Claim", "Claim", "E", True, 8e3),
    Path("GET", "/fhir/Coverage", "Coverage", "E", True, 3e3),
    Path("GET", "/fhir/ServiceRequest", "ServiceRequest", "E", True, 6e3),
    Path("PUT", "/fhir/Patient/{id}", "Patient", "U", True, 1e3),
    Path("GET", "/fhir/Patient/{id}/$everything", "Patient", "E", True, 2e5),
    Path("POST", "/fhir/Observation", "Observation", "C", False, 800),
    Path("POST", "/fhir/MedicationAdministration", "MedicationAdministration", "C", False, 700),
    Path("POST", "/fhir/DiagnosticReport", "DiagnosticReport", "C", False, 900),
    Path("POST", "/fhir/Claim", "Claim", "C", False, 1e3),
    Path("GET", "/fhir/Patient", "Patient", "E", False, 1e4),
    Path("GET", "/fhir/Appointment", "Appointment", "E", False, 1.2e4),
    Path("GET", "/fhir/Schedule", "Schedule", "E", False, 4e3),
    Path("GET", "/fhir/Task", "Task", "E", False, 9e3),
    Path("GET", "/fhir/AuditEvent", "AuditEvent", "E", False, 3e4),
    Path("GET", "/fhir/Practitioner", "Practitioner", "E", False, 5e3),
    Path("GET", "/fhir/metadata", "", "R", False, 3e4),
    Path("GET", "/fhir/Group/{id}/$export", "Group", "E", False, 5e5),
    Path("GET", "/fhir/Subscription", "Subscription", "E", False, 3e3),
)

# What each role opens in a chart, and what beside charts: numbers in PATHS and their weights.
_CHART: Final = {
    PHYSICIAN: {0: 20, 1: 22, 2: 9, 3: 14, 4: 16, 5: 10, 7: 8, 12: 0.3},
    EMERGENCY: {0: 25, 1: 25, 2: 8, 3: 10, 4: 15, 6: 12, 7: 5, 12: 0.3},
    NURSE: {0: 22, 1: 28, 2: 6, 3: 20, 6: 9, 10: 8, 13: 5, 14: 2},
    CLERK: {0: 45, 2: 20, 9: 28, 11: 7},
    BILLING: {0: 12, 2: 20, 8: 40, 9: 18, 16: 10},
    LAB: {0: 22, 4: 22, 10: 46, 15: 10},
    PHARMACIST: {0: 15, 3: 52, 6: 18, 7: 10, 1: 5},
    IT: {0: 60, 2: 20, 9: 20},
    RESEARCHER: {0: 10, 1: 35, 4: 20, 7: 20, 12: 3, 2: 12},
    SERVICE: {0: 60, 10: 40},
}
_ASIDE: Final = {
    PHYSICIAN: {17: 4, 18: 3, 20: 3},
    EMERGENCY: {17: 5, 20: 5},
    NURSE: {17: 3, 20: 6, 18: 1},
    CLERK: {17: 5, 18: 4, 19: 3},
    BILLING: {17: 2, 20: 8},
    LAB: {20: 9, 17: 1},
    PHARMACIST: {20: 9, 17: 1},
    IT: {21: 4, 22: 2, 23: 2, 17: 1, 25: 1},
    RESEARCHER: {17: 3, 22: 3, 24: 0.3},
    SERVICE: {13: 60, 15: 20, 23: 5, 25: 5, 20: 10},
}
_NAMED: Final = np.array([path.named for path in PATHS])
_BYTES: Final = np.array([path.bytes for path in PATHS])
_POSTS: Final = np.array([path.method == "POST" for path in PATHS])
_DEPTH: Final = np.array([role.depth for role in ROLES])

ALLOWED, DENIED, REJECTED = range(3)  # by the policy; by Envoy, for its token


@dataclass(frozen=True)
class Visits:
    """Looks at one chart each, or beside any (`patient` -1). `at` in seconds; `path` -1: whatever
    the role opens; `glass`: the glass is broken; `refused`: the policy says no."""

    who: Ints
    at: Ints
    patient: Ints
    seen: From
    glass: Bools
    refused: Bools
    path: Ints

    @classmethod
    def of(
        cls, who: Ints, at: Ints, patient: Ints, seen: From, *, glass: bool | Bools = False,
        refused: bool | Bools = False, path: int | Ints = -1,
    ) -> "Visits":  # fmt: skip
        size = len(who)
        return cls(
            who, at, patient, seen, np.broadcast_to(glass, size), np.broadcast_to(refused, size),
            np.broadcast_to(path, size),
        )  # fmt: skip


@dataclass(frozen=True)
class Events:
    """Requests. `time` in microseconds; `who` -1: nobody could be told; `high` and `low` become
    the ids."""

    time: Ints
    who: Ints
    patient: Ints
    path: Ints
    ip: Ints
    network: Ints
    agent: Ints
    outcome: Ints
    status: Ints
    glass: Bools
    bytes: Ints
    took: Ints
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, which: Ints | Bools | slice) -> "Events":
        return Events(*(getattr(self, each.name)[which] for each in fields(self)))

    @staticmethod
    def joined(parts: list["Events"]) -> "Events":
        return Events(
            *(
                np.concatenate([getattr(part, each.name) for part in parts])
                for each in fields(Events)
            )
        )

    def in_order(self) -> "Events":
        return self.take(np.lexsort((self.low, self.time)))


def expand(random: Generator, people: People, visits: Visits) -> Events:
    """The requests of these visits."""
    role = people.role[visits.who]
    chart = visits.patient >= 0
    deep = np.where(chart & (visits.path < 0), _DEPTH[role] - 1, 0)
    count = 1 + random.poisson(deep)
    visit = np.repeat(np.arange(len(count)), count)
    size = len(visit)
    since = random.exponential(22e6, size).astype(np.int64) + 150_000
    total = since.cumsum()
    first = np.concatenate([[0], count.cumsum()[:-1]]).astype(int)
    time = visits.at[visit] * 1_000_000 + total - np.repeat(total[first], count)
    time += np.repeat(random.integers(0, 1_000_000, len(count)), count)

    path = visits.path[visit].copy()
    _choose(random, path, role[visit], chart[visit])
    refused = visits.refused[visit]
    denied = refused | (random.random(size) < 0.004)
    failed = random.random(size)
    status = np.where(_POSTS[path], 201, 200)
    status = np.where(failed < 0.002, 404, np.where(failed > 0.9994, 503, status))
    return _events(
        random,
        time=time,
        who=visits.who[visit],
        patient=np.where(_NAMED[path], visits.patient[visit], -1),
        path=path,
        seen=visits.seen.take(visit),
        outcome=np.where(denied, DENIED, ALLOWED),
        status=np.where(denied, 403, status),
        glass=visits.glass[visit],
    )


def rejected(random: Generator, time: Ints, seen: From) -> Events:
    """Requests whose token Envoy did not accept, at these times (microseconds)."""
    size = len(time)
    return _events(
        random, time=time, who=np.full(size, -1), patient=np.full(size, -1),
        path=random.choice((0, 1, 17, 20), size), seen=seen,
        outcome=np.full(size, REJECTED), status=np.full(size, 401), glass=np.zeros(size, bool),
    )  # fmt: skip


def _events(
    random: Generator, *, time: Ints, who: Ints, patient: Ints, path: Ints, seen: From,
    outcome: Ints, status: Ints, glass: Bools,
) -> Events:  # fmt: skip
    size = len(time)
    amount = _BYTES[path] * random.lognormal(0, 0.9, size)
    amount = np.where((outcome != ALLOWED) | (status >= 400), 40, amount).astype(int) + 1
    identity = random.integers(0, 2**64, (2, size), dtype=np.uint64)
    return Events(
        time, who, patient, path, seen.ip, seen.network, seen.agent, outcome, status, glass,
        amount, (random.lognormal(9.2, 0.7, size)).astype(int) + 300, identity[0], identity[1],
    )  # fmt: skip


def _choose(random: Generator, path: Ints, role: Ints, chart: Bools) -> None:
    for number in range(len(ROLES)):
        for table, which in ((_CHART, chart), (_ASIDE, ~chart)):
            open_ = np.flatnonzero((path < 0) & (role == number) & which)
            weights = np.array(list(table[number].values()), float).cumsum()
            drawn = np.searchsorted(weights / weights[-1], random.random(len(open_)))
            path[open_] = np.array(list(table[number]))[drawn]
