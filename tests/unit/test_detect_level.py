"""How unusual a value is in its series."""

import math
import pickle
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.detect.level import ALERT_AT, ASPECTS, QUIET, Judgement, Level
from authz.detect.usual import tail
from authz.errors import UsageError
from tests.bench.detect.series import read

SEEDS = st.integers(0, 10_000)
MINUTE = 60


def judge(
    values: Iterable[float], every: int = 5 * MINUTE, level: Level | None = None
) -> list[Judgement]:
    level = level or Level()
    return [level.judge(place * every, value) for place, value in enumerate(values)]


def alerts(judgements: Sequence[Judgement]) -> list[int]:
    return [place for place, one in enumerate(judgements) if one.alert]


def noise(seed: int, count: int, mean: float = 0.0) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(mean, 1) for _ in range(count)]


@settings(max_examples=10)
@given(SEEDS, st.integers(-30, 30), st.floats(-1000, 1000))
def test_the_unit_and_the_zero_do_not_matter(seed: int, power: int, shift: float) -> None:
    """The same series in another unit, and from another zero, has the same alerts."""
    values = noise(seed, 900)
    values[500:520] = [value + 8 for value in values[500:520]]
    before = judge(values)
    scaled = judge(value * 2.0**power for value in values)
    assert scaled == [Judgement(one.surprise, one.aspect, one.usual * 2.0**power) for one in before]
    moved = judge(value + shift for value in values)
    assert [one.surprise for one in moved] == pytest.approx(
        [one.surprise for one in before], abs=1e-6
    )


@given(st.floats(-1e12, 1e12), st.integers(1, 100_000))
@settings(max_examples=20)
def test_a_constant_series_never_alerts(value: float, every: int) -> None:
    """Where nothing ever changes, there is nothing to tell."""
    assert not any(one.surprise for one in judge([value] * 700, every))


@given(SEEDS, st.integers(250, 2000), st.sampled_from([20.0, -20.0]))
@settings(max_examples=25)
def test_a_spike_of_20_deviations_alerts(seed: int, place: int, spike: float) -> None:
    """A far value is told at once, wherever it comes, upward and downward."""
    values = noise(seed, place + 1, mean=5)
    values[place] = 5 + spike
    last = judge(values)[-1]
    assert last.alert
    assert last.score > 0.6
    assert last.usual == pytest.approx(5, abs=0.7)


def test_noise_alerts_seldom() -> None:
    """Gaussian and heavy-tailed noise alert less than once in 500 values."""
    chance = random.Random(1)
    for draw in (lambda: chance.gauss(0, 1), lambda: chance.lognormvariate(0, 1)):
        assert len(alerts(judge(draw() for _ in range(20_000)))) < 40


def test_one_event_is_told_once() -> None:
    """Fifty values far out are one alert, and the way back is none of its own."""
    values = noise(2, 1500)
    values[1000:1050] = [value + 15 for value in values[1000:1050]]
    told = alerts(judge(values))
    assert [place for place in told if 1000 <= place < 1000 + QUIET] == [1000]


def test_worse_is_told_in_the_quiet_too() -> None:
    """After an alert, something far worse is not kept back."""
    values = noise(2, 1100)
    values[1000], values[1020] = 6.0, 60.0
    told = alerts(judge(values))
    assert 1000 in told
    assert 1020 in told


def test_a_new_level_is_told_and_becomes_usual() -> None:
    """A level that stays raises an alert when it comes, and none once it is known."""
    values = noise(3, 1000) + noise(4, 6000, mean=6)
    judgements = judge(values)
    told = alerts(judgements)
    assert any(1000 <= place < 1010 for place in told)
    assert len([place for place in told if place >= 4000]) <= 3
    assert judgements[-1].usual == pytest.approx(6, abs=0.5)


def test_a_little_more_for_long_is_told() -> None:
    """What no single value shows, their sum does: a shift by one and a half deviations."""
    chance = noise(5, 1300)
    judgements = judge([*chance[:1000], *(value + 1.5 for value in chance[1000:])])
    told = [one for one in judgements[1000:1100] if one.alert]
    assert told
    assert told[0].aspect in {"more", "shift"}


def test_a_flat_line_is_told() -> None:
    """A value that stops moving is unusual, though it is the most usual value."""
    judgements = judge(noise(6, 1000) + [0.0] * 150)
    told = [one.aspect for one in judgements[1000:] if one.alert]
    assert told[:1] == ["flat"]


def test_the_hour_matters_where_history_shows_it() -> None:
    """A value of the day is unusual at night, and not by day."""
    chance = random.Random(7)

    def usual(place: int) -> float:
        return (100.0 if 8 <= place // 12 % 24 < 18 else 10.0) + chance.gauss(0, 2)

    values = [usual(place) for place in range(12 * 24 * 14 + 12 * 13)]
    night = 12 * 24 * 13 + 12 * 3
    values[night] = 100.0
    judgements = judge(values)
    assert judgements[night].alert
    assert judgements[night].usual == pytest.approx(10, abs=3)
    assert not judgements[night + 12 * 8].alert
    assert judgements[night + 12 * 8].usual == pytest.approx(100, abs=3)


def test_what_comes_every_day_is_told_at_first_only() -> None:
    """A backup at three at night is news for some days, and then it is not."""
    values = noise(8, 288 * 20)
    nights = [288 * day + 36 for day in range(4, 20)]
    for place in nights:
        values[place] += 12
    told = set(alerts(judge(values)))
    assert nights[0] in told
    assert not told.intersection(nights[3:])


def test_a_huge_value_does_not_blind() -> None:
    """After a value a billion deviations out, a far one is still told."""
    values = noise(9, 1600)
    values[1000], values[1500] = 1e9, 20.0
    told = alerts(judge(values))
    assert 1000 in told
    assert 1500 in told
    assert len(told) <= 6


def test_few_are_not_many() -> None:
    """Where about one comes in two minutes, four in a minute are chance, and twenty are not."""
    chance = random.Random(10)
    values = [float(sum(chance.random() < 0.05 for _ in range(10))) for _ in range(3000)]
    values[2000], values[2500] = 4.0, 20.0
    counted = judge(values, MINUTE, Level(counting=True))
    assert not counted[2000].alert
    assert counted[2500].alert
    assert tail(4, 0.5, 0.5) < ALERT_AT < tail(20, 0.5, 0.5)


def test_cost_and_memory_do_not_grow() -> None:
    """A value costs as many calls after twenty thousand as after one thousand, and no memory."""
    chance, level = random.Random(11), Level(counting=True)

    def size_and_calls(begin: int, end: int) -> tuple[int, int]:
        calls = 0

        def count(_frame: object, _event: str, _of: object) -> None:
            nonlocal calls
            calls += 1

        values = [float(chance.randrange(2**20)) for _ in range(begin, end)]
        sys.setprofile(count)
        try:
            for place, value in enumerate(values, begin):
                level.judge(place * 300, value)
        finally:
            sys.setprofile(None)
        return len(pickle.dumps(level)), calls

    size_and_calls(0, 1000)
    size, calls = size_and_calls(1000, 2000)
    size_and_calls(2000, 20_000)
    later_size, later_calls = size_and_calls(20_000, 21_000)
    assert later_size < size + 1000
    assert later_calls < calls * 1.1


def test_a_judgement_says_what_it_saw() -> None:
    """Each alert names its aspect, and a score of one half is where alerts begin."""
    values = noise(12, 400)
    values[300] = 30.0
    judgements = judge(values)
    assert judgements[300].aspect in ASPECTS
    assert all(0 <= one.score < 1 for one in judgements)
    assert all(one.alert == (one.score >= 0.5) for one in judgements)
    assert Judgement(ALERT_AT, "high", 0.0).alert


def test_a_csv_in_a_csv_out() -> None:
    """The command prints each timestamp as it came, with a score and an alert, in one pass."""
    rows = [f"2026-01-{1 + n // 288:02} {n // 12 % 24:02}:{n % 12 * 5:02}:00" for n in range(600)]
    values = noise(13, 600)
    values[500] = 40.0
    text = "timestamp,value\n" + "".join(
        f"{at},{value}\n" for at, value in zip(rows, values, strict=True)
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.detect.series", "-"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    head, *lines = done.stdout.splitlines()
    assert head == "timestamp,score,alert"
    assert [line.split(",")[0] for line in lines] == rows
    assert lines[500].endswith(",1")
    assert all(0 <= float(line.split(",")[1]) <= 1 for line in lines)


@pytest.mark.parametrize(
    "line", ["yesterday,1", "2026-01-01 00:00:00,many", "2026-01-01,nan", "2026-01-01"]
)
def test_a_bad_line_is_named(line: str) -> None:
    """A line that cannot be read is told by its number."""
    with pytest.raises(UsageError, match="line 3"):
        list(read(["timestamp,value\n", "2026-01-01 00:00:00,1\n", line + "\n"]))
    assert math.isfinite(next(read(["timestamp,value\n", "2026-01-01,1\n"])).value)
