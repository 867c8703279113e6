"""What is usual, and how far from it something is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from authz.detect.usual import PATIENTS, Day, Group, Person, shift_of, tail, usual_of


@given(st.integers(1, 400), st.floats(0.5, 100), st.floats(1.05, 20))
def test_tail_is_that_of_the_negative_binomial(count: int, mean: float, spread: float) -> None:
    """As scipy.stats has it, where the count is above the mean."""
    variance = mean * spread
    got = tail(count, mean, variance)
    if count <= mean:
        assert got == 0
        return
    shape = mean * mean / (variance - mean)
    chance = stats.nbinom.sf(count - 1, shape, shape / (shape + mean))
    assert got == pytest.approx(-math.log10(chance) if chance > 1e-30 else 30, rel=1e-6, abs=1e-9)


@given(st.integers(1, 200), st.floats(0.1, 50))
def test_tail_without_spread_is_poissons(count: int, mean: float) -> None:
    """Where the variance is no more than the mean."""
    got = tail(count, mean, mean)
    if count > mean:
        chance = stats.poisson.sf(count - 1, mean)
        assert got == pytest.approx(-math.log10(chance) if chance > 1e-30 else 30, rel=1e-6)


@given(st.integers(1, 300), st.floats(0.1, 60), st.floats(0.1, 400))
def test_more_is_never_less_suspicious(count: int, mean: float, variance: float) -> None:
    """The tail falls with the count."""
    assert tail(count + 1, mean, variance) >= tail(count, mean, variance) - 1e-9


def person(counts: list[int], *, alerted: bool = False) -> Person:
    days = [(100 + day, (0, count, 0, 0, 0, 0, 0), 1, alerted) for day, count in enumerate(counts)]
    return Person("n.reed", "nurse", days=days, seen_days=len(days))


def test_days_with_an_alert_and_the_newest_week_do_not_train() -> None:
    """Who reads in bulk, or a little more each day, does not become their own yardstick."""
    steady = [10] * 30
    usual = usual_of(person(steady), Group(), Day(131, 1))[PATIENTS]
    slowly = usual_of(person(steady[:23] + [40] * 7), Group(), Day(131, 1))[PATIENTS]
    assert slowly.mean == pytest.approx(usual.mean, rel=0.1)
    poisoned = person(steady)
    poisoned.days[5:12] = [
        (date, (0, 500, 0, 0, 0, 0, 0), 1, True) for date, *_ in poisoned.days[5:12]
    ]
    assert usual_of(poisoned, Group(), Day(131, 1))[PATIENTS].mean == pytest.approx(
        usual.mean, rel=0.1
    )


def test_one_odd_day_is_drawn_in() -> None:
    """A single day of hundreds moves what is usual by little."""
    odd = usual_of(person([10] * 29 + [900] + [10] * 10), Group(), Day(200, 1))[PATIENTS]
    assert odd.mean < 16


def test_the_role_stands_in_for_a_short_history() -> None:
    """And less and less so."""
    group = Group()
    for day in range(200):
        group.learn((0, 50 + day % 7, 0, 0, 0, 0, 0), {9})
    means = [
        usual_of(person([10] * days), group, Day(500, 1))[PATIENTS].mean for days in (0, 2, 10, 40)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > 45
    assert means[-1] < 16
    assert Day(1).counts == [0] * 7


def test_nights_are_held_against_nights() -> None:
    """Where there are enough of them: who reads more by day is not usual at night."""
    both = person([40, 5] * 20)
    both.days = [
        (date, counts, 1 - number % 2, False) for number, (date, counts, *_) in enumerate(both.days)
    ]
    means = [usual_of(both, Group(), Day(150, shift))[PATIENTS].mean for shift in (0, 1, 2)]
    assert means[0] < 10
    assert means[1] > 30
    assert means[0] < means[2] < means[1], "of an evening that nobody knows: all of them"


def test_shifts() -> None:
    """Eight hours each; the night goes over midnight."""
    assert [shift_of(hour) for hour in range(24)] == [0] * 6 + [1] * 8 + [2] * 8 + [0] * 2
