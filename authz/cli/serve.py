"""``authz serve ...``: the processes."""

import json
import os
import signal
import sys
import time
from typing import Annotated

import typer

from authz import config
from authz.cli.app import ConfigFile, DataDir, Json, Store, app, given, run
from authz.errors import UnavailableError, UsageError
from authz.serve import logs
from authz.serve.workers import NUMBER, supervise

group = typer.Typer(help="Run one of the processes.", no_args_is_help=True)
app.add_typer(group, name="serve")

Listen = Annotated[str | None, typer.Option(help="host:port or unix:///path")]
Metrics = Annotated[str | None, typer.Option(help="host:port of Prometheus metrics")]


@group.command("ext-authz")
def ext_authz(
    file: ConfigFile = None,
    listen: Listen = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Directory, .rego file, bundle .tar.gz; or http(s)://, unix:// of an OPA server."
        ),
    ] = None,
    decision: Annotated[
        str | None, typer.Option(help="Path of the decision, such as envoy/authz/allow.")
    ] = None,
    data_dir: DataDir = None,
    receiver: Annotated[
        str | None, typer.Option(help="Where decisions are sent: host:port or unix:///path")
    ] = None,
    metrics: Metrics = None,
    privacy_key: Annotated[str | None, typer.Option(help="Privacy key file.")] = None,
    durability: Annotated[
        str | None, typer.Option(help="What an answer waits for: fsync, receiver or os.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each on a port of its own.")
    ] = None,
) -> None:
    """The Check server: asks the policy, records the decision on disk, answers Envoy."""
    options = given(
        data_dir=data_dir,
        ext_authz__listen=listen,
        ext_authz__policy=policy,
        ext_authz__decision=decision,
        ext_authz__receiver=receiver,
        ext_authz__metrics=metrics,
        privacy__key=privacy_key,
        ext_authz__workers=workers,
        journal__durability=durability,
    )
    loaded = config.load(file, options)
    if loaded.journal.durability == "receiver" and not loaded.ext_authz.receiver:
        raise UsageError(
            "--durability receiver: there is no receiver whose disk an answer could wait for;"
            " name it with --receiver (ext_authz.receiver), or choose --durability fsync"
        )
    logs.configure(dry_run=loaded.ext_authz.dry_run)
    if loaded.ext_authz.workers > 1 and NUMBER not in os.environ:
        supervise(loaded)
        return
    # Sockets are read by the thread that waits for calls, and not handed over by two others: a
    # third less CPU for a call. gRPC's core reads this once, when it is imported.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    from authz.serve.ext_authz import serve

    run(serve(loaded))


@group.command()
def receiver(
    file: ConfigFile = None,
    listen: Listen = None,
    store: Store = None,
    data_dir: DataDir = None,
    origin: Annotated[
        str | None, typer.Option(help="The log's name, <cluster>/<receiver>; for good.")
    ] = None,
    metrics: Metrics = None,
    privacy_key: Annotated[str | None, typer.Option(help="Privacy key file.")] = None,
) -> None:
    """Takes access logs and decisions in, seals them into the log, stores them in ClickHouse."""
    from authz.serve.receiver import serve

    logs.configure()
    options = given(
        data_dir=data_dir,
        store=store,
        receiver__listen=listen,
        receiver__origin=origin,
        receiver__metrics=metrics,
        privacy__key=privacy_key,
    )
    run(serve(config.load(file, options)))


@group.command()
def console(
    file: ConfigFile = None, listen: Listen = None, store: Store = None, metrics: Metrics = None
) -> None:
    """The logs over HTTP: checkpoints, hash tiles, and entries for those with the token."""
    from authz.serve.console import serve

    logs.configure()
    options = given(store=store, console__listen=listen, console__metrics=metrics)
    run(serve(config.load(file, options)))


@group.command()
def clickhouse(
    file: ConfigFile = None,
    data_dir: DataDir = None,
    tcp: Annotated[
        int, typer.Option(min=0, max=65535, help="Native protocol port; 0 for any free one.")
    ] = 0,
    http: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0 for any free one.")] = 0,
    as_json: Json = False,
) -> None:
    """The embedded ClickHouse, on loopback, for demonstration, development and small sites."""
    from authz.store import embedded

    logs.configure()
    directory = config.load(file, given(data_dir=data_dir)).data_dir
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = embedded.start(directory, tcp, http)
    addresses = {"store": server.store, "http": server.http}
    if as_json or not sys.stdout.isatty():
        print(json.dumps(addresses), flush=True)
    else:
        print(f"ClickHouse is up\n  store  {server.store}\n  http   {server.http}", flush=True)
    while not stopping:
        if server.process.poll() is not None:
            raise UnavailableError(
                f"ClickHouse ended by itself (status {server.process.returncode});"
                f" see {directory / 'clickhouse.log'}"
            )
        time.sleep(0.1)
    server.stop()
