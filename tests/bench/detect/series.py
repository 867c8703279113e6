"""The volume rule on any series: `python -m tests.bench.detect.series FILE.csv`.

In: CSV of `timestamp,value` with that header, in time order; `-` reads standard input. Out: CSV of
`timestamp,score,alert`, the score from 0 to 1 and the alert 0 or 1. One pass: a value is judged
before the next is read, and no setting is the file's own.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from authz.detect.level import Judgement, Level
from authz.errors import UsageError


@dataclass(frozen=True, slots=True)
class Point:
    """The timestamp as it was written, the same in seconds since the epoch, and the value."""

    timestamp: str
    time: float
    value: float


def read(lines: Iterable[str]) -> Iterator[Point]:
    """The points of a CSV file."""
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            at = seconds(row["timestamp"])
            value = float(row["value"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"line {number}: wanted timestamp,value as in 2026-01-31 08:05:00,12.5"
            ) from None
        if not math.isfinite(value):
            raise UsageError(f"line {number}: value is not a finite number")
        yield Point(row["timestamp"], at, value)


def seconds(timestamp: str) -> float:
    """Since the epoch. A timestamp without a zone is taken for UTC."""
    at = datetime.fromisoformat(timestamp)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def judged(points: Iterable[Point]) -> Iterator[tuple[Point, Judgement]]:
    """Each point with what the rule says of it, knowing those before."""
    level = Level()
    for point in points:
        yield point, level.judge(point.time, point.value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.detect.series", description=__doc__)
    parser.add_argument("file", metavar="FILE.csv")
    file = parser.parse_args().file
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("timestamp", "score", "alert"))
    try:
        with nullcontext(sys.stdin) if file == "-" else Path(file).open(newline="") as lines:
            for point, judgement in judged(read(lines)):
                out.writerow((point.timestamp, f"{judgement.score:.6f}", int(judgement.alert)))
    except (OSError, UsageError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
