"""What the operator's feeds tell, as tables: people, patients, and which reasons there are to look.

Rows bear the version of the load that brought them. Nobody reads a version before a row of
`feed_loads` names it, and the newest of a feed's names all that there is of it: so a load takes the
place of the one before at once and as a whole, and one that is cut off leaves rows that nobody
reads. All feeds of one load are named by one insert. Rows go when their load has lapsed (a time to
live: what a load says is good for so long, unless a newer one comes), a day later, so that whoever
reads them still ends. On a cluster a server may hear of a load before it has all of its rows:
readers count them.

No patient's identifier is here in clear, only tokens; surnames and households are marks, which tell
no more than whether two are the same.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clickhouse_driver import Client

from authz.errors import UnavailableError
from authz.record import text
from authz.store.layout import Table

KINDS = {
    "care_team": "care_team", "appointments": "appointment", "orders": "order",
    "encounters": "encounter", "census": "census",
}  # fmt: skip
"""The feeds of reasons, and the kind of reason that each gives."""
FEEDS = ("people", "patients", *KINDS)
END = int(datetime(2299, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000
"""Stands for no end: ClickHouse's times reach no further."""

_LOADED = ("version String", "expires DateTime('UTC')")
# What lapses on one day goes at once, as files, and is never merged with what stays.
_GOES = "TTL expires + INTERVAL 1 DAY"
_KEPT = ("ttl_only_drop_parts = 1",)
_PARTED = "PARTITION BY toYYYYMMDD(expires)"

PEOPLE = Table(
    "feed_people",
    (
        *_LOADED,
        "subject String",
        "role LowCardinality(String)",
        "department LowCardinality(String)",
        "surname String",
        "household String",
        "patient String",
        "status LowCardinality(String)",
        "until DateTime64(6, 'UTC')",
    ),
    "MergeTree",
    f"{_PARTED} ORDER BY (version, subject) {_GOES}",
    settings=_KEPT,
)
PATIENTS = Table(
    "feed_patients",
    (*_LOADED, "patient String", "surname String", "household String", "vip Bool"),
    "MergeTree",
    f"{_PARTED} ORDER BY (version, patient) {_GOES}",
    settings=_KEPT,
)
# A reason is a person's, or, by the census, that of all of a department.
REASONS = Table(
    "feed_reasons",
    (
        *_LOADED,
        "subject String",
        "department LowCardinality(String)",
        "patient String",
        "kind LowCardinality(String)",
        "`from` DateTime64(6, 'UTC')",
        "until DateTime64(6, 'UTC')",
        "source LowCardinality(String)",
    ),
    "MergeTree",
    f"{_PARTED} ORDER BY (version, patient, subject) {_GOES}",
    settings=_KEPT,
)
LOADS = Table(
    "feed_loads",
    (
        *_LOADED,
        "feed LowCardinality(String)",
        "rows UInt64",
        "loaded_at DateTime64(6, 'UTC') DEFAULT now64(6)",
        "by String",
        "source String",
    ),
    "MergeTree",
    "ORDER BY (feed, loaded_at) TTL expires + INTERVAL 1 YEAR",
)
TABLES = (PEOPLE, PATIENTS, REASONS, LOADS)
"""The whole of the migration. Each server of a cluster has all of them."""

_OWN = {
    PEOPLE.name: "subject role department surname household patient status until".split(),
    PATIENTS.name: "patient surname household vip".split(),
    REASONS.name: "subject department patient kind from until source".split(),
}

Row = tuple[Any, ...]
"""The values of a row in its table's own columns; times are microseconds since the epoch."""


def table_of(feed: str) -> str:
    return {"people": PEOPLE.name, "patients": PATIENTS.name}.get(feed, REASONS.name)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The newest load of a feed. Times are microseconds since the epoch, by the server's clock."""

    feed: str
    version: str
    rows: int
    loaded_at: int
    by: str
    source: str
    lapses_at: int
    lapsed: bool


def loads(client: Client) -> list[Loaded]:
    """The newest load of each feed, also of those that have lapsed."""
    query = (
        "SELECT feed, argMax(version, at), argMax(rows, at),"
        " toUnixTimestamp64Micro(max(loaded_at)), argMax(`by`, at), argMax(source, at),"
        " toInt64(toUnixTimestamp(argMax(expires, at))) * 1000000,"
        " toBool(argMax(expires, at) <= now())"
        " FROM (SELECT *, (loaded_at, version) AS at FROM feed_loads)"
        " GROUP BY feed ORDER BY feed"
    )
    return [Loaded(*(_text(one) for one in row)) for row in client.execute(query)]


def _text(value: Any) -> Any:
    """The driver gives bytes for what is no UTF-8, which nothing of ours wrote."""
    return text(value, 1024) if isinstance(value, bytes) else value


def current(client: Client) -> dict[str, Loaded]:
    """What there is to be read, by feed."""
    return {one.feed: one for one in loads(client) if not one.lapsed}


def whole(client: Client, loaded: Loaded) -> bool:
    """Whether all rows of a load are there."""
    return _count(client, loaded.feed, loaded.version) == loaded.rows


def _count(client: Client, feed: str, version: str) -> int:
    query = f"SELECT count() FROM {table_of(feed)} WHERE version = %(version)s"
    return int(client.execute(query, {"version": version})[0][0])


def rows(client: Client, loaded: Loaded) -> Iterator[Row]:
    """The rows of a load, in no order."""
    table = table_of(loaded.feed)
    query = f"SELECT {_selected(table)} FROM {table} WHERE version = %(version)s"
    values = {"version": loaded.version}
    yield from client.execute_iter(query, values, settings={"max_block_size": 16_384})


def reasons_about(client: Client, loaded: Sequence[Loaded], patients: Sequence[str]) -> list[Row]:
    """The reasons there are to look at any of `patients` (tokens)."""
    query = (
        f"SELECT {_selected(REASONS.name)} FROM {REASONS.name}"
        " WHERE version IN %(versions)s AND patient IN %(patients)s ORDER BY kind, `from`, until"
    )
    values = {"versions": [one.version for one in loaded], "patients": list(patients)}
    found: list[Row] = client.execute(query, values) if loaded and patients else []
    return found


def people_of(client: Client, loaded: Loaded, departments: Sequence[str]) -> dict[str, str]:
    """Who is in one of `departments`, and in which."""
    query = (
        f"SELECT subject, department FROM {PEOPLE.name}"
        " WHERE version = %(version)s AND department IN %(departments)s"
    )
    values = {"version": loaded.version, "departments": list(departments)}
    return dict(client.execute(query, values)) if departments else {}


def people(client: Client, loaded: Loaded, subjects: Sequence[str]) -> list[Row]:
    """What is told of each of `subjects`: subject, role, department, status."""
    query = (
        f"SELECT DISTINCT subject, role, department, status FROM {PEOPLE.name}"
        " WHERE version = %(version)s AND subject IN %(subjects)s ORDER BY subject"
    )
    values = {"version": loaded.version, "subjects": list(subjects)}
    found: list[Row] = client.execute(query, values) if subjects else []
    return found


def _selected(table: str) -> str:
    times = ("from", "until")
    return ", ".join(
        f"toUnixTimestamp64Micro(`{name}`)" if name in times else f"`{name}`"
        for name in _OWN[table]
    )


@dataclass(slots=True)
class Loading:
    """A load under way, good until `expires` (seconds since the epoch): `add` rows, see that they
    are there (`check`), and then have them read (`commit`)."""

    client: Client
    expires: int
    versions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self, feed: str) -> None:
        """Load this feed, though it may turn out to have no rows."""
        if feed not in self.versions:
            self.versions[feed] = secrets.token_hex(16)
            self.counts[feed] = 0

    def add(self, feed: str, rows: Sequence[Row]) -> None:
        self.begin(feed)
        table = table_of(feed)
        own = [list(column) for column in zip(*rows, strict=True)]
        columns = [[self.versions[feed]] * len(rows), [self.expires] * len(rows), *own]
        names = ", ".join(f"`{name}`" for name in ("version", "expires", *_OWN[table]))
        self.client.execute(f"INSERT INTO {table} ({names}) VALUES", columns, columnar=True)
        self.counts[feed] += len(rows)

    def check(self) -> None:
        """Raises `UnavailableError` unless all rows are there."""
        for feed, version in self.versions.items():
            found = _count(self.client, feed, version)
            if found != self.counts[feed]:
                raise UnavailableError(
                    f"{feed}: {found} of {self.counts[feed]} rows are in ClickHouse; nothing is"
                    " changed; load it again"
                )

    def commit(self, by: str, sources: Mapping[str, str]) -> None:
        """From now on this is what the feeds say."""
        told = [
            (version, self.expires, feed, self.counts[feed], by, sources[feed])
            for feed, version in self.versions.items()
        ]
        names = "version, expires, feed, rows, `by`, source"
        self.client.execute(f"INSERT INTO feed_loads ({names}) VALUES", told)
