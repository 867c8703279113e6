"""``authz feeds``: what gives people a reason to look, loaded into the store."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Receiver, record_all, user
from authz.cli.lookup import keys_of, printable
from authz.cli.times import duration, shown
from authz.errors import UsageError

if TYPE_CHECKING:
    from authz.feeds.source import Source
    from authz.store.feeds import Loaded, Loading

_LONGEST_SECONDS = 3650 * 86_400

group = typer.Typer(no_args_is_help=True, help="What gives people a reason to look.")
app.add_typer(group, name="feeds")

Feed = Literal["people", "patients", "care_team", "appointments", "orders", "encounters", "census"]


@group.command()
def load(
    source: Annotated[
        str,
        typer.Argument(
            help="A directory of CSV files, one of them, FHIR resources (Bundle or NDJSON), or the"
            " https:// address of either."
        ),
    ],
    feed: Annotated[
        Feed | None, typer.Option(help="Load this feed only; of a file, what it is.")
    ] = None,
    practitioners: Annotated[
        Path | None,
        typer.Option(help="CSV: practitioner, subject. Without it they are known by their ids."),
    ] = None,
    locations: Annotated[
        Path | None,
        typer.Option(help="CSV: location, department. Without it they are known by their ids."),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="How long this is good for, unless a newer load comes: 30d.")
    ] = "30d",
    token: Annotated[
        Path | None, typer.Option(help="File with the bearer token that the server wants.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Authority of the server's certificate, PEM.")
    ] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Ask another host without TLS.")
    ] = False,
    privacy_key: Annotated[
        Path | None,
        typer.Option(
            "--privacy-key",
            "--key",
            help="Privacy key file: a copy of the one that ext-authz has.",
        ),
    ] = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Load feeds; each takes the place of the one before as a whole, or nothing is changed."""
    from authz.feeds.load import notices, put
    from authz.store import feeds, migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    seconds = duration(keep) or 0
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(f"--keep {keep}: want a number and h or d, up to 3650d, such as 30d")
    options = config.load(
        file, given(store=store, ext_authz__receiver=receiver, privacy__key=privacy_key)
    )
    url = options.database
    if options.ext_authz.receiver is None:
        raise UsageError(
            "--receiver is missing: a load is put on record; or --config FILE, with"
            " ext_authz.receiver in it"
        )
    key, by = keys_of(options)[0], user()
    reading = _source(source, feed, key, practitioners, locations, (token, ca, plaintext))
    try:
        with connect(url) as client:
            migrations.check(client)
            before = {one.feed: one for one in feeds.loads(client)}
            with _progress(shown=not as_json) as progress:
                loading = put(client, reading, int(time.time()) + seconds, progress)
            # It counts from here on, so it is on record first.
            records = notices(loading, reading, by, time.time_ns() // 1000)
            told = record_all(options.ext_authz, data_dir, records, key.id)
            loading.commit(by, reading.told)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    summary = _summary(loading, reading, before)
    if as_json:
        looked = {"origin": told.origin, "writer": told.writer, "seq": told.seq}
        print(json.dumps({"loaded": summary, "recorded": looked}))
    else:
        _show_summary(summary)


@group.command()
def show(file: ConfigFile = None, store: Store = None, as_json: Json = False) -> None:
    """What is loaded: how much, how old, from where, and until when it counts."""
    from authz.store import feeds, migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    url = config.load(file, given(store=store)).database
    try:
        with connect(url) as client:
            migrations.check(client)
            found = feeds.loads(client)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    if as_json:
        print(json.dumps({"feeds": [asdict(one) for one in found]}))
    elif found:
        Console().print(_table(found, time.time_ns() // 1000))
    else:
        print("no feed is loaded: authz feeds load")


def _source(
    given_: str, only: str | None, key: Any, practitioners: Path | None, locations: Path | None,
    asking: tuple[Path | None, Path | None, bool],
) -> "Source":  # fmt: skip
    """Raises `UsageError`."""
    from authz.feeds.fhir import Reader
    from authz.feeds.source import Source, is_address, mapping
    from authz.feeds.tables import Names
    from authz.feeds.web import Web

    reader = Reader(
        mapping(practitioners, "practitioner", "subject") if practitioners else None,
        mapping(locations, "location", "department") if locations else None,
    )
    web = None
    if is_address(given_):
        token, ca, plaintext = asking
        web = Web(given_, token, ca, plaintext=plaintext)
    return Source(given_, Names(key), reader, only, web)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Any]:
    """Something to call with how many rows there are, on a terminal."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn()
    off = not shown or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("load", total=None)
        yield lambda rows: bar.update(task, completed=rows)


def _summary(
    loading: "Loading", source: "Source", before: Mapping[str, "Loaded"]
) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for feed, version in loading.versions.items():
        skipped = {why: count for (one, why), count in source.skipped.items() if one == feed}
        former = before.get(feed)
        replaces = {"rows": former.rows, "loaded_at": former.loaded_at} if former else None
        told.append(
            {
                "feed": feed, "rows": loading.counts[feed], "source": source.told[feed],
                "version": version, "skipped": skipped, "replaces": replaces,
            }
        )  # fmt: skip
    return told


def _show_summary(summary: Sequence[Mapping[str, Any]]) -> None:
    table = Table()
    for name in ("feed", "rows", "in place of", "from", "gave no reason"):
        table.add_column(name, overflow="fold", justify="right" if name == "rows" else "left")
    for one in summary:
        former = one["replaces"]
        instead = f"{former['rows']:,} of {shown(former['loaded_at'])}" if former else ""
        skipped = "\n".join(f"{count:,} {why}" for why, count in one["skipped"].items())
        table.add_row(
            one["feed"], f"{one['rows']:,}", instead, printable(one["source"]),
            Text(skipped, "yellow"),
        )  # fmt: skip
    Console().print(table)


def _table(found: Sequence["Loaded"], now_us: int) -> Table:
    table = Table()
    for name in ("feed", "rows", "loaded (UTC)", "age", "by", "from", "counts until (UTC)"):
        table.add_column(name, overflow="fold", justify="right" if name == "rows" else "left")
    for one in found:
        until = Text(shown(one.lapses_at), "red" if one.lapsed else "")
        until.append(", lapsed" if one.lapsed else "")
        table.add_row(
            one.feed, f"{one.rows:,}", shown(one.loaded_at), _age(now_us - one.loaded_at),
            printable(one.by), printable(one.source), until,
        )  # fmt: skip
    return table


def _age(microseconds: int) -> str:
    minutes = max(microseconds, 0) // 60_000_000
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
