"""``authz init``: a few questions, and a deployment."""

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from authz.cli.app import Json, app
from authz.errors import UsageError
from authz.init import Answers, Durability, Platform, plan
from authz.init.answers import PLATFORM, QUESTIONS, Question
from authz.init.plan import refuse_used

if TYPE_CHECKING:
    from authz.init import Plan
    from authz.init.checks import Check

_MARKS = {"ok": "[green]ok[/]", "failed": "[bold red]failed[/]",
          "unchecked": "[yellow]not checked[/]"}  # fmt: skip


@app.command("init")
def init(
    directory: Annotated[
        Path | None, typer.Argument(help="A new directory for it.", show_default=False)
    ] = None,
    platform: Annotated[Platform | None, typer.Option(help="Where it is to run.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What the service is called in the records.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="What logs are called, for good: NAME/receiver-...")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="The service's namespace (default: its name).")
    ] = None,
    authz_namespace: Annotated[
        str | None, typer.Option(help="authz's own namespace (default: authz).")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Where authz's image is: registry/authz:tag or @digest.")
    ] = None,
    manifests: Annotated[
        str | None,
        typer.Option(help="The service's manifests: a file, a directory, or `sample`."),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="Where the service listens, host:port; on `local` also `sample`."),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Where Envoy listens, host:port.")] = None,
    jwks: Annotated[
        str | None,
        typer.Option(
            help="Public keys of the tokens' issuer: a file or https://; on `local` also `sample`."
        ),
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="`iss` of the tokens, https://...")] = None,
    audience: Annotated[
        str | None, typer.Option(help="`aud` of the tokens (default: the name).")
    ] = None,
    clickhouse: Annotated[
        str | None,
        typer.Option(help="host:port, or clickhouse://host:port/authz?...; without a user."),
    ] = None,
    durability: Annotated[
        Durability | None,
        typer.Option(help="Whose disk an answer waits for: ext-authz's own, or the receiver's."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="`sample`, a directory, or https:// of a signed bundle (clusters)."),
    ] = None,
    bundle_key: Annotated[str | None, typer.Option(help="The bundle's public key, PEM.")] = None,
    console_url: Annotated[str | None, typer.Option(help="The console's address.")] = None,
    oidc_issuer: Annotated[
        str | None, typer.Option(help="Where people sign in (default: the tokens' issuer).")
    ] = None,
    oidc_client: Annotated[str | None, typer.Option(help="As which client.")] = None,
    oidc_secret: Annotated[str | None, typer.Option(help="File with the client's secret.")] = None,
    hostname: Annotated[
        list[str] | None, typer.Option(help="A name clients call it by. May be repeated.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask a few questions, and write a deployment for the chosen platform into a new directory.

    Whatever an option says is not asked. Passwords and keys are made, in files for their owner
    alone. Exit code 1: what was written did not pass its own checks.
    """
    from authz.init import checks as looks

    given = {
        "platform": platform, "name": name, "cluster": cluster, "namespace": namespace,
        "authz_namespace": authz_namespace, "image": image, "manifests": manifests,
        "upstream": upstream, "listen": listen, "jwks": jwks, "issuer": issuer,
        "audience": audience, "clickhouse": clickhouse, "durability": durability,
        "policy": policy, "bundle_key": bundle_key, "console_url": console_url,
        "oidc_issuer": oidc_issuer, "oidc_client": oidc_client, "oidc_secret": oidc_secret,
    }  # fmt: skip
    if directory is not None:
        refuse_used(directory)
    answers = _answers(
        {key: str(value) for key, value in given.items() if value is not None},
        tuple(hostname or ()),
        ask=not yes,
    )
    if directory is None:
        place = f"authz-{answers.platform}"
        directory = Path(place if yes else _ask("Into which new directory?", place, "DIRECTORY"))
        refuse_used(directory)
    made = plan(answers)
    files = made.write(directory)
    console = Console(stderr=as_json, highlight=False)
    console.print(f"\n[bold]{escape(str(directory))}[/]: {len(files)} files")
    checks = []
    for one in looks.check(answers, directory):
        checks.append(one)
        console.print(f"  {_MARKS[one.state]}  {one.what}: {escape(one.told)}", soft_wrap=True)
    if as_json:
        print(json.dumps(_json(answers, directory, files, checks, made)))
    else:
        _next(console, directory, made)
    raise typer.Exit(1 if any(one.state is looks.State.FAILED for one in checks) else 0)


def _answers(given: dict[str, str], hostnames: tuple[str, ...], *, ask: bool) -> Answers:
    """Every answer, from options, from the person, or by default. Raises `UsageError`."""
    answers = Answers(Platform(_one(PLATFORM, given.pop("platform", None), None, ask=ask)))
    for question in QUESTIONS:
        here = answers.platform in question.on
        value = given.get(question.name)
        if question.many:
            values = hostnames
            if here and not values and (one := _one(question, None, answers, ask=ask)):
                values = (one,)
            if values and not here:
                raise question.wrong(f"has no meaning on {answers.platform}; leave it out")
            checked = tuple(question.checked(each, answers) for each in values)
            answers = replace(answers, hostnames=checked)
        elif here:
            answers = answers.having(question.name, _one(question, value, answers, ask=ask))
        elif value is not None:
            raise question.wrong(f"has no meaning on {answers.platform}; leave it out")
    return answers


def _one(question: Question, value: str | None, answers: Answers | None, *, ask: bool) -> str:
    known = answers or Answers(Platform.LOCAL)
    if value is not None:
        return question.checked(value, known)
    default = question.default(known)
    if ask and (answers is None or answers.platform in question.asked):
        return _asked(question, known, default)
    if default is None:
        raise question.wrong("is missing; give it")
    return question.checked(default, known) if default else default


def _asked(question: Question, answers: Answers, default: str | None) -> str:
    """Asked again as long as a person is there to mend the answer."""
    choices = question.choices(answers)
    text = question.text + (f" ({', '.join(choices)})" if choices else "")
    while True:
        value = _ask(text, default, question.option)
        try:
            return question.checked(value, answers)
        except UsageError as error:
            if not sys.stdin.isatty():
                raise
            typer.echo(f"  {error}", err=True)


def _ask(text: str, default: str | None, option: str) -> str:
    try:
        return str(typer.prompt(text, default=default, err=True, prompt_suffix="\n  > "))
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise UsageError(
            f"{option}: the answers end before this one; give the option, or --yes for defaults"
        ) from None


def _json(
    answers: Answers, directory: Path, files: list[str], checks: "list[Check]", made: "Plan"
) -> dict[str, object]:
    return {
        "platform": answers.platform,
        "directory": str(directory),
        "files": files,
        "checks": [asdict(one) for one in checks],
        "next": [{"what": text, "command": command} for text, command in made.steps],
    }


def _next(console: Console, directory: Path, made: "Plan") -> None:
    console.print("\nNext (NEXT.md there says it again):\n")
    console.print(f"     [bold]cd {escape(shlex.quote(str(directory)))}[/]", soft_wrap=True)
    for number, (text, command) in enumerate(made.steps, 1):
        console.print(f"  {number:>2} {escape(text)}", soft_wrap=True)
        if command:
            console.print(f"     [bold]{escape(command)}[/]", soft_wrap=True)
