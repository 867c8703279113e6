"""The composition root of ``authz serve receiver``."""

import asyncio
import time

import structlog

from authz.config import Config, Receiver
from authz.errors import UsageError
from authz.files import replace_file
from authz.journal.commit import Committer
from authz.journal.segments import Journal, JournalError
from authz.keys import LOG_KEY
from authz.places import countries
from authz.receiver import metrics
from authz.receiver.accounts import Accounts
from authz.receiver.sequence import Log
from authz.receiver.state import state_after
from authz.record import Entry, notice
from authz.record.privacy import PrivacyKey, load_key
from authz.record.resource import Resources
from authz.serve import epoch, grpc_server, roster, tls
from authz.serve.anchors import Anchors
from authz.serve.books import Books
from authz.serve.intake import Intake
from authz.serve.log_keys import LogKeys, following_key, load_log_key
from authz.serve.losses import EnvoyLosses
from authz.serve.owner import Owner
from authz.serve.sealer import Sealer
from authz.store import migrations
from authz.store.client import QUERY_ERRORS, Client, connect, explain, name_of
from authz.store.epochs import Ended

_SERVICES = ("envoy.service.accesslog.v3.AccessLogService", "authz.v1.RecordStream")
_GRACE_SECONDS = 2
_DRAIN_SECONDS = 20
_ANCHOR_SECONDS = 5  # at the end

logger = structlog.get_logger()


async def serve(config: Config) -> None:
    """Run until SIGTERM. Raises `AuthzError` for what a user can mend."""
    store = config.database
    credentials = tls.of_server("receiver", config.receiver)
    directory = config.data_dir
    client = connect(store)
    if not (directory / "state.json").exists():
        _migrate(client, store)  # a first start says at once what is wrong with the store
    journal = _journal(config)
    log, before = await _open_log(config, client, journal)
    committer: Committer[list[Entry]] = Committer(journal, log)
    keys = LogKeys(directory, log, committer)
    owner = Owner(store, log, directory / "journal" / "lock")
    key = _privacy_key(config, log)
    resources = Resources(config.privacy.fhir_bases, config.privacy.templates)
    intake = Intake(
        log, committer, resources, key, synced=config.journal.durability == "fsync",
        risk_hours=config.receiver.risk_hours, country=countries(config.geo),
    )  # fmt: skip
    accounts = _accounts(config.receiver, log, intake)
    sealer = Sealer(config, log, client, committer, owner, Books(store, log, committer, accounts))
    anchors = Anchors(config.receiver, store, log, committer, owner)
    losses = EnvoyLosses(config.receiver, directory / "envoys.json", intake, committer)
    health = grpc_server.Health(_SERVICES)
    grpc_server.serve_metrics(config.receiver.metrics, lambda: health.serving)
    new = journal.next == 0
    if new:
        await _tell_beginning(committer, log, before)  # in front of all that comes in
    server = await grpc_server.start(config.receiver.listen, intake.handlers(), health, credentials)
    if not new:
        await _tell_start(committer, log)
    grpc_server.spare_collections()
    await health.set(True)
    logger.info(
        "receiver is up", listen=config.receiver.listen, origin=log.origin,
        store=name_of(store), size=journal.next,
    )  # fmt: skip
    async with grpc_server.until_stopped() as stopped:
        running = grpc_server.Loops(
            owner.run,
            sealer.run,
            lambda: _watch(committer, journal, health),
            lambda: roster.tell(store, committer),
            losses.run,
            keys.run,
            anchors.run,
        )
        try:
            await running.until(stopped)
        finally:
            await health.leave()
            await server.stop(_GRACE_SECONDS)
            await _drain(intake, committer, losses, sealer)
            await running.cancel()
            await anchors.finish(_ANCHOR_SECONDS)
    # A thread may still be storing a batch: its journal and connection stay open until it is done.
    await asyncio.get_running_loop().shutdown_default_executor()
    owner.release()
    committer.close()
    journal.close()
    client.disconnect()
    anchors.close()


async def _open_log(config: Config, client: Client, journal: Journal) -> tuple[Log, Ended | None]:
    """The log, and the one that it follows, if it begins only now."""
    directory, options = config.data_dir, config.receiver
    signer = load_log_key(directory / LOG_KEY, options.origin)
    log = Log(directory, journal, signer, following_key(directory, signer.name))
    if journal.next or options.follows is None:
        return log, None
    before = await epoch.before(client, config.store or "", options.follows, log.origin)
    replace_file(directory / "state.json", state_after(before).to_json())
    return Log(directory, journal, signer), before


async def _drain(
    intake: Intake, committer: Committer[list[Entry]], losses: EnvoyLosses, sealer: Sealer
) -> None:
    """Everything that was received goes on its way, for some time; says what is left."""
    until = time.monotonic() + _DRAIN_SECONDS
    # A full journal gets room while the sealer runs; without a store it never does.
    if lost := await intake.settle(_DRAIN_SECONDS):
        logger.error("access log messages are lost: the journal has no room", count=lost)
    await committer.drain()
    losses.stop()
    left = await sealer.drain(until - time.monotonic())
    logger.info("receiver stopped", left_in_journal=left)


async def _watch(
    committer: Committer[list[Entry]], journal: Journal, health: grpc_server.Health
) -> None:
    """Keep health and metrics true: without its journal the receiver takes nothing in."""
    while True:
        metrics.JOURNAL_FILL.set(journal.fill)
        metrics.JOURNAL_FAILING.set(committer.failing)
        await health.set(not committer.failing)
        await asyncio.sleep(0.5)


def _journal(config: Config) -> Journal:
    if config.journal.durability == "receiver":
        raise UsageError(
            "journal.durability: receiver is for ext-authz; what it waits for is that the receiver"
            " syncs its own disk: set fsync here (AUTHZ_JOURNAL__DURABILITY=fsync)"
        )
    synced = config.journal.durability == "fsync"
    if not synced:
        logger.warning(
            "journal.durability: os: what is acknowledged may be lost with this machine, also what"
            " writers have forgotten by then; writers with durability: receiver are turned away"
        )
    try:
        return Journal(
            config.data_dir / "journal",
            start=0,
            max_bytes=config.journal.max_bytes,
            sync=synced,
        )
    except OSError as error:
        raise UsageError(
            f"--data-dir {config.data_dir}: {error.strerror};"
            " choose a directory this user may write"
        ) from None


def _accounts(options: Receiver, log: Log, intake: Intake) -> Accounts:
    return Accounts(
        log.origin,
        log.stored.accounted,
        interval_seconds=options.interval_seconds,
        grace_seconds=options.grace_seconds,
        patience_seconds=options.writer_patience_seconds,
        caught_up=intake.caught_up,
        under_way=intake.under_way,
        started_us=log.now_us(),
    )


def _migrate(client: Client, url: str) -> None:
    try:
        applied = migrations.migrate(client)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    for version in applied:
        logger.info("schema migrated", version=version)


def _privacy_key(config: Config, log: Log) -> PrivacyKey | None:
    if config.privacy.key is None:
        return None
    key = load_key(config.privacy.key)
    if not log.pin_privacy_key(key.id):
        raise UsageError(
            f"{config.privacy.key}: key {key.id} is not this log's ({log.privacy_key_id})"
        )
    return key


async def _tell_beginning(
    committer: Committer[list[Entry]], log: Log, before: Ended | None
) -> None:  # fmt: skip
    details: dict[str, object] = {"origin": log.origin}
    if before:
        details["follows"] = epoch.told(before)
    try:
        started = notice("log_started", time.time_ns() // 1000, details)
        await committer.submit([(started, b"")])
    except JournalError as error:
        raise UsageError(f"the journal cannot begin: {error}") from None


async def _tell_start(committer: Committer[list[Entry]], log: Log) -> None:
    try:
        started = notice("receiver_started", time.time_ns() // 1000, {"origin": log.origin})
        await committer.submit([(started, b"")])
    except JournalError as error:
        # A full journal empties once this is up.
        logger.error("this start is not on record", error=str(error))
