"""CSV that a spreadsheet does not run, and that gives the records back."""

import csv
import io

import pytest
from hostile import ODD, RECORDS, TEXTS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.record import FIELD, canonical
from authz.report.exports.cells import (
    HEADER,
    LIVE,
    cells,
    csv_text,
    harmless,
    plain,
    read_csv,
    time_text,
)

SOME = settings(max_examples=150)
SIGNS = "=+-@\t\r\n'\",;＝＋－＠a1 \0"  # noqa: RUF001 - spreadsheets take the wide ones too
TEXT = st.one_of(TEXTS, st.text(st.sampled_from(SIGNS), max_size=12))


def lines(text):
    """The lines of a file with `text`, as they are read from it."""
    return io.StringIO(text, newline="")


@SOME
@given(TEXT)
@example("'=1+1")
@example("''")
@example("\r=cmd")
def test_no_cell_is_run(text):
    """No cell begins with a character that makes it a formula, and each gives back its text."""
    cell = harmless(text)
    assert cell[:1] not in LIVE or not cell
    assert plain(cell) == text
    assert cell in (text, "'" + text)


@SOME
@given(st.lists(RECORDS, max_size=4), st.lists(TEXT, min_size=3, max_size=3))
def test_the_csv_module_reads_back_exactly(records, texts):
    """A reader of RFC 4180 finds the cells that were written, line breaks, quotes and all; no cell
    of it is live; and they give the records back, whatever is in them."""
    records = [{name: value for name, value in one.items() if value} for one in records]
    records.append({"subject": texts[0], "roles": texts[1:], "details": texts[2]})
    rows = [list(HEADER), *map(cells, records)]
    text = csv_text(rows)
    assert list(csv.reader(lines(text), strict=True)) == rows
    assert all(cell[:1] not in LIVE for row in rows for cell in row if cell)
    assert [canonical(one) for one in read_csv(lines(text))] == [canonical(one) for one in records]


def test_lines_end_as_in_rfc_4180():
    """Lines end with CR LF, the header names every field, and only what must be is quoted."""
    text = csv_text([HEADER, cells({"origin": "a,b", "index": 3, "allowed": True})])
    head, row, rest = text.split("\r\n")
    assert head.split(",") == list(FIELD)
    assert row.startswith('"a,b",3,,')
    assert rest == ""


def test_times_are_for_people():
    """A time is told in UTC to the microsecond, the latest that a record can hold too."""
    assert time_text(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
    for time_us in (1, 2**53 - 1):
        [record] = read_csv(lines(csv_text([HEADER, cells({"time": time_us})])))
        assert record == {"time": time_us}


@pytest.mark.parametrize(
    ("field", "cell"),
    [("index", "007"), ("index", "x"), ("time", "2023-11-14"), ("time", "soon"),
     ("allowed", "TRUE"), ("roles", '[ "a"]'), ("roles", '"a"'), ("roles", "[1]"),
     ("subject", "=1+1"), ("roles", "[")],
)  # fmt: skip
def test_what_was_not_written_so_is_refused(field, cell):
    """A cell that says the same in another form, or nothing, is not read: only one text is one
    record's."""
    row = [cell if name == field else "" for name in HEADER]
    with pytest.raises(ValueError, match=r".+"):
        list(read_csv(lines(csv_text([HEADER, row]))))


@pytest.mark.parametrize(
    "text", ["", "a,b\r\n", csv_text([HEADER, ["a"]]), csv_text([HEADER])[:-6]]
)
def test_other_files(text):
    """A file with other columns is none of ours."""
    with pytest.raises(ValueError, match=r"line|cells"):
        list(read_csv(lines(text)))


def test_odd_texts_stay_apart():
    """Different texts are different cells."""
    assert len({harmless(one) for one in (*ODD, "'", "''", "=", "'=")}) == len(
        {*ODD, "''", "=", "'="}
    )
