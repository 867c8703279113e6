"""Tells in the log what Envoys say that they lost (`authz.receiver.losses`)."""

import asyncio
import time
from pathlib import Path

import orjson
import structlog

from authz.config import Receiver
from authz.files import replace_file
from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.receiver import metrics
from authz.receiver.envoys import Envoys
from authz.receiver.losses import Losses, Lost
from authz.record import Entry, Record, notice
from authz.serve.intake import Intake

logger = structlog.get_logger()


class EnvoyLosses:
    """`run` asks the Envoys named in `options`, and tells at most once an interval.

    What is known of them is kept in `path` from a clean stop to the next start, which forgets it:
    after a crash nobody knows what was received before.
    """

    def __init__(
        self, options: Receiver, path: Path, intake: Intake, committer: Committer[list[Entry]]
    ) -> None:
        self._path = path
        self._intake = intake
        self._committer = committer
        self._seconds = options.interval_seconds
        self._losses = self._load()
        self._envoys = Envoys(
            options.envoy_admins, self._losses, self._received, lambda: intake.behind
        )

    async def run(self) -> None:
        await asyncio.gather(self._envoys.run(), self._tell())

    def stop(self) -> None:
        """Once nothing is received any more, and all that was is on disk."""
        try:
            replace_file(self._path, orjson.dumps(self._losses.kept(self._received)))
        except OSError as error:
            logger.warning("what Envoys said is forgotten", error=error.strerror)

    def _received(self, node: str) -> int:
        return self._intake.received[node]

    def _load(self) -> Losses:
        try:
            kept = orjson.loads(self._path.read_bytes())
            self._path.unlink()
            return Losses(kept=kept)
        except (FileNotFoundError, LookupError, TypeError, ValueError, AttributeError):
            return Losses()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            told = [_record(lost) for lost in self._losses.take()]
            while told:
                try:
                    await self._committer.submit([(record, b"") for record in told])
                except JournalError as error:
                    logger.error("what Envoy lost is not on record yet", error=str(error))
                    await asyncio.sleep(1)
                else:
                    metrics.count_gaps(told)
                    told = []


def _record(lost: Lost) -> Record:
    kind, event = lost.kind, "gap"
    if kind == "envoy_late":  # they were told as lost, and came after all
        kind, event = "envoy_lost", "gap_closed"
    told = {"kind": kind, "source": f"envoy:{lost.node}", "count": lost.count}
    told |= {"from": lost.since, "until": lost.until}
    return notice(event, time.time_ns() // 1000, told, rule=kind)
