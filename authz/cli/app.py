"""The program's root: the groups of commands, and what they share."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="authz",
    help="Audited access for services behind Envoy: every look allowed by a rule, provable later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """So that it stays a group with one command in it."""


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of store, receiver, keys and the rest (`authz config` prints one);"
        " AUTHZ_... and options override it.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where journal, keys and state are kept.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Store = Annotated[
    str | None,
    typer.Option("--store", help="The database's URL (clickhouse://...)."),
]


def given(**options: object) -> dict[str, Any]:
    """The options that were given, as configuration: ``section__key`` goes under its section."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            section, _, key = name.rpartition("__")
            (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a server on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)
