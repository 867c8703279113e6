"""``authz retention apply``, ``hold``, ``release``, ``show``."""

import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Receiver, as_given, own_directory, record_all, record_it, user
from authz.cli.lookup import identifiers_of, keys_of, printable, tokens_of
from authz.cli.times import moment, shown
from authz.errors import UsageError
from authz.retention import (
    SIX_YEARS,
    Expiry,
    Hold,
    Rule,
    expired_notice,
    hold_notice,
    holds_in_force,
    release_notice,
)
from authz.trust import load_trust

if TYPE_CHECKING:
    from authz.cli.expire import Outcome
    from authz.serve.tell import Told
    from authz.store.client import Client

_SKEW_US = 3600 * 1_000_000

group = typer.Typer(no_args_is_help=True, help="What expires, and what is held.")
app.add_typer(group, name="retention")

Trust = Annotated[
    Path | None, typer.Option(help="Trust file: checkpoints must bear a signature it accepts.")
]
Why = Annotated[str, typer.Option(help="Why; it is recorded.")]
PrivacyKeyFile = Annotated[Path | None, typer.Option(help="Privacy key file.")]


@group.command()
def apply(
    older_than: Annotated[str, typer.Option(help="How long records are kept: 6y, 2555d.")] = "6y",
    sealed_older_than: Annotated[
        str | None, typer.Option(help="The same for sealed inputs (privacy.sealed_retention).")
    ] = None,
    override: Annotated[
        str, typer.Option(help="Why records expire before six years; it is recorded.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    trust: Trust = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Drop what is older than the rule, except what is held; its hashes stay, and a signed notice
    of it."""
    from authz.cli.expire import Order, expire
    from authz.store import retention

    now_us = time.time_ns() // 1000
    options = config.load(
        file,
        given(
            store=store, ext_authz__receiver=receiver, privacy__sealed_retention=sealed_older_than
        ),
    )
    rule = Rule.parse(older_than)
    sealed_rule = _sealed_rule(options.privacy.sealed_retention, rule, now_us)
    shorter = rule.shorter_than(SIX_YEARS, now_us)
    if shorter and not override:
        raise UsageError(
            f"--older-than {rule} is shorter than six years; say why it may be: --override REASON"
        )
    order = Order(
        rule, rule.before(now_us), sealed_rule, sealed_rule.before(now_us), user(),
        as_given("--override", override, "reason") if shorter else "",
        None if trust is None else {log.origin: log.keys for log in load_trust(trust)},
    )  # fmt: skip
    if options.ext_authz.receiver is None and not dry_run:
        raise UsageError("--receiver is missing: what expires is recorded before it is dropped")

    def tell(expiries: Sequence[Expiry]) -> "Told":
        return _told(options.ext_authz, data_dir, expiries)

    with _database(options) as client, _Bar() as bar:
        if abs(retention.now(client) - now_us) > _SKEW_US:
            raise UsageError("this machine's clock and ClickHouse's are an hour apart; mend them")
        outcome = expire(client, order, None if dry_run else tell, bar)
    if as_json:
        print(json.dumps(outcome.to_json() | {"dry_run": dry_run}))
    else:
        show_outcome(outcome, Console(), dry_run=dry_run)


@group.command()
def hold(
    reason: Why,
    subject: Annotated[str, typer.Option(help="The person, as decisions record them.")] = "",
    patient: Annotated[
        list[str] | None,
        typer.Option(help="Identifier, as requests have it; - reads some from standard input."),
    ] = None,
    window: Annotated[
        str, typer.Option(help="FROM,UNTIL, such as 2026-01-01,2026-02-01 (before that).")
    ] = "",
    file: ConfigFile = None,
    receiver: Receiver = None,
    privacy_key: PrivacyKeyFile = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Keep all records of a person, of patients, or of a time from expiring, until released."""
    if sum(map(bool, (subject, patient, window))) != 1:
        raise UsageError("want one of --subject, --patient and --window; each hold is of one kind")
    now_us = time.time_ns() // 1000
    why = as_given("--reason", reason, "reason")
    options = config.load(file, given(ext_authz__receiver=receiver, privacy__key=privacy_key))
    named: dict[str, Any] = {}
    key_id = ""
    if subject:
        named["subject"] = as_given("--subject", subject, "subject")
    elif patient:
        identifiers, keys = identifiers_of(patient), keys_of(options)
        named["patients"] = tuple(t for own in tokens_of(keys, identifiers) for t in own)
        key_id = keys[0].id
    else:
        named["since_us"], named["until_us"] = _window(window, now_us)
    held = Hold(f"hold-{secrets.token_hex(4)}", why, user(), **named)
    told = record_it(options.ext_authz, data_dir, hold_notice(held, now_us), key_id)
    if as_json:
        print(json.dumps(_hold_json(held) | {"origin": told.origin, "writer": told.writer}))
    else:
        print(f"{held.id}: nothing of {held} expires until: authz retention release {held.id}")


@group.command()
def release(
    hold_id: Annotated[str, typer.Argument(help="As `hold` and `show` print it.")],
    reason: Why,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Lift a hold: what it named expires by the rules, from the next `apply` on."""
    from authz.store import retention

    why = as_given("--reason", reason, "reason")
    options = config.load(file, given(store=store, ext_authz__receiver=receiver))
    with _database(options) as client:
        in_force = holds_in_force(retention.read_notices(client))
    if hold_id not in {held.id for held in in_force}:
        known = ", ".join(printable(held.id) for held in in_force) or "none"
        raise UsageError(f"{hold_id} is no hold in force; those are: {known}")
    record = release_notice(hold_id, why, user(), time.time_ns() // 1000)
    told = record_it(options.ext_authz, data_dir, record)
    said = {"id": hold_id, "origin": told.origin, "writer": told.writer}
    print(json.dumps(said) if as_json else f"{hold_id} is lifted")


@group.command()
def show(
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What is on hold, what has expired and by whose word, and this command's own key."""
    from authz.store import retention
    from authz.verify.expiry import Expiries

    options = config.load(file, given(store=store, ext_authz__receiver=receiver))
    with _database(options) as client:
        notices = list(retention.read_notices(client))
    holds = holds_in_force(notices)
    expiries = Expiries(notices)
    told = expiries.told()
    key = _own_key(options.ext_authz, data_dir)
    if as_json:
        expired = [_expiry_json(one) for one in told]
        held = [_hold_json(one) for one in holds]
        print(json.dumps({"holds": held, "expired": expired, "key": key}))
    else:
        show_holds(holds, told, Console(), key)


def show_outcome(outcome: "Outcome", console: Console, *, dry_run: bool) -> None:
    """What was dropped, as a person reads it."""
    order = outcome.order
    if outcome.nothing:
        console.print(f"nothing to drop: nothing of before {_day(order.before_us)} expires")
    else:
        table = Table()
        for name in ("log", "records that go", "that stay", "first that does not expire"):
            table.add_column(name)
        for one in outcome.logs:
            table.add_row(printable(one.origin), str(one.dropped), str(one.kept), str(one.end))
        if outcome.logs:
            console.print(table)
        would = "would go" if dry_run else "dropped"
        count = sum(one.dropped for one in outcome.logs)
        console.print(
            f"[bold]{count} records {would}[/], sealed before {_day(order.before_us)}"
            f" (rule {order.rule}), and {outcome.sealed} sealed inputs of before"
            f" {_day(order.sealed_before_us)} (rule {order.sealed_rule})"
        )
    console.print(f"{len(outcome.holds)} holds in force, {outcome.sealed_kept} sealed inputs held")
    if order.keys is None:
        console.print("[yellow]no --trust[/]: the signatures under checkpoints were not looked at")
    if outcome.notice:
        console.print(f"on record: {printable(outcome.notice.origin)}/{outcome.notice_index}")


def show_holds(
    holds: Sequence[Hold], expired: Sequence[Expiry], console: Console, key: str
) -> None:
    """Both as a person reads them."""
    table = Table(title="On hold")
    for name in ("id", "what", "why", "by", "since"):
        table.add_column(name, overflow="fold")
    for one in holds:
        what = f"{_day(one.since_us)} to {_day(one.until_us)}" if one.until_us else str(one)
        told = (one.id, what, one.reason, one.by)
        table.add_row(*map(printable, told), shown(one.sealed_at))
    console.print(table)
    table = Table(title="Expired")
    for name in ("notice", "rule", "sealed before", "records", "by", "why so soon"):
        table.add_column(name, overflow="fold")
    for notice in expired:
        origin, index = notice.place
        count = sum(len(one.gone) for one in notice.ranges)
        told = (f"{origin}/{index}", str(notice.rule), _day(notice.before_us), str(count))
        table.add_row(*map(printable, (*told, notice.by, notice.override)))
    console.print(table)
    if key:
        console.print(f"this command's key, for a trust file's expiry_writers:\n  {key}")


def _told(options: config.ExtAuthz, data_dir: Path | None, expiries: Sequence[Expiry]) -> "Told":
    """The notices signed by this command's own writer, in the log."""
    from authz.journal.chain import load_identity

    directory = data_dir or own_directory(str(options.receiver))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        signer = load_identity(directory / "writer.json").signer
    except OSError as error:
        raise UsageError(
            f"--data-dir {directory}: {error.strerror}; choose a directory this user may write"
        ) from None
    now_us = time.time_ns() // 1000
    notices = [expired_notice(expiry.signed(signer), now_us) for expiry in expiries]
    return record_all(options, directory, notices)


def _own_key(options: config.ExtAuthz, data_dir: Path | None) -> str:
    """The verifier key of this command's writer, once there is one."""
    from authz.journal.chain import load_identity

    if data_dir is None and options.receiver is None:
        return ""
    path = (data_dir or own_directory(str(options.receiver))) / "writer.json"
    return str(load_identity(path).signer.verifier) if path.exists() else ""


def _sealed_rule(told: str | None, rule: Rule, now_us: int) -> Rule:
    """Sealed inputs expire with their records at the latest: without these they say nothing."""
    if told is None:
        return rule
    own = Rule.parse(told, "--sealed-older-than (privacy.sealed_retention)")
    return own if own.shorter_than(rule, now_us) else rule


def _window(told: str, now_us: int) -> tuple[int, int]:
    since, _, until = told.partition(",")
    window = moment("--window", since, now_us), moment("--window", until, now_us)
    if window[0] >= window[1]:
        raise UsageError(f"--window {told}: want FROM,UNTIL, the later one last")
    return window


@contextmanager
def _database(options: config.Config) -> "Iterator[Client]":
    from authz.store import migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    url = options.database
    try:
        with connect(url) as client:
            migrations.check(client)
            yield client
    except QUERY_ERRORS as error:
        raise explain(error, url) from None


class _Bar:
    """A progress bar on the terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True,
                        disable=not sys.stderr.isatty())  # fmt: skip
        self._task = self._bar.add_task("")

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int | None = None) -> None:
        self._bar.reset(self._task, description=what, total=total)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)


def _hold_json(held: Hold) -> dict[str, object]:
    told: dict[str, object] = {"id": held.id, "reason": held.reason, "by": held.by}
    if held.subject:
        told["subject"] = held.subject
    if held.patients:
        told["patients"] = len(held.patients)
    if held.until_us:
        told["window"] = {"since": held.since_us, "until": held.until_us}
    return told


def _expiry_json(notice: Expiry) -> dict[str, object]:
    origin, index = notice.place
    count = sum(len(one.gone) for one in notice.ranges)
    told = {"origin": origin, "index": index, "rule": str(notice.rule), "by": notice.by}
    told |= {"before": notice.before_us, "records": count}
    return told | ({"override": notice.override} if notice.override else {})


def _day(time_us: int) -> str:
    return shown(time_us)[:10]
