"""From loose values to a record, and from a record to the bytes that are hashed."""

from collections.abc import Mapping

import orjson

from authz.record.schema import FIELD, MAX_INT, Field, Record, Value

_PLAIN = frozenset((str, int, bool))
_TYPES = {"text": str, "int": int, "time": int, "bool": bool, "texts": list}
_ITEMS = {name: field.items for name, field in FIELD.items()}
_BOUNDS = {name: (_TYPES[field.type], field.cap) for name, field in FIELD.items()}


def canonical(record: Mapping[str, object]) -> bytes:
    """The canonical JSON (RFC 8785) of `record`, without values that are their type's default.

    Raises `TypeError` for a value that is no string, integer, boolean or list of strings, and
    `ValueError` for an integer outside 0 to 2^53 - 1 or text that is not Unicode.
    For these types orjson's sorted keys give RFC 8785's bytes: field names are ASCII, integers
    are exact, and both escape strings alike.
    """
    kept = {}
    for name, value in record.items():
        kind = type(value)
        if kind in _PLAIN:
            if kind is int and not 0 <= value <= MAX_INT:  # type: ignore[operator]
                raise ValueError(f"{name}: {value} is not between 0 and 2^53 - 1")
        elif kind is list:
            for item in value:  # type: ignore[attr-defined]
                if type(item) is not str:
                    raise TypeError(f"{name}: an array holds strings, not {type(item).__name__}")
        else:
            raise TypeError(f"{name}: {kind.__name__} is not a type of the record")
        if value:
            kept[name] = value
    try:
        return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def form(record: Record) -> bytes:
    """The canonical form of a `record` that is as `clean` leaves one: nothing is checked again."""
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def clean(values: Mapping[str, object]) -> Record:
    """A record from `values`: text escaped and capped, numbers clamped, defaults left out.

    This is done before hashing, so that the row a database keeps is what was hashed. Raises
    `KeyError` for a name that is no field: that is a bug, not bad input.
    """
    record: Record = {}
    for name, value in values.items():
        if value:
            kind, cap = _BOUNDS[name]
            if kind is str and type(value) is str and len(value) <= cap and value.isascii():
                record[name] = value  # nearly all of a record
            elif kept := _clean(FIELD[name], value):
                record[name] = kept
    return record


def fit(record: Record) -> Record:
    """`record` itself if it is as `clean` would leave it, and what that makes of it if not.

    Raises `KeyError` as `clean` does.
    """
    for name, value in record.items():
        kind, cap = _BOUNDS[name]
        if value.__class__ is not kind or not value:
            return clean(record)
        if kind is str:
            if len(value) > cap or not value.isascii():  # type: ignore[arg-type, union-attr]
                return clean(record)
        elif kind is int:
            if not 0 < value <= cap:  # type: ignore[operator]
                return clean(record)
        elif kind is list and not _fits(value, _ITEMS[name], cap):  # type: ignore[arg-type]
            return clean(record)
    return record


def _fits(items: list[str], most: int, cap: int) -> bool:
    """Whether nothing of an array has to be cut or escaped."""
    if len(items) > most:
        return False
    for item in items:
        if item.__class__ is not str or len(item) > cap or not item.isascii():
            return False
    return True


def misfit(record: Mapping[str, object]) -> str:
    """What in `record`, which has a canonical form, no row could hold as it is; empty if all fits.

    For records that others made: a row that says something else than its leaf, or that no insert
    takes, could not be mended once it is in the log.
    """
    for name, value in record.items():
        field = FIELD.get(name)
        if field is None:
            return f"{name} is no field"
        if type(value) is not _TYPES[field.type]:
            return f"{name} is no {field.type}"
        if type(value) is int and value > field.cap:
            return f"{name} is more than {field.cap}"
    return ""


def _clean(field: Field, value: object) -> Value:
    match field.type:
        case "text":
            return text(value, field.cap)
        case "bool":
            return bool(value)
        case "texts":
            items = value if isinstance(value, list | tuple) else [value]
            return [text(item, field.cap) for item in items[: field.items]]
        case "int" | "time":
            if not isinstance(value, int):
                raise TypeError(f"{field.name}: {type(value).__name__} is not an integer")
            return min(max(int(value), 0), field.cap)


def text(value: object, cap: int) -> str:
    r"""`value` as valid Unicode of at most `cap` characters.

    Bytes that are not UTF-8 and lone surrogates are escaped (``\xff``, ``\ud800``), not dropped.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    elif not isinstance(value, str):
        value = str(value)
    if not value.isascii():
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value if len(value) <= cap else value[:cap]
