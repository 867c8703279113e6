"""CSV (RFC 4180) of records, and back: a column for each field, in the order of the record's table.

A spreadsheet runs what looks like a formula, whoever wrote it. So text that begins with a character
that makes it look so, or with an apostrophe, has an apostrophe put in front; whoever reads a cell
of text takes one leading apostrophe away, and has what was recorded. Nothing else is changed:

- a value that is its type's default is an empty cell
- times are RFC 3339, UTC, to the microsecond; true is ``true``; arrays are JSON
"""

import csv
import datetime as dt
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from authz.record import FIELDS, Field, Record, Value

LIVE = "=+-@\t\r\n＝＋－＠"  # noqa: RUF001 - spreadsheets take the wide forms for these
_MARK = "'"
_MARKED = frozenset(LIVE + _MARK)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

HEADER = tuple(field.name for field in FIELDS)


def harmless(text: str) -> str:
    """`text` as a cell that no spreadsheet runs."""
    return _MARK + text if text[:1] in _MARKED else text


def plain(cell: str) -> str:
    """The inverse of `harmless`."""
    return cell.removeprefix(_MARK)


def time_text(time_us: int) -> str:
    """RFC 3339 of microseconds since the epoch."""
    return (_EPOCH + time_us * _MICROSECOND).isoformat(timespec="microseconds")[:-6] + "Z"


_WRITE: Mapping[str, Callable[[Any], str]] = {
    "text": harmless, "int": str, "time": time_text, "bool": lambda _: "true",
    "texts": lambda value: orjson.dumps(value).decode(),
}  # fmt: skip
_COLUMNS = [(field.name, _WRITE[field.type]) for field in FIELDS]


def cells(record: Mapping[str, Any]) -> list[str]:
    """The cells of one record."""
    return [write(record[name]) if name in record else "" for name, write in _COLUMNS]


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as RFC 4180 has them."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def read_csv(lines: Iterable[str]) -> Iterator[Record]:
    """The records of a CSV file's lines, each with its end. Raises `ValueError` for what `cells`
    did not write."""
    reader = csv.reader(lines, strict=True)
    try:
        if tuple(next(reader, ())) != HEADER:
            raise ValueError("its first line does not name the record's fields")
        for row in reader:
            yield _record(row)
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _record(row: Sequence[str]) -> Record:
    if len(row) != len(FIELDS):
        raise ValueError(f"a row of {len(row)} cells, not {len(FIELDS)}")
    pairs = zip(FIELDS, row, strict=True)
    record = {field.name: _read(field, cell) for field, cell in pairs if cell}
    if cells(record) != list(row):
        raise ValueError("a cell is not as it was written")
    return record


def _read(field: Field, cell: str) -> Value:
    match field.type:
        case "text":
            return plain(cell)
        case "int":
            return int(cell)
        case "time":
            told = dt.datetime.fromisoformat(cell)
            if told.tzinfo is None:
                raise ValueError(f"{field.name}: a time without a zone")
            return (told - _EPOCH) // _MICROSECOND
        case "bool":
            return cell == "true"
        case "texts":
            items = orjson.loads(cell)
            if type(items) is not list or not {str}.issuperset(map(type, items)):
                raise ValueError(f"{field.name}: want an array of texts")
            return items
