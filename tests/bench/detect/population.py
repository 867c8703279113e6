"""Who works in the hospital and who is treated there. Nobody has a name, only numbers."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from authz.record.privacy import PrivacyKey
from tests.bench.detect.options import Options

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Role(NamedTuple):
    """`visits`: charts opened on a working day; `depth`: accesses to each; `aside`: the share of
    visits that are to no chart, such as a work list."""

    name: str
    share: float
    visits: float
    depth: float
    aside: float
    purpose: str


ROLES: Final = (
    Role("physician", 0.165, 6.6, 3.2, 0.12, "TREAT"),
    Role("emergency_physician", 0.02, 8.0, 3.0, 0.08, "TREAT"),
    Role("nurse", 0.395, 5.6, 2.4, 0.10, "TREAT"),
    Role("clerk", 0.14, 8.0, 1.7, 0.20, "HOPERAT"),
    Role("billing", 0.07, 9.0, 2.4, 0.15, "HPAYMT"),
    Role("lab", 0.09, 9.0, 1.8, 0.20, "TREAT"),
    Role("pharmacist", 0.035, 11.0, 1.9, 0.10, "TREAT"),
    Role("it", 0.035, 5.0, 1.3, 0.80, "HOPERAT"),
    Role("researcher", 0.04, 11.0, 1.4, 0.10, "HRESCH"),
    Role("service", 0.01, 120.0, 1.0, 0.85, "HOPERAT"),
)
(
    PHYSICIAN, EMERGENCY, NURSE, CLERK, BILLING, LAB, PHARMACIST, IT, RESEARCHER, SERVICE,
) = range(len(ROLES))  # fmt: skip

WARD, CLINIC, ED, OFFICE = range(4)
STATUSES: Final = ("active", "terminated", "disabled")


@dataclass(frozen=True)
class People:
    """Everyone with an account, by number. `hired` and `left` are the first day of work and the
    first without; `until` is what the personnel office says: -1 while they are employed."""

    names: list[str]
    role: Ints
    department: Ints
    surname: Ints
    household: Ints
    patient: Ints  # their own record, -1 for none
    hired: Ints
    left: Ints
    until: Ints
    status: Ints
    visits: Floats  # of a working day in the middle
    oddity: Floats  # how often they look at a chart for a reason that no feed knows

    def of(self, *roles: int) -> Ints:
        return np.flatnonzero(np.isin(self.role, roles))


@dataclass(frozen=True)
class Patients:
    """Everyone with a record, by number. `tokens` stand for them in records and feeds alike."""

    tokens: list[str]
    surname: Ints
    household: Ints
    vip: Bools
    frequency: Floats  # cumulated: how often each is treated

    def some(self, random: Generator, count: int) -> Ints:
        """Patients by how often they are treated."""
        return np.searchsorted(self.frequency, random.random(count))


@dataclass(frozen=True)
class Departments:
    names: list[str]
    kind: Ints
    beds: Ints


def make_departments(options: Options) -> Departments:
    people = options.people
    wards, clinics = max(2, people // 130), max(2, people // 220)
    names = [f"ward-{n + 1:02d}" for n in range(wards)]
    names += [f"clinic-{n + 1:02d}" for n in range(clinics)]
    names += ["emergency", *_OFFICES]
    kind = [WARD] * wards + [CLINIC] * clinics + [ED] + [OFFICE] * len(_OFFICES)
    beds = np.zeros(len(kind), int)
    beds[:wards] = options.random(1).integers(14, 33, wards)
    return Departments(names, np.array(kind), beds)


_OFFICES: Final = (
    "registration", "billing", "laboratory", "imaging", "pharmacy", "it", "research", "interfaces",
)  # fmt: skip


def make_patients(options: Options) -> Patients:
    random = options.random(2)
    count = options.patients
    sizes = np.minimum(random.geometric(0.45, count), 6)
    household = np.repeat(np.arange(count), sizes)[:count]
    households = int(household[-1]) + 1
    surname = make_surnames(random, households)[household]
    other = random.random(count) < 0.12  # who has another than the rest of the household
    surname[other] = make_surnames(random, int(other.sum()))
    order = random.permutation(count)  # numbers tell nothing
    frequency = random.lognormal(0, 1.1, count).cumsum()
    vips = random.choice(count, max(8, round(count * 0.0015)), replace=False)
    key = PrivacyKey.of(random.bytes(32))
    numbers = random.choice(90_000_000, count, replace=False) + 10_000_000
    return Patients(
        tokens=[key.token(f"{number}") for number in numbers.tolist()],
        surname=surname[order],
        household=random.permutation(households)[household][order],
        vip=np.isin(np.arange(count), vips),
        frequency=frequency / frequency[-1],
    )


def make_surnames(random: Generator, count: int) -> Ints:
    """Surnames as they are spread: one in a hundred has the most frequent, many have rare ones."""
    weights = 1 / (np.arange(8_000) + 9.0)
    weights /= weights.sum()
    return random.choice(8_000, count, p=weights)


def make_people(options: Options, departments: Departments, patients: Patients) -> People:
    random = options.random(3)
    count = options.people
    shares = np.array([role.share for role in ROLES])
    numbers = np.maximum(np.floor(shares * count), 3).astype(int)
    numbers[NURSE] += count - numbers.sum()
    role = random.permutation(np.repeat(np.arange(len(ROLES)), numbers))
    person = role != SERVICE

    patient = np.full(count, -1)
    known = person & (random.random(count) < 0.85)
    patient[known] = random.choice(options.patients, int(known.sum()), replace=False)
    kin = random.integers(options.patients, size=count)  # others live with a patient, or alone
    surname = np.where(known, patients.surname[patient], patients.surname[kin])
    household = np.where(known, patients.household[patient], patients.household[kin])
    alone = ~known & (random.random(count) < 0.5)
    household[alone] = patients.household.max() + 1 + np.arange(int(alone.sum()))
    surname[~person], household[~person] = -1, -1

    hired, left, until, status = _careers(options, random, person)
    means = np.array([each.visits for each in ROLES])[role]
    spread = np.where(role == SERVICE, 0.8, np.where(role == RESEARCHER, 0.7, 0.4))
    return People(
        names=_names(random, role),
        role=role,
        department=_workplaces(random, role, departments),
        surname=surname,
        household=household,
        patient=patient,
        hired=hired,
        left=left,
        until=until,
        status=status,
        visits=means * random.lognormal(0, spread) / np.exp(spread**2 / 2),
        oddity=random.lognormal(0, 0.9, count),
    )


def _careers(options: Options, random: Generator, person: Bools) -> tuple[Ints, Ints, Ints, Ints]:
    count, days = options.people, options.days
    hired, left = np.full(count, -1), np.full(count, days + 1)
    until, status = np.full(count, -1), np.zeros(count, int)
    chance = random.random(count)
    new = person & (chance < 0.04)
    hired[new] = random.integers(1, days, int(new.sum()))
    gone = person & (chance > 0.955)
    left[gone] = random.integers(2, days, int(gone.sum()))
    # The last night ends on the day after the last shift; some accounts stay for longer.
    until[gone] = left[gone] + np.where(random.random(int(gone.sum())) < 0.8, 1, 3)
    status[gone] = np.where(random.random(int(gone.sum())) < 0.85, 1, 2)
    return hired, left, until, status


def _names(random: Generator, role: Ints) -> list[str]:
    numbers = random.choice(90_000, len(role), replace=False) + 10_000
    return [
        f"svc.{_FEEDS[number % len(_FEEDS)]}-{number}" if each == SERVICE else f"u{number}"
        for each, number in zip(role.tolist(), numbers.tolist(), strict=True)
    ]


_FEEDS: Final = ("lab-feed", "orders", "imaging", "portal", "monitors", "pharmacy-feed")


def _workplaces(random: Generator, role: Ints, departments: Departments) -> Ints:
    by_kind = {kind: np.flatnonzero(departments.kind == kind) for kind in (WARD, CLINIC, ED)}
    office = {name: number for number, name in enumerate(departments.names)}
    places = {
        PHYSICIAN: ((by_kind[WARD], 0.6), (by_kind[CLINIC], 0.4)),
        EMERGENCY: ((by_kind[ED], 1.0),),
        NURSE: ((by_kind[WARD], 0.74), (by_kind[CLINIC], 0.18), (by_kind[ED], 0.08)),
        CLERK: ((by_kind[CLINIC], 0.6), (by_kind[ED], 0.1), (office["registration"], 0.3)),
        BILLING: ((office["billing"], 1.0),),
        LAB: ((office["laboratory"], 0.7), (office["imaging"], 0.3)),
        PHARMACIST: ((office["pharmacy"], 1.0),),
        IT: ((office["it"], 1.0),),
        RESEARCHER: ((office["research"], 1.0),),
        SERVICE: ((office["interfaces"], 1.0),),
    }
    found = np.zeros(len(role), int)
    for number, choices in places.items():
        mine = random.permutation(np.flatnonzero(role == number))
        edges = np.cumsum([share for _, share in choices])[:-1] * len(mine)
        parts = np.split(mine, np.round(edges).astype(int))
        for part, (where, _) in zip(parts, choices, strict=True):
            where = np.atleast_1d(where)  # noqa: PLW2901 - one or many
            found[part] = where[np.arange(len(part)) % len(where)]
    return found
