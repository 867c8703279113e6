"""Why a decision may be missing: how far the writer has come that made it."""

from typing import Any

from authz.reconcile.halves import Half
from authz.reconcile.tally import Gap
from authz.record import Record, details_of


class Writers:
    """How far each writer has come, and which will not come back."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}  # the told time of each one's newest record
        self.lost: set[str] = set()

    def add(self, record: Record) -> None:
        if "writer_seq" in record:
            time: Any = record.get("time", 0)
            writer: Any = record["writer"]
            if time > self.newest.get(writer, 0):
                self.newest[writer] = time
        elif record.get("event") == "writer_lost":
            self.lost.add(str(details_of(record).get("writer", "")))

    def hear(self, writer: str, time: int) -> None:
        self.newest[writer] = max(time, self.newest.get(writer, 0))

    def gap(self, decision_id: str, access: Half) -> Gap:
        """What it means that nobody recorded the decision that `access` names."""
        writer = access.decided_by
        if writer and writer in self.lost:
            kind, source = "writer_lost", writer
        elif writer in self.newest and self.newest[writer] < decided_at(decision_id):
            kind, source = "writer_away", writer
        else:
            kind, source = "no_decision", access.source
        return Gap(kind, access.origin, access.index, source, decision_id)


def decided_at(decision_id: str) -> int:
    """When the decision was made, by its id (a UUID of version 7): microseconds since the epoch,
    rounded down to a millisecond; 0 if it does not say."""
    try:
        return int(decision_id.replace("-", "")[:12], 16) * 1000
    except ValueError:
        return 0
