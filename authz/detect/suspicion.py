"""What a rule says, and what it is asked with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from authz.detect.event import Event
from authz.detect.feeds import Feeds, Known
from authz.detect.usual import Day, Group, Person
from authz.places import Place


def _nowhere(_address: str) -> Place | None:
    return None


def _alone(_address: str) -> bool:
    return False


@dataclass(slots=True)
class World:
    """What is known of all people together, and of addresses."""

    networks: dict[str, dict[str, int]] = field(default_factory=dict)
    """By network, who was seen there, and on which date last."""
    countries: dict[str, set[str]] = field(default_factory=dict)
    people: int = 0
    since: int = 0
    """The date of the first record."""
    shared: Callable[[str], bool] = _alone
    """Whether an address is a VPN's or another that many share, as the operator says."""
    place: Callable[[str], Place | None] = _nowhere
    """Where an address is, as the operator's file says."""


@dataclass(slots=True)
class Sight:
    """One event, with what is known when it comes."""

    event: Event
    person: Person
    group: Group
    day: Day
    known: Known
    feeds: Feeds
    world: World
    strange: tuple[str, ...]
    """Patients of this event that nothing explains, and that are the first such of the day."""
    unexplained: bool
    """Something about this event is not explained (or nothing can be)."""
    hour: int
    """Of the day, where the deployment is."""
    new_hour: bool
    network: str
    new_network: bool
    new_country: bool


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`score` is -log10 of how likely it is by chance, as the rule reckons: what it is worth in
    alerts is learnt from the deployment's own history. `cause` tells two of one rule apart. Of many
    `records`, the newest are named."""

    rule: str
    score: float
    saw: str
    usual: str = ""
    peers: str = ""
    records: tuple[str, ...] = ()
    cause: str = ""
    certain: bool = False
    """It needs no history to be worth an alert."""

    @property
    def evidence(self) -> str:
        parts = [self.saw]
        if self.usual:
            parts.append(f"Usual for this person: {self.usual}")
        if self.peers:
            parts.append(f"For their role: {self.peers}")
        return ". ".join(parts) + "."


Rule: TypeAlias = Callable[[Sight], Iterator[Suspicion]]


def told(value: Any) -> str:
    """A number as people read it."""
    return f"{value:,.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"
