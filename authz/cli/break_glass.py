"""``authz findings breakglass``, ``authz findings review``: emergencies, and who looks at them."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz.cli.app import ConfigFile, Json, Store
from authz.cli.block import DataDir, Receiver, as_given, record_it, user
from authz.cli.findings import (
    Identity,
    LookReason,
    Reason,
    age,
    all_short,
    asking,
    group,
    look_of,
    not_oneself,
    sources,
)
from authz.cli.lookup import printable
from authz.cli.times import shown
from authz.detect.break_glass import Use, Uses, review_notice, use_of
from authz.errors import UsageError
from authz.record import read_place

if TYPE_CHECKING:
    from authz.store.client import Client


@group.command()
def breakglass(
    late: Annotated[bool, typer.Option("--late", help="Only those past their deadline.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if one is late.")] = False,
    reason: LookReason = "",
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Uses of break-glass that nobody has reviewed. The look itself is recorded first."""
    from authz.store.findings import glass

    look = look_of("findings breakglass", reason, {"late": late})
    options = sources(file, store, receiver)
    hours = options.watch.break_glass_hours
    waiting = Uses.of(asking(options, glass)).waiting
    now_us = time.time_ns() // 1000
    past = [use for use in waiting if use.due(hours) <= now_us]
    kept = past if late else waiting
    patients = list(dict.fromkeys(token for use in kept for token in use.patients))
    looked = look(options, data_dir, patients)
    if as_json:
        told = [_json(use, use.due(hours), now_us) for use in kept]
        print(json.dumps({"uses": told, "late": len(past), "hours": hours, "looked": looked}))
    else:
        show_uses(kept, hours, now_us, Console())
    raise typer.Exit(1 if check and past else 0)


@group.command()
def review(
    identity: Identity,
    justified: Annotated[
        bool, typer.Option("--justified/--not-justified", help="Whether it was an emergency.")
    ],
    reason: Reason,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say of a use of break-glass whether it was justified."""
    why = as_given("--reason", reason, "reason")
    options = sources(file, store, receiver)
    use = asking(options, lambda client: _use(client, identity))
    by = user()
    not_oneself(by, use.subject)
    verdict = "justified" if justified else "not_justified"
    said = {"by": by, "verdict": verdict}
    record = review_notice(use, verdict, why, by, time.time_ns() // 1000)
    told = record_it(options.ext_authz, data_dir, record)
    if as_json:
        print(json.dumps(said | {"use": use.id, "subject": use.subject, "reason": why,
                                 "origin": told.origin, "writer": told.writer}))  # fmt: skip
    else:
        print(f"{printable(use.id)} is reviewed: {verdict.replace('_', ' ')}")


def _use(client: "Client", identity: str) -> Use:
    from authz.store.findings import at

    place = read_place(identity)
    if place is None:
        raise UsageError(f"ID {identity}: want a log and an index, such as demo/receiver@10")
    for record in at(client, [place]):
        if use := use_of(record):
            return use
    raise UsageError(f"ID {identity}: no use of break-glass; see: authz findings breakglass")


def _json(use: Use, due: int, now_us: int) -> dict[str, Any]:
    return {
        "id": use.id, "time": use.time, "due": due, "late": due <= now_us, "subject": use.subject,
        "roles": list(use.roles), "tenant": use.tenant, "method": use.method, "path": use.path,
        "patients": list(use.patients), "reason": use.reason,
    }  # fmt: skip


def show_uses(uses: list[Use], hours: float, now_us: int, console: Console) -> None:
    """What waits for a review, the oldest first."""
    if not uses:
        console.print("[bold]none[/] waits for a review")
        return
    table = Table()
    table.add_column("time (UTC), id", overflow="fold", no_wrap=all_short(use.id for use in uses))
    for name in ("who", "what", "stated", "review"):
        table.add_column(name, overflow="fold")
    for use in uses:
        when = Text(shown(use.time))
        when.append(f"\n{printable(use.id)}", "dim")
        who = Text(printable(use.subject), "bold")
        who.append(f"\n{printable(', '.join(use.roles))}", "not bold dim")
        what = Text(printable(f"{use.method} {use.path}".strip()))
        for token in use.patients[:3]:
            what.append(f"\n{printable(token)}", "dim")
        due = use.due(hours)
        left = f"late by {age(now_us - due)}" if due <= now_us else f"due in {age(due - now_us)}"
        review = Text(left, "bold red" if due <= now_us else "none")
        table.add_row(when, who, what, Text(printable(use.reason)), review)
    console.print(table)
    past = sum(use.due(hours) <= now_us for use in uses)
    console.print(
        f"[bold]waiting for a review: {len(uses)}[/], {past} of them for over {hours:g} hours"
    )
