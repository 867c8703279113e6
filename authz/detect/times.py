"""Rules about when and where from."""

import math
from collections.abc import Iterator

from authz.detect.suspicion import Sight, Suspicion, told
from authz.detect.usual import FADING

_FASTEST_KMH = 900
_LEAST_KM = 500


def off_hours(sight: Sight) -> Iterator[Suspicion]:
    """An hour of the day at which neither this person nor their role is usually there."""
    if not sight.new_hour or sight.person.seen_days < 5:
        return
    person, group, hour = sight.person, sight.group, sight.hour
    days = sum_days(person.seen_days)
    own = _around(person.hours, hour)
    peers = _around(group.hours, hour) / max(group.weight, 1)
    chance = min((own + 4 * peers + 0.02) / (days + 4), 1.0)
    score = -math.log10(chance)
    if not sight.unexplained:
        score *= 0.6
    if score < 0.7:
        return
    yield Suspicion(
        "off_hours", score, f"Active at {hour:02d} hours",
        f"there at that hour on {own:.1f} of {days:.0f} days",
        f"{peers:.1%} of their days", (sight.event.id,),
    )  # fmt: skip


def sum_days(seen: int) -> float:
    """How many days `Person.hours` stand for: old ones fade."""
    return (1 - FADING**seen) / (1 - FADING)


def _around(hours: list[float], hour: int) -> float:
    """People come early and stay late: the hours beside count too, less."""
    return max(hours[hour], 0.5 * hours[hour - 1], 0.5 * hours[(hour + 1) % 24])


def elsewhere(sight: Sight) -> Iterator[Suspicion]:
    """A network or country where this person was never seen, and few others are."""
    event, person, world = sight.event, sight.person, sight.world
    if person.seen_days < 3 or not (sight.new_network or sight.new_country):
        return
    days, people = sum_days(person.seen_days), max(world.people, 1)
    score, saw = 0.0, []
    if sight.new_country:
        there = len(world.countries.get(event.country, ())) - 1
        score += _rare(person.new_countries + 0.1, days) + _rare(there + 0.5, people) / 2
        saw.append(f"from {event.country} for the first time, as {told(max(there, 0))} others were")
    if sight.new_network and not world.shared(event.address):
        there = len(world.networks.get(sight.network, ())) - 1
        score += _rare(person.new_networks + 0.5, days) + _rare(3 * there + 1, people) / 2
        saw.append(f"from the network {sight.network}, which {told(max(there, 0))} others use")
    if score < 1:
        return
    yield Suspicion(
        "new_place", score * (1.0 if sight.unexplained else 0.8),
        f"Active {' and '.join(saw)}", f"{told(len(person.networks) - 1)} networks", "",
        (event.id,),
    )  # fmt: skip


def _rare(count: float, of: float) -> float:
    return -math.log10(min(count / (of + 10), 1))


def travel(sight: Sight) -> Iterator[Suspicion]:
    """Two places that nobody can be at in the time between."""
    event, person, world = sight.event, sight.person, sight.world
    before = person.place
    if before is None:
        return
    at, place, address, record = before
    here = world.place(event.address)
    if here is None or address == event.address:
        return
    if world.shared(event.address) or world.shared(address):
        return
    km = distance(place.latitude, place.longitude, here.latitude, here.longitude)
    km -= place.radius + here.radius
    hours = max(event.time - at, 1_000_000) / 3_600_000_000
    if km < _LEAST_KM or km / hours < _FASTEST_KMH:
        return
    yield Suspicion(
        "impossible_travel", 4 + min(math.log10(km / hours / _FASTEST_KMH), 3),
        f"{km:,.0f} km in {hours * 60:,.0f} minutes: from {address} to {event.address}",
        "", "", (record, event.id), certain=True,
    )  # fmt: skip


def distance(latitude: float, longitude: float, latitude2: float, longitude2: float) -> float:
    """Kilometres over the ground (haversine)."""
    a, b = math.radians(latitude), math.radians(latitude2)
    half = math.sin((b - a) / 2) ** 2
    half += math.cos(a) * math.cos(b) * math.sin(math.radians(longitude2 - longitude) / 2) ** 2
    return 2 * 6371.0 * math.asin(min(math.sqrt(half), 1.0))
