"""The fold over records: `Detector.add` each in time order, and it says what to look at."""

import ipaddress
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from authz.detect import accounts, relations, times, volume
from authz.detect.event import Event, Events
from authz.detect.feeds import Feeds
from authz.detect.lanes import FAMILY, Budgets, Lane, Lanes
from authz.detect.suspicion import Rule, Sight, Suspicion, World
from authz.detect.usual import (
    BREAKS,
    DAY_US,
    DENIALS,
    PATIENTS,
    PEAK,
    REQUESTS,
    SWITCHES,
    UNEXPLAINED,
    Day,
    Group,
    Person,
    usual_of,
)
from authz.record import Record

RULES: tuple[Rule, ...] = (
    volume.today, volume.slowly, relations.related, relations.gone, times.off_hours,
    times.elsewhere, times.travel, accounts.drift,
)  # fmt: skip
COOL_DOWN_DAYS = 7
_SWITCH_US = 10 * 60_000_000
_BURST_US = 10 * 60_000_000
_BURST = 20  # failed authentications from one address within that time
_FORGOTTEN_DAYS = 30  # a network where somebody was not seen for so long is new again
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What somebody should look at. `score` is -log10 of how likely it is by chance."""

    time: int
    subject: str
    rule: str
    lane: Lane
    score: float
    evidence: str
    records: tuple[str, ...]
    tenant: str = ""


@dataclass(slots=True)
class _Alerted:
    """The last alert of one subject and cause."""

    date: int
    lane: Lane


@dataclass(slots=True)
class _Failures:
    """Failed authentications from one address."""

    recent: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=100))
    told: int = 0


class Detector:
    """Everything detection knows. Memory follows people and what they do in a day, not history."""

    def __init__(
        self, feeds: Feeds, budgets: Budgets = Budgets(), zone: str = "UTC",
        world: World | None = None,
    ) -> None:  # fmt: skip
        self.feeds = feeds
        self.lanes = Lanes(budgets)
        self.people: dict[str, Person] = {}
        self.groups: dict[str, Group] = {}
        self.world = world or World()
        self.accesses = 0
        self.unexplained = 0
        self._events = Events()
        self._zone = ZoneInfo(zone)
        self._offset, self._offset_until = 0, 0
        self._date = 0
        self._active: list[Person] = []
        self._alerted: dict[tuple[str, str], _Alerted] = {}
        self._beside: dict[str, dict[str, tuple[float, Suspicion]]] = {}
        self._failures: dict[str, _Failures] = {}

    def add(self, record: Record) -> list[Finding]:
        """What this record gives cause for."""
        event = self._events.of(record)
        if event is None:
            return []
        date = self._roll(event.time)
        if event.failed:
            return list(self._failed(event))
        sight = self._look(event, date)
        found: list[Finding] = []
        for rule in RULES:
            for suspicion in rule(sight):
                found += self._suspect(suspicion, sight)
        if event.first and (place := self.world.place(event.address)):
            sight.person.place = event.time, place, event.address, event.id
        return found

    def _roll(self, time: int) -> int:
        """The date by the deployment's clock; what was under way on the day before is closed."""
        if time >= self._offset_until:
            at = datetime.fromtimestamp(time / 1_000_000, UTC).astimezone(self._zone)
            self._offset = int((at.utcoffset() or UTC.utcoffset(None)).total_seconds()) * 1_000_000
            self._offset_until = time - time % _HOUR_US + _HOUR_US
        date = (time + self._offset) // DAY_US
        if date > self._date:
            if self._date:
                self._close()
            self._date = date
        return self._date

    def _person(self, event: Event) -> Person:
        person = self.people.get(event.subject)
        if person is None:
            role = self.feeds.known(event.subject).role or (event.roles[0] if event.roles else "")
            person = self.people[event.subject] = Person(event.subject, role)
            person.first_date = self._date
            self.world.people.add(event.subject)
        return person

    def _day(self, person: Person, group: Group, event: Event) -> Day:
        day = person.day
        if day is None:
            day = person.day = Day(self._date)
            day.usual = usual_of(person, group, self._date)
            group.roll(self._date)
            for measure, usual in enumerate(day.usual):
                group.expected[measure] += usual.mean
            person.gap_us = event.time - person.last_time if person.last_time else 0
            self._active.append(person)
        return day

    def _look(self, event: Event, date: int) -> Sight:
        """Count an event, and say what is known about it."""
        person = self._person(event)
        group = self.groups.get(person.group)
        if group is None:
            group = self.groups[person.group] = Group()
        day = self._day(person, group, event)
        counts = day.counts
        if event.first:
            counts[REQUESTS] += 1
            group.today[REQUESTS] += 1
            if not event.allowed:
                counts[DENIALS] += 1
            if event.break_glass:
                counts[BREAKS] += 1
        day.recent.append(event.id)
        hour = (event.time + self._offset) // _HOUR_US % 24
        new_hour = hour not in day.hours
        if new_hour:
            day.hours.add(hour)
        strange = self._patients(event, day, group, hour) if event.patients else ()
        known = self.feeds.known(event.subject)
        new_network = new_country = False
        network = ""
        if event.first and event.address:
            network = network_of(event.address)
            new_network = self._network(person, network, date)
            new_country = self._country(person, event.country, date)
            day.new_networks += new_network
            day.new_countries += new_country
            self._switches(person, day, event, network)
        unexplained = (
            bool(strange)
            or not event.patients
            or any(patient in day.unexplained for patient in event.patients)
        )
        return Sight(
            event, person, group, day, known, self.feeds, self.world, strange, unexplained, hour,
            new_hour, network, new_network, new_country,
        )  # fmt: skip

    def _patients(self, event: Event, day: Day, group: Group, hour: int) -> tuple[str, ...]:
        """Count whose data it was; returns those that nothing explains, the first time today."""
        if hour != day.hour:
            day.hour = hour
            day.in_hour.clear()
        counts, strange = day.counts, []
        for patient in event.patients:
            if patient not in day.in_hour:
                day.in_hour.add(patient)
                if len(day.in_hour) > counts[PEAK]:
                    counts[PEAK] = len(day.in_hour)
                    group.today[PEAK] += 1
            if patient in day.patients:
                continue
            day.patients.add(patient)
            counts[PATIENTS] += 1
            group.today[PATIENTS] += 1
            self.accesses += 1
            if not self.feeds.reason(event.subject, patient, event.time):
                self.unexplained += 1
                day.unexplained[patient] = event.id
                counts[UNEXPLAINED] += 1
                if event.allowed:
                    strange.append(patient)
        return tuple(strange)

    def _network(self, person: Person, network: str, date: int) -> bool:
        """Whether this person is new on it."""
        last = person.networks.get(network)
        if last == date:
            return False
        person.networks[network] = date
        self.world.networks.setdefault(network, {})[person.subject] = date
        return last is None or last < date - _FORGOTTEN_DAYS

    def _country(self, person: Person, country: str, date: int) -> bool:
        if not country or country in person.countries:
            return False
        person.countries[country] = date
        self.world.countries.setdefault(country, set()).add(person.subject)
        return True

    def _switches(self, person: Person, day: Day, event: Event, network: str) -> None:
        """Changes of place or program within minutes: two people with one name."""
        if person.last_network and event.time - person.last_time < _SWITCH_US:
            moved = network != person.last_network and not (self.world.shared(event.address))
            other = event.agent != person.last_agent
            if moved or other:
                day.counts[SWITCHES] += 1
        person.last_network, person.last_agent = network, event.agent
        person.last_time = event.time

    def _suspect(self, suspicion: Suspicion, sight: Sight) -> Iterator[Finding]:
        subject, day = sight.event.subject, sight.day
        lane = self.lanes.lane(suspicion, subject, day.date)
        family = FAMILY[suspicion.rule]
        combined = self._combine(suspicion, family, subject, day.date)
        if lane is None and combined is not None:
            lane = self.lanes.lane(combined, subject, day.date)
            suspicion, family = combined, "combination"
        if lane is None:
            return
        cause = f"{family}/{suspicion.cause}" if suspicion.cause else family
        if not self._is_new(subject, cause, lane, day.date):
            return
        day.alerted = True
        self.lanes.alerted(lane)
        yield Finding(
            sight.event.time, subject, suspicion.rule, lane, round(suspicion.score, 3),
            suspicion.evidence, suspicion.records or (sight.event.id,), sight.event.tenant,
        )  # fmt: skip

    def _combine(
        self, suspicion: Suspicion, family: str, subject: str, date: int
    ) -> Suspicion | None:
        """Several things about one person on one day, none of which is enough by itself."""
        rate = self.lanes.rate(suspicion.rule, suspicion.score) / 1000
        weight = -math.log10(max(rate, 1e-12))
        if weight < 1:
            return None
        best = self._beside.setdefault(subject, {})
        if family not in best or weight > best[family][0]:
            best[family] = weight, suspicion
        if len(best) < 2:
            return None
        weights = sorted((weight for weight, _ in best.values()), reverse=True)
        parts = [one for _, one in sorted(best.values(), key=lambda one: -one[0])]
        records = tuple(dict.fromkeys(record for one in parts for record in one.records[-30:]))
        return Suspicion(
            "combination", sum(weights) - 0.8 * (len(weights) - 1),
            "; ".join(one.saw for one in parts), parts[0].usual, parts[0].peers, records[:100],
        )  # fmt: skip

    def _is_new(self, subject: str, cause: str, lane: Lane, date: int) -> bool:
        """Whether it was not told in the cool-down already, or has become worse."""
        before = self._alerted.get((subject, cause))
        if before is not None and date - before.date < COOL_DOWN_DAYS:
            if before.lane == "act" or lane == "review":
                return False
        self._alerted[subject, cause] = _Alerted(date, lane)
        return True

    def _failed(self, event: Event) -> Iterator[Finding]:
        """Failed authentications have no subject: they are counted by the address they come from."""
        failures = self._failures.setdefault(event.address, _Failures())
        failures.recent.append((event.time, event.id))
        recent = [one for at, one in failures.recent if at > event.time - _BURST_US]
        if len(recent) < _BURST or self._date < failures.told + 1:
            return
        failures.told = self._date
        self.lanes.alerted("act")
        yield Finding(
            event.time, event.address, "failed_authentications", "act", 9.0,
            f"{len(recent)} failed authentications within 10 minutes from {event.address}",
            tuple(recent),
        )  # fmt: skip

    def _close(self) -> None:
        """A day is over: it becomes part of what is usual."""
        for person in self._active:
            day = person.day
            assert day is not None
            counts = tuple(day.counts)
            group = self.groups[person.group]
            volume.add_slow(person.slow, counts, day.usual)
            person.days.append((day.date, counts, day.alerted))
            person.seen_days += 1
            for hour in range(24):
                person.hours[hour] = person.hours[hour] * 0.98 + (hour in day.hours)
            person.new_networks = person.new_networks * 0.98 + day.new_networks
            person.new_countries = person.new_countries * 0.98 + day.new_countries
            if not day.alerted:
                group.learn(counts, day.hours)
            person.day = None
        self.lanes.close(self._date, len(self._active))
        self._active.clear()
        self._beside.clear()
        self._failures = {
            address: one for address, one in self._failures.items() if one.told >= self._date
        }


@lru_cache(1 << 16)
def network_of(address: str) -> str:
    """The network an address is taken for: /24 of IPv4, /48 of IPv6; itself if it is neither."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    bits = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))
