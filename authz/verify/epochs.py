"""Logs that go on from others whose key or disk was lost, as their first records tell. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from authz.record import Record, details_of
from authz.verify.report import Finding


@dataclass(frozen=True, slots=True)
class Followed:
    """The log that another goes on from, with its last stored checkpoint: its note, as it was then
    in the database."""

    origin: str
    size: int
    note: str


def followed(record: Record) -> Followed | None:
    """The log that the log of `record` follows, if this is the record that says so."""
    if record.get("event") != "log_started" or record.get("kind") != "notice":
        return None
    told = details_of(record).get("follows")
    if "writer_seq" in record or not isinstance(told, dict):
        return None
    origin, size, note = (told.get(name) for name in ("origin", "size", "note"))
    if not isinstance(origin, str) or type(size) is not int or not isinstance(note, str):
        return None
    return Followed(origin, size, note)


class Epochs:
    """Fed the first record of every log; tells of logs that went on after they were given up."""

    def __init__(self) -> None:
        self._followed: dict[str, tuple[Followed, str]] = {}

    def add(self, record: Record, origin: str) -> Followed | None:
        """The log that `origin` follows, if `record` says so."""
        told = followed(record)
        if told:
            self._followed.setdefault(told.origin, (told, origin))
        return told

    def findings(self, sizes: Mapping[str, int]) -> Iterator[Finding]:
        """`sizes` are those of the logs' newest checkpoints."""
        for name, (told, by) in self._followed.items():
            size = sizes.get(name, 0)
            if size > told.size:
                text = f"the log went on after {by} had taken its place at {told.size} records"
                yield Finding("epoch", name, told.size, size - 1, text)
