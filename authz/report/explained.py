"""What explains that somebody looked at a patient, by the feeds that are loaded."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from authz.detect.feeds import AFTER_US, BEFORE_US
from authz.errors import UnavailableError
from authz.store import feeds
from authz.store.client import Client


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason to look at a patient, which is that in this time, a day before it and three after.
    Times are microseconds since the epoch, UTC; 0 is open."""

    patient: int
    """Which of the patients asked for, counted from 1."""
    kind: str
    """``care_team``, ``appointment``, ``order``, ``encounter``, ``census``."""
    since: int
    until: int
    source: str
    """Where it was loaded from."""


@dataclass(frozen=True, slots=True)
class Asked:
    """That somebody looked at some of the patients asked for."""

    subject: str
    time: int
    patients: tuple[int, ...]


def explanations(
    client: Client, numbers: Mapping[str, int], requests: Sequence[Asked]
) -> tuple[tuple[str, ...], list[tuple[Explanation, ...]]]:
    """The feeds of reasons that are loaded and, for each of `requests`, an explanation for each of
    its patients that has one. `numbers` are the patients', by token.

    Raises `UnavailableError` while rows of a load are missing: they might explain it.
    """
    current = feeds.current(client)
    loaded = [current[feed] for feed in feeds.KINDS if feed in current]
    if not requests or not loaded:
        return tuple(one.feed for one in loaded), [() for _ in requests]
    for one in loaded:
        if not feeds.whole(client, one):
            raise UnavailableError(
                f"not all rows of the feed {one.feed} are in ClickHouse (yet); try again, or load"
                " it again: authz feeds load"
            )
    own, stays = defaultdict[tuple[str, int], list[Explanation]](list), list[feeds.Row]()
    for row in feeds.reasons_about(client, loaded, list(numbers)):
        if row[_KIND] == "census":
            stays.append(row)
        else:
            own[row[0], numbers[row[_PATIENT]]].append(_explanation(row, numbers))
    if stays and "people" in current:
        departments = sorted({row[_DEPARTMENT] for row in stays})
        there = feeds.people_of(client, current["people"], departments)
        people = {request.subject for request in requests} & set(there)
        for row in stays:
            for person in people:
                if there[person] == row[_DEPARTMENT]:
                    own[person, numbers[row[_PATIENT]]].append(_explanation(row, numbers))
    return tuple(one.feed for one in loaded), [_of(request, own) for request in requests]


_DEPARTMENT, _PATIENT, _KIND = 1, 2, 3  # of a row of reasons


def _explanation(row: feeds.Row, numbers: Mapping[str, int]) -> Explanation:
    _, _, patient, kind, since, until, source = row
    return Explanation(numbers[patient], kind, since, 0 if until >= feeds.END else until, source)


def _of(
    request: Asked, own: Mapping[tuple[str, int], Sequence[Explanation]]
) -> tuple[Explanation, ...]:
    """For each patient the nearest reason: one that held, before one that only nearly did."""
    found = []
    for patient in request.patients:
        at = request.time
        near = [
            (max(one.since - at, at - one.until if one.until else 0, 0), number, one)
            for number, one in enumerate(own.get((request.subject, patient), ()))
            if one.since - BEFORE_US <= at and (not one.until or at <= one.until + AFTER_US)
        ]
        if near:
            found.append(min(near)[2])
    return tuple(found)
