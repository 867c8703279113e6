"""The composition root of ``authz serve ext-authz``."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import grpc
import structlog

from authz.blocks import Blocks
from authz.config import Config, ExtAuthz
from authz.errors import UsageError
from authz.journal.chain import Chain, Entry, load_identity, notice, policy_notice
from authz.journal.commit import Committer
from authz.journal.forward import CHANNEL_OPTIONS, Forwarder
from authz.journal.segments import Journal, JournalError
from authz.policy.cache import CachedEngine
from authz.policy.embedded import EmbeddedEngine, close_standard_output
from authz.policy.opa import OpaEngine, OpaOptions
from authz.record.privacy import load_key
from authz.record.resource import Resources
from authz.serve import grpc_server
from authz.serve.check import CheckService
from authz.serve.metrics import DRY_RUN, JOURNAL_FILL, POLICY

_SERVICE = "envoy.service.auth.v3.Authorization"
_GRACE_SECONDS = 5
_DRAIN_SECONDS = 10

logger = structlog.get_logger()


async def serve(config: Config) -> None:
    """Run until SIGTERM. Raises `AuthzError` for what a user can mend."""
    options = config.ext_authz
    close_standard_output()
    engine = _engine(options)
    await engine.start()
    writer = _Writer(config, engine)
    key = load_key(config.privacy.key or config.data_dir / "privacy.key")
    resources = Resources(config.privacy.fhir_bases, config.privacy.templates)
    blocks = Blocks.load(config.data_dir / "blocks.json")
    cached = CachedEngine(engine)
    service = CheckService(options, cached, writer.committer, key, resources, blocks)
    health = grpc_server.Health([_SERVICE])
    grpc_server.serve_metrics(options.metrics)
    DRY_RUN.set(int(options.dry_run))
    server = await grpc_server.start(options.listen, service.handlers(), health)
    await writer.start()
    await health.set(True)
    loops: list[Callable[[], Awaitable[None]]] = [
        engine.watch,
        writer.sign_heads,
        lambda: writer.watch(health),
    ]
    forwarder = writer.forwarder(options.receiver, key.id, blocks) if options.receiver else None
    if forwarder:
        loops.append(forwarder.run)
    else:
        logger.warning("no --receiver: decisions stay in the journal, and it only grows")
    if options.dry_run:
        logger.warning("DRY RUN: every request is allowed; decisions are recorded, not enforced")
    logger.info("ext-authz is up", listen=options.listen, policy_revision=engine.revision)
    async with grpc_server.until_stopped() as stopped:
        running = grpc_server.Loops(*loops)
        try:
            await running.until(stopped)
        finally:
            await health.leave()
            await server.stop(_GRACE_SECONDS)
            writer.sign_head()
            await writer.committer.drain()
            left = await forwarder.drain(_DRAIN_SECONDS) if forwarder else writer.journal.next - 1
            logger.info("ext-authz stopped", left_in_journal=left)
            await running.cancel()
    await engine.close()
    writer.close()


def _engine(options: ExtAuthz) -> EmbeddedEngine | OpaEngine:
    if not options.policy:
        raise UsageError(
            "--policy is missing: a directory, a .rego file, a bundle .tar.gz, or the address of an"
            " OPA server (http://127.0.0.1:8181, unix:///run/opa.sock)"
        )
    if options.policy.startswith(("http://", "https://", "unix://")):
        return OpaEngine(OpaOptions(options.policy, options.opa_token), options.decision)
    return EmbeddedEngine(Path(options.policy), options.decision)


class _Writer:
    """This instance as a writer: its journal and chain, and what it says of itself in them."""

    def __init__(self, config: Config, engine: EmbeddedEngine | OpaEngine) -> None:
        directory = config.data_dir
        try:
            self.journal = Journal(
                directory / "journal",
                max_bytes=config.journal.max_bytes,
                sync=config.journal.durability == "fsync",
            )
            self._identity = load_identity(directory / "writer.json")
        except OSError as error:
            raise UsageError(
                f"--data-dir {directory}: {error.strerror}; choose a directory this user may write"
            ) from None
        self._chain = Chain(self._identity.writer, self.journal)
        self.committer: Committer[Entry] = Committer(self.journal, self._chain)
        self._engine = engine
        self._head_seconds = config.ext_authz.head_seconds
        self._signed = 0
        self._revision = ""
        self._told_lost = 0

    async def start(self) -> None:
        """Announce the key that signs this writer's heads."""
        try:
            started = self._identity.start_notice(_now_us(), version("authz"))
            await self.committer.submit((started, b""))
        except JournalError as error:
            if self.journal.next == 1:
                raise UsageError(f"the journal cannot begin: {error}") from None
            # The key was announced at the first start. A full journal empties once this is up.
            logger.error("this start is not on record", error=str(error))

    def forwarder(self, receiver: str, privacy_key_id: str, blocks: Blocks) -> Forwarder:
        durable = asyncio.Event()
        self.committer.on_durable.append(durable)
        identity, told = self._identity, blocks.replace

        def connect() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(receiver, CHANNEL_OPTIONS)

        return Forwarder(self.journal, identity, privacy_key_id, connect, durable, told)

    def close(self) -> None:
        self.committer.close()
        self.journal.close()

    async def sign_heads(self) -> None:
        """Sign the chain's head every so often, if it moved."""
        while True:
            await asyncio.sleep(self._head_seconds)
            self.sign_head()

    def sign_head(self) -> None:
        seq, head = self._chain.place
        if seq > self._signed:
            self._signed = seq + 1  # the notice itself does not count as a move
            vouched = self._identity.head_notice(_now_us(), seq, head)
            self.committer.submit_unawaited((vouched, b""))

    async def watch(self, health: grpc_server.Health) -> None:
        """Keep health and metrics true, and record each policy revision that comes into force."""
        while True:
            if self._revision != self._engine.revision:
                self._revision = self._engine.revision
                POLICY.clear()
                POLICY.labels(self._revision).set(1)
                self.committer.submit_unawaited(policy_notice(_now_us(), self._revision))
            JOURNAL_FILL.set(self.journal.fill)
            await health.set(not self.committer.failing)
            await self._tell_lost()
            await asyncio.sleep(0.5)

    async def _tell_lost(self) -> None:
        """Record how much could not be recorded, as soon as that can be: which is also how a
        writer that gets no requests any more finds out that it can write again."""
        if lost := self.committer.lost - self._told_lost:
            details = {"records": lost}
            with contextlib.suppress(JournalError):
                await self.committer.submit(
                    (notice("journal_unavailable", _now_us(), details), b"")
                )
                self._told_lost += lost


def _now_us() -> int:
    return time.time_ns() // 1000
