"""Text and times as people are shown them."""

import datetime as dt


def printable(text: str) -> str:
    r"""`text` with what a terminal would act upon, or show in another order, escaped (``\x1b``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(time_us: int) -> str:
    """A time as tables show it: UTC, to the second."""
    at = dt.datetime.fromtimestamp(time_us // 1_000_000, dt.UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S")
