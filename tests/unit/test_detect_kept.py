"""What was learnt is kept, and goes on as if nothing had been in between."""

from pathlib import Path

import pytest

from authz.detect import kept
from authz.detect.record import finding_record, key_of, to_json
from authz.errors import UnavailableError, UsageError
from authz.record import canonical, misfit
from tests.detected import access, detector, explained, found, ward, working_day


def test_a_restart_finds_the_same(tmp_path: Path) -> None:
    """Wherever it comes, also in the middle of a day."""
    records = [*ward(12, 25), *working_day("n.001", 25, 90), *ward(12, 3, 26)]
    whole = detector(explained(12, 25))
    expected = found(whole, records)
    assert expected
    for cut in (1, len(records) // 3, len(records) - 150):
        first = detector(explained(12, 25))
        told = found(first, records[:cut])
        kept.save(tmp_path / "watch.json", kept.Kept(next={"a/b": cut}, memory=first.memory))
        loaded = kept.load(tmp_path / "watch.json")
        assert loaded is not None
        assert loaded.next == {"a/b": cut}
        assert loaded.memory == first.memory
        second = detector(explained(12, 25))
        second = type(second)(
            second.feeds, second.lanes.budgets, second._zone, memory=loaded.memory
        )
        assert told + found(second, records[cut:]) == expected


def test_a_file_of_somebody_elses(tmp_path: Path) -> None:
    """Is refused by its name; none is none."""
    path = tmp_path / "watch.json"
    assert kept.load(path) is None
    path.write_text('{"version": "?"}')
    with pytest.raises(UsageError, match=r"watch\.json"):
        kept.load(path)


def test_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """The file is named: it is not the store that fails."""
    with pytest.raises(UnavailableError, match=r"gone/watch\.json: No such file"):
        kept.save(tmp_path / "gone" / "watch.json", kept.Kept())


def test_a_finding_is_a_record() -> None:
    """Its leaf has all that people need, and the same key when it is made again."""
    watcher = detector()
    findings = found(watcher, [access("n.001", 0, 9 + n / 100, f"p-{n}") for n in range(200)])
    assert findings
    for finding in findings:
        record = finding_record(finding)
        assert canonical(record)
        assert not misfit(record)
        assert record["kind"] == "finding"
        assert record["rule"] == finding.rule
        assert len(record["records"]) <= 100  # type: ignore[arg-type]
        assert key_of(finding) in str(record["details"])
        assert set(to_json(finding)) == {
            "time", "subject", "rule", "lane", "score", "evidence", "records",
        }  # fmt: skip


def test_what_other_budgets_would_have_meant() -> None:
    """More for more, never more than it allows, and the rules add up."""
    watcher = detector(explained(40, 42))
    found(watcher, ward(40, 40))
    found(watcher, [*working_day("n.001", 40, 90), *ward(40, 1, 41)])
    told = watcher.lanes.what_if()
    assert [one.budget for one in told] == [0.5, 1, 2, 2.5, 5, 10]
    alerts = [one.alerts for one in told]
    assert alerts == sorted(alerts)
    assert alerts[-1] > 0
    for one in told:
        assert one.rate <= one.budget
        assert one.alerts == sum(one.rules.values())
