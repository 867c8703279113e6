"""One owner of a log at a time: a lease, kept as rows in ClickHouse that are only ever added.

The lock of the data directory keeps two processes of one machine out of one directory. What it
cannot see is a copy of the directory: a restored backup, a volume cloned to a second host. Both
would have the log's key, and what they sign is a fork. So a process seals and inserts only while it
has the lease:

1. It looks whether somebody else's claim is live, and if so waits.
2. It inserts a claim; ClickHouse gives it the times `taken` and `until`.
3. It reads all claims. If nobody else's reaches beyond its own `taken`, it is the owner, for as
   long as its claim lasts. Otherwise it withdraws the claim and begins again after a random pause.
   There is no tie-break: of two that see each other both step back.
4. The owner renews by inserting another claim while the one before it still lasts.

Why there are never two. Let P be owner since it read. Every claim of another that was visible then
had ended by P's `taken`, and none of them can be renewed: a renewal counts only if it was
acknowledged before the claim before it ended, and so P would have seen it. Any claim visible later
is followed by a read, which finds P's claim: P's claims follow each other without a gap. What that
rests on: an acknowledged insert is seen by every later read (`SETTINGS`, for a cluster), and the
servers' clocks agree with each other, and run as fast as ours, to `_MARGIN` seconds within a lease.
Our clock is only used as a stopwatch; it starts before the claim is sent, so it ends first. A
process that stands still between looking at its watch and sending an insert is not stopped by that:
whoever takes over first kills what is still running for the log, and then checks what is there
(`authz.store.checkpoints`).

Who is "somebody else": a claim names a *holder*, and claims of the same holder are no rivals. It is
made of the machine's boot and the device and inode of the lock file. At any moment those name one
file, and the lock is one process's: so whoever has the same holder and the lock is the only one,
and follows a process that is dead. It need not wait, also after kill -9. A copy is another file; on
another host, or after a reboot, the boot is another. (A virtual machine that is snapshot while it
runs and then resumed twice has the same of all three: nothing in it can tell.) Where the machine
does not tell its boot, each process is a holder of its own, and waits.
"""

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickhouse_driver import Client

from authz.store.client import QUERY_ERRORS
from authz.store.layout import Table

LEASE_SECONDS = 20
RENEW_SECONDS = 5
_MARGIN = 5

# The whole of the migration. Each server of a cluster has all claims.
TABLE = Table(
    "leases",
    (
        "origin LowCardinality(String)",
        "holder String",
        "process String",
        "number UInt64",
        "who String",
        "owns Bool",
        "taken DateTime64(6, 'UTC')",
        "until DateTime64(6, 'UTC')",
    ),
    "MergeTree",
    "ORDER BY (origin, process, number) TTL toDateTime(until) + INTERVAL 1 DAY",
)

# On a cluster an insert is acknowledged when most replicas have it, one insert after the other, and
# a replica that has not got all of those refuses to be read. Without replicas these say nothing.
SETTINGS = {
    "insert_quorum": "auto",
    "insert_quorum_parallel": 0,
    "insert_quorum_timeout": 5000,
    "select_sequential_consistency": 1,
}

_INSERT = (
    "INSERT INTO leases (origin, holder, process, number, who, owns, taken, until)"
    " SELECT %(origin)s, %(holder)s, %(process)s, %(number)s, %(who)s, %(owns)s,"
    " now64(6, 'UTC') AS now, addSeconds(now, %(seconds)s)"
)
_SELECT = (
    "SELECT argMax(holder, number), process, max(number), argMax(who, number),"
    " argMax(owns, number), argMax(toUnixTimestamp64Micro(taken), number),"
    " argMax(toUnixTimestamp64Micro(until), number), toUnixTimestamp64Micro(now64(6, 'UTC'))"
    " FROM leases WHERE origin = %(origin)s GROUP BY process ORDER BY process"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """The newest of a process's claims. Times are microseconds of the server's clock; `owns` is
    whether it was made by an owner, to renew."""

    holder: str
    process: str
    number: int
    who: str
    owns: bool
    taken: int
    until: int


class Claims:
    """The claims to `origin` in ClickHouse. `client` is made with `SETTINGS`."""

    def __init__(self, client: Client, origin: str) -> None:
        self._client = client
        self._origin = origin

    def insert(self, holder: str, process: str, number: int, who: str, *, owns: bool,
               seconds: int) -> None:  # fmt: skip
        values = {"origin": self._origin, "holder": holder, "process": process, "number": number}
        self._run(_INSERT, values | {"who": who, "owns": int(owns), "seconds": seconds})

    def claims(self) -> tuple[list[Claim], int]:
        """Each process's newest, and the server's time."""
        rows = self._run(_SELECT, {"origin": self._origin})
        return [Claim(*row[:-1]) for row in rows], rows[0][-1] if rows else 0

    def _run(self, query: str, values: dict[str, object]) -> list[tuple[Any, ...]]:
        try:
            found: list[tuple[Any, ...]] = self._client.execute(query, values)
        except QUERY_ERRORS:
            self._client.disconnect()
            raise
        return found


def holder_of(lock: Path) -> str:
    """Who holds the data directory with the lock file `lock`: see above."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = secrets.token_hex(16)
    file = lock.stat()
    name = f"{boot}\n{file.st_dev}\n{file.st_ino}"
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _stopwatch() -> float:
    """Seconds, also those during which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """One process's part in it. `live` may be asked by any thread; the rest is blocking, and raises
    `client.QUERY_ERRORS`: then nothing is owned that was not owned before."""

    def __init__(
        self, table: Claims, holder: str, who: str, stopwatch: Callable[[], float] = _stopwatch
    ) -> None:
        self._table = table
        self._holder = holder
        self._process = secrets.token_hex(8)
        self._who = who
        self._stopwatch = stopwatch
        self._number = 0
        self._until = float("-inf")
        self._mutex = threading.Lock()

    @property
    def live(self) -> bool:
        """Whether this process owns the log now."""
        return self._stopwatch() < self._until

    def check(self) -> None:
        """Raises `OSError` unless this process owns the log now."""
        if not self.live:
            raise OSError("the lease of the log has ended")

    def take(self) -> Claim | None:
        """Try once to become the owner: None if that came about, or the claim in the way."""
        with self._mutex:
            claims, now = self._table.claims()
            if rival := self._rival(claims, now):
                return rival
            begun = self._stopwatch()
            self._claim(owns=False)
            claims, _ = self._table.claims()
            mine = [claim for claim in claims if claim.process == self._process]
            if not mine or mine[0].number != self._number:
                raise OSError("the claim just inserted is not there")
            if rival := self._rival(claims, mine[0].taken):
                self._claim(owns=False, seconds=0)
                return rival
            self._until = begun + LEASE_SECONDS - _MARGIN
            return None

    def renew(self) -> None:
        """Go on being the owner. If it comes too late, `live` stays false: `take` it again."""
        with self._mutex:
            begun = self._stopwatch()
            self._claim(owns=True)
            if self.live:
                self._until = begun + LEASE_SECONDS - _MARGIN

    def release(self) -> None:
        """Let the next one have it at once. Nothing may be under way that needs the lease."""
        with self._mutex:
            if self._number:
                self._until = float("-inf")
                self._claim(owns=False, seconds=0)

    def _claim(self, *, owns: bool, seconds: int = LEASE_SECONDS) -> None:
        self._number += 1
        self._table.insert(self._holder, self._process, self._number, self._who, owns=owns,
                           seconds=seconds)  # fmt: skip

    def _rival(self, claims: list[Claim], since: int) -> Claim | None:
        """Somebody else's claim that lasts beyond `since`; an owner's first."""
        live = [c for c in claims if c.holder != self._holder and c.until > since]
        return max(live, key=lambda claim: (claim.owns, claim.until), default=None)


def who_am_i(host: str) -> str:
    """How messages name this process."""
    return f"process {os.getpid()} on {host}"
