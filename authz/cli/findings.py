"""``authz findings``: what was found, and what people say of it."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Receiver, as_given, record_it, user
from authz.cli.lookup import printable
from authz.cli.times import moment, shown
from authz.errors import UsageError
from authz.record import Record, read_place

if TYPE_CHECKING:
    from authz.report.findings import Act, Finding
    from authz.store.client import Client

group = typer.Typer(help="What was found, and what people say of it.", no_args_is_help=True)
app.add_typer(group, name="findings")

T = TypeVar("T")

_LANES = {"act": "bold red", "review": "yellow"}
_STATES = {"open": "bold", "acknowledged": "yellow", "explained": "green", "confirmed": "red"}
_SHOWN_PATIENTS = 3

Identity = Annotated[str, typer.Argument(metavar="ID", help="As listed: demo/receiver@10.")]
LookReason = Annotated[str, typer.Option("--reason", help="Why you look; it is recorded.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]


@group.command("list")
def list_(
    everything: Annotated[
        bool, typer.Option("--all/--open", help="Explained and confirmed ones too.")
    ] = False,
    lane: Annotated[
        Literal["act", "review"] | None, typer.Option(help="Only these: act now, or review.")
    ] = None,
    subject: Annotated[str, typer.Option(help="Only those about this person.")] = "",
    since: Annotated[str | None, typer.Option(help="2026-11-01, 2026-11-01T08:30, 7d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Show the newest.")] = 1000,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if one of `act` is open.")
    ] = False,
    reason: LookReason = "",
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """The findings that are open. The look itself is recorded first."""
    from authz.report.findings import find
    from authz.store.lookups import Window

    now_us = time.time_ns() // 1000
    since_us = None if since is None else moment("--since", since, now_us)
    asked = {"all": everything, "lane": lane or "", "subject": subject, "since": since_us or 0}
    look = look_of("findings list", reason, asked | {"limit": limit})
    options = sources(file, store, receiver)
    found = asking(
        options, lambda client: find(client, Window(since_us), subject, lane or ""),
    )  # fmt: skip
    looked = look(options, data_dir, ())
    matching = [finding for finding in found if everything or finding.is_open]
    kept = matching[-limit:]
    if as_json:
        told = {"findings": [one.to_json() for one in kept], "more": len(matching) - len(kept)}
        print(json.dumps(told | {"looked": looked}))
    else:
        show_list(kept, len(matching) - len(kept), now_us, Console())
    acting = any(one.is_open and one.lane == "act" for one in matching)
    raise typer.Exit(1 if check and acting else 0)


@group.command()
def show(
    identity: Identity,
    reason: LookReason = "",
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """One finding: its evidence, the records it names, and what people said of it. The look itself
    is recorded first."""
    from authz.store import findings as stored

    look = look_of("findings show", reason, {"finding": identity})
    options = sources(file, store, receiver)

    def ask(client: "Client") -> "tuple[Finding, list[Record]]":
        finding = _found(client, identity)
        found = stored.named(client, finding.records, finding.sealed_at)
        return finding, list(found.values())

    finding, records = asking(options, ask)
    patients = [token for record in records for token in _texts(record, "patients")]
    looked = look(options, data_dir, list(dict.fromkeys(patients)))
    if as_json:
        print(json.dumps(finding.to_json() | {"named": records, "looked": looked}))
    else:
        show_one(finding, records, Console())


@group.command()
def acknowledge(
    identity: Identity,
    reason: Reason,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say that somebody looks into a finding. It stays open."""
    _say("acknowledged", identity, reason, sources(file, store, receiver), data_dir, as_json)


@group.command()
def explain(
    identity: Identity,
    reason: Reason,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Close a finding: there was a reason for what was done."""
    _say("explained", identity, reason, sources(file, store, receiver), data_dir, as_json)


@group.command()
def confirm(
    identity: Identity,
    reason: Reason,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Close a finding: there was no reason for what was done."""
    _say("confirmed", identity, reason, sources(file, store, receiver), data_dir, as_json)


def _say(
    act: "Act", identity: str, reason: str, options: config.Config, data_dir: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    from authz.report.findings import opinion

    why = as_given("--reason", reason, "reason")
    finding = asking(options, lambda client: _found(client, identity))
    by = user()
    not_oneself(by, finding.subject)
    record = opinion(act, finding, why, by, time.time_ns() // 1000)
    told = record_it(options.ext_authz, data_dir, record)
    said = {"finding": finding.id, "state": act, "subject": finding.subject, "reason": why,
            "by": by, "origin": told.origin, "writer": told.writer}  # fmt: skip
    print(json.dumps(said) if as_json else f"{printable(finding.id)} is {act}")


def not_oneself(by: str, subject: str) -> None:
    """Raises `UsageError` where somebody would judge what they did themselves."""
    if by == subject:
        raise UsageError(f"{by} is whom this is about; somebody else has to say it")


def sources(file: Path | None, store: str | None, receiver: str | None) -> config.Config:
    """The configuration, with a store and a receiver in it."""
    options = config.load(file, given(store=store, ext_authz__receiver=receiver))
    if options.store is None:
        raise UsageError("--store is missing: clickhouse://user:password@host:9000/database")
    if options.ext_authz.receiver is None:
        raise UsageError("--receiver is missing: what is looked at or said here is recorded")
    return options


def asking(options: config.Config, ask: "Callable[[Client], T]") -> T:
    """What the database answers."""
    from authz.store import migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    assert options.store is not None
    try:
        with connect(options.store) as client:
            migrations.check(client)
            return ask(client)
    except QUERY_ERRORS as error:
        raise explain(error, options.store) from None


def look_of(
    command: str, reason: str, asked: Mapping[str, object]
) -> Callable[[config.Config, Path | None, Sequence[str]], dict[str, object]]:
    """What puts this look on record, with the patients it shows: before anything is shown."""
    why = as_given("--reason", reason, "reason") if reason else ""

    def record(
        options: config.Config, data_dir: Path | None, patients: Sequence[str]
    ) -> dict[str, object]:
        from authz.report.looks import look_notice

        now_us = time.time_ns() // 1000
        told = record_it(
            options.ext_authz, data_dir,
            look_notice(command, user(), why, "", patients, now_us, asked),
        )  # fmt: skip
        return {"origin": told.origin, "writer": told.writer, "seq": told.seq}

    return record


def _found(client: "Client", identity: str) -> "Finding":
    from authz.report.findings import find_one

    place = read_place(identity)
    if place is None:
        raise UsageError(f"ID {identity}: want a log and an index, such as demo/receiver@10")
    finding = find_one(client, *place)
    if finding is None:
        raise UsageError(f"ID {identity}: no finding is there; see: authz findings list --all")
    return finding


def show_list(findings: "Sequence[Finding]", more: int, now_us: int, console: Console) -> None:
    """The findings as a person reads them, the newest last."""
    if findings:
        table = Table()
        short = all_short(one.id for one in findings)
        table.add_column("time (UTC), id", overflow="fold", no_wrap=short)
        for name in ("rule", "who", "evidence", "state"):
            table.add_column(name, overflow="fold")
        for one in findings:
            when = Text(f"{shown(one.time)}\n")
            when.append(f"{age(now_us - one.time)} ago\n{printable(one.id)}", "dim")
            rule = Text(printable(one.lane), _LANES.get(one.lane, "none"))
            rule.append(f"\n{printable(one.rule)}", "none")
            saw = one.evidence.splitlines()[0] if one.evidence else ""
            table.add_row(when, rule, _who(one), Text(printable(saw)), _state(one))
        console.print(table)
    if more:
        console.print(f"[yellow]and {more} older findings[/]; --limit shows more")
    acting = sum(one.is_open and one.lane == "act" for one in findings)
    open_ = sum(one.is_open for one in findings)
    console.print(f"[bold]{open_} open[/], {acting} of them to act on now")


def show_one(finding: "Finding", records: Sequence[Record], console: Console) -> None:
    """One finding in full."""
    head = Text(printable(finding.rule), "bold")
    head.append(f"  {printable(finding.lane)}", _LANES.get(finding.lane, "none"))
    head.append(f"  score {finding.score_milli / 1000:g}  {shown(finding.time)} UTC  ", "none")
    console.print(head.append(printable(finding.id), "dim"))
    console.print(Text.assemble("about ", _who(finding)))
    for line in finding.evidence.splitlines():
        console.print(Text(printable(line)))
    if cause := finding.details.get("cause"):
        console.print(Text(printable(f"cause: {cause}"), "dim"))
    if records:
        console.print(_records(records))
    if missing := len(finding.records) - len(records):
        console.print(f"[yellow]{missing} of the {len(finding.records)} records that it names are"
                      " not in the database[/]")  # fmt: skip
    for one in finding.said:
        said = Text(f"{shown(one.time)} UTC ")
        said.append(one.act, _STATES[one.act])
        console.print(said.append(f" by {printable(one.by)}: {printable(one.reason)}", "none"))
    console.print(Text.assemble("state: ", (finding.state, _STATES[finding.state])))


def _records(records: Sequence[Record]) -> Table:
    table = Table()
    for name in ("time (UTC), record", "who", "what", "patients", "outcome"):
        table.add_column(name, overflow="fold")
    for record in records:

        def told(name: str, record: Record = record) -> str:
            return printable(str(record.get(name, "")))

        when = Text(shown(_number(record, "time")))
        when.append(f"\n{told('kind')} {told('origin')}@{_number(record, 'index')}", "dim")
        patients = _texts(record, "patients")
        few = [printable(token) for token in patients[:_SHOWN_PATIENTS]]
        if more := len(patients) - len(few):
            few.append(f"and {more} more")
        allowed = bool(record.get("allowed"))
        outcome = Text("allowed" if allowed else "not allowed", "green" if allowed else "red")
        if record.get("break_glass"):
            outcome.append("\nbroken glass", "bold yellow")
        outcome.append(f"\n{told('reason')}", "not bold none")
        what = Text(f"{told('method')} {told('path')}".strip())
        table.add_row(when, Text(told("subject")), what, Text("\n".join(few)), outcome)
    return table


def _who(finding: "Finding") -> Text:
    if finding.subject:
        return Text(printable(finding.subject), "bold")
    if finding.source_ip:
        return Text(f"(nobody) from {printable(finding.source_ip)}")
    return Text(f"(everybody) {printable(finding.tenant)}".strip())


def _state(finding: "Finding") -> Text:
    state = Text(finding.state, _STATES[finding.state])
    if said := finding.counts:
        state.append(f"\nby {printable(said.by)}\n{shown(said.time)}", "not bold dim")
    return state


def all_short(ids: Iterable[str]) -> bool:
    """Whether a column may be as wide as `ids` are, so that they can be copied."""
    return all(len(printable(one)) <= 40 for one in ids)


def age(past_us: int) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(past_us // 1_000_000, 0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _number(record: Record, name: str) -> int:
    value = record.get(name, 0)
    return value if isinstance(value, int) else 0


def _texts(record: Record, name: str) -> list[str]:
    value = record.get(name)
    return value if isinstance(value, list) else []
