"""``authz export``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Purpose, Receiver, as_given, record_it, user
from authz.cli.lookup import identifiers_of, keys_of, printable, tokens_of
from authz.cli.times import moment
from authz.cli.verify import progress_bar
from authz.errors import UsageError

if TYPE_CHECKING:
    from authz.store.client import Client

_KINDS = ("decision", "access", "disclosure", "finding", "notice")
_NAMED = f"{', '.join(_KINDS[:-1])} or {_KINDS[-1]}"


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A directory, new or empty.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    form: Annotated[
        Literal["bundle", "ndjson", "csv", "fhir"],
        typer.Option(
            "--format",
            help="bundle: whole logs, for `authz verify --from`. ndjson: a record a line, as it was"
            " hashed. csv: for spreadsheets. fhir: R4 AuditEvents (IHE BALP), one a line.",
        ),
    ] = "bundle",
    since: Annotated[
        str | None,
        typer.Option(help="Records sealed from 2026-11-01, 2026-11-01T08:30 or 7d ago on."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then, in the same forms.")] = None,
    subject: Annotated[
        str, typer.Option(help="Of this person only, as decisions record them: dr.alder")
    ] = "",
    patient: Annotated[
        list[str] | None,
        typer.Option(
            help="That name this patient: the identifier, as requests have it; - reads some from"
            " standard input."
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Of this kind only: {_NAMED}; may be given several times."),
    ] = None,
    purpose: Purpose = "",
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Annotated[
        Path | None, typer.Option(help="Privacy key file, for --patient.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write records to a folder, for other systems and for who is to check them without us. That
    is recorded first."""
    from authz.report.exports.write import write_export
    from authz.report.looks import look_notice
    from authz.store import checkpoints, migrations, pages
    from authz.store.client import QUERY_ERRORS, connect, explain
    from authz.store.exports import Selection
    from authz.store.lookups import Window

    now_us = time.time_ns() // 1000
    why = as_given("--reason", reason, "reason")
    code = as_given("--purpose", purpose, "purpose") if purpose else ""
    person = as_given("--subject", subject, "subject") if subject else ""
    options = config.load(
        file, given(store=store, ext_authz__receiver=receiver, privacy__key=privacy_key)
    )
    url = options.database
    if options.ext_authz.receiver is None:
        raise UsageError(
            "--receiver is missing: an export is recorded before it is written; or --config FILE,"
            " with ext_authz.receiver in it"
        )
    kinds = tuple(dict.fromkeys(kind or ()))
    if unknown := [one for one in kinds if one not in _KINDS]:
        raise UsageError(f"--kind {unknown[0]}: want {_NAMED}")
    keys = keys_of(options) if patient else []
    tokens = [one for own in tokens_of(keys, identifiers_of(patient or ())) for one in own
              ] if patient else []  # fmt: skip
    window = Window(
        None if since is None else moment("--since", since, now_us),
        None if until is None else moment("--until", until, now_us),
    )
    wanted = Selection(window, pages.Filters(subject=person, patients=tuple(tokens)), kinds)
    if form == "bundle" and wanted != Selection():
        raise UsageError(
            "--format bundle: it holds whole logs; --since, --until, --subject, --patient and"
            " --kind are for ndjson, csv and fhir"
        )
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"--output {output}: want a directory that is new or empty")
        with connect(url) as client:
            migrations.check(client)
            origins = [one.origin for one in checkpoints.newest(client)]
            asked = {
                "format": form, "logs": origins, "since": window.since_us or 0,
                "until": window.until_us or 0, "person": person, "kinds": list(wanted.kinds),
            }  # fmt: skip
            notice = look_notice("export", user(), why, code, tokens, now_us, asked)
            told = record_it(options.ext_authz, data_dir, notice, keys[0].id if keys else "")
            if form == "bundle":
                written = _bundle(client, origins, output)
            else:
                with progress_bar("records") as update:
                    made = write_export(client, origins, output, form, wanted, update)
                written = {log.origin: log.records for log in made.logs}
    except QUERY_ERRORS as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise UsageError(f"--output {output}: {error.strerror}") from None
        raise explain(error, url) from None
    check = (
        f"authz verify --from {output}" if form == "bundle"
        else f"authz verify-proof {output / 'manifest.json'}"
    )  # fmt: skip
    if as_json:
        looked = {"origin": told.origin, "writer": told.writer, "seq": told.seq}
        print(json.dumps({"directory": str(output), "logs": written, "looked": looked}))
        return
    console = Console()
    for origin, size in written.items():
        console.print(f"{printable(origin)}: {size} records", markup=False)
    console.print(f"verify it with: {check} --trust TRUST_FILE", markup=False)


def _bundle(client: "Client", origins: Sequence[str], output: Path) -> dict[str, int]:
    """Write whole logs, and the policies. Returns each log's size."""
    from authz.store import policies
    from authz.store.logs import StoredLogs
    from authz.verify.folder import write_log, write_policies

    source, sizes = StoredLogs(client), {}
    for origin in origins:
        with progress_bar(printable(origin)) as update:
            sizes[origin] = write_log(source, origin, output, update)
    found = policies.find(client, "", 1_000_000)
    write_policies(((one.revision, one.text) for one in found), output)
    return sizes
