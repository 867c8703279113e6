"""``authz verify``, ``authz config``."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.lookup import count, printable
from authz.cli.times import moment
from authz.errors import UsageError
from authz.files import replace_file
from authz.store import migrations
from authz.store.client import QUERY_ERRORS, connect, explain
from authz.store.logs import StoredLogs
from authz.trust import load_expiry_writers, load_trust
from authz.verify import Report
from authz.verify.folder import FolderLogs
from authz.verify.logs import State, Window, state_of, verify_logs


@app.command()
def verify(
    trust: Annotated[Path, typer.Option(help="Which logs must be there, and their keys.")],
    file: ConfigFile = None,
    store: Store = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", help="A folder of `authz export --format bundle` instead."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Remembers the last accepted checkpoint, so rollback shows.")
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what is new since --state.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Only records sealed from then on: 2026-11-01, or 1d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only records sealed before then.")] = None,
    as_json: Json = False,
) -> None:
    """Recompute every leaf, root, signature and sequence, and say which record is wrong and how."""
    now = time.time_ns() // 1000
    window = None
    if since is not None or until is not None:
        window = Window(
            0 if since is None else moment("--since", since, now),
            Window().until_us if until is None else moment("--until", until, now),
        )
        if window.since_us >= window.until_us:
            raise UsageError("--until: want a time after --since; its own moment is not included")
    if folder and (window or store):
        raise UsageError("--from: a folder is checked as a whole, and without a --store")
    if incremental and (window or state is None):
        raise UsageError("--incremental: want a --state to go on from, and no --since or --until")
    url = "" if folder else _store(file, store)
    logs = load_trust(trust)
    accepted = _load_state(state)
    try:
        source = FolderLogs(folder) if folder else _stored(url)
        with progress_bar("verifying") as update:
            report = verify_logs(
                source, logs, accepted, update, window=window, incremental=incremental,
                expiry_writers=load_expiry_writers(trust),
            )  # fmt: skip
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    if state and report.verified and not window:
        _save_state(state, accepted)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show(report, Console())
    raise typer.Exit(0 if report.verified else 1)


def _stored(url: str) -> StoredLogs:
    client = connect(url)
    migrations.check(client)
    return StoredLogs(client)


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
            table.add_row(_plain(finding.where), finding.kind, _plain(finding.text))
        console.print(table)
    for log in report.logs:
        console.print(
            f"{_plain(log.origin)}: {log.size} records under {log.checkpoints} signed checkpoints,"
            f" {log.writers} writers, root {log.root}"
        )
        if log.expired:
            console.print(
                f"  {log.expired} of them have expired by the rules, and their hashes stay"
            )
        for seen, who in ((log.anchored, "an anchor"), (log.witnessed, "the witnesses")):
            if seen:
                console.print(f"  {seen} of them seen by {who}, {max(log.size - seen, 0)} not yet")
        for note in log.notes:
            console.print(f"  [yellow]note[/]: {_plain(note)}")
        if log.more_findings:
            console.print(f"  and {count(log.more_findings, 'finding', 'findings')} more")
    for month in report.detached:
        console.print(
            f"[yellow]note[/]: partition {month} was detached: its rows lie beside the log"
        )
    gaps = sum(report.gaps.values())
    told = ", ".join(f"{count} {_plain(kind)}" for kind, count in report.gaps.items())
    told = f"{count(gaps, 'gap', 'gaps')}{': ' if told else ''}{told}"
    if report.partial:
        console.print(
            f"{report.decisions} decisions and {report.accesses} accesses in this part;"
            f" the log itself tells of {told}"
        )
    else:
        console.print(
            f"{report.decisions} decisions, {report.accesses} accesses, {report.matched} matched,"
            f" {report.rejected_by_envoy} rejected by Envoy, {report.pending} pending, {told}"
        )
    if report.verified:
        part = " in the part that was checked" if report.partial else ""
        console.print(f"[bold green]intact[/]: nothing changed, dropped, added or reordered{part}"
                      f" ({report.checked} records in {report.seconds:.1f} s)")  # fmt: skip
    else:
        found = count(len(report.findings), "finding", "findings")
        console.print(f"[bold red]NOT intact[/]: {found}")


def _plain(text: str) -> str:
    """What somebody may have put into the log, so that it acts on no terminal."""
    return escape(printable(text))


def _store(file: Path | None, store: str | None) -> str:
    return config.load(file, given(store=store)).database


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


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far it is, on a terminal; yields what is called with done and all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    error = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=error, transient=True,
                  disable=not sys.stderr.isatty()) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
