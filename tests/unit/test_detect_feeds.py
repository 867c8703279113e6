"""The operator's tables of people, patients and reasons."""

from pathlib import Path

import pytest

from authz.detect.feeds import AFTER_US, BEFORE_US, Feeds, load
from authz.errors import UsageError


def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    """A byte order mark, other columns and empty cells are no obstacle."""
    (tmp_path / "people.csv").write_text(
        "\ufeffSubject,role,department,surname,household,status,patient,extra\n"
        'n.reed,nurse,"ward 3, east",Reed,h1,active,p1,x\n'
        "n.gone,nurse,,Gone,,Terminated,,\n",
        encoding="utf-8",
    )
    (tmp_path / "patients.csv").write_text("patient,surname,household,vip\np1,REED,h1,Yes\np2,,,\n")
    (tmp_path / "care_team.csv").write_text(
        "subject,patient,from,until\nn.reed,p2,2026-03-01T08:00:00Z,2026-03-02T08:00:00+01:00\n"
    )
    feeds = load(tmp_path)
    assert feeds.known("n.reed").department == "ward 3, east"
    assert not feeds.known("n.reed").gone
    assert feeds.known("n.gone").gone
    assert feeds.chart("p1").vip
    assert feeds.chart("p1").surname == feeds.known("n.reed").surname == "reed"
    assert feeds.staff == {"p1": "n.reed"}
    begin, end = 1_772_352_000_000_000, 1_772_434_800_000_000
    assert feeds.reason("n.reed", "p2", begin) == "care team"
    assert feeds.reason("n.reed", "p2", begin - BEFORE_US - 1) == ""
    assert feeds.reason("n.reed", "p2", end + AFTER_US + 1) == ""
    assert feeds.reason("n.reed", "p1", begin) == ""


def test_patients_are_named_as_in_records(tmp_path: Path) -> None:
    """Identifiers become tokens by the function given; open intervals hold always."""
    (tmp_path / "orders.csv").write_text("subject,patient,from,until\ndr.x,123,,\n")
    feeds = load(tmp_path, lambda patient: f"k.{patient}")
    assert feeds.reason("dr.x", "k.123", 5) == "order"
    assert feeds.reason("dr.x", "123", 5) == ""


def test_no_tables_are_no_error(tmp_path: Path) -> None:
    """Each may be missing."""
    assert load(tmp_path) == Feeds()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("people.csv", "role\nnurse\n", "no column subject"),
        ("people.csv", "subject,role\n,nurse\n", "line 2: subject is empty"),
        ("orders.csv", "subject,patient,from\nx,p,2026-13-01\n", "line 2: from is no time"),
        ("patients.csv", "patient\n\udcff\n", "not a CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    """The file, the line and the column."""
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=told) as caught:
        load(tmp_path)
    assert name in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """Nobody means to watch without the feeds they name."""
    with pytest.raises(UsageError, match="no such directory"):
        load(tmp_path / "feeds")
