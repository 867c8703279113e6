"""What a benchmark of findings says, against truth small enough to count by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.detect.score import DAY_US, Finding, UserDays, catches, score
from tests.bench.detect.truth import Misuse, read_truth, write_truth

_DAY_40 = 40 * DAY_US
_LOOK = Misuse("vip", "u1", "", _DAY_40, _DAY_40 + 1_000_000, ("d1", "d2"))
_BURST = Misuse(
    "failed_authentication", "", "33.1.0.9", _DAY_40, _DAY_40 + 60_000_000, ("r1", "r2")
)


def _finding(subject="u1", at=_DAY_40 + 5_000_000, lane="act", rule="vip", **more):
    return {
        "time": at,
        "subject": subject,
        "rule": rule,
        "lane": lane,
        "score": 3.5,
        "evidence": "opened the chart of somebody on the VIP list",
        "records": ["d1"],
    } | more


def _catches(line, misuse=_LOOK, daily=()):
    return catches(Finding.read(line), misuse, daily)


def test_a_finding_catches_what_it_names():
    """Subject, time and one record of the misuse are enough, in either lane."""
    assert _catches(_finding())
    assert _catches(_finding(lane="review", records=["d9", "d2"]))
    assert _catches(_finding(at=_LOOK.end_us + DAY_US))


@pytest.mark.parametrize(
    "line",
    [
        _finding(subject="u2"),
        _finding(records=["d9"]),
        _finding(records=[]),
        _finding(at=_LOOK.begin_us - 1),
        _finding(at=_LOOK.end_us + DAY_US + 1),
    ],
)
def test_a_finding_that_is_about_something_else_catches_nothing(line):
    """Another person, other records, no records, before it began, or more than a day after."""
    assert not _catches(line)


def test_rules_that_add_up_a_day_need_not_show_the_very_records():
    """A daily rule shows some of the day's records; its subject and time decide."""
    line = _finding(rule="scrape", records=["d9"])
    assert not _catches(line)
    assert _catches(line, daily={"scrape"})
    assert not _catches(line | {"subject": "u2"}, daily={"scrape"})


def test_a_burst_without_a_subject_is_known_by_its_address():
    """Failed authentications have no subject: the finding names the address, whichever way."""
    assert _catches(_finding(subject="33.1.0.9", records=["r2"]), _BURST)
    assert _catches(_finding(subject="", address="33.1.0.9", records=["r2"]), _BURST)
    assert not _catches(_finding(subject="", address="33.1.0.8", records=["r2"]), _BURST)
    assert not _catches(_finding(subject="", records=["r2"]), _BURST)


def test_times_are_microseconds_or_text():
    """`time` may be ISO 8601, with or without its zone; without, it is UTC."""
    at = 1_767_600_000_000_000
    for text in ("2026-01-05T08:00:00Z", "2026-01-05T08:00:00", "2026-01-05T09:00:00+01:00"):
        assert Finding.read(_finding(at=text)).time_us == at


def test_a_lane_must_be_one_of_the_two():
    """A third lane would be counted nowhere."""
    with pytest.raises(ValueError, match="lane"):
        Finding.read(_finding(lane="log"))


def test_the_figures_are_those_counted_by_hand():
    """Three misuses, two caught, one of them twice; two false alerts; one alert in training."""
    third = replace(_LOOK, kind="coworker", subject="u3", records=("d7",))
    result = score(
        [
            _finding(at=_DAY_40 + 5_000_000),
            _finding(at=_DAY_40 + 9_000_000, lane="review"),
            _finding("33.1.0.9", _DAY_40 + 65_000_000, "review", "failures", records=["r1"]),
            _finding("u8", _DAY_40 + DAY_US, records=["d8"]),
            _finding("u9", _DAY_40 + DAY_US, "review", "breadth", evidence=""),
            _finding("u9", at=10 * DAY_US),
        ],
        [_LOOK, _BURST, third],
        user_days=2_000,
        after_us=30 * DAY_US,
    )
    assert (result.overall.caught, result.overall.of) == (2, 3)
    assert (result.acted.caught, result.acted.of) == (1, 3)
    assert {kind: each.share for kind, each in result.kinds.items()} == {
        "coworker": 0.0,
        "failed_authentication": 1.0,
        "vip": 1.0,
    }
    act, review = result.lanes["act"], result.lanes["review"]
    assert (act.alerts, act.true, act.repeated) == (2, 1, 0)
    assert (act.per_1000, act.false_per_1000) == (1.0, 0.5)
    assert (review.alerts, review.true, review.repeated) == (3, 2, 1)
    assert result.false_alerts == {("act", "vip"): 1, ("review", "breadth"): 1}
    assert result.evidenced == 0.8
    assert (result.delay_p50_s, result.kinds["vip"].delay_p50_s) == (35.0, 5.0)
    assert result.missed == [third]


def test_nothing_found_is_no_recall_and_no_alert():
    """Without findings everything due is missed; misuse that ended in training is not due."""
    early = replace(_LOOK, begin_us=DAY_US, end_us=2 * DAY_US)
    result = score([], [early, _LOOK], 1_000, after_us=30 * DAY_US)
    assert (result.overall.share, result.overall.of) == (0.0, 1)
    assert result.lanes["act"].alerts == 0


_lines = st.builds(
    _finding,
    subject=st.sampled_from(["u1", "u3", "33.1.0.9", ""]),
    at=st.integers(0, 60 * DAY_US),
    lane=st.sampled_from(["act", "review"]),
    records=st.lists(st.sampled_from(["d1", "d7", "r1", "x"]), max_size=3),
)


@given(st.lists(_lines, max_size=12), st.lists(_lines, max_size=3), st.randoms())
def test_more_findings_never_lower_recall_and_their_order_is_nothing(lines, more, random):
    """Recall grows with findings; every alert is true or false; lines may come in any order."""
    truth = [_LOOK, _BURST, replace(_LOOK, subject="u3", records=("d7",))]
    few, many = score(lines, truth, 1_000), score([*lines, *more], truth, 1_000)
    assert few.overall.caught <= many.overall.caught
    shuffled = random.sample(lines, len(lines))
    assert score(shuffled, truth, 1_000).overall == few.overall
    counted = sum(lane.alerts for lane in few.lanes.values())
    true = sum(lane.true for lane in few.lanes.values())
    assert counted == len(lines) == true + sum(few.false_alerts.values())


def test_user_days_are_of_people_and_their_own_days():
    """Two of u1, one of u2; before training ended, and without a subject, nothing counts."""
    days = UserDays(after_us=DAY_US, midnight_us=DAY_US // 4)
    for subject, hour in (("u1", 3), ("u1", 31), ("u1", 53), ("u2", 53), ("", 53), ("u1", 55)):
        days.add({"subject": subject, "time": hour * DAY_US // 24})
    assert days.count == 3


def test_truth_is_read_as_it_was_written(tmp_path):
    """truth.json gives back the same values."""
    write_truth(tmp_path / "truth.json", [_LOOK, _BURST])
    assert read_truth(tmp_path / "truth.json") == [_LOOK, _BURST]
