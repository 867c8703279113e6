"""``authz watch``."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from authz.cli.app import Json, app
from authz.detect.detector import Detector, Finding
from authz.detect.feeds import load
from authz.detect.lanes import Budgets
from authz.errors import UsageError
from authz.record import Record


@app.command()
def watch(
    replay: Annotated[
        Path | None, typer.Option(help="Records in time order, one JSON object a line.")
    ] = None,
    feeds: Annotated[
        Path | None, typer.Option(help="Directory of care_team.csv, appointments.csv, ...")
    ] = None,
    act: Annotated[float, typer.Option(help="Act now: alerts per 1,000 user-days.")] = 1.0,
    review: Annotated[float, typer.Option(help="Review: alerts per 1,000 user-days.")] = 5.0,
    zone: Annotated[str, typer.Option(help="Time zone whose days and hours count.")] = "UTC",
    as_json: Json = False,
) -> None:
    """Watch what is done, and tell what is unusual."""
    from authz.detect.feeds import Feeds

    if replay is None:
        raise UsageError("--replay FILE is missing")
    detector = Detector(load(feeds) if feeds else Feeds(), Budgets(act, review), zone)
    console = Console()
    for record in _records(replay):
        for finding in detector.add(record):
            if as_json:
                sys.stdout.write(orjson.dumps(to_json(finding)).decode() + "\n")
            else:
                console.print(_line(finding))


def to_json(finding: Finding) -> dict[str, Any]:
    """One line of ``--json``."""
    return {
        "time": datetime.fromtimestamp(finding.time / 1e6, UTC).isoformat(),
        "subject": finding.subject,
        "rule": finding.rule,
        "lane": finding.lane,
        "score": finding.score,
        "evidence": finding.evidence,
        "records": list(finding.records),
    }


def _line(finding: Finding) -> Text:
    at = datetime.fromtimestamp(finding.time / 1e6, UTC)
    text = Text(f"{at:%Y-%m-%d %H:%M} ")
    text.append(f"{finding.lane:6} ", style="bold red" if finding.lane == "act" else "yellow")
    text.append(f"{finding.rule} ", style="bold")
    return text.append(f"{finding.subject}: {finding.evidence}")


def _records(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        record = orjson.loads(line)
                    except ValueError:
                        raise UsageError(f"{path}, line {number}: not JSON") from None
                    if not isinstance(record, dict):
                        raise UsageError(f"{path}, line {number}: not a record")
                    yield record
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
