"""Who has a reason to open whose chart: stays, appointments, orders, and the feeds that say so.

Everything is drawn once, day by day, before any access: an access with a reason then looks for one
in `Reasons`, and the feeds are those reasons written down.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.random import Generator

from tests.bench.detect.options import DAY, HOUR, Options
from tests.bench.detect.population import (
    BILLING,
    CLERK,
    CLINIC,
    ED,
    EMERGENCY,
    IT,
    LAB,
    NURSE,
    PHARMACIST,
    PHYSICIAN,
    RESEARCHER,
    SERVICE,
    WARD,
    Bools,
    Departments,
    Ints,
    Patients,
    People,
)
from tests.bench.detect.roster import OFF, Roster

CARE_TEAM, APPOINTMENTS, ORDERS, UNTOLD = range(4)
"""Where a reason is told. `UNTOLD`: nowhere, since the feed is late or knows nothing of it."""


@dataclass(frozen=True)
class Reasons:
    """`who` may open the chart of `patient` from `begin` to `end` (seconds)."""

    who: Ints
    patient: Ints
    begin: Ints
    end: Ints
    feed: Ints

    def take(self, which: Ints | Bools) -> "Reasons":
        return Reasons(
            self.who[which], self.patient[which], self.begin[which], self.end[which],
            self.feed[which],
        )  # fmt: skip


@dataclass(frozen=True)
class Glass:
    """Emergencies in which the glass was broken, by day."""

    day: int
    who: int
    patient: int
    at: int


@dataclass(frozen=True)
class Care:
    reasons: Reasons
    present: list[Ints]  # patients in the hospital, by day
    place: list[Ints]  # and the department each of them is in
    glass: list[Glass]


@dataclass
class _Draft:
    """What has been drawn so far."""

    options: Options
    people: People
    patients: Patients
    departments: Departments
    roster: Roster
    random: Generator
    staff: dict[tuple[int, int], Ints]
    parts: list[tuple[Ints, ...]] = field(default_factory=list)
    seen: list[Ints] = field(default_factory=list)  # patients of each day, for the bills

    def add(self, feed: int, who: Ints, patient: Ints, begin: Ints, end: Ints) -> None:
        size = np.broadcast_shapes(who.shape, patient.shape, begin.shape, end.shape)
        columns = (np.broadcast_to(each, size).ravel() for each in (who, patient, begin, end))
        self.parts.append((*columns, np.full(int(np.prod(size)), feed)))

    def on_duty(self, role: int, place: int, day: int) -> Ints:
        """Those of a role in a department who work that day; anybody of them if nobody does."""
        all_of_them = self.staff.get((role, place), _NOBODY)
        there = all_of_them[self.roster.shift[all_of_them, day] != OFF]
        return there if len(there) else all_of_them

    def team(self, pool: Ints, count: int, size: int) -> Ints:
        """`size` of `pool` for each of `count` patients."""
        return self.random.choice(pool, (count, size)) if len(pool) else np.empty((count, 0), int)


_NOBODY: Final = np.empty(0, int)


def make_care(
    options: Options, people: People, patients: Patients, departments: Departments, roster: Roster
) -> Care:
    staff = {
        (role, place): np.flatnonzero((people.role == role) & (people.department == place))
        for role, place in {*zip(people.role.tolist(), people.department.tolist(), strict=True)}
    }
    draft = _Draft(options, people, patients, departments, roster, options.random(5), staff)
    wards = np.flatnonzero(departments.kind == WARD)
    stays = _Stays()
    for ward in wards:  # those who are there when it begins
        count = round(departments.beds[ward] * 0.85)
        since = options.begin(0) - draft.random.integers(0, 3 * DAY, count)
        stays.admit(draft, int(ward), since)
    _studies(draft)
    present, place, glass = [], [], []
    for day in range(options.days):
        stays.day(draft, day, wards)
        visits, clinics = _appointments(draft, day)
        urgent = _emergencies(draft, day)
        here = np.concatenate([stays.patient, visits, urgent])
        ed = np.full(len(urgent), np.flatnonzero(departments.kind == ED)[0])
        present.append(here)
        place.append(np.concatenate([stays.ward, clinics, ed]))
        draft.seen.append(here)
        _consults(draft, day, stays)
        _orders(draft, day, here)
        _bills(draft, day)
        _turns(draft, day, stays)
        glass += _broken(draft, day)
    reasons = Reasons(*(np.concatenate(column) for column in zip(*draft.parts, strict=True)))
    return Care(reasons.take(np.argsort(reasons.begin, kind="stable")), present, place, glass)


class _Stays:
    """Inpatients: who lies on which ward until when."""

    def __init__(self) -> None:
        self.patient, self.ward, self.end = _NOBODY, _NOBODY, _NOBODY

    def day(self, draft: _Draft, day: int, wards: Ints) -> None:
        self._keep(self.end > draft.options.begin(day))
        for ward in wards:
            free = round(draft.departments.beds[ward] * 0.85) - int((self.ward == ward).sum())
            count = draft.random.poisson(max(free, 0.5))
            at = draft.options.begin(day) + draft.random.uniform(7, 22, count) * HOUR
            self.admit(draft, int(ward), at.astype(int))

    def _keep(self, which: Bools) -> None:
        self.patient, self.ward, self.end = (
            each[which] for each in (self.patient, self.ward, self.end)
        )

    def admit(self, draft: _Draft, ward: int, begin: Ints) -> None:
        random, count = draft.random, len(begin)
        patient = draft.patients.some(random, count)
        end = begin + (random.lognormal(1.1, 0.7, count) * DAY).astype(int) + 8 * HOUR
        physicians = draft.staff.get((PHYSICIAN, ward), _NOBODY)
        nurses = draft.staff.get((NURSE, ward), _NOBODY)
        # So that each nurse has about six patients, whatever the ward's size.
        size = max(3, round(6 * len(nurses) / max(draft.departments.beds[ward] * 0.85, 1)))
        teams = (draft.team(physicians, count, 3), draft.team(nurses, count, size))
        for team in teams:
            before = begin[:, None] - 2 * HOUR
            after = end[:, None] + 36 * HOUR  # charting goes on
            draft.add(CARE_TEAM, team, patient[:, None], before, after)
        self.patient = np.concatenate([self.patient, patient])
        self.ward = np.concatenate([self.ward, np.full(count, ward)])
        self.end = np.concatenate([self.end, end])


def _appointments(draft: _Draft, day: int) -> tuple[Ints, Ints]:
    """The patients who come to the clinics, and to which."""
    random, options = draft.random, draft.options
    if not options.works(day):
        return _NOBODY, _NOBODY
    found, places = [_NOBODY], [_NOBODY]
    for clinic in np.flatnonzero(draft.departments.kind == CLINIC):
        physicians = draft.on_duty(PHYSICIAN, int(clinic), day)
        count = int(random.poisson(9, len(physicians)).sum())
        patient = draft.patients.some(random, count)
        seen_by = random.choice(physicians, (count, 1)) if count else np.empty((0, 0), int)
        for pool, size in ((NURSE, 1), (CLERK, 1)):
            team = draft.team(draft.on_duty(pool, int(clinic), day), count, size)
            seen_by = np.concatenate([seen_by, team], axis=1)
        begin, end = np.array(options.begin(day - 1)), np.array(options.begin(day + 2))
        draft.add(APPOINTMENTS, seen_by, patient[:, None], begin, end)
        found.append(patient)
        places.append(np.full(count, clinic))
    return np.concatenate(found), np.concatenate(places)


def _emergencies(draft: _Draft, day: int) -> Ints:
    random, options = draft.random, draft.options
    ed = int(np.flatnonzero(draft.departments.kind == ED)[0])
    physicians = draft.on_duty(EMERGENCY, ed, day)
    count = random.poisson(len(physicians) * 7)
    patient = draft.patients.some(random, count)
    begin = (options.begin(day) + random.uniform(0, 24, (count, 1)) * HOUR).astype(int)
    for role, size in ((EMERGENCY, 1), (NURSE, 2), (CLERK, 1)):
        team = draft.team(draft.on_duty(role, ed, day), count, size)
        draft.add(CARE_TEAM, team, patient[:, None], begin - 600, begin + DAY)
    return patient


def _consults(draft: _Draft, day: int, stays: _Stays) -> None:
    """A physician of another department is asked to see somebody."""
    random = draft.random
    asked = stays.patient[random.random(len(stays.patient)) < 0.12]
    physicians = draft.people.of(PHYSICIAN)
    there = physicians[draft.roster.shift[physicians, day] != OFF]
    if len(there):
        begin = draft.options.begin(day) + random.integers(6 * HOUR, 16 * HOUR, len(asked))
        draft.add(ORDERS, random.choice(there, len(asked)), asked, begin, begin + 3 * DAY)


def _orders(draft: _Draft, day: int, here: Ints) -> None:
    """What the laboratory, the pharmacy, the front desk, IT and the interfaces are asked for."""
    random, options, people = draft.random, draft.options, draft.people
    registration = draft.departments.names.index("registration")
    for role, factor in ((LAB, 0.8), (PHARMACIST, 0.7), (CLERK, 0.7), (IT, 0.3), (SERVICE, 0.1)):
        who = people.of(role)
        if role == CLERK:
            who = who[people.department[who] == registration]
        who = who[draft.roster.shift[who, day] != OFF]
        asked = np.repeat(who, random.poisson(factor * people.visits[who]))
        patient = random.choice(here, len(asked)) if role != IT else draft.patients.some(
            random, len(asked)
        )  # fmt: skip
        begin = np.array(options.begin(day) - HOUR * (5 if role in (IT, SERVICE) else 1))
        draft.add(ORDERS, asked, patient, begin, begin + 48 * HOUR)


def _bills(draft: _Draft, day: int) -> None:
    """Claims for who was here in the last month; more of them when a month is closed."""
    who = draft.people.of(BILLING)
    who = who[draft.roster.shift[who, day] != OFF]
    factor = 1.2 if draft.options.month_end(day) else 0.6
    asked = np.repeat(who, draft.random.poisson(factor * draft.people.visits[who]))
    patient = draft.random.choice(np.concatenate(draft.seen[-30:]), len(asked))
    begin = np.array(draft.options.begin(day))
    draft.add(ORDERS, asked, patient, begin, begin + 4 * DAY)


def _studies(draft: _Draft) -> None:
    """Cohorts that researchers go through, some from the beginning and some from later on."""
    random, options = draft.random, draft.options
    researchers = draft.people.of(RESEARCHER)
    for number in range(2 * max(1, len(researchers) // 2)):
        size = int(np.clip(random.lognormal(5.3, 0.7), 60, options.patients // 10))
        cohort = random.choice(options.patients, size, replace=False)
        team = random.choice(researchers, min(len(researchers), int(random.integers(1, 4))))
        if number < len(researchers):  # everybody has something to do
            team[0] = researchers[number]
        first = -5 if number < len(researchers) else int(random.integers(0, options.days))
        length = int(random.integers(30, 140)) if first >= 0 else options.days + 30
        begin = np.array(options.begin(first))
        draft.add(ORDERS, team[:, None], cohort[None, :], begin, begin + length * DAY)


def _turns(draft: _Draft, day: int, stays: _Stays) -> None:
    """Nurses on another ward. The feed does not hear of every turn."""
    random, ward = draft.random, draft.roster.ward[:, day]
    for nurse in np.flatnonzero((ward >= 0) & (draft.roster.shift[:, day] != OFF)):
        theirs = stays.patient[stays.ward == ward[nurse]]
        if len(theirs):
            patient = random.choice(theirs, 8)
            begin = np.array(draft.options.begin(day) + 5 * HOUR)
            feed = UNTOLD if random.random() < 0.12 else CARE_TEAM
            draft.add(feed, np.array(nurse), patient, begin, begin + 28 * HOUR)


def _broken(draft: _Draft, day: int) -> list[Glass]:
    """Emergencies: nobody had time to enter the patient before. Nearly all are entered after."""
    random, roster = draft.random, draft.roster
    found = []
    for role, rate in ((EMERGENCY, 0.06), (PHYSICIAN, 0.006)):
        who = draft.people.of(role)
        who = who[(roster.shift[who, day] != OFF) & (roster.country[who, day] == 0)]
        who = who[random.random(len(who)) < rate]
        patient = draft.patients.some(random, len(who))
        at = draft.options.begin(day) + random.integers(8 * HOUR, 16 * HOUR, len(who))
        told = random.random(len(who)) < 0.93
        draft.add(CARE_TEAM, who[told], patient[told], at[told] - 600, at[told] + DAY)
        found += [
            Glass(day, *each)
            for each in zip(who.tolist(), patient.tolist(), at.tolist(), strict=True)
        ]
    return found
