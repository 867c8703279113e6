"""``authz export``."""

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Purpose, Receiver, as_given, record_it, user
from authz.cli.verify import progress_bar
from authz.errors import UsageError


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A directory, new or empty.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    form: Annotated[
        Literal["bundle"],
        typer.Option("--format", help="bundle: whole logs, for `authz verify --from`."),
    ] = "bundle",
    purpose: Purpose = "",
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write the logs to a folder that is verified without us. That is recorded first."""
    from authz.report.looks import look_notice
    from authz.store import checkpoints, migrations, policies
    from authz.store.client import QUERY_ERRORS, connect, explain
    from authz.store.logs import StoredLogs
    from authz.verify.folder import write_log, write_policies

    why = as_given("--reason", reason, "reason")
    code = as_given("--purpose", purpose, "purpose") if purpose else ""
    options = config.load(file, given(store=store, ext_authz__receiver=receiver))
    url = options.database
    if options.ext_authz.receiver is None:
        raise UsageError(
            "--receiver is missing: an export is recorded before it is written; or --config FILE,"
            " with ext_authz.receiver in it"
        )
    sizes: dict[str, int] = {}
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"--output {output}: want a directory that is new or empty")
        with connect(url) as client:
            migrations.check(client)
            origins = [origin for origin, _, _ in checkpoints.newest(client)]
            asked = {"format": form, "logs": origins}
            notice = look_notice("export", user(), why, code, [], time.time_ns() // 1000, asked)
            told = record_it(options.ext_authz, data_dir, notice)
            source = StoredLogs(client)
            for origin in origins:
                with progress_bar(origin) as update:
                    sizes[origin] = write_log(source, origin, output, update)
            found = policies.find(client, "", 1_000_000)
            write_policies(((one.revision, one.text) for one in found), output)
    except QUERY_ERRORS as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise UsageError(f"--output {output}: {error.strerror}") from None
        raise explain(error, url) from None
    if as_json:
        looked = {"origin": told.origin, "writer": told.writer, "seq": told.seq}
        print(json.dumps({"directory": str(output), "logs": sizes, "looked": looked}))
        return
    console = Console()
    for origin, size in sizes.items():
        console.print(f"{origin}: {size} records", markup=False)
    console.print(f"verify it with: authz verify --from {output} --trust TRUST_FILE", markup=False)
