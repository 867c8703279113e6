"""Logs that go on from others whose key or disk was lost, as their first records tell. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from authz.record import Record, details_of
from authz.verify.report import Finding
from authz.verify.source import Logs


@dataclass(frozen=True, slots=True)
class Followed:
    """The log that another goes on from; its last stored checkpoint, whose note is as it was then
    in the database; and when its last record was sealed."""

    origin: str
    size: int
    note: str
    sealed_at: int


def followed(record: Record) -> Followed | None:
    """The log that the log of `record` follows, if this is the record that says so."""
    if record.get("event") != "log_started" or record.get("kind") != "notice":
        return None
    told = details_of(record).get("follows")
    if "writer_seq" in record or not isinstance(told, dict):
        return None
    origin, note, size, sealed_at = (
        told.get(name) for name in ("origin", "note", "size", "sealed_at")
    )
    if not (isinstance(origin, str) and isinstance(note, str)):
        return None
    if not (type(size) is type(sealed_at) is int):
        return None
    return Followed(origin, size, note, sealed_at)


class Epochs:
    """Which logs follow which, as their first records say before they are verified: that tells in
    which order to verify them. A first record that is not what was sealed is found as any other
    is."""

    def __init__(self, source: Logs, origins: Iterable[str]) -> None:
        self._followed: dict[str, Followed] = {}  # by the log that follows
        for origin in origins:
            told = [followed(record) for record in source.records(origin, 0, 1)]
            if told and told[0] and told[0].origin != origin:
                self._followed[origin] = told[0]

    def before(self, origin: str) -> Followed | None:
        """The log that `origin` follows."""
        return self._followed.get(origin)

    def begins(self, origin: str) -> int:
        """The log's clock is not before that: so what it follows comes before it."""
        before = self.before(origin)
        return before.sealed_at + 1 if before else 0

    def findings(self, sizes: Mapping[str, int]) -> Iterator[Finding]:
        """Logs that went on after they were given up. `sizes` are those of the logs' newest
        checkpoints."""
        for origin, told in self._followed.items():
            size = sizes.get(told.origin, 0)
            if size > told.size:
                text = f"the log went on after {origin} had taken its place at {told.size} records"
                yield Finding("epoch", told.origin, told.size, size - 1, text)
