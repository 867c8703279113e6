"""``authz verify``, ``authz config``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.errors import UsageError
from authz.journal.segments import replace_file
from authz.store import migrations
from authz.store.client import QUERY_ERRORS, connect, explain
from authz.trust import load_trust
from authz.verify import Report, verify_store
from authz.verify.logs import State, state_of


@app.command()
def verify(
    trust: Annotated[Path, typer.Option(help="Which logs must be there, and their keys.")],
    file: ConfigFile = None,
    store: Store = None,
    state: Annotated[
        Path | None, typer.Option(help="Remembers the last accepted checkpoint, so rollback shows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every leaf, root, signature and sequence, and say which record is wrong and how."""
    url = _store(file, store)
    logs = load_trust(trust)
    accepted = _load_state(state)
    client = connect(url)
    try:
        migrations.check(client)
        with _progress() as bar:
            task = bar.add_task("verifying", total=None)
            report = verify_store(
                client, logs, accepted,
                lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    if state and report.verified:
        _save_state(state, accepted)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show(report, Console())
    raise typer.Exit(0 if report.verified else 1)


@app.command("config")
def config_command(
    file: Annotated[
        Path | None, typer.Option("--config", help="Check this file instead of printing one.")
    ] = None,
) -> None:
    """Print every configuration key with its default and meaning, or check a file."""
    if file is None:
        print(config.describe(), end="")
    else:
        config.load(file)
        print(f"{file}: good")


def show(report: Report, console: Console) -> None:
    """The report as a person reads it."""
    if report.findings:
        table = Table(title="What is wrong", title_style="bold red")
        for name in ("where", "kind", "what"):
            table.add_column(name)
        for finding in report.findings:
            table.add_row(finding.where, finding.kind, finding.text)
        console.print(table)
    for log in report.logs:
        console.print(
            f"{log.origin}: {log.size} records under {log.checkpoints} signed checkpoints,"
            f" {log.writers} writers, root {log.root}"
        )
        if log.more_findings:
            console.print(f"  and {log.more_findings} findings more")
    gaps = sum(report.gaps.values())
    told = ", ".join(f"{count} {kind}" for kind, count in report.gaps.items())
    console.print(
        f"{report.decisions} decisions, {report.accesses} accesses, {report.matched} matched,"
        f" {report.rejected_by_envoy} rejected by Envoy, {report.pending} pending,"
        f" {gaps} gaps{': ' if told else ''}{told}"
    )
    if report.verified:
        console.print(f"[bold green]intact[/]: nothing changed, dropped, added or reordered"
                      f" ({report.records} records in {report.seconds:.1f} s)")  # fmt: skip
    else:
        console.print(f"[bold red]NOT intact[/]: {len(report.findings)} findings")


def _store(file: Path | None, store: str | None) -> str:
    url = config.load(file, given(store=store)).store
    if url is None:
        raise UsageError("--store is missing: clickhouse://user:password@host:9000/database")
    return url


def _load_state(path: Path | None) -> State:
    if path is None:
        return {}
    try:
        if not path.exists() and path.parent.is_dir():
            return {}
        return state_of(orjson.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"--state {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--state {path}: not a state file of `authz verify`") from None


def _save_state(path: Path, accepted: State) -> None:
    try:
        replace_file(path, orjson.dumps(accepted, option=orjson.OPT_INDENT_2), 0o644)
    except OSError as error:
        raise UsageError(f"--state {path}: {error.strerror}") from None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    error = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=error, transient=True,
                    disable=not sys.stderr.isatty())  # fmt: skip
