"""``authz migrate``."""

import json
from typing import Annotated

import typer

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given


@app.command()
def migrate(
    file: ConfigFile = None,
    store: Store = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Make an empty database this cluster's (of ClickHouse's <remote_servers>);"
            " give servers that joined it later the tables."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema to this program's version. Safe to repeat."""
    from authz.store import layout, migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    url = config.load(file, given(store=store)).database
    try:
        with connect(url) as client:
            applied = migrations.migrate(client, cluster)
            form = layout.of(client)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    if as_json:
        told = {"version": migrations.VERSION, "applied": applied, "cluster": form.cluster}
        print(json.dumps(told))
        return
    where = "" if form.cluster is None else f" on cluster {form.cluster}"
    print(f"schema {migrations.VERSION}{where}: " + ("migrated" if applied else "nothing to do"))
