"""An ordinary day: who works, when, from where, and which charts they open."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator

from tests.bench.detect.care import UNTOLD, Care, Reasons
from tests.bench.detect.events import Events, Visits, expand, rejected
from tests.bench.detect.options import DAY, HOUR, Options
from tests.bench.detect.places import ABROAD, CAMPUS, HOME, MOBILE, VPN, From, Places
from tests.bench.detect.population import (
    BILLING,
    EMERGENCY,
    IT,
    PHYSICIAN,
    RESEARCHER,
    ROLES,
    SERVICE,
    WARD,
    Bools,
    Departments,
    Floats,
    Ints,
    Patients,
    People,
)
from tests.bench.detect.roster import ALWAYS, AWAY, OFF, SHIFTS, Roster

_MARGIN: Final = 1200  # a visit begins so many seconds before its reason ends
_ASIDE: Final = np.array([role.aside for role in ROLES])


@dataclass(frozen=True)
class Hall:
    """Everything about the hospital that a day needs."""

    options: Options
    people: People
    patients: Patients
    departments: Departments
    roster: Roster
    care: Care
    places: Places


@dataclass(frozen=True)
class _Parts:
    """Parts of working days: begin and length in seconds, and the share of the day's work."""

    who: Ints
    begin: Ints
    length: Ints
    share: Ints
    place: Ints


def make_day(hall: Hall, day: int) -> Events:
    """Everything innocent that begins on `day`, in no order."""
    random = hall.options.random(7, day)
    parts = _parts(hall, random, day)
    role = hall.people.role[parts.who]
    usual = hall.people.visits[parts.who] * hall.roster.busy[parts.who, day] * parts.share
    peak = (role == BILLING) & hall.options.month_end(day)
    usual *= np.where(peak, 1.9, 1.0)
    heavy = np.where(role == RESEARCHER, 1.2, 6.0)
    count = random.poisson(usual * random.gamma(heavy) / heavy)
    part = np.repeat(np.arange(len(count)), count)
    who = parts.who[part]
    at = parts.begin[part] + (parts.length[part] * random.beta(1.3, 1.25, len(part))).astype(int)
    usually = _seen(hall, random, parts, day)
    seen = usually.take(part)
    _move(hall, random, day, who, parts.place[part] == CAMPUS, seen)
    scripts = (role == RESEARCHER)[part] & (random.random(len(part)) < 0.05)
    hall.places.script(seen, np.flatnonzero(scripts))
    patient = _charts(hall, random, day, who, at)
    refused = np.repeat(random.random(len(count)) < 0.0004, count)  # not yet given their rights
    visits = Visits.of(who, at, patient, seen, refused=refused)
    events = [expand(random, hall.people, visits), _stale(random, parts, usually)]
    if broken := [each for each in hall.care.glass if each.day == day]:
        doctors = np.array([each.who for each in broken])
        events.append(
            expand(
                random,
                hall.people,
                Visits.of(
                    doctors,
                    np.array([each.at for each in broken]),
                    np.array([each.patient for each in broken]),
                    hall.places.desk(random, doctors, day),
                    glass=True,
                ),
            )
        )
    return Events.joined(events)


def _parts(hall: Hall, random: Generator, day: int) -> _Parts:
    people, roster, begin = hall.people, hall.roster, hall.options.begin(day)
    who = np.flatnonzero(roster.shift[:, day] != OFF)
    shift, role = roster.shift[who, day], people.role[who]
    size = len(who)
    start, length = SHIFTS[shift].T
    late = np.where(shift == ALWAYS, 0, random.normal(0, 0.25, size))
    place = np.where(shift == AWAY, ABROAD, CAMPUS)
    desk_work = np.isin(role, (BILLING, IT, RESEARCHER)) & (shift != AWAY)
    remote = desk_work & (random.random(size) < 2.2 * hall.options.vpn)
    place[remote] = np.where(random.random(int(remote.sum())) < 0.85, VPN, HOME)
    share = np.where(shift == AWAY, 0.2, 1.0)
    rows = [(who, start + late, length, share, place)]

    def more(which: Ints, first: float, last: float, share: float, places: tuple[int, ...]) -> None:
        mine = who[which] if which.dtype == bool else which
        starts = random.uniform(first, last, len(mine))
        where = random.choice(places, len(mine))
        rows.append((mine, starts, np.full(len(mine), 1.5), np.full(len(mine), share), where))

    doctor = np.isin(role, (PHYSICIAN, EMERGENCY)) & (shift != AWAY)
    chance = random.random(size)
    more(doctor & (chance < hall.options.vpn), 19, 22, 0.22, (VPN, VPN, VPN, HOME))  # charting
    more(doctor & (chance > 0.95), 8, 15, 0.12, (MOBILE,))  # on the way, or on the ward
    people_there = (role != SERVICE) & (shift != AWAY)
    more(people_there & (random.random(size) < 0.01), 18, 23, 0.25, (CAMPUS,))  # stays longer
    called = np.flatnonzero(roster.on_call[:, day])
    called = called[random.random(len(called)) < 0.6]
    more(called, 18, 29, 0.35, (VPN, HOME, CAMPUS))
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    return _Parts(
        columns[0],
        (begin + columns[1] * HOUR).astype(int),
        (columns[2] * HOUR).astype(int),
        columns[3],
        columns[4],
    )


def _seen(hall: Hall, random: Generator, parts: _Parts, day: int) -> From:
    """Where each part is worked from."""
    places, size = hall.places, len(parts.who)
    seen = From(np.zeros(size, int), np.zeros(size, int), np.zeros(size, int))
    by_place = [np.flatnonzero(parts.place == place) for place in range(5)]
    who = [parts.who[which] for which in by_place]
    _replace(seen, by_place[CAMPUS], places.desk(random, who[CAMPUS], day))
    _replace(seen, by_place[VPN], places.vpn(random, who[VPN], day))
    _replace(seen, by_place[HOME], places.home(random, who[HOME], day))
    _replace(seen, by_place[MOBILE], places.mobile(random, who[MOBILE], day))
    country = hall.roster.country[who[ABROAD], day].astype(int)
    _replace(seen, by_place[ABROAD], places.hotel(who[ABROAD], day, country))
    return seen


def _move(
    hall: Hall, random: Generator, day: int, who: Ints, campus: Bools, seen: From
) -> None:  # fmt: skip
    """Some use another desk for a while; physicians the one of any ward, floats that of theirs."""
    chance = random.random(len(who))
    near = np.flatnonzero(campus & (chance < 0.2))
    _replace(seen, near, hall.places.desk(random, who[near], day))
    round_ = np.flatnonzero(campus & (chance > 0.85) & (hall.people.role[who] == PHYSICIAN))
    wards = np.flatnonzero(hall.departments.kind == WARD)
    _replace(seen, round_, hall.places.elsewhere(random, day, random.choice(wards, len(round_))))
    ward = hall.roster.ward[who, day].astype(int)
    floats = np.flatnonzero(campus & (chance < 0.9) & (ward >= 0))
    _replace(seen, floats, hall.places.elsewhere(random, day, ward[floats]))


def _replace(seen: From, which: Ints, by: From) -> None:
    seen.ip[which], seen.network[which], seen.agent[which] = by.ip, by.network, by.agent


def _charts(hall: Hall, random: Generator, day: int, who: Ints, at: Ints) -> Ints:
    """Whose chart each visit opens, -1 for none: with a reason, but for a few."""
    options, people = hall.options, hall.people
    chart = random.random(len(who)) >= _ASIDE[people.role[who]]
    reasons = reasons_of(hall.care.reasons, options.begin(day) - HOUR, options.begin(day + 1) + DAY)
    told = Told(reasons, options.patients)
    patient = np.full(len(who), -1)
    left = np.flatnonzero(chart)
    counts = np.bincount(reasons.who, minlength=options.people)
    first = counts.cumsum() - counts
    for _ in range(5):
        left = left[counts[who[left]] > 0]
        row = first[who[left]] + (random.random(len(left)) * counts[who[left]]).astype(int)
        good = (reasons.begin[row] <= at[left]) & (reasons.end[row] > at[left] + _MARGIN)
        patient[left[good]] = reasons.patient[row[good]]
        left = left[~good]
    # Turns on other wards that no feed knows of are part of the unexplained share.
    odd = max(0.0, options.unexplained * 0.94 - _untold(hall))
    mine = np.flatnonzero((patient >= 0) & (people.role[who] != SERVICE))
    which = _oddly(random, people, who, mine, int(odd * len(mine) + random.random()))
    meant = patient[which].copy()
    for _ in range(4):
        patient[which] = _odd(hall, random, day, who[which], meant)
        known = told.explains(who[which], patient[which], at[which])
        which, meant = which[known], meant[known]
    patient[which] = meant
    return patient


def _oddly(random: Generator, people: People, who: Ints, mine: Ints, count: int) -> Ints:
    """`count` of the visits `mine`: some people do it far more often than others, and some have
    whole hours of it, when they help out and nobody enters that."""
    some = random.random(len(mine)) < 0.3 * count / max(len(mine), 1) / 3.5
    first = np.flatnonzero(some)
    run = first[:, None] + np.arange(6)
    run = np.minimum(run, len(mine) - 1)
    same = who[mine[run]] == who[mine[first]][:, None]
    same &= np.arange(6) < random.integers(2, 7, len(first))[:, None]
    helped = np.unique(run[same])[:count]
    weights = people.oddity[who[mine]]
    weights[helped] = 0
    if left := min(count - len(helped), int((weights > 0).sum())):
        alone = random.choice(len(mine), left, replace=False, p=weights / weights.sum())
        helped = np.concatenate([helped, alone])
    return mine[np.sort(helped)]


def reasons_of(reasons: Reasons, begin: int, end: int) -> Reasons:
    """Those that hold at some time between, by person."""
    upto = int(np.searchsorted(reasons.begin, end))
    which = np.flatnonzero(reasons.end[:upto] > begin)
    return reasons.take(which[np.argsort(reasons.who[which], kind="stable")])


class Told:
    """Looks up whether a feed explains an access."""

    def __init__(self, reasons: Reasons, patients: int) -> None:
        told = reasons.take(reasons.feed != UNTOLD)
        self._patients = patients
        key = told.who * patients + told.patient
        order = np.argsort(key, kind="stable")
        self._key, self._begin, self._end = key[order], told.begin[order], told.end[order]

    def explains(self, who: Ints, patient: Ints, at: Ints) -> Bools:
        key = who * self._patients + patient
        row = np.searchsorted(self._key, key)
        last = np.searchsorted(self._key, key, "right")
        found = np.zeros(len(key), bool)
        while (more := row < last).any():
            mine = np.minimum(row, len(self._key) - 1)
            found |= more & (self._begin[mine] <= at) & (at <= self._end[mine])
            row = row + 1
        return found


def _untold(hall: Hall) -> float:
    told = hall.care.reasons.feed != UNTOLD
    return float(1 - told.mean())


def _odd(hall: Hall, random: Generator, day: int, who: Ints, meant: Ints) -> Ints:
    """Whom somebody looks at without a reason that any feed knows: a colleague's patient, somebody
    on another ward who was asked about, a patient of the weeks before, the wrong one of a list."""
    present, place = hall.care.present[day], hall.care.place[day]
    found = hall.patients.some(random, len(who))
    kind = random.random(len(who))
    anywhere = kind < 0.8
    found[anywhere] = random.choice(present, int(anywhere.sum()))
    # A colleague's patient: somebody in the same department, if patients are there.
    order = np.argsort(place, kind="stable")
    counts = np.bincount(place, minlength=len(hall.departments.kind))
    first = counts.cumsum() - counts
    home = hall.people.department[who]
    near = np.flatnonzero((kind < 0.5) & (counts[home] > 0))
    offset = (random.random(len(near)) * counts[home[near]]).astype(int)
    found[near] = present[order[first[home[near]] + offset]]
    earlier = np.flatnonzero((kind > 0.6) & (kind < 0.8) & (day > 3))
    for number in earlier:
        past = hall.care.present[int(random.integers(max(0, day - 30), day))]
        found[number] = past[int(random.integers(len(past)))]
    _relations(hall, random, who, kind, found)
    wrong = np.flatnonzero((kind > 0.93) & (kind < 0.99))
    for number in wrong:  # of the same surname as the one who was meant
        same = np.flatnonzero(hall.patients.surname == hall.patients.surname[meant[number]])
        found[number] = same[int(random.integers(len(same)))]
    return found


def _relations(hall: Hall, random: Generator, who: Ints, kind: Floats, found: Ints) -> None:
    """A few look up a colleague or a relative who asked them to. Nothing tells that from misuse."""
    people, patients = hall.people, hall.patients
    for number in np.flatnonzero(kind > 0.996):
        me = who[number]
        if kind[number] < 0.999:
            near = (people.department == people.department[me]) & (people.patient >= 0)
            near[me] = False
            known = people.patient[near]
        else:
            known = np.flatnonzero(patients.household == people.household[me])
            known = known[known != people.patient[me]]
        if len(known):
            found[number] = known[int(random.integers(len(known)))]


def _stale(random: Generator, parts: _Parts, seen: From) -> Events:
    """Tokens that have expired: a request or two; now and then a program that tries again."""
    chance = random.random(len(parts.who))
    count = np.where(chance < 0.02, random.geometric(0.6, len(chance)), 0)
    count = np.where(chance > 0.9999, random.integers(6, 19, len(chance)), count)
    part = np.repeat(np.arange(len(count)), count)
    begin = (parts.begin + random.integers(0, HOUR, len(count)))[part] * 1_000_000
    time = begin + random.integers(0, 90_000_000, len(part))
    return rejected(random, time, seen.take(part))
