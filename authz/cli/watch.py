"""``authz watch``."""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import ConfigFile, DataDir, Json, Store, app, given, run
from authz.cli.block import Receiver
from authz.cli.lookup import printable
from authz.errors import UsageError
from authz.record import FIELD, Record
from authz.serve import logs

if TYPE_CHECKING:  # scipy is slow to import, and other commands do without
    from authz.detect.detector import Finding
    from authz.detect.lanes import Lanes

_TYPES = {"text": str, "texts": list, "bool": bool, "int": int, "time": int}
_WANTED = {
    "text": "text", "texts": "an array of texts", "bool": "true or false", "int": "an integer",
    "time": "microseconds since the epoch",
}  # fmt: skip
_COLOURS = {"act": "bold red", "review": "yellow"}


@app.command()
def watch(
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    replay: Annotated[
        Path | None, typer.Option(help="Records in time order, one JSON object a line; no store.")
    ] = None,
    feeds: Annotated[
        Path | None, typer.Option(help="Directory of people.csv, care_team.csv and the like.")
    ] = None,
    geo: Annotated[
        Path | None, typer.Option(help="File in MaxMind's format that tells where addresses are.")
    ] = None,
    shared: Annotated[
        list[str] | None, typer.Option(help="A network that many share, such as a VPN's.")
    ] = None,
    act: Annotated[
        float | None, typer.Option(help="Findings to act on now, per 1,000 user-days.")
    ] = None,
    review: Annotated[
        float | None, typer.Option(help="Findings to review, per 1,000 user-days.")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Time zone of the people's days: Europe/Berlin.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look at what there is, and end.")] = False,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if", help="Tell what other budgets would have meant, by what was learnt."
        ),
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="host:port of Prometheus metrics")] = None,
    as_json: Json = False,
) -> None:
    """Learn what people usually do, and tell what is unusual, a line for each finding."""
    from authz.detect import kept
    from authz.detect.lanes import Budgets, Lanes
    from authz.detect.record import to_json

    options = given(
        data_dir=data_dir, store=store, ext_authz__receiver=receiver, watch__feeds=feeds,
        watch__geo=geo, watch__shared=shared or None, watch__act=act,
        watch__review=review, watch__zone=zone, watch__metrics=metrics,
    )  # fmt: skip
    loaded = config.load(file, options)
    places = loaded.watch.model_copy(update={"geo": loaded.watch.geo or loaded.geo})
    loaded = loaded.model_copy(update={"data_dir": loaded.data_dir / "watch", "watch": places})
    console = Console()

    def tell(finding: "Finding") -> None:
        if as_json:
            sys.stdout.write(orjson.dumps(to_json(finding)).decode() + "\n")
            sys.stdout.flush()
        else:
            console.print(_line(finding), soft_wrap=True)

    if replay is not None:
        lanes = _replay(replay, loaded.watch, tell)
        if what_if:
            _show_what_if(lanes, as_json=as_json)
        return
    if what_if:
        learnt = kept.load(loaded.data_dir / "watch.json")
        if learnt is None:
            raise UsageError(
                f"--what-if: nothing was learnt in {loaded.data_dir}; is --data-dir that of the"
                " authz watch that runs?"
            )
        lanes = Lanes(Budgets(loaded.watch.act, loaded.watch.review), learnt.memory.calibration)
        _show_what_if(lanes, as_json=as_json)
        return
    from authz.serve.watch import serve

    logs.configure()
    run(serve(loaded, tell, once=once))


def _show_what_if(lanes: "Lanes", *, as_json: bool) -> None:
    """How many alerts other budgets would have brought in the weeks that are kept."""
    told = lanes.what_if()
    if as_json:
        sys.stdout.write(orjson.dumps([asdict(one) for one in told]).decode() + "\n")
        return
    table = Table(title=f"what a budget would have meant, over {lanes.user_days:,} user-days")
    for name in ("per 1,000 user-days", "alerts", "per 1,000", "most of them by"):
        table.add_column(name, justify="left" if "most" in name else "right")
    for one in told:
        most = sorted(one.rules.items(), key=lambda item: -item[1])[:4]
        by = ", ".join(f"{rule} {count}" for rule, count in most if count)
        table.add_row(f"{one.budget:g}", f"{one.alerts:,}", f"{one.rate:.2f}", by)
    Console().print(table)


def _replay(path: Path, options: config.Watch, tell: "Callable[[Finding], None]") -> "Lanes":
    from authz.detect.detector import detector_of

    detector = detector_of(options)
    gc.freeze()  # the feeds stay as they are
    for record in _records(path):
        for finding in detector.add(record):
            tell(finding)
    return detector.lanes


def _line(finding: "Finding") -> Text:
    at = datetime.fromtimestamp(finding.time / 1_000_000, UTC)
    text = Text(f"{at:%Y-%m-%d %H:%M} ")
    text.append(f"{finding.lane:6} ", style=_COLOURS[finding.lane])
    text.append(f"{finding.rule} ", style="bold")
    who = printable(finding.subject or finding.address or f"(everybody) {finding.tenant}".strip())
    return text.append(f"{who}: {printable(finding.evidence)}")


def _records(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _record(line, f"--replay {path}, line {number}")
    except OSError as error:
        raise UsageError(f"--replay {path}: {error.strerror}") from None


def _record(line: bytes, where: str) -> Record:
    try:
        record = orjson.loads(line)
    except ValueError:
        raise UsageError(f"{where}: not JSON") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: not a record: want an object")
    for name, value in record.items():
        field = FIELD.get(name)
        if field is not None and type(value) is not _TYPES[field.type]:
            raise UsageError(f"{where}: {name}: want {_WANTED[field.type]}")
    return record
