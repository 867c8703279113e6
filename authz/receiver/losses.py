"""Access log entries that Envoy lost: what it says it sent, against what has arrived.

Envoy's log has no acknowledgement, and Envoy does not notice that an entry did not arrive: with its
receiver away it counts each as flushed, and neither `logs_dropped` nor `grpc_entries_flush_failed`
moves. So its counters are held against the number of entries that came from it.

What is compared, in Envoy 1.40: `grpc_entries_flushed`, which counts an entry of HTTP or TCP when
it goes into the stream. `logs_written` counts those of HTTP only, when they go into the buffer;
`logs_dropped`, those of HTTP that found the buffer full. (Entries of TCP are never dropped.)
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Final, Literal, TypeAlias

Kind: TypeAlias = Literal["envoy_dropped", "envoy_lost", "envoy_late"]

_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Said:
    """What an Envoy says of its access log at one moment."""

    node: str
    run: str
    """Another text after each start, when its counters begin anew."""
    sent: int
    dropped: int
    comparable: bool = True
    """Whether all that it sends comes here. One that has several receivers sends a share to each,
    and only what it dropped can be told of it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """`count` entries of this node; times are microseconds since the epoch.

    - ``envoy_dropped``: it says that it dropped them.
    - ``envoy_lost``: it says that it sent them, and they have not come within the grace time.
    - ``envoy_late``: they were told as lost, and came after all.
    """

    kind: Kind
    node: str
    count: int
    since: int
    until: int


@dataclass(slots=True)
class _Account:
    """One node's. Missing: what it sent in all its runs, less what arrived; it has an unknown
    beginning, since either side may have counted before the other was there."""

    run: str
    sent: int
    dropped: int
    seen: int
    ended: int = 0
    """What it had sent in runs before, as far as we were told."""
    explained: int | None = None
    """The missing that nobody needs to hear of: from the beginning, or told already."""
    clear: int = 0
    """When no more than that was missing at last."""
    told: int = 0
    """As lost, in this run."""
    window: deque[tuple[int, int]] = field(default_factory=deque)
    """(time, missing), back to one that is as old as the grace time."""


class Losses:
    """`hear` what each Envoy says, every few seconds; `take` what was lost, once per interval.

    An entry in flight is no loss: only what is missing whenever it was looked in the grace time is.
    (Were others in flight each time, which takes milliseconds each, they would be told, and then as
    late.)
    What an Envoy sent between its last word and its end is not known, nor what it held in its
    buffer then: after a restart, less may be told than was lost, and never more.
    """

    def __init__(self, grace_seconds: float = 15, kept: Mapping[str, Any] | None = None) -> None:
        """`kept`, of a process before this one that stopped cleanly: what was lost between is told
        too. Without, what came before an Envoy's first word is not known."""
        kept = kept or {"nodes": {}, "found": []}
        self._grace = int(grace_seconds * _SECOND)
        self._accounts = {node: _Account(**values) for node, values in kept["nodes"].items()}
        self._found: dict[tuple[Kind, str], Lost] = {}
        for values in kept["found"]:
            self._find(*values)

    def hear(self, said: Said, received: int | None, now: int) -> None:
        """`received`: entries that came from this node since this process began; None if that
        cannot be compared, since some came while Envoy was asked. `now` does not go back."""
        account = self._accounts.get(said.node)
        if account is None:
            account = _Account(said.run, said.sent, said.dropped, now)
            self._accounts[said.node] = account
        anew = said.run != account.run or said.sent < account.sent or said.dropped < account.dropped
        if anew:
            account.ended += account.sent
            account.told = account.dropped = 0
        if dropped := said.dropped - account.dropped:
            self._find("envoy_dropped", said.node, dropped, account.seen, now)
        account.run, account.sent, account.dropped = said.run, said.sent, said.dropped
        account.seen = now
        if not said.comparable:
            account.explained = None
            account.window.clear()
        elif received is not None:
            self._compare(said.node, account, account.ended + account.sent - received, now)

    def _compare(self, node: str, account: _Account, missing: int, now: int) -> None:
        if account.explained is None:
            account.explained = missing
        if missing < account.explained:
            if late := min(account.explained - missing, account.told):
                account.told -= late
                self._find("envoy_late", node, late, account.clear, now)
            account.explained = missing
        if missing == account.explained:
            account.clear = now
        window = account.window
        window.append((now, missing))
        while len(window) > 1 and window[1][0] <= now - self._grace:
            window.popleft()
        oldest = window[0][0]
        least = min(missing for _, missing in window)
        if oldest <= now - self._grace and (lost := least - account.explained):
            self._find("envoy_lost", node, lost, account.clear, oldest)
            account.told += lost
            account.explained, account.clear = least, oldest

    def _find(self, kind: Kind, node: str, count: int, since: int, until: int) -> None:
        if known := self._found.get((kind, node)):
            count += known.count
            since = min(since, known.since)
        self._found[kind, node] = Lost(kind, node, count, since, until)

    def take(self) -> list[Lost]:
        """What was found since this was called last: at most one of a kind and node."""
        found, self._found = self._found, {}
        return list(found.values())

    def kept(self, received: Callable[[str], int]) -> dict[str, Any]:
        """For the next process, as JSON can hold it; once nothing is received any more, and
        everything received is on disk."""
        nodes = {
            node: {
                "run": one.run,
                "sent": one.sent,
                "dropped": one.dropped,
                "seen": one.seen,
                "ended": one.ended,
                "explained": one.explained + received(node),
                "clear": one.clear,
            }
            for node, one in self._accounts.items()
            if one.explained is not None
        }
        return {"nodes": nodes, "found": [list(astuple(lost)) for lost in self._found.values()]}
