"""Small worlds for detection: days of requests, as the log has them."""

from collections.abc import Iterable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

from authz.config import Watch
from authz.detect.detector import Detector, Finding, Memory
from authz.detect.feeds import Feeds
from authz.detect.lanes import Budgets
from authz.detect.suspicion import World
from authz.record import Record

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
FIRST_DAY = 20_454 * DAY_US  # 2026-01-01


def access(subject: str, day: int, hour: float, patient: str = "", **more: Any) -> Record:
    """A request of `subject` that reached the service."""
    time = FIRST_DAY + day * DAY_US + int(hour * HOUR_US)
    record: Record = {
        "kind": "access", "time": time, "subject": subject, "roles": ["nurse"], "allowed": True,
        "method": "GET", "path": "/Patient/{id}", "status": 200, "source_ip": "10.0.0.7",
        "user_agent": "chart/1", "decision_id": f"{subject}-{time}-{patient}",
    }  # fmt: skip
    if patient:
        record["patients"] = [patient]
    return record | more


def working_day(subject: str, day: int, patients: int = 8, **more: Any) -> Iterator[Record]:
    """A day shift: `patients` different charts between eight and four."""
    for number in range(patients):
        hour = 8 + 8 * number / max(patients, 1)
        yield access(subject, day, hour, f"{subject}-{day}-{number}", **more)


def ward(people: int, days: int, first: int = 0) -> Iterator[Record]:
    """Days of work of people who do nothing unusual; on some days there is more to do."""
    for day in range(first, first + days):
        found = [
            record
            for person in range(people)
            for record in working_day(f"n.{person:03}", day, 6 + (person * 7 + day * 5) % 6)
        ]
        yield from sorted(found, key=lambda record: int(record["time"]))  # type: ignore[call-overload]


def explained(people: int, days: int) -> Feeds:
    """A reason for every access of `ward`."""
    feeds = Feeds()
    for person in range(people):
        for day in range(days):
            for number in range(12):
                subject = f"n.{person:03}"
                feeds.add_reason(subject, f"{subject}-{day}-{number}", 0, 2**62, "care team")
    return feeds


def detector(
    feeds: Feeds | None = None, world: World | None = None, memory: Memory | None = None
) -> Detector:
    """With the budgets of the defaults."""
    options = Watch()
    budgets = Budgets(options.act, options.review)
    return Detector(feeds or Feeds(), budgets, ZoneInfo("UTC"), world=world, memory=memory)


def found(watcher: Detector, records: Iterable[Record]) -> list[Finding]:
    return [finding for record in records for finding in watcher.add(record)]
