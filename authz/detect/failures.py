"""The rule about failed authentications: without a subject, they are counted by address."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from authz.detect.event import Event
from authz.detect.suspicion import Suspicion

RULE = "failed_authentications"
_WITHIN_US = 10 * 60_000_000
_BURST = 20  # from one address within that time
_NAMED = 100
_SCORE = 9.0


@dataclass(slots=True)
class Failures:
    """Those from one address."""

    recent: list[tuple[int, str]] = field(default_factory=list)
    """When, and which record."""
    told: int = 0
    """The date."""


def burst(failures: dict[str, Failures], event: Event, date: int) -> Iterator[Suspicion]:
    """Count one in `failures`, by address; a burst is told once a day."""
    here = failures.setdefault(event.address, Failures())
    here.recent.append((event.time, event.id))
    begin = event.time - _WITHIN_US
    here.recent = [one for one in here.recent[-_NAMED:] if one[0] > begin]
    if len(here.recent) < _BURST or here.told == date:
        return
    here.told = date
    saw = f"{len(here.recent)} failed authentications within 10 minutes, all from {event.address}"
    yield Suspicion(RULE, _SCORE, saw, records=tuple(record for _, record in here.recent))


def forget(failures: dict[str, Failures], date: int) -> None:
    """A day is over: what was told on it is not told again while the burst goes on."""
    for address in [address for address, one in failures.items() if one.told != date]:
        del failures[address]
