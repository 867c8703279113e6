"""The schema, as numbered migrations. Each statement is safe to repeat; none edits an older one.

One list, rendered for one server or for a cluster (`Layout`). `migrate` brings a database to
`VERSION`; a database that is newer than this program is refused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException

from authz.errors import UsageError
from authz.record import FIELDS, Field
from authz.store import feeds, layout, lease
from authz.store.layout import Layout, Table


def _columns(fields: Iterable[Field]) -> list[str]:
    return [f"`{field.name}` {field.column}" for field in fields]


# Rows are kept in log order: what is verified, exported and inserted comes so, and since `index`
# grows with time, a range of time is a range of rows. Other questions go by the skip indexes, and
# those about a person or a patient by copies in their order (`_FOR_YEARS`).
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

_AUDIT_LOG = Table(
    "audit_log",
    _columns(field for field in FIELDS if field.since == 1),
    "MergeTree",
    "PARTITION BY toYYYYMM(sealed_at) ORDER BY (origin, index)",
    indexes=_INDEXES,
)

_CHECKPOINTS = Table(
    "checkpoints",
    (
        "origin LowCardinality(String)",
        "size UInt64",
        "note String",
        "written_at DateTime64(6, 'UTC') DEFAULT now64(6)",
    ),
    "MergeTree",
    "ORDER BY (origin, size)",
    settings=("index_granularity = 128",),
)

# One row per tile and width: a wider tile replaces its narrower self at merges. A proof reads a
# few tiles of 8 KB each, and ClickHouse reads whole granules, of 10 MB where nothing is said.
_TILES = Table(
    "tiles",
    (
        "origin LowCardinality(String)",
        "level UInt8",
        "`index` UInt64",
        "width UInt16",
        "data String CODEC(NONE)",
    ),
    "ReplacingMergeTree(width)",
    "ORDER BY (origin, level, index)",
    settings=("index_granularity_bytes = 65536",),
)

# The same text from two receivers comes to one shard, and is folded there.
_POLICIES = Table(
    "policies",
    (
        "revision String",
        "path String",
        "text String CODEC(ZSTD(3))",
        "first_seen DateTime64(6, 'UTC') DEFAULT now64(6)",
    ),
    "ReplacingMergeTree",
    "ORDER BY (revision, path)",
    shard="cityHash64(revision)",
)

_SEALED_ORIGINALS = Table(
    "sealed_originals",
    (
        "decision_id String",
        "sealed_at DateTime64(6, 'UTC')",
        "key_id LowCardinality(String)",
        "ciphertext String CODEC(NONE)",
    ),
    "MergeTree",
    "PARTITION BY toYYYYMM(sealed_at) ORDER BY decision_id",
)

_ACTIVITY = Table(
    "activity_hourly",
    (
        "hour DateTime('UTC')",
        "tenant LowCardinality(String)",
        "subject String",
        "resource_type LowCardinality(String)",
        "action LowCardinality(String)",
        "allowed Bool",
        "decisions SimpleAggregateFunction(sum, UInt64)",
    ),
    "AggregatingMergeTree",
    "PARTITION BY toYYYYMM(hour) ORDER BY (hour, tenant, subject, resource_type, action, allowed)",
    shard="",
)

# What each subject does in a day, as it comes in: a baseline costs what is new, not what there is.
# A day is that of `sealed_at`, which never goes back: one that is over stays as it is.
_BASELINES = Table(
    "baseline_daily",
    (
        "day Date",
        "tenant LowCardinality(String)",
        "role LowCardinality(String)",
        "subject String",
        "requests SimpleAggregateFunction(sum, UInt64)",
        "denials SimpleAggregateFunction(sum, UInt64)",
        "bytes_out SimpleAggregateFunction(sum, UInt64)",
        "patients AggregateFunction(uniqCombined64Array, Array(String))",
        "paths AggregateFunction(uniqCombined64Array, Array(String))",
        "hours SimpleAggregateFunction(groupUniqArrayArray, Array(UInt8))",
        "networks SimpleAggregateFunction(groupUniqArrayArray(100), Array(String))",
        "countries SimpleAggregateFunction(groupUniqArrayArray(100), Array(String))",
    ),
    "AggregatingMergeTree",
    "PARTITION BY toYYYYMM(day) ORDER BY (subject, tenant, role, day)",
    shard="cityHash64(subject)",
)

_VERSIONS = Table(
    "schema_versions",
    ("version UInt32", "applied_at DateTime64(6, 'UTC') DEFAULT now64(6)"),
    "MergeTree",
    "ORDER BY version",
)

# A view's columns are those that its table had when the view was made.
_KINDS = {
    "decisions": "decision",
    "accesses": "access",
    "disclosures": "disclosure",
    "findings": "finding",
    "notices": "notice",
}


def _views(form: Layout, create: str, *, answers: bool = False) -> list[str]:
    queries = _queries(form, answers=answers)
    return [form.view(create, name, query) for name, query in queries.items()]


def _queries(form: Layout, *, answers: bool) -> dict[str, str]:
    log = form.name("audit_log")
    queries = {name: f"SELECT * FROM {log} WHERE kind = '{kind}'" for name, kind in _KINDS.items()}
    requests = _REQUESTS.format(log=log, not_in=form.not_in_other)
    if answers:
        requests = _REQUESTS_WITH_ANSWERS.format(
            log=log, requests=requests, any_join=form.any_join_other
        )
    return {**queries, "requests": requests}


def views(form: Layout) -> dict[str, str]:
    """The views of `VERSION` and what each asks for, what feeds the aggregates included."""
    log = form.rows(_AUDIT_LOG.name)
    return {
        **_queries(form, answers=True),
        "activity_hourly_feed": _ACTIVITY_FEED.format(log=log),
        "baseline_daily_feed": _BASELINES_FEED.format(log=log, where=_PEOPLE),
        "baselines": _BASELINES_SHOWN.format(table=form.name(_BASELINES.name)),
    }


# Accesses carry their decision's values, so no join is needed; a decision stands for itself until
# (or unless) its access arrives, which may be in another log.
_REQUESTS = """SELECT * FROM {log}
WHERE kind = 'access' OR (kind = 'decision' AND decision_id {not_in} (
  SELECT decision_id FROM {log} WHERE kind = 'access' AND decision_id != ''))"""

# Whose data the answers held is known from other records, which may be in another log too.
_REQUESTS_WITH_ANSWERS = """SELECT
  request.* REPLACE (arrayDistinct(arrayConcat(request.patients, answer.disclosed)) AS patients),
  answer.disclosed AS disclosed
FROM ({requests}) AS request
{any_join} (
  SELECT decision_id, groupUniqArrayArray(patients) AS disclosed
  FROM {log} WHERE kind = 'disclosure' AND decision_id != '' GROUP BY decision_id
) AS answer ON request.decision_id = answer.decision_id"""

_ACTIVITY_FEED = """SELECT toStartOfHour(time) AS hour, tenant, subject, resource_type, action,
  allowed, count() AS decisions
FROM {log} WHERE kind = 'decision'
GROUP BY hour, tenant, subject, resource_type, action, allowed"""

# A network is what `authz watch` takes for one: /24 of IPv4, /48 of IPv6.
_PEOPLE = "kind IN ('decision', 'access', 'disclosure') AND subject != ''"
_BASELINES_FEED = """SELECT toDate(sealed_at, 'UTC') AS day, tenant, roles[1] AS role, subject,
  countIf(kind = 'decision') AS requests,
  countIf(kind = 'decision' AND NOT allowed) AS denials,
  sum(log.bytes_out) AS bytes_out,
  uniqCombined64ArrayState(log.patients) AS patients,
  uniqCombined64ArrayState(if(path = '', [], [path])) AS paths,
  groupUniqArray(toHour(time, 'UTC')) AS hours,
  groupUniqArrayIf(100)(multiIf(
    isIPv4String(source_ip),
    concat(toString(tupleElement(IPv4CIDRToRange(toIPv4OrDefault(source_ip), 24), 1)), '/24'),
    isIPv6String(source_ip),
    concat(toString(tupleElement(IPv6CIDRToRange(toIPv6OrDefault(source_ip), 48), 1)), '/48'),
    source_ip), source_ip != '') AS networks,
  groupUniqArrayIf(100)(toString(country), country != '') AS countries
FROM {log} AS log WHERE {where}
GROUP BY day, tenant, role, subject"""

_BASELINES_SHOWN = """SELECT day, tenant, role, subject, sum(kept.requests) AS requests,
  sum(kept.denials) AS denials, sum(kept.bytes_out) AS bytes_out,
  uniqCombined64ArrayMerge(kept.patients) AS patients,
  uniqCombined64ArrayMerge(kept.paths) AS paths,
  arraySort(groupUniqArrayArray(kept.hours)) AS hours,
  groupUniqArrayArray(kept.networks) AS networks,
  groupUniqArrayArray(kept.countries) AS countries
FROM {table} AS kept GROUP BY day, tenant, role, subject"""


def _first(form: Layout) -> list[str]:
    return [
        *form.begin(),
        *form.table(_AUDIT_LOG),
        *form.table(_CHECKPOINTS),
        *form.table(_TILES),
        *form.table(_POLICIES),
        form.rows_of(_SEALED_ORIGINALS),  # in front of a cluster's: `_attachments`
        *_views(form, "CREATE VIEW IF NOT EXISTS"),
        *form.table(_ACTIVITY),
        form.feed(
            "activity_hourly_feed", _ACTIVITY.name,
            _ACTIVITY_FEED.format(log=form.rows(_AUDIT_LOG.name)),
        ),
        form.copied(_VERSIONS),
    ]  # fmt: skip


def _add_columns(form: Layout, since: int, *, answers: bool = False) -> list[str]:
    """The fields that schema version `since` of the record brought, and views that show them."""
    fields = _columns(field for field in FIELDS if field.since == since)
    added = [f"ADD COLUMN IF NOT EXISTS {field}" for field in fields]
    views = _views(form, "CREATE OR REPLACE VIEW", answers=answers)
    return [*form.alter_columns("audit_log", added), *views]


# Sealed inputs expire by themselves where the operator sets a TTL; a whole month goes at once. The
# decisions' ids grow with time, as `index` does, so the skip index finds a range in few granules.
_SEALED_BY_INDEX = ("origin LowCardinality(String)", "`index` UInt64")
_SEALED_STORAGE = (
    "ADD INDEX IF NOT EXISTS by_index `index` TYPE minmax",
    "MODIFY SETTING ttl_only_drop_parts = 1",
)


def _attachments(form: Layout) -> list[str]:
    """What records carry along."""
    added = [f"ADD COLUMN IF NOT EXISTS {column}" for column in _SEALED_BY_INDEX]
    whole = replace(_SEALED_ORIGINALS, columns=(*_SEALED_ORIGINALS.columns, *_SEALED_BY_INDEX))
    return [
        *_add_columns(form, 2),
        *(form.alter_rows("sealed_originals", change) for change in (*added, *_SEALED_STORAGE)),
        *form.front_of(whole),
    ]


def _deciders(form: Layout) -> list[str]:
    """Which writer's decision an access repeats."""
    return _add_columns(form, 3)


def _leases(form: Layout) -> list[str]:
    """Who owns which log."""
    return [form.copied(lease.TABLE)]


def _disclosures(form: Layout) -> list[str]:
    """Whose data answers held."""
    return _add_columns(form, 4, answers=True)


def _feeds(form: Layout) -> list[str]:
    """Who has a reason to look."""
    return [form.copied(table) for table in feeds.TABLES]


def _baselines(form: Layout) -> list[str]:
    """What is usual. Of records that are there already, those of days that are over are added."""
    over = "sealed_at < toStartOfDay(now('UTC'))"
    past = _BASELINES_FEED.format(log=form.name("audit_log"), where=f"{_PEOPLE} AND {over}")
    return [
        *form.table(_BASELINES),
        form.view("CREATE OR REPLACE VIEW", "baselines", views(form)["baselines"]),
        form.feed("baseline_daily_feed", _BASELINES.name, views(form)["baseline_daily_feed"]),
        form.alter_rows(_BASELINES.name, "DELETE WHERE day < toDate(now('UTC'))")
        + " SETTINGS mutations_sync = 2",
        f"INSERT INTO {form.name(_BASELINES.name)} {past}",
    ]


# For questions over years. What people ask for of a person's requests lies together, and so it does
# of those whose first patient is the same; an index of the other patients tells in which blocks
# they are, more indexes leave out blocks, and a month that is over becomes one part. What is there
# already is brought up in the background; until then such questions read more.
ASKED_FOR = (
    "origin, index, kind, sealed_at, time, subject, roles, tenant, purpose, reason, reason_code,"
    " break_glass, decision_id, allowed, enforced, policy_revision, method, path, resource_type,"
    " action, resource_id, source_ip, country, status, upstream, complete, patients"
)
_FEW_AT_ONCE = "index_granularity = 256"  # of each month's records, those of one are some dozens
_FOR_YEARS = (
    (
        "MODIFY SETTING min_age_to_force_merge_seconds = 86400,"
        " min_age_to_force_merge_on_partition_only = 1"
    ),
    "DROP INDEX IF EXISTS by_patient",
    "DROP INDEX IF EXISTS by_kind",
    "ADD INDEX IF NOT EXISTS patient_rows patients TYPE text(tokenizer = 'array')",
    (
        "ADD INDEX IF NOT EXISTS other_patient_rows arraySlice(patients, 2)"
        " TYPE text(tokenizer = 'array')"
    ),
    (
        "ADD INDEX IF NOT EXISTS by_what (kind, event, rule, complete, allowed, break_glass)"
        " TYPE set(256) GRANULARITY 8"
    ),
    "ADD INDEX IF NOT EXISTS by_resource resource_id TYPE bloom_filter(0.01) GRANULARITY 1",
    "ADD INDEX IF NOT EXISTS by_role roles TYPE bloom_filter(0.01) GRANULARITY 4",
    (
        f"ADD PROJECTION IF NOT EXISTS by_person (SELECT {ASKED_FOR} ORDER BY subject, sealed_at)"
        f" WITH SETTINGS ({_FEW_AT_ONCE})"
    ),
    (
        f"ADD PROJECTION IF NOT EXISTS by_patient (SELECT {ASKED_FOR}"
        f" ORDER BY patients[1], sealed_at) WITH SETTINGS ({_FEW_AT_ONCE})"
    ),
    "MATERIALIZE INDEX patient_rows",
    "MATERIALIZE INDEX other_patient_rows",
    "MATERIALIZE INDEX by_what",
    "MATERIALIZE INDEX by_resource",
    "MATERIALIZE INDEX by_role",
    "MATERIALIZE PROJECTION by_patient",
    "MATERIALIZE PROJECTION by_person",
)


def _years(form: Layout) -> list[str]:
    """How a patient, a person and a kind of notice are found among very many records."""
    background = {True: " SETTINGS mutations_sync = 0", False: ""}
    return [
        form.alter_rows(_AUDIT_LOG.name, change) + background[change.startswith("MATERIALIZE")]
        for change in _FOR_YEARS
    ]


MIGRATIONS: tuple[Callable[[Layout], list[str]], ...] = (
    _first, _attachments, _deciders, _leases, _disclosures, _feeds, _baselines, _years
)  # fmt: skip
VERSION = len(MIGRATIONS)
_OLDEST = (26, 2)  # ClickHouse whose text indexes are no experiment


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


def migrate(client: Client, cluster: str | None = None) -> list[int]:
    """Bring the database to `VERSION`; returns the versions applied. Safe to repeat at any point,
    and for several processes at once. Changes nothing, and needs no right to, if it is there.

    An empty database becomes `cluster`'s, if one is named; later the database says so itself.
    Raises `UsageError` for a newer schema, one that was made in another form, or a ClickHouse that
    is too old for it.
    """
    found = version(client)
    if found > VERSION:
        check(client)
    if found == VERSION and cluster is None:
        return []
    [(server,)] = client.execute("SELECT version()")
    if tuple(map(int, server.split(".")[:2])) < _OLDEST:
        raise UsageError(
            f"--store: ClickHouse {server} is too old for this program, which needs"
            f" {'.'.join(map(str, _OLDEST))} or later; upgrade ClickHouse"
        )
    form = layout.of(client, cluster)
    if found and form.cluster is not None:
        _join(client, form, found)
    applied = []
    for number in range(found + 1, VERSION + 1):
        for statement in MIGRATIONS[number - 1](form):
            client.execute(statement)
        client.execute("INSERT INTO schema_versions (version) VALUES", [(number,)])
        applied.append(number)
    return applied


_CREATED = re.compile(r"CREATE (?:OR REPLACE )?[A-Z ]*?(?:IF NOT EXISTS )?`[^`]+`\.(\w+) ")


def _join(client: Client, form: Layout, found: int) -> None:
    """Give servers that the cluster has got since the schema's tables, as they are here by now: an
    older migration would make a replica whose columns are not its shard's."""
    ours = {
        made[1]
        for migration in MIGRATIONS[:found]
        for statement in migration(form)
        if (made := _CREATED.match(statement))
    }
    query = (
        "SELECT create_table_query FROM system.tables"
        " WHERE database = currentDatabase() AND name IN %(ours)s"
        " ORDER BY indexOf(['View', 'MaterializedView'], engine), name"
    )
    here = [form.repeated(row[0]) for row in client.execute(query, {"ours": sorted(ours)})]
    for statement in [*form.begin(), *here]:
        client.execute(statement)
