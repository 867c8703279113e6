"""The fold over records: `Detector.add` each in time order, and it says what to look at."""

import ipaddress
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from authz.config import Watch
from authz.detect import accounts, failures, relations, times, volume
from authz.detect.event import Event, Events
from authz.detect.failures import Failures
from authz.detect.feeds import Feeds, load
from authz.detect.lanes import Budgets, Calibration, Lane, Lanes
from authz.detect.suspicion import Rule, Sight, Suspicion, World
from authz.detect.tenants import Hours, Tenants
from authz.detect.usual import (
    BREAKS,
    DAY_US,
    DENIALS,
    FADING,
    KEPT_DAYS,
    PATIENTS,
    PEAK,
    REQUESTS,
    SWITCHES,
    UNEXPLAINED,
    Day,
    Group,
    Person,
    shift_of,
    usual_of,
)
from authz.errors import UsageError
from authz.places import locator, shared
from authz.record import Record

RULES: tuple[Rule, ...] = (
    volume.today, volume.slowly, relations.related, relations.gone, times.off_hours,
    times.elsewhere, times.travel, accounts.drift,
)  # fmt: skip
MOST_NAMED = 100  # records of one finding
COOL_DOWN_DAYS = 7
_EXPLAINED_DAYS = 30  # what somebody explained is not told again for so long
_SWITCH_US = 10 * 60_000_000
_FORGOTTEN_DAYS = 30  # a network where somebody was not seen for so long is new again
_HOUR_US = 3_600_000_000
# One alert in a cool-down for rules that see the same thing.
_FAMILY = {
    "unexplained": "volume", "bulk_read": "volume", "fast_read": "volume",
    "bulk_requests": "volume", "slow_read": "slow", "slow_unexplained": "slow",
    "shared_credential": "place", "new_place": "place",
    "service_drift": "account", "terminated": "account",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """What somebody should look at. `score` is -log10 of how likely it is by chance, as the rule
    reckons. `address` stands for the subject where nobody is known."""

    time: int
    subject: str
    rule: str
    lane: Lane
    score: float
    evidence: str
    records: tuple[str, ...]
    cause: str
    tenant: str = ""
    address: str = ""


@dataclass(slots=True)
class Alerted:
    """The last alert of one subject and cause."""

    lane: Lane
    until: int
    """The date on which it may be told again."""


@dataclass(slots=True)
class Total:
    """One day of all people together."""

    date: int = 0
    """Days since the epoch."""
    people: int = 0
    charts: int = 0
    """Each person's each chart, once."""
    unexplained: int = 0
    """Those that no feed explains."""


@dataclass(slots=True)
class Memory:
    """All that a detector has learnt: plain values, which can be kept. It follows people and what
    they do in a day, not history."""

    date: int = 0
    since: int = 0
    """The date of the first record."""
    people: dict[str, Person] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    networks: dict[str, dict[str, int]] = field(default_factory=dict)
    countries: dict[str, set[str]] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    alerted: dict[str, dict[str, Alerted]] = field(default_factory=dict)
    """By subject and cause."""
    failures: dict[str, Failures] = field(default_factory=dict)
    tenants: dict[str, Hours] = field(default_factory=dict)
    today: Total = field(default_factory=Total)
    over: list[Total] = field(default_factory=list)
    """The days before, `KEPT_DAYS` of them."""

    @property
    def unexplained(self) -> float:
        """The share of looks at charts that no feed explains, of all these days."""
        days = (*self.over, self.today)
        return sum(day.unexplained for day in days) / max(sum(day.charts for day in days), 1)


def detector_of(options: Watch, memory: Memory | None = None) -> "Detector":
    """As the operator wants it. Raises `UsageError`."""
    world = World(shared=shared(options.shared))
    if options.geo:
        world.place = locator(options.geo)
    try:
        zone = ZoneInfo(options.zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise UsageError(
            f"watch.zone: {options.zone!r}: no time zone; want one such as Europe/Berlin or UTC"
        ) from None
    feeds = load(options.feeds) if options.feeds else Feeds()
    budgets = Budgets(options.act, options.review)
    return Detector(feeds, budgets, zone, memory=memory, world=world)


class Detector:
    """`add` records; `memory` is what was learnt from those before."""

    def __init__(
        self, feeds: Feeds, budgets: Budgets, zone: ZoneInfo, *,
        memory: Memory | None = None, world: World | None = None,
    ) -> None:  # fmt: skip
        """`zone` is that of the people's days and hours."""
        self.feeds = feeds
        self.memory = memory or Memory()
        self.lanes = Lanes(budgets, self.memory.calibration)
        self._world = world or World()
        self._world.networks = self.memory.networks
        self._world.countries = self.memory.countries
        self._world.since = self.memory.since
        self._world.people = len(self.memory.people)
        self._events = Events()
        self._tenants = Tenants(self.memory.tenants)
        self._zone = zone
        self._offset, self._offset_until = 0, 0
        people = self.memory.people.values()
        self._active = [person for person in people if person.day is not None]
        self._best: dict[str, dict[str, tuple[float, Suspicion]]] = {}

    def add(self, record: Record) -> list[Finding]:
        """What this record gives cause for."""
        event = self._events.of(record)
        if event is None:
            return []
        self._roll(event.time)
        found = list(self._volume(event)) if event.first else []
        if event.failed:
            return [*found, *self._failed(event)]
        place = self._world.place(event.address) if event.first else None
        if place and not event.country:
            event.country = place.country
        sight = self._look(event)
        for rule in RULES:
            for suspicion in rule(sight):
                found += self._suspect(suspicion, sight)
        if place:
            sight.person.place = event.time, place, event.address, event.id
        return found

    def reviewed(self, subject: str, cause: str, *, confirmed: bool) -> None:
        """Somebody has explained a finding, or confirmed it."""
        if confirmed:
            self.lanes.confirmed(subject)
        elif alerted := self.memory.alerted.get(subject, {}).get(cause):
            alerted.lane, alerted.until = "act", self.memory.date + _EXPLAINED_DAYS

    def _roll(self, time: int) -> None:
        """On to the day of `time`, by the people's clock; the one that was under way is closed."""
        if time >= self._offset_until:
            at = datetime.fromtimestamp(time / 1_000_000, UTC).astimezone(self._zone)
            offset = at.utcoffset()
            self._offset = int(offset.total_seconds()) * 1_000_000 if offset else 0
            self._offset_until = time - time % _HOUR_US + _HOUR_US
        date = (time + self._offset) // DAY_US
        memory = self.memory
        if date > memory.date:
            if memory.date:
                self._close()
            memory.date = date
            self._world.since = memory.since = memory.since or date

    def _look(self, event: Event) -> Sight:
        """Count an event, and say what is known about it."""
        memory, feeds = self.memory, self.feeds
        known = feeds.known(event.subject)
        person = memory.people.get(event.subject)
        if person is None:
            role = known.role or (event.roles[0] if event.roles else "")
            person = Person(event.subject, role, first_date=memory.date)
            memory.people[event.subject] = person
            self._world.people = len(memory.people)
        group = memory.groups.get(person.group)
        if group is None:
            group = memory.groups[person.group] = Group()
        day = person.day or self._begin_day(person, group, event)
        if event.first:
            self._count(event, day, group)
        day.recent.append(event.id)
        if len(day.recent) > 2 * MOST_NAMED:
            del day.recent[:MOST_NAMED]
        hour = (event.time + self._offset) // _HOUR_US % 24
        new_hour = hour not in day.hours
        if new_hour:
            day.hours.add(hour)
        strange = self._patients(event, day, group, hour) if event.patients else ()
        new_network = new_country = False
        network = ""
        if event.first and event.address:
            network = network_of(event.address)
            new_network = self._network(person, network)
            new_country = self._country(person, event.country)
            day.new_networks += new_network
            day.new_countries += new_country
            self._switches(person, day, event, network)
        unexplained = (
            bool(strange)
            or not event.patients
            or any(patient in day.unexplained for patient in event.patients)
        )
        return Sight(
            event, person, group, day, known, feeds, self._world, strange, unexplained, hour,
            new_hour, network, new_network, new_country,
        )  # fmt: skip

    def _begin_day(self, person: Person, group: Group, event: Event) -> Day:
        date = self.memory.date
        hour = (event.time + self._offset) // _HOUR_US % 24
        day = person.day = Day(date, shift_of(hour))
        day.usual = usual_of(person, group, day)
        group.roll(date)
        for measure, usual in enumerate(day.usual):
            group.expected[measure] += usual.mean
        person.gap_us = event.time - person.last_time if person.last_time else 0
        self._active.append(person)
        return day

    def _count(self, event: Event, day: Day, group: Group) -> None:
        day.counts[REQUESTS] += 1
        group.today[REQUESTS] += 1
        if not event.allowed and not event.barred:
            day.counts[DENIALS] += 1
        if event.break_glass:
            day.counts[BREAKS] += 1

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
            self.memory.today.charts += 1
            if not self.feeds.reason(event.subject, patient, event.time):
                self.memory.today.unexplained += 1
                day.unexplained[patient] = event.id
                counts[UNEXPLAINED] += 1
                if event.allowed:
                    strange.append(patient)
        return tuple(strange)

    def _network(self, person: Person, network: str) -> bool:
        """Whether this person is new on it."""
        date, last = self.memory.date, person.networks.get(network)
        if last == date:
            return False
        person.networks[network] = date
        self.memory.networks.setdefault(network, {})[person.subject] = date
        return last is None or last < date - _FORGOTTEN_DAYS

    def _country(self, person: Person, country: str) -> bool:
        if not country or country in person.countries:
            return False
        person.countries[country] = self.memory.date
        self.memory.countries.setdefault(country, set()).add(person.subject)
        return True

    def _switches(self, person: Person, day: Day, event: Event, network: str) -> None:
        """Changes of place or program within minutes: two people with one name."""
        if person.last_network and event.time - person.last_time < _SWITCH_US:
            moved = network != person.last_network and not self._world.shared(event.address)
            day.counts[SWITCHES] += moved or event.agent != person.last_agent
        person.last_network, person.last_agent = network, event.agent
        person.last_time = event.time

    def _suspect(self, suspicion: Suspicion, sight: Sight) -> Iterator[Finding]:
        event, day = sight.event, sight.day
        subject, date = event.subject, day.date
        lane = self.lanes.lane(suspicion, subject, date)
        family = _FAMILY.get(suspicion.rule, suspicion.rule)
        combined = self._combined(suspicion, family, subject)
        if lane is None and combined is not None:
            lane = self.lanes.lane(combined, subject, date)
            suspicion, family = combined, combined.rule
        cause = f"{family}/{suspicion.cause}" if suspicion.cause else family
        if lane is None or not self._is_new(subject, cause, lane):
            return
        day.alerted = True
        yield Finding(
            event.time, subject, suspicion.rule, lane, round(suspicion.score, 3),
            suspicion.evidence, suspicion.records[-MOST_NAMED:], cause, event.tenant,
        )  # fmt: skip

    def _combined(self, suspicion: Suspicion, family: str, subject: str) -> Suspicion | None:
        """Several things about one person on one day, none of which is enough by itself."""
        weight = -math.log10(max(self.lanes.rate(suspicion.rule, suspicion.score) / 1000, 1e-12))
        if weight < 1:
            return None
        best = self._best.setdefault(subject, {})
        if family not in best or weight > best[family][0]:
            best[family] = weight, suspicion
        if len(best) < 2:
            return None
        ranked = sorted(best.values(), key=lambda one: -one[0])
        parts = [one for _, one in ranked]
        records = dict.fromkeys(record for one in parts for record in one.records[-30:])
        score = sum(weight for weight, _ in ranked) - 0.8 * (len(ranked) - 1)
        return Suspicion(
            "combination", score, "; ".join(one.saw for one in parts), parts[0].usual,
            parts[0].peers, tuple(records),
        )  # fmt: skip

    def _is_new(self, subject: str, cause: str, lane: Lane) -> bool:
        """Whether it was not told in the cool-down already, or has become worse."""
        date = self.memory.date
        causes = self.memory.alerted.setdefault(subject, {})
        before = causes.get(cause)
        if before and date < before.until and (before.lane == "act" or lane == "review"):
            return False
        causes[cause] = Alerted(lane, date + COOL_DOWN_DAYS)
        self.lanes.alerted(lane)
        return True

    def _volume(self, event: Event) -> Iterator[Finding]:
        """All people of a tenant together: for review, whatever the lanes have room for, since it
        is seldom and about nobody."""
        for suspicion in self._tenants.add(event, (event.time + self._offset) // _HOUR_US):
            cause = f"{suspicion.rule}/{suspicion.cause}"
            if self._is_new("", cause, "review"):
                yield Finding(
                    event.time, "", suspicion.rule, "review", round(suspicion.score, 3),
                    suspicion.evidence, suspicion.records, cause, event.tenant,
                )  # fmt: skip

    def _failed(self, event: Event) -> Iterator[Finding]:
        """A burst is worth an alert whatever the lanes have room for."""
        for suspicion in failures.burst(self.memory.failures, event, self.memory.date):
            self.lanes.alerted("act")
            yield Finding(
                event.time, "", suspicion.rule, "act", suspicion.score, suspicion.evidence,
                suspicion.records, suspicion.rule, event.tenant, event.address,
            )  # fmt: skip

    def _close(self) -> None:
        """The day is over: it becomes part of what is usual."""
        memory = self.memory
        for person in self._active:
            day = person.day
            assert day is not None
            counts = tuple(day.counts)
            volume.add_slow(person.slow, counts, day.usual)
            person.days.append((day.date, counts, day.shift, day.alerted))
            del person.days[:-KEPT_DAYS]
            person.seen_days += 1
            person.hours = [
                days * FADING + (hour in day.hours) for hour, days in enumerate(person.hours)
            ]
            person.new_networks = person.new_networks * FADING + day.new_networks
            person.new_countries = person.new_countries * FADING + day.new_countries
            if not day.alerted:
                memory.groups[person.group].learn(counts, day.hours)
            person.day = None
        self.lanes.close(memory.date, len(self._active))
        memory.today.date, memory.today.people = memory.date, len(self._active)
        memory.over = [*memory.over[1 - KEPT_DAYS :], memory.today]
        memory.today = Total()
        self._active.clear()
        self._best.clear()
        failures.forget(memory.failures, memory.date)


@lru_cache(1 << 16)
def network_of(address: str) -> str:
    """The network an address is taken for: /24 of IPv4, /48 of IPv6; itself if it is neither."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    bits = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))
