"""The schema, as numbered migrations. Each statement is safe to repeat; none edits an older one.

`migrate` brings a database to `VERSION`; a database that is newer than this program is refused.
"""

from collections.abc import Callable

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException

from authz.errors import UsageError
from authz.record import FIELDS
from authz.store import lease

# Rows are kept in log order: what is verified, exported and inserted comes so, and since `index`
# grows with time, a range of time is a range of rows. Look-ups go by the skip indexes.
_INDEXES = (
    "INDEX by_time time TYPE minmax",
    "INDEX by_sealed sealed_at TYPE minmax",
    "INDEX by_subject subject TYPE bloom_filter(0.01) GRANULARITY 1",
    "INDEX by_patient patients TYPE bloom_filter(0.01) GRANULARITY 1",
    "INDEX by_decision decision_id TYPE bloom_filter(0.01) GRANULARITY 1",
    "INDEX by_request request_id TYPE bloom_filter(0.01) GRANULARITY 1",
    "INDEX by_source source_ip TYPE bloom_filter(0.01) GRANULARITY 4",
    "INDEX by_kind kind TYPE set(8) GRANULARITY 1",
)

# The journal is trimmed on the strength of what ClickHouse says it has: it must be on disk.
_SYNCED = "fsync_after_insert = 1, fsync_part_directory = 1"

_AUDIT_LOG = """CREATE TABLE IF NOT EXISTS audit_log (
  {columns},
  {indexes}
) ENGINE = MergeTree
PARTITION BY toYYYYMM(sealed_at)
ORDER BY (origin, index)
SETTINGS index_granularity = 8192, {synced}"""

_CHECKPOINTS = f"""CREATE TABLE IF NOT EXISTS checkpoints (
  origin LowCardinality(String),
  size UInt64,
  note String,
  written_at DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = MergeTree ORDER BY (origin, size) SETTINGS {_SYNCED}"""

# One row per tile and width: a wider tile replaces its narrower self at merges.
_TILES = f"""CREATE TABLE IF NOT EXISTS tiles (
  origin LowCardinality(String),
  level UInt8,
  `index` UInt64,
  width UInt16,
  data String CODEC(NONE)
) ENGINE = ReplacingMergeTree(width) ORDER BY (origin, level, index) SETTINGS {_SYNCED}"""

_POLICIES = f"""CREATE TABLE IF NOT EXISTS policies (
  revision String,
  path String,
  text String CODEC(ZSTD(3)),
  first_seen DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = ReplacingMergeTree ORDER BY (revision, path) SETTINGS {_SYNCED}"""

_SEALED_ORIGINALS = f"""CREATE TABLE IF NOT EXISTS sealed_originals (
  decision_id String,
  sealed_at DateTime64(6, 'UTC'),
  key_id LowCardinality(String),
  ciphertext String CODEC(NONE)
) ENGINE = MergeTree PARTITION BY toYYYYMM(sealed_at) ORDER BY decision_id SETTINGS {_SYNCED}"""


def _audit_log() -> str:
    fields = [field for field in FIELDS if field.since == 1]
    columns = ",\n  ".join(f"`{field.name}` {field.column}" for field in fields)
    return _AUDIT_LOG.format(columns=columns, indexes=",\n  ".join(_INDEXES), synced=_SYNCED)


# A view's columns are those that its table had when the view was made.
_KINDS = {
    "decisions": "decision",
    "accesses": "access",
    "disclosures": "disclosure",
    "findings": "finding",
    "notices": "notice",
}


def _views(create: str) -> list[str]:
    told = [
        f"{create} {name} AS SELECT * FROM audit_log WHERE kind = '{kind}'"
        for name, kind in _KINDS.items()
    ]
    return [*told, f"{create} requests AS {_REQUESTS}"]


# Accesses carry their decision's values, so no join is needed; a decision stands for itself until
# (or unless) its access arrives.
_REQUESTS = """SELECT * FROM audit_log
WHERE kind = 'access' OR (kind = 'decision' AND decision_id NOT IN (
  SELECT decision_id FROM audit_log WHERE kind = 'access' AND decision_id != ''))"""

_ACTIVITY = f"""CREATE TABLE IF NOT EXISTS activity_hourly (
  hour DateTime('UTC'),
  tenant LowCardinality(String),
  subject String,
  resource_type LowCardinality(String),
  action LowCardinality(String),
  allowed Bool,
  decisions SimpleAggregateFunction(sum, UInt64)
) ENGINE = AggregatingMergeTree PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant, subject, resource_type, action, allowed) SETTINGS {_SYNCED}"""

_ACTIVITY_VIEW = """CREATE MATERIALIZED VIEW IF NOT EXISTS activity_hourly_feed
TO activity_hourly AS
SELECT toStartOfHour(time) AS hour, tenant, subject, resource_type, action, allowed,
  count() AS decisions
FROM audit_log WHERE kind = 'decision'
GROUP BY hour, tenant, subject, resource_type, action, allowed"""


def _first() -> list[str]:
    tables = [_audit_log(), _CHECKPOINTS, _TILES, _POLICIES, _SEALED_ORIGINALS]
    return [*tables, *_views("CREATE VIEW IF NOT EXISTS"), _ACTIVITY, _ACTIVITY_VIEW]


def _add_columns(since: int) -> list[str]:
    """The fields that schema version `since` of the record brought, and views that show them."""
    fields = [field for field in FIELDS if field.since == since]
    added = [f"ADD COLUMN IF NOT EXISTS `{field.name}` {field.column}" for field in fields]
    return [f"ALTER TABLE audit_log {', '.join(added)}", *_views("CREATE OR REPLACE VIEW")]


# Sealed inputs expire by themselves where the operator sets a TTL; a whole month goes at once. The
# decisions' ids grow with time, as `index` does, so the skip index finds a range in few granules.
_SEALED_BY_INDEX = (
    "ALTER TABLE sealed_originals ADD COLUMN IF NOT EXISTS origin LowCardinality(String)",
    "ALTER TABLE sealed_originals ADD COLUMN IF NOT EXISTS `index` UInt64",
    "ALTER TABLE sealed_originals ADD INDEX IF NOT EXISTS by_index `index` TYPE minmax",
    "ALTER TABLE sealed_originals MODIFY SETTING ttl_only_drop_parts = 1",
)


def _attachments() -> list[str]:
    """What records carry along."""
    return [*_add_columns(2), *_SEALED_BY_INDEX]


def _deciders() -> list[str]:
    """Which writer's decision an access repeats."""
    return _add_columns(3)


def _leases() -> list[str]:
    """Who owns which log."""
    return list(lease.STATEMENTS)


MIGRATIONS: tuple[Callable[[], list[str]], ...] = (_first, _attachments, _deciders, _leases)
VERSION = len(MIGRATIONS)

_VERSIONS = """CREATE TABLE IF NOT EXISTS schema_versions (
  version UInt32, applied_at DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = MergeTree ORDER BY version"""


def version(client: Client) -> int:
    """The schema's version in this database, 0 for an empty one."""
    try:
        rows = client.execute("SELECT max(version) FROM schema_versions")
    except ServerException as error:
        if error.code in (ErrorCodes.UNKNOWN_TABLE, ErrorCodes.UNKNOWN_DATABASE):
            return 0
        raise
    return int(rows[0][0])


def check(client: Client) -> None:
    """Raises `UsageError` unless the database has this program's schema."""
    found = version(client)
    if found > VERSION:
        raise UsageError(
            f"the database has schema {found}, newer than this program's {VERSION}; upgrade authz"
        )
    if found < VERSION:
        raise UsageError(
            f"the database has schema {found}, this program needs {VERSION}; run: authz migrate"
        )


def migrate(client: Client) -> list[int]:
    """Bring the database to `VERSION`; returns the versions applied. Safe to repeat at any point.

    Raises `UsageError` for a newer schema.
    """
    found = version(client)
    if found > VERSION:
        check(client)
    client.execute(_VERSIONS)
    applied = []
    for number in range(found + 1, VERSION + 1):
        for statement in MIGRATIONS[number - 1]():
            client.execute(statement)
        client.execute("INSERT INTO schema_versions (version) VALUES", [(number,)])
        applied.append(number)
    return applied
