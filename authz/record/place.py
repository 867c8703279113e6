"""Where a record stands, as people and other records name it: ``ORIGIN@INDEX``."""

import re

from authz.record.schema import Record

_FORM = re.compile(r"(.+)@([0-9]{1,16})", re.DOTALL)


def place_of(record: Record) -> str:
    """Of a record that is in a log."""
    return f"{record.get('origin', '')}@{record.get('index', 0)}"


def read_place(text: str) -> tuple[str, int] | None:
    """Log and index of a place; None if `text` is none."""
    form = _FORM.fullmatch(text)
    return (form[1], int(form[2])) if form else None
