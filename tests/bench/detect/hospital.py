"""A simulated hospital: what its people open, the feeds that explain most of it, and the truth.

`python -m tests.bench.detect.hospital --seed 1 --out DIR` writes `records.ndjson` (canonical
records in time order), `feeds/` (as `authz watch --feeds` reads them), `networks.csv` and
`networks.mmdb` (whose addresses are whose, and where) and `truth.json` (what was misuse).
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.detect.care import make_care
from tests.bench.detect.events import Events
from tests.bench.detect.feeds import write_feeds, write_locations, write_networks
from tests.bench.detect.misuse import Misuses
from tests.bench.detect.options import Options
from tests.bench.detect.places import COUNTRIES, Places
from tests.bench.detect.population import make_departments, make_patients, make_people
from tests.bench.detect.records import Writer
from tests.bench.detect.roster import make_roster
from tests.bench.detect.traffic import Hall, make_day
from tests.bench.detect.truth import Misuse, write_truth

_LINES: Final = 10_000


@dataclass(frozen=True)
class Hospital:
    """`truth` is known before any record is made; `records` makes them anew each time, a day at a
    time in memory."""

    hall: Hall
    truth: list[Misuse]
    misuse: list[Events]

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, by `time`."""
        hall = self.hall
        writer = Writer(hall.people, hall.patients)
        later = self.misuse
        for day in range(hall.options.days):
            events = Events.joined([*later, make_day(hall, day)])
            # What runs on beyond midnight belongs between the next day's. Shifts end 12 h later.
            now = events.time < hall.options.begin(day + 1) * 1_000_000 - _EARLY
            later = [events.take(~now)]
            yield from writer.records(events.take(now).in_order())
        yield from writer.records(Events.joined(later).in_order())

    def feeds(self, directory: Path) -> None:
        write_feeds(self.hall, directory)


_EARLY: Final = 3 * 3600 * 1_000_000  # a day's first request is less than that before midnight


def generate(options: Options) -> Hospital:
    departments = make_departments(options)
    patients = make_patients(options)
    people = make_people(options, departments, patients)
    roster = make_roster(options, people, departments, COUNTRIES)
    care = make_care(options, people, patients, departments, roster)
    places = Places(options, people, departments)
    hall = Hall(options, people, patients, departments, roster, care, places)
    misuses = Misuses(hall)
    return Hospital(hall, misuses.truth, misuses.events)


def write(hospital: Hospital, directory: Path) -> int:
    """Everything into `directory`; returns how many records."""
    directory.mkdir(parents=True, exist_ok=True)
    hospital.feeds(directory / "feeds")
    write_networks(directory / "networks.csv")
    write_locations(directory / "networks.mmdb")
    write_truth(directory / "truth.json", hospital.truth)
    count = 0
    with (directory / "records.ndjson").open("wb") as file:
        for record in hospital.records():
            file.write(
                orjson.dumps(record, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
            )
            count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="200 people, 4,000 patients, 30 days")
    for field in fields(Options):
        if field.type in (int, float):
            parser.add_argument(f"--{field.name}", type=field.type)
    given = vars(parser.parse_args())
    out, small = given.pop("out"), given.pop("small")
    base = Options.small() if small else Options()
    values = {field.name: getattr(base, field.name) for field in fields(Options)}
    options = Options(
        **values | {name: value for name, value in given.items() if value is not None}
    )
    began = time.perf_counter()
    hospital = generate(options)
    made = time.perf_counter()
    count = write(hospital, out)
    seconds = time.perf_counter() - made
    print(
        f"seed {options.seed}: {count} records, {len(hospital.truth)} misuses; planned in"
        f" {made - began:.1f} s, written in {seconds:.1f} s ({count / seconds:,.0f} records/s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
