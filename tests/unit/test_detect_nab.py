"""The scoring of the Numenta Anomaly Benchmark, as its paper has it."""

import numpy as np
import pytest

from tests.bench.detect.nab import PROFILES, Series, optimise, worth
from tests.bench.detect.series import Point

STANDARD = PROFILES["standard"]
POINTS = tuple(Point(str(place), float(place), 0.0) for place in range(1000))
SERIES = Series("one.csv", POINTS, ((400, 499), (700, 799)))


def scores(*places: int) -> dict[str, np.ndarray]:
    score = np.zeros(len(POINTS))
    score[list(places)] = 1.0
    return {SERIES.name: score}


def test_from_nothing_to_all() -> None:
    """Who never alerts has 0, and who alerts as each window begins 100."""
    assert optimise([SERIES], scores(), STANDARD, 1.0).score == 0
    assert optimise([SERIES], scores(400, 700), STANDARD, 1.0).score == pytest.approx(100)


def test_early_is_worth_more_and_once() -> None:
    """The worth falls within a window; more alerts in one window add nothing."""
    gain, number = worth(SERIES)
    assert list(np.flatnonzero(number == 0)) == list(range(400, 500))
    assert all(gain[400:499] > gain[401:500])
    assert gain[450] == pytest.approx(0.84828 / 0.98661, abs=1e-4)
    first = optimise([SERIES], scores(400), STANDARD, 1.0).score
    assert optimise([SERIES], scores(400, 420, 480), STANDARD, 1.0).score == first == 50


def test_false_alerts_cost_by_profile() -> None:
    """A false alert costs its weight, less just behind a window, nothing while learning."""
    for profile in PROFILES.values():
        whole = 2 * (profile.found + profile.missed)
        far = optimise([SERIES], scores(390), profile, 1.0).score
        assert far == pytest.approx(-100 * profile.false / whole)
        assert far < optimise([SERIES], scores(505), profile, 1.0).score < 0
        assert optimise([SERIES], scores(149), profile, 1.0).score == 0
        assert optimise([SERIES], scores(150), profile, 1.0).score < 0


def test_the_best_threshold_is_found() -> None:
    """The threshold leaves out what costs more than it finds."""
    score = np.zeros(len(POINTS))
    score[[400, 700]] = 0.8, 0.6
    score[[200, 210, 220]] = 0.5
    best = optimise([SERIES], {SERIES.name: score}, STANDARD)
    assert best.threshold == 0.6
    assert best.score == pytest.approx(100)
