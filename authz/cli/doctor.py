"""``authz doctor``: is what stands around authz as it must be?"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from authz import config as configuration
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.config import Address, Config, HostPort
from authz.demo.stack import envoy_program
from authz.doctor import Finding, Level, exit_code, look
from authz.doctor.envoy import Envoy
from authz.errors import UnavailableError, UsageError

_STYLE = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.UNKNOWN: "magenta"}
_DRY_RUN = "DRY RUN"


@app.command()
def doctor(
    file: ConfigFile = None,
    envoy_config: Annotated[
        list[Path] | None,
        typer.Option(help="Envoy bootstrap or manifest, YAML or JSON. May be repeated."),
    ] = None,
    envoy_admin: Annotated[
        list[str] | None,
        typer.Option(help="Envoy's admin interface, host:port or unix:///path. May be repeated."),
    ] = None,
    envoy: Annotated[
        str | None,
        typer.Option(help="http(s)://host:port where clients come in: tries the hop count."),
    ] = None,
    path: Annotated[str, typer.Option(help="What to GET there; best a path of nothing.")] = "/",
    token_file: Annotated[
        Path | None, typer.Option(help="Bearer token for that request, in a file.")
    ] = None,
    client_address: Annotated[
        str | None,
        typer.Option(help="This host's address as the outermost proxy sees it, if not its own."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds until the request's record must be there.")
    ] = 15,
    store: Store = None,
    ext_authz: Annotated[
        list[str] | None,
        typer.Option(help="The Check server, host:port or unix:///path. May be repeated."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Metrics of any of authz's servers, host:port. May be repeated."),
    ] = None,
    receiver: Annotated[
        list[str] | None,
        typer.Option(help="The receiver, host:port or unix:///path. May be repeated."),
    ] = None,
    opa: Annotated[
        list[str] | None,
        typer.Option(
            help="An OPA server, http(s)://host:port or unix:///path. May be repeated; by default"
            " the configuration's, beside --ext-authz or --metrics."
        ),
    ] = None,
    clickhouse: Annotated[
        bool,
        typer.Option(help="Look at the database of --store, whose user is an administrator."),
    ] = False,
    administrator: Annotated[
        list[str] | None,
        typer.Option(help="A database user or role that may do all, besides --store's."),
    ] = None,
    tls_listener: Annotated[
        list[str] | None,
        typer.Option(help="host:port whose certificate to look at. May be repeated."),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Authority of authz's servers' certificates, PEM.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate for it, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    as_json: Json = False,
) -> None:
    """Look for what is wrong around authz, and say the mend.

    Exit code 0: nothing is wrong; 1: something is to be mended; 3: something could not be looked
    at.
    """
    if not (envoy_config or envoy_admin or envoy or ext_authz or metrics or receiver or opa
            or clickhouse or tls_listener):  # fmt: skip
        raise UsageError(
            "nothing to look at; give --envoy-config, --envoy-admin, --envoy with --store,"
            " --ext-authz, --metrics, --receiver, --opa, --clickhouse with --store or"
            " --tls-listener"
        )
    loaded = configuration.load(file, given(store=store))
    ours = loaded if file else None
    found: list[Finding] = []
    envoys: list[Envoy] = []
    for config_file in envoy_config or ():
        found += _in_file(config_file, ours, envoys)
    for address in envoy_admin or ():
        found += _running(_address("--envoy-admin", address), ours, envoys)
    if envoy:
        found += _hops(envoy, path, loaded.store, token_file, envoys, client_address, wait)
    files = tls_ca, tls_cert, tls_key
    if ext_authz or metrics:
        found += _server(ext_authz or [], metrics or [], files, ours)
    found += _opas(opa or [], ours if ext_authz or metrics else None, loaded)
    found += _others(receiver or [], tls_listener or [], files)
    found += _certificates(files, ours)
    if clickhouse:
        found += _database(loaded.store, frozenset(administrator or ()))
    if as_json:
        print(json.dumps(to_json(found)))
    else:
        show(found, Console())
    raise typer.Exit(exit_code(found))


def _in_file(path: Path, config: Config | None, envoys: list[Envoy]) -> list[Finding]:
    from authz.doctor import bootstrap

    here = bootstrap.in_file(path, config)
    envoys += here
    found: list[Finding] = []
    for envoy in here:
        found += look(envoy.document.name, partial(bootstrap.examine, envoy))
    try:
        program = envoy_program()
    except UsageError:
        program = None
    documents = [envoy.document for envoy in here]
    return found + look(path.name, partial(bootstrap.validated, path, documents, program))


def _running(address: str, config: Config | None, envoys: list[Envoy]) -> list[Finding]:
    from authz.doctor import admin, bootstrap, clocks, runtime

    try:
        running = admin.ask(address, config)
    except UnavailableError as error:
        return [Finding(Level.UNKNOWN, address, str(error))]
    envoys.append(running.envoy)
    checks = [partial(check, running) for check in (*admin.CHECKS, runtime.running)]
    if not address.startswith("unix://"):
        checks.append(partial(clocks.server, address))
    checks.insert(0, partial(bootstrap.examine, running.envoy))
    return [finding for check in checks for finding in look(address, check)]


def _hops(
    url: str, path: str, store: str | None, token_file: Path | None, envoys: Sequence[Envoy],
    client_address: str | None, wait: float,
) -> list[Finding]:  # fmt: skip
    from authz.doctor import hops

    if store is None:
        raise UsageError("--store is missing: where the request's record will be")
    check = partial(
        hops.check, url, path, store, _token(token_file), hops.settings(envoys),
        client_address=client_address, wait_seconds=wait,
    )  # fmt: skip
    return look("--envoy", check)


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from None
    except ValueError:
        text = ""
    if not re.fullmatch(r"[A-Za-z0-9\-._~+/]+=*", text):
        raise UsageError(f"--token-file {path}: want one bearer token and nothing else")
    return text


def _server(
    addresses: list[str], metrics: list[str], files: tuple[Path | None, Path | None, Path | None],
    config: Config | None,
) -> list[Finding]:  # fmt: skip
    from authz.doctor import certificates, clocks, server
    from authz.doctor.metrics import metrics as look_at_metrics

    tls = server.Tls(*files)
    found = []
    for address in addresses:
        _address("--ext-authz", address)
        found += look(address, partial(server.health, address, tls))
        found += look(address, partial(certificates.served, address, tls))
    if not metrics and config and config.ext_authz.metrics:
        metrics = [config.ext_authz.metrics]
    for address in metrics:
        _address("--metrics", address, HostPort)
        seen = look(address, partial(look_at_metrics, address))
        found += seen
        if {finding.level for finding in seen} != {Level.UNKNOWN}:
            found += look(address, partial(clocks.server, address))
    if not metrics:
        found.append(Finding(
            Level.WARN, "--metrics", "not given",
            "whether this is a dry run, and whether decisions get away, was not looked at",
            "give --metrics host:port (ext_authz.metrics)",
        ))  # fmt: skip
    return found


def _opas(given: list[str], config: Config | None, loaded: Config) -> list[Finding]:
    """Those that are `given`, else the one of `config`, asked as the Check server would."""
    from authz.doctor import opa
    from authz.policy.opa import OpaOptions, is_server

    for url in given:
        if not is_server(url):
            raise UsageError(f"--opa {url}: want http(s)://host:port or unix:///path")
    ours = loaded.ext_authz
    if not given and config and is_server(config.ext_authz.policy):
        given = [config.ext_authz.policy]
    found = []
    for url in given:
        options = OpaOptions(url, ours.opa_token, ours.opa_ca, ours.opa_cert, ours.opa_key)
        found += look(url, partial(opa.check, options, ours.decision))
    return found


def _others(
    receivers: list[str], listeners: list[str],
    files: tuple[Path | None, Path | None, Path | None],
) -> list[Finding]:  # fmt: skip
    from authz.doctor import certificates, server

    tls = server.Tls(*files)
    found = []
    for address in receivers:
        _address("--receiver", address)
        found += look(address, partial(server.receiver_health, address, tls))
        found += look(address, partial(certificates.served, address, tls))
    for address in listeners:
        _address("--tls-listener", address)
        found += look(address, partial(certificates.shown, address, tls))
    return found


def _certificates(
    files: tuple[Path | None, Path | None, Path | None], config: Config | None
) -> list[Finding]:
    from authz.doctor import certificates, server

    return look("certificates", partial(certificates.in_files, config, server.Tls(*files)))


def _database(store: str | None, administrators: frozenset[str]) -> list[Finding]:
    from authz.doctor import clocks, database
    from authz.store.client import name_of

    if store is None:
        raise UsageError("--store is missing: the database to look at")
    found = look(name_of(store), partial(clocks.database, store))
    if any(finding.level is Level.UNKNOWN for finding in found):
        return found  # said once
    for part, check in database.checks(store, administrators):
        found += look(part, check)
    return found


def _address(option: str, value: str, form: Any = Address) -> str:
    try:
        return str(TypeAdapter(form).validate_python(value))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{option}: {said}") from None


def to_json(found: Sequence[Finding]) -> dict[str, object]:
    """The findings as one JSON object, with how many there are of each level."""
    counts = Counter(finding.level for finding in found)
    return {
        **{level.value: counts[level] for level in Level},
        "dry_run": any(finding.seen.startswith(_DRY_RUN) for finding in found),
        "findings": [
            {
                "level": finding.level.value,
                "part": finding.part,
                "seen": finding.seen,
                "why": finding.why,
                "mend": finding.mend,
            }
            for finding in found
        ],
    }


def show(found: Sequence[Finding], console: Console) -> None:
    """The findings as a person reads them, the worst last, where the eye is."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    table.add_column("")
    table.add_column("where", overflow="fold", ratio=2)
    table.add_column("what was seen, why it matters, the mend", overflow="fold", ratio=5)
    order = list(Level)
    for finding in sorted(found, key=lambda finding: order.index(finding.level)):
        style = _STYLE[finding.level]
        told = Text(finding.seen, style if finding.level is not Level.OK else "")
        if finding.why:
            told.append(f"\n{finding.why}", "default")
        if finding.mend:
            told.append(f"\nMend: {finding.mend}", "default")
        table.add_row(Text(finding.level.value, style), Text(finding.part), told)
    console.print(table)
    for finding in found:
        if finding.seen.startswith(_DRY_RUN):
            text = Text(f"{finding.part}: {finding.seen}. {finding.why.capitalize()}.")
            console.print(Panel(text, title=_DRY_RUN, style="bold white on red"))
    counts = Counter(finding.level for finding in found)
    summary = ", ".join(f"{counts[level]} {level.value}" for level in Level if counts[level])
    console.print(Text(summary or "nothing was found to look at"))
