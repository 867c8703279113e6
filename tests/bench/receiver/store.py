"""What ClickHouse says of the log while it is measured."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event, Thread

from clickhouse_driver import Client

from authz.store.client import connect
from tests.bench.receiver.parts import ORIGIN

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 600


class Store:
    """One connection, and what has been seen so far."""

    def __init__(self, url: str) -> None:
        self._client: Client = connect(url)
        self._from = 0
        """Records below this index were counted before."""

    def wait(self, kind: str, count: int, running: Callable[[], object]) -> None:
        """Until `count` more records of `kind` are rows under a checkpoint that is one too."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            [(found, newest)] = self._client.execute(
                "SELECT countIf(kind = %(kind)s), max(index) FROM audit_log"
                " WHERE origin = %(origin)s AND index >= %(first)s",
                {"kind": kind, "origin": ORIGIN, "first": self._from},
            )
            if found >= count and self._covered() > newest:
                self._from = newest + 1
                return
            if time.monotonic() > until:
                raise TimeoutError(f"{found} of {count} {kind}s are in ClickHouse")
            running()
            time.sleep(0.1)

    def _covered(self) -> int:
        [(size,)] = self._client.execute(
            "SELECT max(size) FROM checkpoints WHERE origin = %(origin)s", {"origin": ORIGIN}
        )
        return int(size)

    def told(self, kind: str) -> Iterator[tuple[int, int]]:
        """(index, told time in microseconds) of all records of `kind`."""
        yield from self._client.execute(
            "SELECT index, toUnixTimestamp64Micro(time) FROM audit_log"
            " WHERE origin = %(origin)s AND kind = %(kind)s ORDER BY index",
            {"origin": ORIGIN, "kind": kind},
        )

    def unmatched(self) -> int:
        """Decisions and accesses without the other."""
        [(found,)] = self._client.execute(
            "SELECT count() FROM (SELECT decision_id FROM audit_log WHERE decision_id != ''"
            " GROUP BY decision_id HAVING count() != 2 OR uniqExact(kind) != 2)"
        )
        return int(found)

    def bytes_a_record(self) -> dict[str, float]:
        """On disk, by table."""
        rows = self._client.execute(
            "SELECT table, sum(bytes_on_disk) FROM system.parts"
            " WHERE active AND database = currentDatabase() GROUP BY table"
        )
        [(count,)] = self._client.execute("SELECT count() FROM audit_log")
        return {table: size / count for table, size in rows}

    def merge(self) -> None:
        for table in ("audit_log", "tiles", "checkpoints"):
            self._client.execute(f"OPTIMIZE TABLE {table} FINAL")

    def close(self) -> None:
        self._client.disconnect()


@dataclass
class Readable:
    """Follows, in a thread, up to which index rows can be read, and since when."""

    url: str
    ends: list[int] = field(default_factory=list)
    at_us: list[int] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)

    def __enter__(self) -> "Readable":
        self._thread = Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def since(self, index: int) -> int:
        """When the row at `index` was first seen (microseconds)."""
        return self.at_us[bisect_left(self.ends, index + 1)]

    def _follow(self) -> None:
        client, end = connect(self.url), 0
        while not self._stop.wait(_POLL_SECONDS):
            [(found,)] = client.execute(
                "SELECT max(index) + 1 FROM audit_log WHERE origin = %(origin)s"
                " AND index >= %(end)s",
                {"origin": ORIGIN, "end": end},
            )
            if found > end:
                end = found
                self.ends.append(end)
                self.at_us.append(time.time_ns() // 1000)
        client.disconnect()
