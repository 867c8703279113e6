"""Whether the tables and views are those that the schema made: a table may be a view in disguise,
a view may leave rows out, a column may be computed."""

from collections.abc import Iterator

from clickhouse_driver import Client

from authz.record import FIELDS
from authz.store import feeds, layout, migrations

_TABLES = ("audit_log", "checkpoints", "tiles", "policies", "sealed_originals")
_COPIED = tuple(table.name for table in feeds.TABLES)
_FOUND = (
    "SELECT name, engine, as_select, currentDatabase() FROM system.tables"
    " WHERE database = currentDatabase()"
)
_COMPUTED = (
    "SELECT table, name FROM system.columns WHERE database = currentDatabase()"
    " AND default_kind IN ('ALIAS', 'MATERIALIZED', 'EPHEMERAL') AND table IN %(tables)s"
)


def wrong(client: Client) -> Iterator[tuple[str, str]]:
    """What is another in `client`'s current database: its name, and what is wrong with it. What is
    not there, or may not be seen, is not looked at."""
    form = layout.of(client)
    views = migrations.views(form)
    rows = [name if form.cluster is None else f"{name}_local" for name in _TABLES]
    rows += _COPIED
    for name, engine, query, database in client.execute(_FOUND):
        if name in rows and not engine.endswith("MergeTree"):
            yield name, f"it keeps no rows: in its place is a {engine}"
        elif name in _TABLES and name not in rows and engine != "Distributed":
            yield name, f"it is no Distributed table: in its place is a {engine}"
        elif name in views and not engine.endswith("View"):
            yield name, f"it is no view: in its place is a {engine}"
        elif name in views and _formatted(client, query, database) != _formatted(
            client, views[name], database
        ):
            yield name, f"the view asks for something else: {query[:300]}"
    values = {"tables": [*rows, *_TABLES]}
    names = {field.name for field in FIELDS}
    for table, column in client.execute(_COMPUTED, values):
        if column in names or not table.startswith("audit_log"):
            yield table, f"its column {column} is computed, not kept"


def _formatted(client: Client, query: str, database: str) -> str:
    """A query as the server writes it, whichever database its tables are said to be in."""
    [(text,)] = client.execute("SELECT formatQuerySingleLine(%(query)s)", {"query": query})
    for quoted in (f"`{database}`.", f"{database}."):
        text = text.replace(quoted, "")
    return str(text)
