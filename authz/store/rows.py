"""Leaves to rows and back: the one place that knows both forms.

A row is made from its leaf by the database itself: what is inserted is the text that was hashed.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clickhouse_driver import Client

from authz.record import FIELDS, Field, Record, text
from authz.store.copies import Copies

NAMES = tuple(field.name for field in FIELDS)
_TYPES = {
    "text": "String", "int": "UInt64", "time": "Int64", "bool": "Bool", "texts": "Array(String)"
}  # fmt: skip
_TOLD = ", ".join(f"`{field.name}` {_TYPES[field.type]}" for field in FIELDS)
_VALUES = ", ".join(
    f"fromUnixTimestamp64Micro(told.`{field.name}`)"
    if field.type == "time"
    else f"told.`{field.name}`"
    for field in FIELDS
)
_INSERT = (
    f"INSERT INTO audit_log ({', '.join(f'`{name}`' for name in NAMES)}) SELECT {_VALUES}"
    f" FROM (SELECT JSONExtract(leaf, 'Tuple({_TOLD})') AS told FROM input('leaf String'))"
    " FORMAT Native"
)
_SELECTED = {
    field.name: f"toUnixTimestamp64Micro(`{field.name}`)" if field.type == "time"
    else f"`{field.name}`"
    for field in FIELDS
}  # fmt: skip
_ALL = ", ".join(_SELECTED.values())


def _member(field: Field) -> str:
    """What a leaf has of a column: nothing, or the name, the value and a comma."""
    column = f"`{field.name}`"
    if field.type == "time":
        column = f"toUnixTimestamp64Micro({column})"
    empty, value = {
        "text": (f"{column} = ''", f"toJSONString({column})"),
        "texts": (f"empty({column})", f"toJSONString({column})"),
        "bool": (f"NOT {column}", "'true'"),
    }.get(field.type, (f"{column} = 0", f"toString({column})"))
    return f"if({empty}, '', concat('\"{field.name}\":', {value}, ','))"


def _as_canonical() -> str:
    r"""ClickHouse's JSON `told` as RFC 8785 has it: slashes are not escaped, nor U+2028 and U+2029,
    and escapes have small letters. (The setting for slashes is not for readers whose user may
    change none.) A backslash of the text, told as ``\\\\``, stands aside as U+0001 meanwhile, which
    JSON never holds as it is: so no text becomes what another is."""
    plain = "replaceAll({}, '\\\\/', '/')"
    mended = "replaceAll(told, '\\\\\\\\', '\\x01')"
    escaped = (f"{code:04X}" for code in range(0x20))
    for code in (one for one in escaped if one != one.lower()):
        mended = f"replaceAll({mended}, '\\\\u{code}', '\\\\u{code.lower()}')"
    for code in ("2028", "2029"):
        mended = f"replaceAll({mended}, '\\\\u{code}', '{chr(int(code, 16))}')"
    mended = f"replaceAll({plain.format(mended)}, '\\x01', '\\\\\\\\')"
    return f"if(position(told, '\\\\u') = 0, {plain.format('told')}, {mended})"


_MEMBERS = ", ".join(_member(field) for field in sorted(FIELDS, key=lambda field: field.name))
_RANGE = "origin = %(origin)s AND index >= %(first)s AND index < %(end)s"


def _leaves_query(which: str) -> str:
    return (
        f"SELECT index, concat('{{', substring({_as_canonical()} AS leaf, 1, length(leaf) - 1),"
        f" '}}') AS text FROM (SELECT index, concat({_MEMBERS}) AS told FROM audit_log"
        f" WHERE {which})"
    )


_LEAVES = _leaves_query(f"{_RANGE} ORDER BY index")


class NotText(str):
    """The escaped form of bytes that are no UTF-8. Nothing of ours wrote them: no text that was
    ever sealed equals them, and `canonical` takes no such value."""

    __slots__ = ()


def insert(client: Client, leaves: Sequence[bytes], query_id: str | None = None) -> None:
    """The rows of `leaves`, records in canonical form."""
    client.execute(_INSERT, [leaves], columnar=True, query_id=query_id)


def to_records(columns: Sequence[Sequence[Any]], names: Sequence[str] = NAMES) -> Iterator[Record]:
    """From columns: a record holds what differs from its type's default."""
    for row in zip(*columns, strict=True):
        yield {name: value for name, value in zip(names, row, strict=True) if value}


def read(
    client: Client, table: str, origin: str, first: int, end: int, chunk: int = 16_384
) -> Iterator[Record]:
    """The records of `origin` with `first` <= index < `end`, in index order, doubles included."""
    for start in range(first, end, chunk):
        query = (
            f"SELECT {_ALL} FROM {table} WHERE origin = %(origin)s"
            " AND index >= %(first)s AND index < %(end)s ORDER BY index"
        )
        values = {"origin": origin, "first": start, "end": min(start + chunk, end)}
        columns = client.execute(query, values, columnar=True)
        if columns:
            yield from to_records([_as_text(column) for column in columns])


def leaves(
    client: Client, origin: str, first: int, end: int
) -> tuple[Sequence[int], Sequence[bytes]]:
    """The leaves that the columns make, in index order, doubles included, and their indexes.

    The database writes them, as `canonical` would; of rows that no record could have left,
    something that is no leaf.
    """
    return _leaves(client, _LEAVES, {"origin": origin, "first": first, "end": end})


def leaves_that(
    client: Client, origin: str, first: int, end: int, condition: str, values: Mapping[str, Any],
    limit: int,
) -> tuple[Sequence[int], Sequence[bytes]]:  # fmt: skip
    """The same of rows that meet `condition`: the first `limit`, and what has the last's index."""
    order = "ORDER BY index LIMIT %(limit)s WITH TIES"
    query = _leaves_query(f"{_RANGE} AND ({condition}) {order}")
    asked = {**values, "origin": origin, "first": first, "end": end, "limit": limit}
    return _leaves(client, query, asked)


def _leaves(
    client: Client, query: str, values: Mapping[str, Any]
) -> tuple[Sequence[int], Sequence[bytes]]:
    settings = {"strings_as_bytes": True}
    columns = client.execute(query, dict(values), columnar=True, settings=settings)
    return (columns[0], columns[1]) if columns else ((), ())


def _as_text(column: Sequence[Any]) -> Sequence[Any]:
    """The driver gives bytes for what is no UTF-8; they become `NotText`."""
    kinds = set(map(type, column))
    if kinds <= {list, tuple}:
        kinds = set(map(type, itertools.chain.from_iterable(column)))
    return [_escaped(value) for value in column] if bytes in kinds else column


def _escaped(value: Any) -> Any:
    if isinstance(value, bytes):
        return NotText(text(value, len(value) * 4))
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


def indexes(copies: Copies, origin: str, first: int, end: int) -> set[int]:
    """Which indexes of a range are in the table."""
    values = {"origin": origin, "first": first, "end": end}
    return copies.found("audit_log", "index", _RANGE, values)


def count(copies: Copies, origin: str, first: int, end: int) -> int:
    """How many different indexes of a range are kept."""
    values = {"origin": origin, "first": first, "end": end}
    return copies.count_kept("audit_log", "index", _RANGE, values)


def select(
    client: Client, condition: str, values: Mapping[str, Any], names: Sequence[str] = NAMES
) -> Iterator[Record]:
    """Fields `names` of the records of all logs that meet `condition`, in log order. For few: each
    field of a record that lies alone costs the reading of a block."""
    told = ", ".join(_SELECTED[name] for name in names)
    query = f"SELECT {told} FROM audit_log WHERE {condition} ORDER BY origin, index"
    columns = client.execute(query, dict(values), columnar=True)
    if columns:
        yield from to_records([_as_text(column) for column in columns], names)
