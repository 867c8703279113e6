"""Clocks: of this machine, of authz's servers and Envoys, of ClickHouse.

An HTTP server's clock is its `date`, which tells whole seconds, so a difference is known to be at
least so much, and never told for more than it is.
"""

import http.client
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Final

from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError
from authz.store import retention
from authz.store.client import QUERY_ERRORS, connect, explain, name_of

_SECONDS: Final = 5
_WARN, _FAIL = 2, 30
_AHEAD: Final = """
SELECT origin, dateDiff('millisecond', now64(6), max(sealed_at)) / 1e3 AS ahead
FROM audit_log WHERE sealed_at > now64(6) GROUP BY origin HAVING ahead >= 2
"""


def server(address: str) -> Iterator[Finding]:
    """The clock of who answers HTTP at `address` (host:port)."""
    host, _, port = address.rpartition(":")
    before = time.time()
    try:
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_SECONDS)
        with closing(connection) as to:
            to.request("GET", "/healthz")
            told = to.getresponse().headers["date"]
        at = parsedate_to_datetime(told).timestamp()
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        raise UnavailableError(f"no clock to be read ({type(error).__name__})") from None
    yield from compared(address, (before, time.time()), (at, at + 1))


def database(url: str) -> Iterator[Finding]:
    """ClickHouse's clock, and whether a receiver's is ahead of it."""
    part = name_of(url)
    try:
        with connect(url) as client:
            client.execute("SELECT 1")  # the connection is there
            before = time.time()
            at = retention.now(client) / 1e6
            yield from compared(part, (before, time.time()), (at, at))
            for origin, ahead in client.execute(_AHEAD):
                yield differs(
                    f"{part}, log {origin}", ahead, "the receiver's clock", "ClickHouse's"
                )
    except QUERY_ERRORS as error:
        raise UnavailableError(str(explain(error, url))) from None


def compared(
    part: str, ours: tuple[float, float], theirs: tuple[float, float]
) -> Iterator[Finding]:
    """What two spans of time, in which both clocks were read, say of the difference."""
    ahead = max(0, theirs[0] - ours[1]) - max(0, ours[0] - theirs[1])
    if abs(ahead) >= _WARN:
        yield differs(part, ahead, "its clock", "this machine's")


def differs(part: str, ahead: float, whose: str, others: str) -> Finding:
    way = "ahead of" if ahead > 0 else "behind"
    return Finding(
        Level.FAIL if abs(ahead) >= _FAIL else Level.WARN, part,
        f"{whose} is {abs(ahead):.1f} s {way} {others}",
        "times in the log are wrong by that much; from 30 s on tokens are refused or live too long,"
        " and from ten minutes on verify tells of it (`backdated`)",
        "have all machines keep time by the same servers (chrony, systemd-timesyncd)",
    )  # fmt: skip
