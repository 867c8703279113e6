"""``authz lookup``."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Purpose, Receiver, as_given, record_it, user
from authz.cli.times import moment, shown
from authz.errors import UnavailableError, UsageError
from authz.record import FIELD
from authz.record.privacy import PrivacyKey, load_key
from authz.record.shown import printable

if TYPE_CHECKING:
    from authz.report import Lookup, Request

__all__ = ["count", "identifiers_of", "keys_of", "lookup", "printable", "show", "tokens_of"]

_STYLES = {
    "allowed": "green", "denied": "red", "rejected": "red", "dry-run": "yellow",
    "unasked": "bold red",
}  # fmt: skip
_REVISION_SHOWN = 12  # of the 64 digits of a policy's revision: `authz policy show` takes as few


@app.command()
def lookup(
    patient: Annotated[
        list[str],
        typer.Option(
            help="Identifier, as requests have it: p-0042; - reads some from standard input."
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why you look; it is recorded.")],
    purpose: Purpose = "",
    since: Annotated[
        str | None, typer.Option(help="From 2026-11-01, 2026-11-01T08:30 or 7d ago on.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then, in the same forms.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Show so many requests, the newest.")
    ] = 1000,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Annotated[
        Path | None, typer.Option(help="Privacy key file: a copy of the one that ext-authz has.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Who saw a patient: when, in what role, why, and what. The look itself is recorded first."""
    from authz.report.looks import look_notice
    from authz.report.lookup import look_up
    from authz.store import migrations
    from authz.store.client import QUERY_ERRORS, connect, explain
    from authz.store.lookups import Window

    now_us = time.time_ns() // 1000
    why = as_given("--reason", reason, "reason")
    code = as_given("--purpose", purpose, "purpose") if purpose else ""
    identifiers = identifiers_of(patient)
    window = Window(
        None if since is None else moment("--since", since, now_us),
        None if until is None else moment("--until", until, now_us),
    )
    options = config.load(
        file, given(store=store, ext_authz__receiver=receiver, privacy__key=privacy_key)
    )
    url = options.database
    if options.ext_authz.receiver is None:
        raise UsageError(
            "--receiver is missing: a look is recorded before anything is shown; or --config FILE,"
            " with ext_authz.receiver in it"
        )
    keys = keys_of(options)
    patients = tokens_of(keys, identifiers)
    tokens = [token for own in patients for token in own]
    asked = {"since": window.since_us or 0, "until": window.until_us or 0, "limit": limit}
    notice = look_notice("lookup", user(), why, code, tokens, now_us, asked)
    try:
        with connect(url) as client:
            migrations.check(client)
            told = record_it(options.ext_authz, data_dir, notice, keys[0].id)
            found = look_up(client, patients, window, limit)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    could_not_tell = not found.requests and found.other_keys
    if as_json:
        looked = {"origin": told.origin, "writer": told.writer, "seq": told.seq}
        print(json.dumps(found.to_json() | {"looked": looked}))
    elif not could_not_tell:
        show(found, Console(), several=len(patients) > 1)
    if could_not_tell:
        raise UnavailableError(
            f"nobody is found, but records are under other privacy keys: {_listed(found)};"
            " give their files as privacy.old_keys"
        )
    raise typer.Exit(0 if found.requests else 1)


def show(found: "Lookup", console: Console, *, several: bool = False) -> None:
    """The answer as a person reads it; `several` patients were asked for."""
    if found.requests:
        console.print(_table(found, several=several))
    if found.more:
        console.print(f"[yellow]and {found.more} older requests[/]; --limit shows more")
    if found.requests:
        console.print(
            f"[bold]{count(found.people, 'person', 'people')},"
            f" {count(found.total, 'request', 'requests')}[/], {found.denied} denied,"
            f" between {shown(found.first)} and {shown(found.last)} UTC"
        )
        console.print(Text(_legend(found.requests), "dim"))
    else:
        console.print("[bold]nobody[/]: no record in this time names this patient")
    if not found.disclosures:
        console.print(
            "[yellow]no answer was looked into in this time[/]:"
            " who is known saw what their request named"
        )
    elif found.unresolved:
        console.print(
            f"{count(found.unresolved, 'answer', 'answers')} in this time could not be resolved:"
            " whose data they held is not known in full",
            style="yellow",
        )
    else:
        console.print("of every answer in this time it is known whose data it held")
    if found.other_keys:
        console.print(
            Text.assemble(
                ("note", "yellow"),
                f": records are under privacy keys that were not given: {_listed(found)}",
            )
        )


def _table(found: "Lookup", *, several: bool) -> Table:
    table, requests = Table(show_lines=True), found.requests
    several_policies = len(_revisions(requests)) > 1
    for name in ("time (UTC), records", "who", "why", "what", "outcome, known by"):
        table.add_column(name, overflow="fold")
    for request in requests:
        when = Text(shown(request.time))
        if several:
            when.append(f"\npatient {', '.join(map(str, request.patients))}")
        when.append("\n" + _places(request.records), "dim")
        who = Text(printable(request.subject) or "(nobody)", "bold")
        who.append(_below(", ".join(request.roles)), "not bold dim")
        why = Text("broken glass\n" if request.break_glass else "", "bold yellow")
        why.append(printable(": ".join(filter(None, (request.purpose, request.reason)))), "none")
        if several_policies and request.policy_revision:
            why.append(_below(f"policy {request.policy_revision[:_REVISION_SHOWN]}"), "dim")
        if found.feeds:
            why.append(_explained(request, several=several))
        what = Text(" ".join(filter(None, (request.doing, printable(request.resource_type)))))
        what.append(_below(f"{request.method} {request.path}".strip()), "dim")
        what.append(_below(f"from {request.source_ip}" if request.source_ip else ""), "dim")
        outcome = Text(request.outcome, _STYLES[request.outcome])
        outcome.append(f"\n{'answered' if request.answered else 'no answer'}", "not bold dim")
        outcome.append(f"\nby {', '.join(request.known)}", "not bold dim")
        table.add_row(when, who, why, what, outcome)
    return table


def _explained(request: "Request", *, several: bool) -> Text:
    """By which of the loaded reasons, or that there is none; of `several` patients, of each."""
    known = {one.patient: one for one in request.explained}
    told = Text()
    for patient in request.patients:
        one, whose = known.get(patient), f"patient {patient} " if several else ""
        if one is None:
            told.append(f"\n{whose}nothing known explains it", "yellow")
        else:
            what = called(one.kind) + interval(one.since, one.until)
            told.append(f"\n{whose}explained by: {printable(what)}", "green")
    return told


def called(kind: str) -> str:
    """A kind of reason, in words."""
    return "department census" if kind == "census" else kind.replace("_", " ")


def interval(since: int, until: int) -> str:
    """The days of an interval, UTC, after a comma; nothing if it is open on both sides."""
    first, last = (shown(at)[:10] for at in (since, until))
    if not since and not until:
        return ""
    if not until:
        return f", since {first}"
    if first == last:
        return f", {first}"
    return f", {first} to {last}" if since else f", until {last}"


def _revisions(requests: Sequence["Request"]) -> list[str]:
    """Of the policies that decided, shortened, in the order of their first request."""
    told = (request.policy_revision[:_REVISION_SHOWN] for request in requests)
    return list(dict.fromkeys(filter(None, told)))


def _legend(requests: Sequence["Request"]) -> str:
    """What the table's words mean, and where the rules behind it are."""
    lines = [
        "answered: the service answered, so that something was seen",
        "by request: it named the patient; by answer: the answer held their data, as searches' do",
    ]
    rules = [f"authz policy show {printable(one)}" for one in _revisions(requests)]
    return "\n".join(lines + ([f"the rules behind it: {', '.join(rules)}"] if rules else []))


def _places(records: Sequence[str]) -> str:
    """Record ids, each log's name once: demo/receiver/10, 11."""
    by_log: dict[str, list[str]] = {}
    for record in records:
        origin, _, index = record.rpartition("/")
        by_log.setdefault(origin, []).append(index)
    return "\n".join(f"{printable(log)}/{', '.join(own)}" for log, own in by_log.items())


def _below(text: str) -> str:
    return f"\n{printable(text)}" if text else ""


def count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _listed(found: "Lookup") -> str:
    return ", ".join(map(printable, found.other_keys))


def keys_of(options: config.Config) -> list[PrivacyKey]:
    """The deployment's key, then those before it. None is made here: it would find nothing."""
    first = options.privacy.key or options.data_dir / "privacy.key"
    for path in (first, *options.privacy.old_keys):
        if not path.is_file():
            raise UnavailableError(
                f"{path}: no privacy key is there; give a copy of the one that ext-authz has"
                " (--privacy-key, privacy.old_keys)"
            )
    try:
        return [load_key(path) for path in (first, *options.privacy.old_keys)]
    except OSError as error:
        raise UnavailableError(f"{error.filename}: {error.strerror}") from None


def identifiers_of(given: Sequence[str]) -> list[str]:
    """Those of ``--patient``, in order and once. No message repeats one."""
    found: list[str] = []
    for one in given:
        if one == "-":
            lines = sys.stdin.buffer.read().decode("utf-8", "backslashreplace").splitlines()
            found += [line.strip() for line in lines]
        else:
            found.append(one.strip())
    found = list(dict.fromkeys(filter(None, found)))
    if not found:
        raise UsageError("--patient: want an identifier, as requests have it in their paths")
    return found


def tokens_of(keys: Sequence[PrivacyKey], identifiers: Sequence[str]) -> list[list[str]]:
    """Of each patient, the tokens under each key: as many as the record of a look can hold."""
    most = FIELD["patients"].items
    if len(keys) * len(identifiers) > most:
        raise UsageError(
            f"--patient: {len(identifiers)} patients under {len(keys)} keys are too many for one"
            f" look; give {most // len(keys)} at most"
        )
    # The keys' ids are different, or the same key was given twice.
    by_id = {key.id: key for key in keys}
    return [[key.token(one) for key in by_id.values()] for one in identifiers]
