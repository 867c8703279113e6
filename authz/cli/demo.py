"""``authz demo``: the whole of it, for real, in one command."""

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from authz.cli.app import ConfigFile, Json, app
from authz.errors import UsageError


@app.command()
def demo(
    file: ConfigFile = None,
    requests: Annotated[int, typer.Option(min=0, help="Requests that reach a decision.")] = 600,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Send for at most this long.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep data here (default: a temporary directory).")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running, with addresses.")] = False,
    as_json: Json = False,
) -> None:
    """Real traffic through a real Envoy: decided, recorded, sealed, stored, verified.

    Starts Envoy, a sample FHIR service, ext-authz, the receiver and ClickHouse on loopback;
    at the end it tampers with a copy and shows that caught.
    """
    try:
        from authz.demo.run import Demo  # in the extra `demo`
    except ImportError as error:
        raise UsageError(f"the demo needs {error.name}; run: pip install 'authz[demo]'") from None
    console = Console(stderr=as_json, highlight=False)
    # A shell has what it starts in the background ignore it, and `_end` raises it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    result, code = None, 3  # ended early, it could not tell
    with _directory(data_dir) as directory:
        run = Demo(directory, _Progress(console), file)
        try:
            run.start()
            result = run.run(requests, seconds) if requests else None
            code = 0 if result is None or result.good else 1
            if keep:
                run.show()
                _keep(run, result, console, as_json=as_json)
        except KeyboardInterrupt:
            console.print("stopping")
        finally:
            _end_once()
            run.stop()
    if result is not None and not keep:
        if as_json:
            print(json.dumps(result.to_json()))
        else:
            _show(result, console)
    raise typer.Exit(code)


def _end(number: int, _frame: object) -> None:
    """As Ctrl-C does, for which asyncio has a handler of its own while it runs."""
    if number == signal.SIGHUP:  # the terminal is gone: what is said from here on goes nowhere
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    signal.raise_signal(signal.SIGINT)


def _end_once() -> None:
    """Impatience must not leave processes behind: the stop that has begun comes to its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    directory = Path(tempfile.mkdtemp(prefix="authz-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Progress:
    """What is going on, on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._begun = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._begun:5.1f} s[/]  {text}")

    @contextmanager
    def count(self, what: str, total: int) -> Iterator[Any]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
        )
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._live
        ) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)


def _show(result: Any, console: Console) -> None:
    table = Table(title="Who did what, and why it was allowed or denied", box=box.SIMPLE_HEAD,
                  title_justify="left")  # fmt: skip
    table.add_column("who", no_wrap=True)
    table.add_column("for", no_wrap=True)
    table.add_column("what", overflow="fold", min_width=14)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("patients", justify="right", no_wrap=True)
    table.add_column("outcome, and why", overflow="fold")
    for row in result.table:
        colour = "green" if row.outcome == "allowed" else "red"
        reason = _envoys_words(row.reason) if row.outcome == "rejected" else row.reason
        outcome = Text.assemble((row.outcome, colour), f": {reason}")
        table.add_row(row.who, row.purpose, row.what, str(row.times), str(row.patients or ""),
                      outcome)  # fmt: skip
    console.print(table)
    for text in result.unexpected[:5]:
        console.print(f"[red]unexpected[/] {text}")
    console.print(
        f"{result.sent} requests sent = {result.decisions} decided = {result.accesses} accessed"
        f" = {result.stored} stored; {result.allowed} allowed, {result.denied} denied;"
        f" {result.rejected_by_envoy} more rejected by Envoy itself; {result.gaps} gaps"
    )
    console.print("\nThe signed checkpoint over all of it:")
    console.print(result.checkpoint.rstrip(), style="cyan", markup=False, soft_wrap=True)
    verdict = "[bold green]intact[/]" if result.verified else "[bold red]NOT intact[/]"
    console.print(f"\nauthz verify: {verdict} ({result.records} records)")
    table = Table(title="Tampered with, on a copy", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("what was done", "caught", "where", "what verify says"):
        table.add_column(name)
    for item in result.tampering:
        caught = "[green]yes[/]" if item.caught else "[red]NO[/]"
        table.add_row(item.done, caught, item.where, item.said)
    console.print(table)
    console.print(f"all of it in {result.seconds:.1f} s")


def _envoys_words(details: str) -> str:
    """Of ``jwt_authn_access_denied{Jwt_is_missing}``, what a person reads: Jwt is missing."""
    inner = details.partition("{")[2].rstrip("}") or details
    return inner.replace("_", " ").strip()


def _keep(run: Any, result: Any, console: Console, *, as_json: bool) -> None:
    """Leave it running until Ctrl-C or SIGTERM, and say what to try."""
    addresses = run.addresses()
    if as_json:
        print(json.dumps(addresses), flush=True)
    else:
        if result is not None:
            _show(result, console)
        _suggest(addresses, run, console)
    while True:
        run.watch()
        time.sleep(0.5)


def _suggest(addresses: dict[str, Any], run: Any, console: Console) -> None:
    """Commands to try, in the order in which they tell something."""
    config, policy = run.config, run.stack.policy
    chart = f"{addresses['envoy']}/fhir/Patient/p-0001"
    user, password, host, port = run_parts(addresses["store"])
    sql = (
        "SELECT toString(time) AS at, subject, roles, reason, path, status, decision_id"
        " FROM requests ORDER BY at DESC LIMIT 5"
    )
    one = (
        "SELECT allowed, reason, path, count() AS times, uniqExactArray(patients) AS patients"
        " FROM requests WHERE subject = 'n.hazel' GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC"
        " FORMAT PrettyCompact SETTINGS output_format_pretty_row_numbers = 0"
    )
    ask = ["curl", "-i", "-H"]
    http = ["curl", "-u", f"{user}:{password}", f"{addresses['http']}/?database=authz",
            "--data-binary"]  # fmt: skip
    client = ["clickhouse-client", "--host", host, "--port", port, "--user", user,
              "--password", password, "--database", "authz", "--query"]  # fmt: skip
    authz = _program()
    tokens = addresses["tokens"]
    commands = {
        "a physician of the care team looks at a chart (200)":
            [*ask, f"authorization: Bearer {tokens['alder']}", chart],
        "a nurse of another ward (403)":
            [*ask, f"authorization: Bearer {tokens['hazel']}", chart],
        "what was recorded of it": [*client, sql],
        "the same over HTTP": [*http, f"{sql} FORMAT Vertical"],
        "who saw the patient p-0042, and why? (the look is recorded too)":
            [*authz, "lookup", "--config", str(config), "--patient", "p-0042",
             "--reason", "asked by the patient"],
        "what did the nurse n.hazel do?": [*http, one],
        "change the policy: nurses reach every patient":
            ["sed", "-i", '/"nurse"/,/"reach"/ s/care_team/population/', str(policy / "data.json")],
        "the nurse again, a second later (200)":
            [*ask, f"authorization: Bearer {tokens['hazel']}", chart],
        "ext-authz's metrics: decisions by outcome, the policy in force":
            ["curl", "-sS", run.stack.metrics],
        "is the log intact, and is anything missing?":
            [*authz, "verify", "--config", str(config), "--trust", addresses["trust"]],
    }  # fmt: skip
    console.print(f"\nIt is running. Look at it: [bold]{addresses['console']}[/]")
    console.print("Or try, in another terminal:")
    for what, command in commands.items():
        console.print(f"\n[bold]# {what}[/]")
        console.print(" ".join(map(_quoted, command)), soft_wrap=True, markup=False)
    console.print(
        f"\nOther authz commands find it by --config {config} too.\nThe policy is in {policy}, what"
        f" each part logs in {run.stack.data_dir / 'logs'}.\nCtrl-C stops it.",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _quoted(word: str) -> str:
    """For a shell; `shlex` would make three quotes of each that stands in a query."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\') else shlex.quote(word)


def _program() -> list[str]:
    """How this is run from any directory."""
    script = Path(sys.executable).with_name("authz")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "authz"]


def run_parts(url: str) -> tuple[str, str, str, str]:
    """User, password, host and port of a store URL."""
    parts = urlsplit(url)
    return parts.username or "", parts.password or "", parts.hostname or "", str(parts.port)
