"""The composition root of ``authz serve ext-authz``."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from authz.blocks import Blocks
from authz.config import Config, ExtAuthz
from authz.envoy.processing import METHOD as PROCESS
from authz.errors import AuthzError, UsageError
from authz.identity.sources import Identities
from authz.journal.chain import policy_notice
from authz.places import countries
from authz.policy.cache import CachedEngine
from authz.policy.embedded import close_standard_output
from authz.policy.engine import Engine
from authz.record.privacy import load_key
from authz.record.resource import Resources
from authz.record.sealing import load_sealing_key, seal
from authz.serve import grpc_server, tls, tracing, workers
from authz.serve.check import METHOD, UNASKED, CheckService, Seal
from authz.serve.core_server import CoreServer
from authz.serve.disclosures import Processor
from authz.serve.engines import engine_of
from authz.serve.health import CoreHealth
from authz.serve.metrics import DRY_RUN, JOURNAL_FILL, POLICY, STALE
from authz.serve.reflection import handlers as reflection_handlers
from authz.serve.writer import Writer, now_us

_SERVICE = METHOD.split("/")[1]
_GRACE_SECONDS = 5
_DRAIN_SECONDS = 10
_WATCH_SECONDS = 0.5

logger = structlog.get_logger()


async def serve(given: Config) -> None:
    """Run until SIGTERM. Raises `AuthzError` for what a user can mend."""
    config = workers.of_worker(given, given.ext_authz.worker)
    options = config.ext_authz
    close_standard_output()
    credentials = tls.of_server("ext_authz", options)
    engine = engine_of(options, options.decision)
    await engine.start()
    identities = Identities(config.identity)
    await identities.start()
    writer = Writer(config)
    keeper = writer.receipts or writer.committer
    key = load_key(config.privacy.key or config.data_dir / "privacy.key")
    tracer = tracing.CheckTracer(tracing.OtlpJson(options.tracing)) if options.tracing else None
    blocks = Blocks.load(config.data_dir / "blocks.json")
    service = CheckService(
        options, identities, blocks, CachedEngine(engine), keeper, key,
        Resources(config.privacy.fhir_bases, config.privacy.templates),
        seal=_sealer(config), tracer=tracer, shown=config.disclosure.routes,
        country=countries(config.geo),
    )  # fmt: skip
    processor = Processor(config.disclosure, keeper, key)
    health = CoreHealth([_SERVICE])
    grpc_server.serve_metrics(options.metrics, lambda: health.serving)
    server = _server(options, service, processor, health, engine)
    grpc_server.clear_socket(options.listen)
    server.start(options.listen, credentials)
    writer.start()
    health.set(serving=not writer.unavailable)
    watch = _Watch(engine, writer, health)
    loops: list[Callable[[], Awaitable[None]]] = [
        identities.watch,
        watch.policy,
        watch.writer,
        writer.sign_heads,
    ]
    forwarder = writer.forwarder(options, key.id, blocks) if options.receiver else None
    if forwarder:
        loops.append(forwarder.run)
        if options.worker == 0:
            loops.append(lambda: _adopt(given, key.id, blocks))
    _tell(options, engine)
    async with grpc_server.until_stopped() as stopped:
        running = grpc_server.Loops(*loops)
        try:
            await running.until(stopped)
        finally:
            health.leave()
            await asyncio.to_thread(server.stop, _GRACE_SECONDS)
            service.close()
            await asyncio.to_thread(processor.close)
            writer.sign_head()
            writer.committer.drain()
            left = await forwarder.drain(_DRAIN_SECONDS) if forwarder else writer.journal.next - 1
            logger.info("ext-authz stopped", left_in_journal=left)
            await running.cancel()
    await engine.close()
    writer.close()
    if tracer:
        tracer.close()


def _server(
    options: ExtAuthz, service: CheckService, processor: Processor, health: CoreHealth,
    engine: Engine,
) -> CoreServer:  # fmt: skip
    """The server of Checks and answers, and the thread that sees to the Checks' deadlines."""
    others = health.handlers() | {PROCESS: processor}
    if options.reflection:
        services = [_SERVICE, PROCESS.split("/")[1], "grpc.health.v1.Health"]
        others |= reflection_handlers(services)
    threading.Thread(target=service.watch_deadlines, name="deadlines", daemon=True).start()
    return CoreServer(
        METHOD, service.handle, service.shed, others, most=lambda: engine.most, unasked=UNASKED,
        limit=options.max_concurrent, options=grpc_server.OPTIONS,
    )  # fmt: skip


def _tell(options: ExtAuthz, engine: Engine) -> None:
    if not options.receiver:
        logger.warning("no --receiver: decisions stay in the journal, and it only grows")
    DRY_RUN.set(int(options.dry_run))
    if options.dry_run:
        logger.warning("DRY RUN: every request is allowed; decisions are recorded, not enforced")
    grpc_server.spare_collections()
    logger.info("ext-authz is up", listen=options.listen, policy_revision=engine.revision)


async def _adopt(config: Config, privacy_key_id: str, blocks: Blocks) -> None:
    """Send what is in the journals of workers that are no more, then leave them be."""
    for number in workers.left_over(config):
        writer = Writer(workers.of_worker(config, number))
        if writer.journal.next > 1:
            logger.info("a worker's journal is adopted", worker=number)
            writer.sign_head()
            writer.committer.drain()
            forwarder = writer.forwarder(config.ext_authz, privacy_key_id, blocks)
            running = asyncio.create_task(forwarder.run())
            while await forwarder.drain(_DRAIN_SECONDS):
                logger.warning("a worker's journal is not sent yet", worker=number)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        writer.close()
    await asyncio.Event().wait()


def _sealer(config: Config) -> Seal | None:
    """What seals inputs, if that is wanted. Raises `UsageError`."""
    privacy = config.privacy
    if not privacy.seal_inputs:
        return None
    key = load_sealing_key(privacy.sealing_key or config.data_dir / "sealing.key")
    return partial(seal, key, bodies=privacy.seal_bodies)


class _Watch:
    """Keeps health, metrics and the record of the policy in force true."""

    def __init__(self, engine: Engine, writer: Writer, health: CoreHealth) -> None:
        self._engine = engine
        self._writer = writer
        self._health = health
        self._decides = True
        self._wrong = ""

    async def policy(self) -> None:
        """Notice policy changes, and record each revision that comes into force."""
        engine, recorded = self._engine, ""
        while True:
            if recorded != engine.revision:
                recorded = engine.revision
                POLICY.clear()
                POLICY.labels(recorded).set(1)
                self._writer.committer.post(policy_notice(now_us(), recorded, engine.archive))
                logger.info("policy in force", revision=recorded)
            await asyncio.sleep(engine.watch_seconds)
            await self._look()

    async def _look(self) -> None:
        """What is wrong is told once, and so is its end."""
        wrong, what = "", ""
        try:
            await self._engine.look()
        except UsageError as error:
            wrong, what = str(error), "policy not loaded; the last good one stays"
        except AuthzError as error:
            wrong, what = str(error), "the policy cannot be looked at"
            self._decides = False
        else:
            self._decides = True
        if wrong and wrong != self._wrong:
            logger.error(what, error=wrong)
        elif self._wrong and not wrong:
            logger.info("the policy is read again", policy_revision=self._engine.revision)
        self._wrong = wrong
        STALE.set(bool(wrong))

    async def writer(self) -> None:
        """Healthy is who can decide and record."""
        writer = self._writer
        while True:
            JOURNAL_FILL.set(writer.journal.fill)
            reason = writer.unavailable or ("" if self._decides else "the policy does not answer")
            self._health.set(serving=not reason, reason=reason)
            await asyncio.to_thread(writer.tell_lost)  # it waits for the disk
            await asyncio.sleep(_WATCH_SECONDS)
