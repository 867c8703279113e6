"""Who works when, and where: shifts and rotations, holidays, absences, floats, travel."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.bench.detect.options import Options
from tests.bench.detect.population import (
    CLINIC,
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
    People,
)

OFF, DAY_SHIFT, EVENING, NIGHT, OFFICE_HOURS, ALWAYS, AWAY = range(7)

# When each begins, in hours of the day, and how long it lasts.
SHIFTS: Final = np.array([(0, 0), (6.8, 8.6), (14.8, 8.6), (22.8, 8.6), (7.8, 9), (0, 24), (9, 11)])

CONFERENCES: Final = 12  # days between two


@dataclass(frozen=True)
class Roster:
    """By person and day: the shift, whether they are on call, the ward where nurses help out (-1:
    their own), the country they are in (0: at home), and how busy the day is for them."""

    shift: NDArray[np.int8]
    on_call: Bools
    ward: NDArray[np.int16]
    country: NDArray[np.int8]
    busy: NDArray[np.float32]


def make_roster(
    options: Options, people: People, departments: Departments, countries: int
) -> Roster:
    random = options.random(4)
    count, days = options.people, options.days
    day = np.arange(days)
    kind = departments.kind[people.department]
    around = np.isin(people.role, (NURSE, EMERGENCY, LAB, PHARMACIST)) & (kind != CLINIC)

    shift = np.where(
        around[:, None],
        _rotating(random, count, day),
        _weekly(options, random, people, kind),
    ).astype(np.int8)
    away = _absent(random, count, days)
    away |= (day < people.hired[:, None]) | (day >= people.left[:, None])
    service = people.role == SERVICE
    shift[away] = OFF
    country = _trips(options, random, people, countries)
    country[(day < people.hired[:, None]) | (day >= people.left[:, None])] = 0
    gone = np.pad(country > 0, ((0, 0), (1, 1)))
    flies = gone[:, 1:-1] & ~(gone[:, :-2] & gone[:, 2:])  # there or back
    shift[country > 0] = AWAY
    shift[flies] = OFF
    shift[service] = ALWAYS
    country[service] = 0

    calls = np.isin(people.role, (PHYSICIAN, IT))[:, None] & (random.random((count, days)) < 0.09)
    return Roster(
        shift=shift,
        on_call=calls & ~away & ~gone[:, 1:-1] & ~gone[:, 2:],
        ward=_floats(options, random, people, departments, kind),
        country=country,
        busy=_busy(random, count, days),
    )


def _rotating(random: Generator, count: int, day: Ints) -> Ints:
    """Four days on, two off. Most keep one shift; a third change it every twelve days."""
    phase = random.integers(0, 36, count)[:, None]
    on = (day + phase) % 6 < 4
    usual = random.choice([DAY_SHIFT, EVENING, NIGHT, 0], count, p=(0.4, 0.1, 0.15, 0.35))[:, None]
    turn = np.array([DAY_SHIFT, EVENING, NIGHT])[((day + phase) // 12) % 3]
    shift = np.where(usual > 0, usual, turn)
    swapped = random.random(shift.shape) < 0.03
    shift = np.where(swapped, random.integers(1, 4, shift.shape), shift)
    on ^= random.random(on.shape) < 0.02  # days exchanged with a colleague
    return np.where(on, shift, OFF)


def _weekly(options: Options, random: Generator, people: People, kind: Ints) -> Ints:
    """Office hours on working days; ward physicians have their rounds on weekends in turn."""
    count, days = options.people, options.days
    weekday = np.array([options.date(day).weekday() for day in range(days)])
    works = np.array([options.works(day) for day in range(days)])
    on = np.broadcast_to(works, (count, days)).copy()
    free = np.where(random.random(count) < 0.25, random.integers(0, 5, count), -1)
    on &= weekday != free[:, None]
    turn = (np.arange(days) // 7 + random.integers(0, 4, count)[:, None]) % 4 == 0
    rounds = (people.role == PHYSICIAN) & (kind == WARD)
    on |= ~works & rounds[:, None] & turn
    # Researchers and others sometimes work when nobody has to.
    keen = np.where(people.role == RESEARCHER, 0.10, 0.012)
    on |= ~works & (random.random((count, days)) < keen[:, None])
    return np.where(on, OFFICE_HOURS, OFF)


def _absent(random: Generator, count: int, days: int) -> Bools:
    """Holidays of some days, illness of one to four."""
    edges = np.zeros((count, days + 1), int)
    for rate, low, high in ((days / 70, 4, 12), (days / 60, 1, 5)):
        for person in np.repeat(np.arange(count), random.poisson(rate, count)):
            begin = int(random.integers(-low, days))
            edges[person, max(begin, 0)] += 1
            edges[person, min(max(begin + int(random.integers(low, high)), 0), days)] -= 1
    return edges.cumsum(axis=1)[:, :days] > 0


def _trips(options: Options, random: Generator, people: People, countries: int) -> NDArray[np.int8]:
    """Trips abroad, many of them to conferences where several of a department go."""
    days = options.days
    country = np.zeros((options.people, days), np.int8)
    travels = np.flatnonzero(np.isin(people.role, (PHYSICIAN, EMERGENCY, IT, RESEARCHER)))
    for person in random.choice(travels, random.poisson(options.travel * len(travels) * days / 30)):
        begin, length = int(random.integers(0, days)), int(random.integers(3, 8))
        where = int(random.integers(1, countries))
        if random.random() < 0.5:
            begin -= begin % CONFERENCES
            where = 1 + (begin // CONFERENCES * 5 + int(people.department[person])) % (
                countries - 1
            )
        country[person, begin : begin + length] = where
    return country


def _floats(
    options: Options, random: Generator, people: People, departments: Departments, kind: Ints
) -> NDArray[np.int16]:
    ward = np.full((options.people, options.days), -1, np.int16)
    nurses = np.flatnonzero((people.role == NURSE) & (kind == WARD))
    wards = np.flatnonzero(departments.kind == WARD)
    for day in range(options.days):
        for nurse in nurses[random.random(len(nurses)) < options.floats / 2]:
            ward[nurse, day : day + int(random.integers(1, 4))] = random.choice(wards)
    return ward


def _busy(random: Generator, count: int, days: int) -> NDArray[np.float32]:
    """A factor around 1 that keeps to a person for some days, and to the hospital for one."""
    busy = np.zeros((count, days), np.float32)
    state = random.normal(size=count)
    for day in range(days):
        state = 0.7 * state + np.sqrt(1 - 0.7**2) * random.normal(size=count)
        busy[:, day] = np.exp(0.22 * state + 0.05 * random.normal() - 0.025)
    return busy
