"""Misuse: who does what they must not, each in a way that seen by itself could be innocent.

Requests are made by the same code as the innocent ones, from visits; only whose chart, how many,
when and from where are chosen here.
"""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from tests.bench.detect.events import Events, Visits, expand, rejected
from tests.bench.detect.options import HOUR
from tests.bench.detect.places import From, address
from tests.bench.detect.population import (
    BILLING,
    CLERK,
    EMERGENCY,
    IT,
    LAB,
    NURSE,
    OFFICE,
    PHARMACIST,
    PHYSICIAN,
    RESEARCHER,
    SERVICE,
    Bools,
    Ints,
)
from tests.bench.detect.records import ids
from tests.bench.detect.roster import AWAY, NIGHT, OFF, SHIFTS
from tests.bench.detect.traffic import Hall
from tests.bench.detect.truth import KINDS, Misuse

_STAFF: Final = (PHYSICIAN, NURSE, CLERK, BILLING, LAB, PHARMACIST, RESEARCHER)
_CLINICAL: Final = (PHYSICIAN, EMERGENCY, NURSE, PHARMACIST)
_EVERYTHING, _CLAIMS, _SEARCH, _EXPORT, _AUDIT, _NOTES = 12, 8, 17, 24, 21, 5  # in PATHS


class Misuses:
    """Makes all misuse of a hospital. Nobody does two things, so that findings can be told apart.

    Raises `ValueError` where the hospital is too small for as many.
    """

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._random = hall.options.random(8)
        self._used: set[int] = set()
        self.events: list[Events] = []
        self.truth: list[Misuse] = []
        makers: dict[str, Callable[[], Iterable[Events]]] = {
            kind: getattr(self, f"_{kind}") for kind in KINDS
        }
        for number in range(hall.options.misuses):
            self._number = number
            for kind, make in makers.items():
                self._take(kind, Events.joined(list(make())).in_order())
        self.truth.sort(key=lambda misuse: misuse.begin_us)

    def _take(self, kind: str, events: Events) -> None:
        self.events.append(events)
        who = int(events.who[0])
        self.truth.append(
            Misuse(
                kind,
                self._hall.people.names[who] if who >= 0 else "",
                address(int(events.ip[0])) if who < 0 else "",
                int(events.time[0]),
                int(events.time[-1]),
                tuple(ids(events)),
            )
        )

    # Who and when.

    def _day(self, needs: int = 1) -> int:
        """A day from which `needs` days are left."""
        options = self._hall.options
        last = options.days - needs - 1
        if last <= options.calm:
            raise ValueError(f"{options.days} days are too few: {needs} are needed after history")
        return int(self._random.integers(options.calm, last))

    def _employed(self, day: int) -> Bools:
        """Those who have worked for some weeks, and will for some."""
        people = self._hall.people
        free = np.ones(len(people.role), bool)
        free[list(self._used)] = False
        return (
            free
            & (people.hired < day - min(20, self._hall.options.calm))
            & (people.left > self._hall.options.days)
        )

    def _one(
        self, roles: tuple[int, ...], day: int, also: Bools | None = None, length: int = 1
    ) -> int:
        """Somebody of these roles who works on `day`, and on enough of `length` days, and is not
        away."""
        shift = self._hall.roster.shift[:, day : day + length]
        there = (shift != OFF) & (shift != AWAY)
        fit = np.isin(self._hall.people.role, roles) & self._employed(day)
        fit &= there[:, 0] & (there.mean(axis=1) > 0.5)
        if also is not None:
            fit &= also
        if not fit.any():
            raise ValueError("too few people for so much misuse")
        who = int(self._random.choice(np.flatnonzero(fit)))
        self._used.add(who)
        return who

    def _shift(self, who: int, day: int) -> tuple[float, float]:
        """When `who` works on `day`, in seconds."""
        begin, length = SHIFTS[self._hall.roster.shift[who, day]] * HOUR
        return self._hall.options.begin(day) + begin, length

    def _works(self, who: int, first: int, count: int) -> list[int]:
        """The days among these on which `who` works at the hospital."""
        shift = self._hall.roster.shift[who, first : first + count]
        return [first + n for n in np.flatnonzero((shift != OFF) & (shift != AWAY)).tolist()]

    def _times(self, begin: float, length: float, count: int) -> Ints:
        return (begin + np.sort(self._random.random(count)) * length).astype(int)

    # Whom and how.

    def _strangers(self, who: int, count: int, day: int) -> Ints:
        """Patients whom `who` never has a reason to see: of those who are there, or of all."""
        random, hall = self._random, self._hall
        found = self._never(who, hall.patients.some(random, 2 * count + 20))
        here = self._never(who, random.permutation(hall.care.present[day]))
        if random.random() < 0.5:
            found = np.concatenate([here, found])
        return found[:count]

    def _never(self, who: int, patients: Ints) -> Ints:
        care = self._hall.care
        known = care.reasons.patient[care.reasons.who == who]
        return patients[~np.isin(patients, known)]

    def _desk(self, who: int, day: int, count: int) -> From:
        place = self._hall.places.desk(self._random, np.array([who]), day)
        return place.take(np.zeros(count, int))

    def _visits(
        self, who: int, at: Ints, patient: Ints, seen: From, *, glass: bool = False,
        refused: bool | Bools = False, path: int | Ints = -1,
    ) -> Events:  # fmt: skip
        visits = Visits.of(
            np.full(len(at), who), at, patient, seen, glass=glass, refused=refused, path=path
        )
        return expand(self._random, self._hall.people, visits)

    # The kinds.

    def _bulk_export(self) -> Iterable[Events]:
        day = self._day()
        who = self._one(_STAFF, day)
        count = int(np.clip(self._random.lognormal(4.9, 0.6), 50, 600))
        begin, length = self._shift(who, day)
        start = begin + self._random.random() * length * 0.6
        at = self._times(start, self._random.uniform(0.5, 2.5) * HOUR, count)
        path = -1 if self._random.random() < 0.6 else _EVERYTHING
        seen = self._desk(who, day, count)
        yield self._visits(who, at, self._strangers(who, count, day), seen, path=path)

    def _more(self, who: int, day: int, share: float) -> Iterable[Events]:
        count = int(self._random.poisson(share * self._hall.people.visits[who]))
        if count:
            begin, length = self._shift(who, day)
            at = self._times(begin, length, count)
            yield self._visits(
                who, at, self._strangers(who, count, day), self._desk(who, day, count)
            )

    def _slow_scrape(self) -> Iterable[Events]:
        length = min(int(self._random.integers(18, 29)), self._hall.options.days // 3)
        first = self._day(length)
        who = self._one(_STAFF, first, length=length)
        share = self._random.uniform(0.3, 0.6)
        for day in self._works(who, first, length):
            yield from self._more(who, day, share)

    def _ramp(self) -> Iterable[Events]:
        length = min(int(self._random.integers(28, 41)), self._hall.options.days // 2 - 1)
        first = self._day(length)
        who = self._one(_STAFF, first, length=length)
        for day in self._works(who, first, length):
            yield from self._more(who, day, 1.04 ** (day - first) - 1)

    def _stolen_credential(self) -> Iterable[Events]:
        day = self._day(4)
        who = self._one((*_STAFF, EMERGENCY, IT), day)
        near = self._random.random() < 0.3
        place = self._hall.places.thief(self._random, np.array([who]), day, near=near)
        for each in range(int(self._random.integers(1, 4))):
            count = int(self._random.integers(3, 30))
            hour = self._random.uniform(*((-2, 6) if self._random.random() < 0.75 else (8, 20)))
            begin = self._hall.options.begin(day + each) + hour * HOUR
            at = self._times(begin, self._random.uniform(0.3, 1.5) * HOUR, count)
            seen = place.take(np.zeros(count, int))
            yield self._visits(who, at, self._strangers(who, count, day + each), seen)

    def _shared_credential(self) -> Iterable[Events]:
        """A colleague uses the same account at the same time, for the colleague's own patients."""
        length = 6
        first = self._day(length)
        who = self._one((PHYSICIAN, NURSE, CLERK), first, length=length)
        hall, random = self._hall, self._random
        kind, mine = hall.departments.kind, hall.people.department[who]
        place = int(
            random.choice(np.flatnonzero((kind != OFFICE) & (np.arange(len(kind)) != mine)))
        )
        if self._number % 3 == 1:  # next to them
            place = int(mine)
        desk = hall.places.elsewhere(random, first, np.array([place]))
        for day in self._works(who, first, length):
            begin, hours = self._shift(who, day)
            count = int(random.integers(4, 14))
            at = self._times(begin + 0.1 * hours, hours * 0.8, count)
            there = self._never(who, hall.care.present[day][hall.care.place[day] == place])
            some = random.choice(there, count) if len(there) else self._strangers(who, count, day)
            seen = desk
            if self._number % 3 == 0:  # at the colleague's home
                seen = hall.places.home(random, np.array([(who + 1) % hall.options.people]), day)
            yield self._visits(who, at, some, seen.take(np.zeros(count, int)))

    def _off_hours(self) -> Iterable[Events]:
        first = self._day(8)
        shift = self._hall.roster.shift
        daily = (shift == NIGHT).mean(axis=1) < 0.03
        who = self._one((NURSE, CLERK, BILLING, LAB, PHARMACIST, RESEARCHER), first, daily)
        for after in self._random.choice(8, int(self._random.integers(2, 6)), replace=False):
            day = first + int(after)
            count = int(self._random.integers(2, 9))
            begin = self._hall.options.begin(day) + self._random.uniform(0.5, 3) * HOUR
            at = self._times(begin, self._random.uniform(0.4, 1.6) * HOUR, count)
            seen = self._desk(who, day, count)
            if self._random.random() < 0.4:
                vpn = self._hall.places.vpn(self._random, np.array([who]), day)
                seen = vpn.take(np.zeros(count, int))
            yield self._visits(who, at, self._strangers(who, count, day), seen)

    def _terminated(self) -> Iterable[Events]:
        people, options = self._hall.people, self._hall.options
        gone = (people.until > options.calm // 2) & (people.until < options.days - 2)
        gone[list(self._used)] = False
        if not gone.any():
            raise ValueError("too few people leave for so much misuse")
        who = int(self._random.choice(np.flatnonzero(gone)))
        self._used.add(who)
        first = max(int(people.until[who]) + 1, options.calm)
        for day in range(first, min(first + int(self._random.integers(1, 4)), options.days)):
            count = int(self._random.integers(1, 9))
            begin = options.begin(day) + self._random.uniform(7, 20) * HOUR
            at = self._times(begin, HOUR, count)
            one = np.array([who])
            vpn = self._hall.places.vpn(self._random, one, day).take(np.zeros(count, int))
            seen = vpn if self._random.random() < 0.7 else self._desk(who, day, count)
            yield self._visits(who, at, self._strangers(who, count, day), seen)

    def _denied_burst(self) -> Iterable[Events]:
        day = self._day()
        who = self._one((*_STAFF, IT), day)
        count = int(self._random.integers(18, 70))
        begin, length = self._shift(who, day)
        start = begin + self._random.random() * length * 0.8
        at = self._times(start, self._random.uniform(4, 15) * 60, count)
        path = self._random.choice((_SEARCH, _CLAIMS, _EXPORT, _AUDIT, _NOTES, 0), count)
        refused = self._random.random(count) < 0.93
        seen = self._desk(who, day, count)
        yield self._visits(
            who, at, self._strangers(who, count, day), seen, refused=refused, path=path
        )

    def _failed_authentication(self) -> Iterable[Events]:
        day, random = self._day(), self._random
        count = int(random.integers(30, 160))
        begin = self._hall.options.begin(day) + random.uniform(0, 23) * HOUR
        time = (begin * 1e6 + random.random(count) * random.uniform(60, 400) * 1e6).astype(int)
        seen = self._hall.places.thief(random, np.array([0]), day, near=random.random() < 0.4)
        if random.random() < 0.2:  # behind an address that many share
            seen = self._hall.places.mobile(random, np.array([0]), day)
        yield rejected(random, time, seen.take(np.zeros(count, int)))

    def _break_glass(self) -> Iterable[Events]:
        first = self._day(5)
        who = self._one((PHYSICIAN, EMERGENCY), first)
        for day in self._works(who, first, 5)[:3]:
            count = int(self._random.integers(2, 6))
            at = self._times(*self._shift(who, day), count)
            seen = self._desk(who, day, count)
            yield self._visits(who, at, self._strangers(who, count, day), seen, glass=True)

    def _service_drift(self) -> Iterable[Events]:
        first = self._day(6)
        who = self._one((SERVICE,), first)
        paths = self._random.choice((_EVERYTHING, _CLAIMS, _NOTES, _SEARCH, _EXPORT), 2, False)
        for day in range(first, first + int(self._random.integers(2, 6))):
            count = int(self._random.integers(8, 60))
            at = self._times(self._hall.options.begin(day), 23 * HOUR, count)
            path = self._random.choice(paths, count)
            seen = self._desk(who, day, count)
            yield self._visits(who, at, self._strangers(who, count, day), seen, path=path)

    def _look(self, choose: Callable[[int], Ints]) -> Iterable[Events]:
        """Somebody opens the chart of one of those whom `choose` finds, once or a few times."""
        day, random = self._day(), self._random
        for _ in range(2_000):
            who = self._one((*_CLINICAL, CLERK, LAB, BILLING), day)
            if len(candidates := self._never(who, choose(who))):
                break
            self._used.remove(who)
        else:
            raise ValueError("nobody has anybody to be curious about")
        patient = np.full(int(random.integers(1, 4)), random.choice(candidates))
        at = self._times(*self._shift(who, day), len(patient))
        yield self._visits(who, at, patient, self._desk(who, day, len(patient)))

    def _household(self) -> Iterable[Events]:
        people, patients = self._hall.people, self._hall.patients

        def kin(who: int) -> Ints:
            same = np.flatnonzero(patients.household == people.household[who])
            return same[same != people.patient[who]]

        yield from self._look(kin)

    def _surname(self) -> Iterable[Events]:
        """Relatives who live elsewhere."""
        people, patients = self._hall.people, self._hall.patients

        def relatives(who: int) -> Ints:
            same = patients.surname == people.surname[who]
            return np.flatnonzero(same & (patients.household != people.household[who]))

        yield from self._look(relatives)

    def _coworker(self) -> Iterable[Events]:
        people = self._hall.people

        def colleagues(who: int) -> Ints:
            near = (people.department == people.department[who]) & (people.patient >= 0)
            near[who] = False
            return people.patient[near]

        yield from self._look(colleagues)

    def _vip(self) -> Iterable[Events]:
        vips = np.flatnonzero(self._hall.patients.vip)
        yield from self._look(lambda _: vips)
