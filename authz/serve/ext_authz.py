"""The composition root of ``authz serve ext-authz``."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from authz.config import Config, ExtAuthz
from authz.errors import AuthzError, UsageError
from authz.journal.chain import notice
from authz.policy.cache import CachedEngine
from authz.policy.embedded import EmbeddedEngine, close_standard_output
from authz.policy.engine import Engine
from authz.policy.opa import OpaEngine, OpaOptions
from authz.record.privacy import load_key
from authz.record.resource import Resources
from authz.serve import grpc_server
from authz.serve.check import METHOD, CheckService
from authz.serve.core_server import CoreServer
from authz.serve.health import CoreHealth
from authz.serve.metrics import DRY_RUN, JOURNAL_FILL, POLICY
from authz.serve.writer import Writer, now_us

_SERVICE = METHOD.split("/")[1]
_GRACE_SECONDS = 5
_DRAIN_SECONDS = 10
_WATCH_SECONDS = 0.5
_COLLECT_AFTER = 50_000  # objects

logger = structlog.get_logger()


async def serve(config: Config) -> None:
    """Run until SIGTERM. Raises `AuthzError` for what a user can mend."""
    options = config.ext_authz
    close_standard_output()
    engine = _engine(options)
    await engine.start()
    writer = Writer(config)
    key = load_key(config.privacy.key or config.data_dir / "privacy.key")
    resources = Resources(config.privacy.fhir_bases, config.privacy.templates)
    service = CheckService(options, CachedEngine(engine), writer.committer, key, resources)
    health = CoreHealth([_SERVICE])
    grpc_server.serve_metrics(options.metrics)
    DRY_RUN.set(int(options.dry_run))
    server = CoreServer(
        METHOD, service.handle, service.shed, health.handlers(),
        most=lambda: engine.most, options=grpc_server.OPTIONS,
    )  # fmt: skip
    grpc_server.clear_socket(options.listen)
    deadlines = threading.Thread(target=service.watch_deadlines, name="deadlines", daemon=True)
    deadlines.start()
    server.start(options.listen)
    writer.start()
    health.set(serving=True)
    loops: list[Callable[[], Awaitable[None]]] = [
        lambda: _watch_policy(engine, writer),
        lambda: _watch_writer(writer, health),
        writer.sign_heads,
    ]
    forwarder = writer.forwarder(options.receiver, key.id) if options.receiver else None
    if forwarder:
        loops.append(forwarder.run)
    else:
        logger.warning("no --receiver: decisions stay in the journal, and it only grows")
    if options.dry_run:
        logger.warning("DRY RUN: every request is allowed; decisions are recorded, not enforced")
    logger.info("ext-authz is up", listen=options.listen, policy_revision=engine.revision)
    # What lives as long as the process need not be looked through again; and a batch of Checks makes
    # thousands of objects that are free without a collection.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    async with grpc_server.until_stopped() as stopped:
        running = grpc_server.Loops(*loops)
        try:
            await running.until(stopped)
        finally:
            health.leave()
            await asyncio.to_thread(server.stop, _GRACE_SECONDS)
            service.close()
            writer.sign_head()
            writer.committer.drain()
            left = await forwarder.drain(_DRAIN_SECONDS) if forwarder else writer.journal.next - 1
            logger.info("ext-authz stopped", left_in_journal=left)
            await running.cancel()
    await engine.close()
    writer.close()


def _engine(options: ExtAuthz) -> Engine:
    if not options.policy:
        raise UsageError(
            "--policy is missing: a directory, a .rego file, a bundle .tar.gz, or the address of an"
            " OPA server (http://127.0.0.1:8181, unix:///run/opa.sock)"
        )
    if options.policy.startswith(("http://", "https://", "unix://")):
        return OpaEngine(OpaOptions(options.policy, options.opa_token), options.decision)
    return EmbeddedEngine(Path(options.policy), options.decision)


async def _watch_policy(engine: Engine, writer: Writer) -> None:
    """Notice policy changes, and record each revision that comes into force."""
    recorded = ""
    while True:
        if recorded != engine.revision:
            recorded = engine.revision
            POLICY.clear()
            POLICY.labels(recorded).set(1)
            writer.committer.post(notice("policy_loaded", now_us(), {"revision": recorded}))
            logger.info("policy in force", revision=recorded)
        await asyncio.sleep(engine.watch_seconds)
        try:
            await engine.look()
        except UsageError as error:
            logger.error("policy not loaded; the last good one stays", error=str(error))
        except AuthzError as error:
            logger.error("the policy cannot be looked at", error=str(error))


async def _watch_writer(writer: Writer, health: CoreHealth) -> None:
    """Keep health and metrics true."""
    while True:
        JOURNAL_FILL.set(writer.journal.fill)
        health.set(serving=not writer.committer.failing)
        writer.tell_lost()
        await asyncio.sleep(_WATCH_SECONDS)
