"""How many bytes a record takes at most, so that each fits an entry bundle (C2SP tlog-tiles).

Values that are capped one by one can still be too much in all: a thousand patients, sixty roles, a
long path, and each character up to six bytes where it is escaped. Nobody sends that in earnest: a
record of a thousand patients' tokens takes 35 KB.
"""

from typing import Final

import orjson

from authz.record.schema import Record, Value

MOST_BYTES: Final = 65_535
"""Of a record in canonical form, as the log has it."""
WRITERS_BYTES: Final = MOST_BYTES - 2048
"""Of a writer's: the receiver adds its origin (200 characters at most), an index and a time."""

_SHORT = 256  # bytes of a value that is let be
_ITEM = 64  # characters of an array's item that is let be; a token has 31
_WHOLE = ("kind", "event", "rule", "origin", "writer", "prev", "decision_id")


def shorten(record: Record, most: int) -> None:
    """Cut the longest values of `record` until its canonical form has `most` bytes at most
    (`MOST_BYTES` or `WRITERS_BYTES`); whose data it is about comes last."""
    sizes = {name: len(orjson.dumps(value)) for name, value in record.items()}
    size = len(orjson.dumps(record))
    while size > most:
        others = [name for name in sizes if name != "patients" and name not in _WHOLE]
        name = max(others, key=sizes.__getitem__, default="patients")
        if sizes.get(name, 0) <= _SHORT and "patients" in record:
            name = "patients"
        record[name] = cut = _less(name, record[name])
        size += len(orjson.dumps(cut)) - sizes[name]
        sizes[name] = len(orjson.dumps(cut))


def _less(name: str, value: Value) -> Value:
    """About half of a value."""
    if isinstance(value, list):
        if any(len(item) > _ITEM for item in value):
            return [item[:_ITEM] for item in value]
        return value[: len(value) // 2] or [value[0][: len(value[0]) // 2]]
    text = str(value)
    return _less_told(text) if name == "details" else text[: len(text) // 2]


def _less_told(details: str) -> str:
    """Without its longest members, and it says so."""
    try:
        told = orjson.loads(details)
    except ValueError:
        told = None
    kept: dict[str, object] = {}
    room = len(details.encode()) // 2
    for key, value in sorted(told.items(), key=_size) if isinstance(told, dict) else ():
        room -= _size((key, value))
        if room > 0:
            kept[key] = value
    return orjson.dumps({**kept, "cut": True}, option=orjson.OPT_SORT_KEYS).decode()


def _size(member: tuple[str, object]) -> int:
    return len(orjson.dumps(member))
