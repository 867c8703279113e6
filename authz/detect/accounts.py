"""Rules about accounts of programs, which do the same every day."""

import math
from collections.abc import Iterator

from authz.detect.suspicion import Sight, Suspicion, told

_ROLES = ("service", "system", "bot", "integration", "interface", "api")
_NAMES = ("svc", "service", "sa-", "system:", "bot")
_LEARNING_DAYS = 5


def is_service(subject: str, role: str) -> bool:
    """Whether an account is a program's, by its role or name."""
    return role.lower().startswith(_ROLES) or subject.lower().startswith(_NAMES)


def drift(sight: Sight) -> Iterator[Suspicion]:
    """A program's account that does what it never did."""
    event, person = sight.event, sight.person
    if not is_service(event.subject, person.group) or not event.path:
        return
    if event.path in person.paths:
        return
    person.paths.add(event.path)
    steady = sight.day.date - max(person.path_date, person.first_date)
    person.path_date = sight.day.date
    if person.seen_days < _LEARNING_DAYS or steady < 1:
        return
    score = 2 + math.log10(steady) + math.log10(person.seen_days / len(person.paths) + 1)
    yield Suspicion(
        "service_drift", score, f"A new path for this account: {event.path}",
        f"the same {told(len(person.paths) - 1)} paths for {told(steady)} days", "", (event.id,),
    )  # fmt: skip
