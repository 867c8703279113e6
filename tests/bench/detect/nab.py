"""The volume rule on the Numenta Anomaly Benchmark, beside its simplest detectors: one table.

`python -m tests.bench.detect.nab DIR`, where DIR has `data` and `labels` of github.com/numenta/NAB
and, if you like, `results`: what others' detectors said there is then scored as well, so that the
scoring is seen to be the benchmark's.

Scoring is as the benchmark's paper has it (Lavin and Ahmad, "Evaluating Real-time Anomaly Detection
Algorithms", 2015). Each labelled anomaly has a window. The first alert within counts, the more the
earlier it is; a window without one costs; so does each alert outside, less if it is soon after a
window. The first 15 % of a file, at most 750 values, are for learning. One threshold serves the
whole corpus: the best there is. 0 is who never alerts, 100 who sees all at once and nothing else.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.special import expit, ndtr

from tests.bench.detect.series import Point, judged, read, seconds

Floats: TypeAlias = npt.NDArray[np.float64]
Scores: TypeAlias = Mapping[str, Floats]
_PROBATION, _PROBATION_OF = 0.15, 5000
_WINDOW, _STEP = 6400, 100
_SEEDS = 10


@dataclass(frozen=True)
class Profile:
    """What a window found, a false alert and a window missed are worth."""

    found: float
    false: float
    missed: float


PROFILES = {
    "standard": Profile(1.0, 0.11, 1.0),
    "reward_low_FP_rate": Profile(1.0, 0.22, 1.0),
    "reward_low_FN_rate": Profile(1.0, 0.11, 2.0),
}


@dataclass(frozen=True)
class Series:
    """One file of the benchmark, and the first and last place of each of its windows."""

    name: str
    points: Sequence[Point]
    windows: Sequence[tuple[int, int]]

    @property
    def probation(self) -> int:
        """How many values at the beginning do not count."""
        return math.floor(_PROBATION * min(len(self.points), _PROBATION_OF))

    @property
    def tuned(self) -> bool:
        """Whether it is of the half that thresholds and lengths were chosen on."""
        return hashlib.sha256(self.name.encode()).digest()[0] % 2 == 0


@dataclass(frozen=True)
class Best:
    """A threshold, and what it gives: 0 to 100, or below 0."""

    threshold: float
    score: float


def corpus(folder: Path) -> list[Series]:
    """The benchmark's files with their labels."""
    labels = json.loads((folder / "labels" / "combined_windows.json").read_text())
    found = []
    for name, windows in sorted(labels.items()):
        with (folder / "data" / name).open(newline="") as file:
            points = tuple(read(file))
        places: dict[float, int] = {}
        for place, point in enumerate(points):
            places.setdefault(point.time, place)
        ends = [[places[seconds(one)] for one in window] for window in windows]
        found.append(Series(name, points, tuple((begin, end) for begin, end in ends)))
    return found


def worth(series: Series) -> tuple[Floats, npt.NDArray[np.int64]]:
    """What an alert at each place is worth, -1 to 1, and the number of its window: -1 outside."""
    places = np.arange(len(series.points))
    gain = np.full(len(places), -1.0)
    number = np.full(len(places), -1)
    for which, (begin, end) in enumerate(series.windows):
        width = end - begin + 1
        inside, after = slice(begin, end + 1), slice(end + 1, None)
        gain[inside] = _early((places[inside] - end - 1) / width) / _early(np.array(-1.0))
        number[inside] = which
        gain[after] = _early((places[after] - end) / (width - 1))
    return gain, number


def _early(place: Floats) -> Floats:
    """By the distance from a window's end in widths: 1 well before, 0 there, -1 well after."""
    return np.where(place > 3.0, -1.0, 2 * expit(-5 * place) - 1)


def optimise(
    files: Sequence[Series], scores: Scores, profile: Profile, threshold: float | None = None
) -> Best:
    """What the best threshold gives, or `threshold`. An alert is where a score reaches it."""
    heights, steps = [], []
    for series in files:
        gain, number = worth(series)
        score = scores[series.name]
        counted = np.arange(len(score)) >= series.probation
        outside = counted & (number < 0)
        heights.append(score[outside])
        steps.append(gain[outside] * profile.false)
        for which in range(len(series.windows)):
            inside = np.flatnonzero(counted & (number == which))
            inside = inside[np.argsort(-score[inside], kind="stable")]
            best = np.maximum.accumulate([-profile.missed, *gain[inside] * profile.found])
            heights.append(score[inside])
            steps.append(np.diff(best))
    height, step = np.concatenate(heights), np.concatenate(steps)
    order = np.argsort(-height, kind="stable")
    # With nothing reached first, then with each place more; equal scores are reached together.
    height, total = np.append(np.inf, height[order]), np.append(0.0, np.cumsum(step[order]))
    together = np.append(height[1:] != height[:-1], True)
    height, total = height[together], total[together]
    place = int(np.argmax(total)) if threshold is None else int(np.sum(height >= threshold)) - 1
    windows = sum(len(series.windows) for series in files)
    perfect = windows * (profile.found + profile.missed)
    reached = float(height[place]) if threshold is None else threshold
    return Best(reached, 100 * float(total[place]) / perfect)


def gaussian(series: Series) -> Floats:
    """The benchmark's simple baseline: the lower tail of a normal distribution, fitted to the last
    6,400 values and anew at every 100."""
    values = np.array([point.value for point in series.points])
    scores = np.zeros(len(values))
    mean, deviation = 0.0, 1.0
    for place, value in enumerate(values):
        if place:
            # As many digits as the benchmark keeps: 1 is reached from about 7 deviations on.
            scores[place] = round(1 - ndtr(-abs(value - mean) / deviation), 12)
        if place < _WINDOW or (place + 1 - _WINDOW) % _STEP == 0:
            window = values[max(place + 1 - _WINDOW, 0) : place + 1]
            mean, deviation = float(np.mean(window)), float(np.std(window)) or 0.000001
    return scores


def published(folder: Path, files: Sequence[Series], detector: str) -> Scores:
    """The scores that the benchmark's authors have for a detector."""
    scores = {}
    for series in files:
        group, name = series.name.split("/")
        path = folder / "results" / detector / group / f"{detector}_{name}"
        with path.open(newline="") as file:
            scores[series.name] = np.array(
                [float(row["anomaly_score"]) for row in csv.DictReader(file)]
            )
    return scores


def row(
    name: str, files: Sequence[Series], scores: Scores, threshold: float | None = None
) -> list[str]:
    found = [optimise(files, scores, profile, threshold) for profile in PROFILES.values()]
    return [name, *(f"{one.score:.2f}" for one in found), f"{found[0].threshold:.4g}"]


def by_chance(files: Sequence[Series]) -> list[str]:
    """The mean over seeds."""
    total = np.zeros(len(PROFILES))
    for seed in range(_SEEDS):
        chance = np.random.default_rng(seed)
        scores = {series.name: chance.random(len(series.points)) for series in files}
        total += [optimise(files, scores, profile).score for profile in PROFILES.values()]
    return [f"random, mean of {_SEEDS} seeds", *(f"{one:.2f}" for one in total / _SEEDS), ""]


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.detect.nab", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    files = corpus(folder)
    tuned = [series for series in files if series.tuned]
    other = [series for series in files if not series.tuned]
    scores, alerts = {}, {}
    began = time.process_time()
    for series in files:
        said = [judgement for _, judgement in judged(series.points)]
        scores[series.name] = np.array([one.score for one in said])
        alerts[series.name] = np.array([float(one.alert) for one in said])
    cost = (time.process_time() - began) / sum(len(series.points) for series in files)

    table = Table("", *PROFILES, "threshold", title=f"NAB, {len(files)} files")
    zeros = {series.name: np.zeros(len(series.points)) for series in files}
    simple = {series.name: gaussian(series) for series in files}
    table.add_row(*row("null", files, zeros))
    table.add_row(*by_chance(files))
    table.add_row(*row("windowed Gaussian", files, simple))
    for path in sorted((folder / "results").glob("*/*_standard_scores.csv")):
        with contextlib.suppress(FileNotFoundError):
            scored = published(folder, files, path.parent.name)
            table.add_row(*row(f"{path.parent.name}, its result files", files, scored))
    table.add_section()
    table.add_row(*row("authz, score", files, scores))
    table.add_row(*row("authz, alerts as they are", files, alerts, 1.0))
    table.add_section()
    best = optimise(tuned, scores, PROFILES["standard"]).threshold
    table.add_row(*row(f"score, {len(tuned)} files tuned on", tuned, scores, best))
    table.add_row(*row(f"score, {len(other)} other files", other, scores, best))
    table.add_row(*row(f"alerts, {len(tuned)} files tuned on", tuned, alerts, 1.0))
    table.add_row(*row(f"alerts, {len(other)} other files", other, alerts, 1.0))
    table.add_row(*row("windowed Gaussian, files tuned on", tuned, simple))
    table.add_row(*row("windowed Gaussian, other files", other, simple))
    console = Console(width=110)
    console.print(table)
    console.print(f"{cost * 1e6:.1f} us CPU a value")


if __name__ == "__main__":
    main()
