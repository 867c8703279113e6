"""Step 1 of `authz.verify.logs`: one log's checkpoints, as they are signed."""

import base64
import time
from collections.abc import Callable, Iterable
from typing import Any

from authz.ledger import Checkpoint, NoteError, UnsignedError, Verifier, open_note, signers
from authz.trust import TrustedLog
from authz.verify.report import Finding, LogReport
from authz.verify.source import Logs
from authz.verify.witnessed import Witnessed, read_anchors

UNSEALED_SECONDS = 10


class Checkpoints:
    """`roots` are those that the log's tree must have, by size, for as long as it has not come by
    them; that of `accepted_alone` was accepted before, and is signed no more."""

    def __init__(self, source: Logs, log: TrustedLog, report: LogReport) -> None:
        self.witnessed = Witnessed(log, read_anchors(log))  # before the log's own
        self.roots: dict[int, bytes] = {}
        self.accepted_alone = 0
        self._source = source
        self._log = log
        self._report = report
        self._signed: list[tuple[int, list[Verifier]]] = []

    def newest(self) -> Checkpoint | None:
        """A log whose first rows are only just there gets its first soon."""
        until = self.patience()
        while True:
            said = False
            for size, note in self._source.newest(self._log.origin):
                said = True
                if opened := self.trusted(size, note):
                    return opened[0]
            there = self._source.beyond(self._log.origin, 0)[2]
            if said or not there or time.monotonic() > until:
                self._report.checkpoints = 0
                kind, text = "no_checkpoint", "the log has no checkpoint"
                if said:
                    text += " that a trusted key signed"
                elif not there:
                    text += ", and no record: all of it is gone"
                self._report.find(kind, -1, -1, text)
                return None
            time.sleep(0.2)

    def expect(self, accepted: dict[str, Any]) -> None:
        """What was accepted before must still be there, at its place."""
        size, root = accepted["size"], base64.b64decode(accepted["root"])
        if size > self._report.size:
            newest = self._report.size
            text = f"{size} records were accepted before; the newest checkpoint has {newest}"
            self._report.find("rollback", newest, size - 1, text)
            return
        signed = self.root(size)
        if signed is not None and signed != root:
            self._report.find("fork", -1, -1, f"size {size} was accepted before with another root")
        else:
            self.roots[size] = root
            self.accepted_alone = size if signed is None else 0

    def trusted(self, size: int, note: str) -> tuple[Checkpoint, list[Verifier]] | None:
        """The checkpoint in a row, and who of the trusted signed it; if nobody did, that is told,
        once."""
        try:
            return self._opened(size, note)
        except NoteError as error:
            names = [name for name, _ in signers(note)]
            other = isinstance(error, UnsignedError) and self._log.origin in names
            kind = "other_key" if other else "signature"
            text = f"the checkpoint of size {size}{error}"
            finding = Finding(kind, self._log.origin, -1, -1, text)
            if finding not in self._report.findings:
                self._report.add(finding)
            return None

    def met(self, checkpoint: Checkpoint, signed: list[Verifier], note: str) -> None:
        """On the way, in the order of their sizes; several may have one."""
        if not self._signed or self._signed[-1][0] != checkpoint.size:
            self._report.checkpoints += 1
        self._signed.append((checkpoint.size, signed))
        self.witnessed.add(checkpoint, note)
        if self.roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
            text = f"two different roots were signed for size {checkpoint.size}"
            self._report.find("fork", -1, -1, text)

    def signed_by(self, signs: Callable[[str, int], Verifier | None]) -> None:
        """Hold the checkpoints since the last call against the key that `signs` at each size."""
        for size, signed in self._signed:
            key = signs(self._log.origin, size)
            if key is not None and key not in signed:
                text = f"the checkpoint of size {size} is not signed by the log's key then, {key}"
                self._report.find("other_key", -1, -1, text)
        self._signed.clear()

    def root(self, size: int) -> bytes | None:
        """The root that is signed over `size` records; None if there is none."""
        if size in self.roots:
            return self.roots[size]
        notes = self._source.checkpoints(self._log.origin, size)
        found = self._first((size, note) for note in notes)
        return found.root if found else None

    def newest_now(self) -> Checkpoint | None:
        """The newest checkpoint: a log at work goes on."""
        return self._first(self._source.newest(self._log.origin))

    def patience(self) -> float:
        """When (monotonic) a checkpoint over rows that are there is overdue."""
        return time.monotonic() + (UNSEALED_SECONDS if self._source.grows else 0)

    def _first(self, rows: Iterable[tuple[int, str]]) -> Checkpoint | None:
        for size, note in rows:
            try:
                return self._opened(size, note)[0]
            except NoteError:
                continue
        return None

    def _opened(self, size: int, note: str) -> tuple[Checkpoint, list[Verifier]]:
        """The checkpoint in a row, and who of the trusted signed it. Raises `NoteError`, worded to
        go on from "size N"."""
        try:
            text, signed = open_note(note, self._log.keys)
            checkpoint = Checkpoint.parse(text)
        except NoteError as error:
            raise type(error)(f": {error}") from None
        if (checkpoint.origin, checkpoint.size) != (self._log.origin, size):
            raise NoteError(" is another's")
        return checkpoint, signed
