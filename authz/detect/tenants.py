"""The rule about all of a tenant's requests together: an hour with more of them than is usual then.

What is usual is a `Level`, which is not kept: it is learnt again from the hours that are, of which
there are as many as weeks matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from authz.detect.event import Event
from authz.detect.level import ASPECTS, Judgement, Level
from authz.detect.suspicion import Suspicion, told

RULE = "tenant_volume"
_KEPT = 24 * 7 * 8
_LEAST = 24 * 7
_TIMES, _MORE = 1.5, 20  # less than so many times the usual and so many more concerns nobody
_NAMED = 100
_HOUR_S = 3_600


@dataclass(slots=True)
class Hours:
    """One tenant's requests, by the hour."""

    hour: int
    """Which one is under way, since the epoch, by the people's clock."""
    count: int = 0
    recent: list[str] = field(default_factory=list)
    """The newest records of this hour, up to twice as many as a finding names."""
    before: list[int] = field(default_factory=list)
    """The hours before this one, the newest last."""


class Tenants:
    """Counts in `hours`, which the caller keeps; each event comes once, in time order."""

    def __init__(self, hours: dict[str, Hours]) -> None:
        self._hours = hours
        self._levels: dict[str, Level] = {}

    def add(self, event: Event, hour: int) -> Iterator[Suspicion]:
        """What the hour that this event ends gives cause for."""
        tenant = self._hours.get(event.tenant)
        if tenant is None:
            tenant = self._hours[event.tenant] = Hours(hour)
        if hour > tenant.hour:
            yield from self._close(event.tenant, tenant, hour)
        tenant.count += 1
        tenant.recent.append(event.id)
        if len(tenant.recent) > 2 * _NAMED:
            del tenant.recent[:_NAMED]

    def _close(self, name: str, tenant: Hours, hour: int) -> Iterator[Suspicion]:
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _level(tenant)
        judgement = level.judge(tenant.hour * _HOUR_S, tenant.count)
        much = tenant.count > _MORE + _TIMES * judgement.usual
        if judgement.alert and much and len(tenant.before) >= _LEAST:
            yield _suspicion(name, tenant, judgement)
        quiet = min(hour - tenant.hour - 1, _KEPT)
        for empty in range(hour - quiet, hour):
            level.judge(empty * _HOUR_S, 0)
        tenant.before = [*tenant.before, tenant.count, *[0] * quiet][-_KEPT:]
        tenant.hour, tenant.count = hour, 0
        tenant.recent.clear()


def _level(tenant: Hours) -> Level:
    level = Level(counting=True)
    begin = tenant.hour - len(tenant.before)
    for hour, count in enumerate(tenant.before, begin):
        level.judge(hour * _HOUR_S, count)
    return level


def _suspicion(name: str, tenant: Hours, judgement: Judgement) -> Suspicion:
    whose = f" of tenant {name}" if name else ""
    return Suspicion(
        RULE, judgement.surprise,
        f"{told(tenant.count)} requests{whose} within an hour, of all people together:"
        f" {ASPECTS[judgement.aspect]}. Usual in such an hour:"
        f" about {told(round(judgement.usual))}",
        records=tuple(tenant.recent[-_NAMED:]), cause=name,
    )  # fmt: skip
