"""``authz policy test|check|replay|build``: for who writes the policy, and for who reviews it."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from dataclasses import replace as replaced
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.config import Config
from authz.errors import UsageError
from authz.policy import replay as replaying
from authz.policy.replay import Recorded, Replay, opened
from authz.policy.review import Finding, Review
from authz.record.resource import Resources
from authz.record.sealing import SealingKey

if TYPE_CHECKING:
    from authz.policy.opa import OpaOptions

policy_group = typer.Typer(
    help="Test, check and replay a policy; see what was in force.", no_args_is_help=True
)
app.add_typer(policy_group, name="policy")

Source = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Directory, .rego file, bundle .tar.gz; or http(s)://, unix:// of an OPA server.",
    ),
]
Decision = Annotated[
    str | None, typer.Option(help="Path of the decision, such as envoy/authz/allow.")
]

_COLOURS = {"danger": "bold red", "warning": "yellow", "note": "dim"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN_GROUPS = 50


@policy_group.command("test")
def run_policy_tests(
    policy: Annotated[Path, typer.Option(help="Directory of the policy and its tests.")],
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Say how many of its lines the tests reach.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the policy's own tests, *_test.rego, with the `opa` program."""
    from authz.policy.rego_tests import run_tests

    tests = run_tests(policy, coverage=coverage)
    if as_json:
        print(json.dumps(tests.to_json()))
        raise typer.Exit(0 if tests.passed else 1)
    console = Console()
    wrong = [test for test in tests.tests if test.outcome in ("failed", "error")]
    table = Table(Column("test", overflow="fold"), "outcome", "where", "ms")
    for test in tests.tests:
        colour = {"passed": "green", "skipped": "yellow"}.get(test.outcome, "bold red")
        table.add_row(
            test.name, f"[{colour}]{test.outcome}[/]", f"{test.file}:{test.line}",
            f"{test.milliseconds:.1f}",
        )  # fmt: skip
    console.print(table)
    for test in wrong:
        console.print(f"[bold red]{test.outcome}[/]: {test.name} at {test.file}:{test.line}")
    skipped = sum(test.outcome == "skipped" for test in tests.tests)
    passed = len(tests.tests) - len(wrong) - skipped
    console.print(f"{passed} passed, {len(wrong)} failed, {skipped} skipped")
    if tests.coverage is not None:
        console.print(f"coverage {tests.coverage} %")
        for place in tests.uncovered:
            console.print(f"  not reached: {place}")
    raise typer.Exit(0 if tests.passed else 1)


@policy_group.command()
def check(
    file: ConfigFile = None,
    policy: Source = None,
    decision: Decision = None,
    as_json: Json = False,
) -> None:
    """Say what a policy reads, whether its decisions can be cached, and what is dangerous in it."""
    from authz.policy.examine import examine

    options = _options(file, policy, decision).ext_authz
    found = asyncio.run(examine(_opa(options), options.decision))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found, Console())
    raise typer.Exit(1 if found.dangers else 0)


def _opa(options: config.ExtAuthz) -> "OpaOptions":
    from authz.policy.opa import OpaOptions

    return OpaOptions(
        options.policy, options.opa_token, options.opa_ca, options.opa_cert, options.opa_key
    )


def show(found: Review, console: Console) -> None:
    """The review as a person reads it."""
    console.print(f"{found.decision}: {len(found.modules)} modules")
    table = Table(Column("reads", overflow="fold"), "where", title="What the decision reads")
    for read in found.reads:
        table.add_row(escape(read.path), ", ".join(str(at) for at in read.at))
    console.print(table)
    _why(console, "cached for a second", found.uncached)
    _why(console, "asked together with others (batches)", found.alone)
    if found.findings:
        table = Table("", "what", "where", title="What to look at")
        for finding in found.findings:
            colour = _COLOURS[finding.level]
            level = f"[{colour}]{finding.level}[/]"
            table.add_row(level, escape(finding.text), str(finding.at))
        console.print(table)
    if found.dangers:
        console.print("[bold red]dangerous[/]: this policy lets through what no rule allows")


def _why(console: Console, what: str, reasons: tuple[Finding, ...]) -> None:
    if not reasons:
        console.print(f"decisions can be {what}: [green]yes[/]")
        return
    console.print(f"decisions can be {what}: [yellow]no[/]")
    for reason in reasons:
        console.print(f"  {escape(reason.text)} ({reason.at})")


@policy_group.command()
def replay(
    key: Annotated[Path, typer.Option(help="The sealing key file.")],
    file: ConfigFile = None,
    store: Store = None,
    policy: Source = None,
    decision: Decision = None,
    since: Annotated[
        str, typer.Option(help="From when: 2026-01-31, 2026-01-31T08:00Z, or 7d, 24h, 30m ago.")
    ] = "7d",
    until: Annotated[str, typer.Option(help="Until when; the same forms.")] = "0s",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 10_000,
    only_counts: Annotated[
        bool, typer.Option("--counts", help="How many, and nobody's name: for other eyes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Decide recorded requests again on another policy: who would gain or lose access."""
    from authz.record.sealing import load_sealing_key

    options = _options(file, policy, decision, store)
    if options.store is None:
        raise UsageError("--store is missing: clickhouse://user:password@host:9000/database")
    window = _time("--since", since), _time("--until", until)
    opened = load_sealing_key(key, create=False)
    found = asyncio.run(_replay(options, opened, window, limit))
    if as_json:
        print(json.dumps(found.counted() if only_counts else found.to_json()))
    else:
        show_replay(found, Console(), only_counts=only_counts)
    raise typer.Exit(found.exit_code)


async def _replay(options: Config, key: SealingKey, window: tuple[int, int], limit: int) -> Replay:
    from authz.policy import source
    from authz.policy.examine import require
    from authz.policy.opa import is_server, wrapper
    from authz.policy.opa_ask import asking
    from authz.policy.opa_process import running
    from authz.policy.rego_ast import reads

    policy, decision = options.ext_authz.policy, options.ext_authz.decision
    with ExitStack() as stack:
        url = policy
        if not is_server(policy):
            files = source.load(Path(policy))
            url = stack.enter_context(running(files, {source.BATCH: wrapper(decision)}))
        async with asking(replaced(_opa(options.ext_authz), url=url), decision) as opa:
            modules = await opa.modules()
            require(modules, decision)
            known = reads([module.tree for module in modules], decision)
            found = Replay(notes=replaying.doubts(known))
            async for outcome in replaying.run(opa, known, _sealed(options, key, window, limit)):
                found.add(outcome)
    return found


def _sealed(
    options: Config, key: SealingKey, window: tuple[int, int], limit: int
) -> Iterator[Recorded]:
    """The sealed inputs of a time, opened."""
    from authz.store import migrations
    from authz.store.client import QUERY_ERRORS, connect, explain
    from authz.store.sealed import read_sealed

    assert options.store is not None
    resources = Resources(options.privacy.fhir_bases, options.privacy.templates)
    client = connect(options.store)
    try:
        migrations.check(client)
        for row in read_sealed(client, *window, limit):
            yield opened(row.decision_id, row.ciphertext, row.decision, key, resources)
    except QUERY_ERRORS as error:
        raise explain(error, options.store) from None


def show_replay(found: Replay, console: Console, *, only_counts: bool = False) -> None:
    """The replay as a reviewer reads it."""
    groups = [] if only_counts else found.groups()
    if groups:
        table = Table(
            "", "who", "roles", "what", "path", "reason before", "reason now", "requests",
            title="Who gains or loses access",
        )  # fmt: skip
        for group, count in groups[:_SHOWN_GROUPS]:
            colour = "green" if group.change == "gains" else "red"
            what = f"{group.method} {group.resource_type}".strip()
            table.add_row(
                f"[{colour}]{group.change}[/]",
                *map(escape, (
                    group.subject, ", ".join(group.roles), what, group.path, group.before,
                    group.after, str(count),
                )),
            )  # fmt: skip
        console.print(table)
        if len(groups) > _SHOWN_GROUPS:
            console.print(f"and {len(groups) - _SHOWN_GROUPS} groups more; --json lists them all")
    counts = found.counts
    console.print(
        f"{counts['gains']} gain, {counts['loses']} lose, {counts['same']} the same"
        f" ({found.other_reason} of them for another reason),"
        f" {counts['not replayable']} not replayable"
    )
    gaining, losing = found.people("gains"), found.people("loses")
    console.print(f"{gaining} people gain, {losing} people lose")
    for why_not, count in found.not_replayable.most_common():
        console.print(f"  {count} not replayable: {escape(why_not)}")
    for note in found.notes:
        console.print(f"[yellow]note[/]: {escape(note)}")
    if not counts:
        console.print("nothing was sealed in this time: see --since, and whether inputs are sealed")


@policy_group.command()
def build(
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle: a file .tar.gz.")],
    file: ConfigFile = None,
    policy: Source = None,
    decision: Decision = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="Private key, PEM: EC (P-256 and larger) or RSA.")
    ] = None,
    revision: Annotated[
        str, typer.Option(help="What OPA calls it, such as the commit it is made of.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a bundle for OPA servers of a policy, without its tests, and sign it."""
    from authz.policy import bundle, source

    options = _options(file, policy, decision).ext_authz
    files = source.load(Path(options.policy))
    made = bundle.build(files, options.decision, output, label=revision, key=signing_key)
    if as_json:
        print(json.dumps(asdict(made)))
        return
    signed = f"signed ({made.signed})" if made.signed else "not signed"
    print(f"{made.file}: {len(made.modules)} modules, {signed}")
    print(f"its decisions have the policy_revision {made.policy_revision}")


def _options(
    file: Path | None, policy: str | None, decision: str | None, store: str | None = None
) -> Config:
    options = given(store=store, ext_authz__policy=policy, ext_authz__decision=decision)
    found = config.load(file, options)
    if not found.ext_authz.policy:
        raise UsageError(
            "--policy is missing: a directory, a .rego file, a bundle .tar.gz, or the address of an"
            " OPA server (http://127.0.0.1:8181, unix:///run/opa.sock)"
        )
    return found


def _time(option: str, text: str) -> int:
    """Microseconds since the epoch; a time without a zone is UTC."""
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return (time.time_ns() // 1000) - int(ago[1]) * _UNITS[ago[2]] * 1_000_000
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} {text}: want 2026-01-31, 2026-01-31T08:00:00Z, or 7d, 24h, 30m ago"
        ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1_000_000)
