"""One run of ``authz retention apply``: what expires goes, by these steps.

1. The notices of all logs are read, and held against the tiles: what is on hold, what has expired.
2. The rows that stay of the months that expire are set aside in tables of this run's own.
3. Every record that is to go is looked at one last time (`authz.verify.provable`).
4. The notice, signed, is told, and waited for until it is stored under a checkpoint. A crash before
   that leaves tables that a later run drops. From here on the records may be gone: a crash leaves
   them there, and the next run finds them, tells them again and drops them.
5. The notices are read again. Everything that was in the notice's log before it is stored by now:
   if a hold has come in, nothing is dropped, and the run begins again. The first notice then
   excuses nothing, for it does not know the hold (`authz.verify.expiry`).
6. Sealed inputs are dropped, then rows, month by month. A crash between two months is like one
   before the first.

Of each log the newest record that is old enough stays until the next month expires: it shows, for
good, that all before it was old enough.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from authz.errors import UnavailableError
from authz.retention import Expired, Expiry, Hold, Rule, Spans, holds_in_force
from authz.store import checkpoints
from authz.store import retention as store
from authz.store.client import Client
from authz.verify.expiry import Expiries
from authz.verify.provable import Keys, NotProvableError, Provable

if TYPE_CHECKING:
    from authz.serve.tell import Told

_ATTEMPTS = 5
_STORED_SECONDS = 60
_SPANS_CAP = 24_000  # of one range in a notice, as text
_NOTICE_CAP = 50_000  # of all that a notice tells; its signature and its escapes come after

Tell = Callable[[Sequence[Expiry]], "Told"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: records of before `before_us` expire by `rule`, sealed inputs of before
    `sealed_before_us` by `sealed_rule`. `keys` are the trusted keys of each log, if they are known.
    """

    rule: Rule
    before_us: int
    sealed_rule: Rule
    sealed_before_us: int
    by: str
    override: str = ""
    keys: Keys | None = None

    def expiry(self, holds: Sequence[Hold]) -> Expiry:
        names = tuple(sorted({hold.id for hold in holds}))
        return Expiry(self.rule, self.before_us, self.by, holds=names, override=self.override)


@dataclass(frozen=True, slots=True)
class LogPart:
    """What becomes of one log: how many records go, how many of before `end` stay, and `end`, the
    first that does not expire."""

    origin: str
    dropped: int
    kept: int
    end: int


@dataclass(slots=True)
class Outcome:
    """What was dropped, or would be. `notice` is where it is on record."""

    order: Order
    logs: list[LogPart] = field(default_factory=list)
    months: list[int] = field(default_factory=list)
    sealed: int = 0
    sealed_kept: int = 0
    sealed_months: list[int] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    ranges: list[Expired] = field(default_factory=list)
    notice: "Told | None" = None
    notice_index: int = -1

    @property
    def nothing(self) -> bool:
        return not self.months and not self.sealed_months

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "rule": str(self.order.rule),
            "before": self.order.before_us,
            "logs": [
                {"origin": one.origin, "dropped": one.dropped, "kept": one.kept, "end": one.end}
                for one in self.logs
            ],
            "months": self.months,
            "ranges": [one.to_json() for one in self.ranges],
            "sealed": {
                "rule": str(self.order.sealed_rule),
                "before": self.order.sealed_before_us,
                "dropped": self.sealed,
                "kept": self.sealed_kept,
                "months": self.sealed_months,
            },
            "holds": [hold.id for hold in self.holds],
        }
        if self.notice:
            at = {"origin": self.notice.origin, "index": self.notice_index}
            told["notice"] = at | {"writer": self.notice.writer, "seq": self.notice.seq}
        return told


class Progress(Protocol):
    """Hears what a run is at: a step begins, with how much there is to do, and goes on."""

    def begin(self, what: str, total: int | None = None) -> None: ...
    def advance(self, count: int) -> None: ...


def expire(client: Client, order: Order, tell: Tell | None, progress: Progress) -> Outcome:
    """One run; without `tell`, only what it would do.

    Raises `NotProvableError` where something could not be proved later, and `UnavailableError`.
    """
    store.clear(client)
    for _ in range(_ATTEMPTS):
        with ExitStack() as stack:
            run = _Run(client, order, progress, stack)
            outcome = run.plan()
            if outcome.nothing or tell is None:
                return outcome
            if run.tell(tell):
                run.drop()
                return outcome
    raise UnavailableError("holds keep coming in; nothing was dropped; try again")


class _Run:
    def __init__(self, client: Client, order: Order, progress: Progress, stack: ExitStack) -> None:
        self._client = client
        self._order = order
        self._progress = progress
        self._provable = Provable(client, order.keys, progress.advance)
        self._rows = store.Kept(client, store.RECORDS, order.before_us)
        self._inputs = store.Kept(client, store.SEALED, order.sealed_before_us)
        for kept in (self._rows, self._inputs):
            stack.callback(kept.end)
        self._had: dict[str, Mapping[int, int]] = {}  # of each table, its rows by month
        self._outcome = Outcome(order)

    def plan(self) -> Outcome:
        """Steps 1 to 3."""
        order, outcome = self._order, self._outcome
        self._progress.begin("reading what is on hold")
        notices = self._provable.notices(store.read_notices(self._client))
        outcome.holds = holds_in_force(notices)
        expiries = Expiries(notices)
        self._progress.begin("reading what is there")
        for kept in (self._rows, self._inputs):
            self._had[kept.table] = store.by_month(self._client, kept.table, kept.before_us)
        present = store.present(self._client, order.before_us)
        ends = self._ends(present, expiries)
        self._progress.begin("setting aside what stays")
        keeping = store.Keeping(outcome.holds, ends)
        for kept in (self._rows, self._inputs):
            if self._had[kept.table]:
                kept.begin(keeping)
        outcome.months = self._changing(self._rows)
        outcome.sealed_months = self._changing(self._inputs)
        if outcome.months:
            keeps = self._rows.spans()
            gone = {o: spans - keeps.get(o, Spans()) for o, spans in present.items()}
            outcome.ranges = list(self._ranges(gone, keeps, ends, expiries))
            outcome.logs = [
                LogPart(o, len(gone[o]), len(keeps.get(o, Spans()).within(0, end)), end)
                for o, end in ends.items()
            ]
        outcome.sealed_kept = sum(self._inputs.months.values())
        outcome.sealed = sum(self._had[store.SEALED].values()) - outcome.sealed_kept
        return outcome

    def tell(self, tell: Tell) -> bool:
        """Steps 4 and 5; whether what was told may be dropped."""
        sizes = checkpoints.sizes(self._client)
        self._progress.begin("telling what expires")
        told = self._outcome.notice = tell(list(self._notices()))
        until = time.monotonic() + _STORED_SECONDS
        first = sizes.get(told.origin, 0)
        while (
            index := store.stored(self._client, told.origin, told.writer, told.seq, first)
        ) is None:
            if time.monotonic() > until:
                raise UnavailableError(
                    f"the notice is with the receiver of log {told.origin}, and not in ClickHouse"
                    f" after {_STORED_SECONDS} s; nothing was dropped; run this again once it is"
                )
            time.sleep(0.2)
        self._outcome.notice_index = index
        now = holds_in_force(self._provable.notices(store.read_notices(self._client)))
        return set(now) <= set(self._outcome.holds)

    def drop(self) -> None:
        """Step 6."""
        steps = [(self._inputs, month) for month in self._outcome.sealed_months]
        steps += [(self._rows, month) for month in self._outcome.months]
        self._progress.begin("dropping", len(steps))
        for kept, month in steps:
            now = store.by_month(self._client, kept.table, kept.before_us)
            if now.get(month) != self._had[kept.table][month]:
                raise UnavailableError(
                    f"{kept.table}: rows of {month} have come or gone since they were looked at;"
                    " they were not dropped; try again"
                )
            kept.replace(month)
            self._progress.advance(1)

    def _changing(self, kept: store.Kept) -> list[int]:
        """The months that lose rows."""
        had = self._had[kept.table]
        return [month for month, count in had.items() if kept.months.get(month, 0) != count]

    def _ends(self, present: Mapping[str, Spans], expiries: Expiries) -> dict[str, int]:
        """Of each log the first record that does not expire: the newest that is old enough. All
        before it must be there, as far as it has not expired before."""
        ends = {}
        later = store.later(self._client, self._order.before_us)
        for origin, spans in present.items():
            if self._order.keys is not None and origin not in self._order.keys:
                raise NotProvableError(origin, "the trust file does not name it")
            ends[origin] = newest = spans.pairs[-1][1] - 1
            if later.get(origin, newest + 1) <= newest:
                raise NotProvableError(origin, "its records are not in the order of their times")
            missing = Spans.of([(0, newest)]) - spans - expiries.absent(origin)
            if missing:
                raise NotProvableError(origin, f"record {missing.pairs[0][0]} is missing")
        return ends

    def _ranges(
        self, gone: Mapping[str, Spans], keeps: Mapping[str, Spans], ends: Mapping[str, int],
        expiries: Expiries,
    ) -> Iterator[Expired]:  # fmt: skip
        """What is to be told, and under which roots: what comes after all that was told before,
        and what was told or held before and goes now. Looked at one last time (step 3)."""
        self._progress.begin("proving", sum(map(len, gone.values())))
        for origin, end in ends.items():
            told = max((one.range.end for one in expiries.ranges(origin)), default=0)
            again = gone[origin].within(0, told)
            parts = [(told, end, gone[origin].within(told, end))]
            if again:
                parts.insert(0, (again.pairs[0][0], again.pairs[-1][1], again))
            for first, last, spans in parts:
                if spans:
                    stays = keeps.get(origin, Spans())
                    yield from self._pieces(origin, first, last, spans, stays)

    def _pieces(
        self, origin: str, first: int, end: int, gone: Spans, keeps: Spans
    ) -> Iterator[Expired]:
        """A range as notices take it."""
        pieces = list(gone.parts(_SPANS_CAP))
        stops = [*(piece.pairs[-1][1] for piece in pieces[:-1]), end]
        roots = self._provable.roots(origin, first, stops, self._rows.name, keeps)
        for piece, stop in zip(pieces, stops, strict=True):
            yield Expired(origin, first, stop, roots[stop], piece)
            first = stop

    def _notices(self) -> Iterator[Expiry]:
        """As many as it takes."""
        order, outcome = self._order, self._outcome
        notice = order.expiry(outcome.holds)
        if outcome.sealed_months:
            notice = replace(
                notice, sealed_rule=str(order.sealed_rule), sealed_before_us=order.sealed_before_us
            )
        for one in outcome.ranges:
            longer = replace(notice, ranges=(*notice.ranges, one))
            if notice.ranges and len(longer.text) > _NOTICE_CAP:
                yield notice
                longer = replace(order.expiry(outcome.holds), ranges=(one,))
            notice = longer
        yield notice
