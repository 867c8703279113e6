"""Which records of a log may be gone: what expired under a notice, and nothing else.

A notice `expired` says which records may be missing and which root their hashes still have in the
log's tiles. The notices are read ahead of the records (`authz.store.retention.read_notices`), so
that a record that is not there can be judged at its place. Whether a notice is the log's own is
seen when it comes by as a record of a log that verifies (`confirm`), and judged at the end
(`findings`). Records that were held are named by no notice: they are missed like any other.

What a notice must be, or it is `forged_expiry`: a record of a verified log, by a writer that may
expire (where the trust file says who), about a part of a log that is older than the notice, under
the root that the log's tiles still have. And `early_expiry`: its rule is shorter than six years
without a reason, or it reaches into what was younger than its rule says. How old a part was is seen
by the first record that is kept after it: that one is always of the last month that expired.

A notice that does not know a hold that its own log had before it excuses nothing (`_heedless`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from authz.ledger import NoteError, Verifier
from authz.record import Record, details_of
from authz.retention.notices import (
    EXPIRED,
    RELEASE,
    Expired,
    Expiry,
    Hold,
    Place,
    expiry_of,
    hold_of,
    lifted,
    place_of,
)
from authz.retention.rule import SIX_YEARS
from authz.retention.spans import Spans

_SKEW_US = 3600 * 1_000_000  # between the clock of who expires and the receiver's

_COMPARED = ("kind", "event", "rule", "details", "sealed_at", "writer", "writer_seq")

RootAt = Callable[[str, int], bytes | None]
Found = tuple[str, str, int, str]
"""A finding: its kind, the log and index of the notice, and what is wrong, in words."""


@dataclass(frozen=True, slots=True)
class Told:
    """A range that may be gone, and the place of the notice that says so."""

    range: Expired
    place: Place


@dataclass(slots=True)
class _Notice:
    record: Record
    expiry: Expiry | None
    wrong: str = ""  # why it tells nothing
    confirmed: bool = False
    counts: bool = False  # lets something be gone


@dataclass(slots=True)
class _Log:
    absent: Spans = field(default_factory=Spans)
    told: list[Told] = field(default_factory=list)
    end: int = 0  # the first index after all that may be gone
    kept_at: int | None = None  # when that record was sealed


class Expiries:
    """Made from the notices of all logs (`authz.retention.EVENTS`, by writers, in log order).
    With `writers`, only notices signed by one of these keys let anything be gone."""

    def __init__(
        self, notices: Iterable[Record], writers: Sequence[Verifier] | None = None
    ) -> None:
        records = [record for record in notices if record.get("writer_seq")]
        self._writers = writers
        self._logs: dict[str, _Log] = {}
        self._notices: dict[Place, list[_Notice]] = {}
        heedless = _Heedless(records)
        for record in records:
            if record.get("event") != EXPIRED:
                continue
            notice = self._read(record)
            self._notices.setdefault(place_of(record), []).append(notice)
            if notice.expiry and not notice.wrong and not heedless(notice.expiry):
                notice.counts = True
                for one in notice.expiry.ranges:
                    log = self._logs.setdefault(one.origin, _Log())
                    log.told.append(Told(one, notice.expiry.place))
        for log in self._logs.values():
            log.absent = Spans.of(pair for told in log.told for pair in told.range.gone)
            log.end = max(told.range.end for told in log.told)

    def _read(self, record: Record) -> _Notice:
        try:
            expiry = expiry_of(record)
        except ValueError as error:
            return _Notice(record, None, str(error))
        origin, index = expiry.place
        if any(one.origin == origin and one.end > index for one in expiry.ranges):
            return _Notice(record, expiry, "it expires what came after it")
        if self._writers is not None and not _signed(expiry, self._writers):
            text = f"writer {expiry.writer!r} is none that the trust file lets expire records"
            return _Notice(record, expiry, text)
        return _Notice(record, expiry)

    def absent(self, origin: str) -> Spans:
        """Which records of the log may be missing."""
        log = self._logs.get(origin)
        return log.absent if log else Spans()

    def ranges(self, origin: str) -> list[Told]:
        """What the log's notices say, each with its place."""
        log = self._logs.get(origin)
        return list(log.told) if log else []

    def wanted(self) -> dict[str, frozenset[int]]:
        """Of each log the records that `confirm` needs: the notices, and the first record after
        what is gone. Verification of a window reads these beside it."""
        places = set(self._notices)
        places |= {(origin, log.end) for origin, log in self._logs.items()}
        return {
            origin: frozenset(index for name, index in places if name == origin)
            for origin in sorted({name for name, _ in places})
        }

    def confirm(self, record: Record, origin: str) -> None:
        """`record` is one of the verified log `origin`. Any may be given, those `wanted` must."""
        place = origin, int(record.get("index", 0))  # type: ignore[arg-type]
        for notice in self._notices.get(place, ()):
            same = all(record.get(name) == notice.record.get(name) for name in _COMPARED)
            notice.confirmed = notice.confirmed or same
        log = self._logs.get(origin)
        if log and place[1] == log.end:
            log.kept_at = int(record.get("sealed_at", 0))  # type: ignore[arg-type]

    def findings(self, root_at: RootAt) -> Iterator[Found]:
        """What is wrong with the notices, once all records were given to `confirm`. `root_at` has
        the root of a log's first so many records, as its tiles have it under a signed checkpoint;
        None where the log has not so many."""
        for (origin, index), notices in self._notices.items():
            for notice in notices:
                for kind, text in self._judge(notice, root_at):
                    yield kind, origin, index, text

    def told(self) -> list[Expiry]:
        """All notices that can be read, in log order, whatever is wrong with them."""
        return [n.expiry for each in self._notices.values() for n in each if n.expiry]

    def accepted(self) -> list[Expiry]:
        """What the report tells: the notices that let something be gone, in log order."""
        return [one.expiry for each in self._notices.values() for one in each
                if one.expiry and one.confirmed and one.counts]  # fmt: skip

    def _judge(self, notice: _Notice, root_at: RootAt) -> Iterator[tuple[str, str]]:
        if not notice.confirmed:
            yield "forged_expiry", "a notice of expiry that is no record of a verified log"
        if notice.wrong:
            yield "forged_expiry", notice.wrong
        expiry = notice.expiry
        if expiry is None:
            return
        for one in expiry.ranges:
            root = root_at(one.origin, one.end)
            if root is None:
                yield "forged_expiry", f"log {one.origin!r} has no {one.end} records"
            elif root != one.root:
                text = f"log {one.origin!r} has another root over its first {one.end} records"
                yield "forged_expiry", text
        for text in (*_untimely(expiry), *self._reaching(expiry)):
            yield "early_expiry", text

    def _reaching(self, expiry: Expiry) -> Iterator[str]:
        """Whether ranges end beyond what was sealed before the notice's bound, as far as can be
        seen: by the log's first record after all that is gone."""
        for one in expiry.ranges:
            log = self._logs.get(one.origin)
            if log is None or one.end < log.end:
                continue
            if log.kept_at is None:
                yield f"log {one.origin!r}: the first record kept, {log.end}, is not there"
            elif log.kept_at >= expiry.before_us:
                yield (
                    f"log {one.origin!r}: the first record kept, {log.end}, does not show that what"
                    " is before it was old enough"
                )


def _untimely(expiry: Expiry) -> Iterator[str]:
    now_us = expiry.sealed_at
    if expiry.before_us > expiry.rule.before(now_us + _SKEW_US):
        yield f"it reaches into what was younger than its own rule of {expiry.rule}"
    if expiry.rule.shorter_than(SIX_YEARS, now_us) and not expiry.override:
        yield f"its rule of {expiry.rule} is shorter than six years, and it says no reason"


def _signed(expiry: Expiry, writers: Iterable[Verifier]) -> bool:
    for key in writers:
        try:
            key.verify(expiry.text, expiry.signature)
        except NoteError:
            continue
        return True
    return False


class _Heedless:
    """Tells notices that leave out a hold which their own log had by then. Who expires looks again
    once the notice is in the log, and then drops nothing by it; so neither may anybody else."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._holds: list[Hold] = []
        self._releases: dict[str, list[Place]] = {}
        for record in records:
            if hold := hold_of(record):
                self._holds.append(hold)
            elif record.get("event") == RELEASE:
                name = str(details_of(record).get("id", ""))
                self._releases.setdefault(name, []).append(place_of(record))

    def __call__(self, expiry: Expiry) -> bool:
        origin, index = expiry.place
        for hold in self._holds:
            if hold.place[0] != origin or hold.place[1] > index or hold.id in expiry.holds:
                continue
            by_then = [
                one for one in self._releases.get(hold.id, ()) if one[0] != origin or one[1] < index
            ]
            if not lifted(hold.place, by_then):
                return True
        return False
