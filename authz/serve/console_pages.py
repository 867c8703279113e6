"""What the console's pages are made of: who signs in, who may, and where looks are recorded."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import structlog
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from authz.blocks import Blocks
from authz.config import Config, is_local
from authz.console.access import Access
from authz.console.app import sessions
from authz.console.checking import Checking, CheckingPages
from authz.console.directory import Directory
from authz.console.judging import Judging
from authz.console.looks import Looks
from authz.console.overview import OverviewPage
from authz.console.pages import Pages
from authz.console.people import People
from authz.console.reports import Reports
from authz.console.searching import SearchPage
from authz.console.store import Pool
from authz.console.web import Site
from authz.errors import AuthzError, UsageError
from authz.files import create_file, is_open, make_directory
from authz.identity.sources import Identities
from authz.policy.embedded import close_standard_output
from authz.policy.engine import Engine
from authz.record.privacy import PrivacyKey, load_key
from authz.serve.engines import engine_of
from authz.serve.writer import Writer

Loop: TypeAlias = Callable[[], Awaitable[None]]

_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})
_KEY_BYTES = 32
_DRAIN_SECONDS = 10

logger = structlog.get_logger()


@dataclass(frozen=True)
class Made:
    """Pages, ready to be served."""

    routes: Sequence[BaseRoute] = ()
    sessions: Sequence[Middleware] = ()
    loops: Sequence[Loop] = ()
    """What is to run beside the server."""
    drain: Loop | None = None
    """Sends on what was looked at, while the loops still run."""


@contextlib.asynccontextmanager
async def pages_of(config: Config, pool: Pool) -> AsyncIterator[Made]:
    """Raises `AuthzError` for what a user can mend."""
    options = config.console
    _check(config)
    directory = config.data_dir / "console"
    make_directory(directory)
    own = config.model_copy(update={"data_dir": directory})
    key = _session_key(directory / "session.key")
    keys = _privacy_keys(config)
    named = Directory(options.directory, keys)
    close_standard_output()
    engine = engine_of(options, options.decision)
    await engine.start()
    identities = Identities(config.identity)
    await identities.start()
    writer = Writer(own)
    try:
        writer.start()
        blocks = Blocks.load(directory / "blocks.json")
        forwarder = writer.forwarder(config.ext_authz, keys[0].id if keys else "", blocks)
        people = People(config, identities, key)
        hosts = _LOCAL if options.everyone and not options.listen.startswith("unix:") else None
        site = Site(pool, people, Access(engine), Looks(writer.committer), named, hosts)
        checking = Checking(pool, options.trust)
        hours = config.watch.break_glass_hours
        shown = (
            OverviewPage(site, checking), SearchPage(site, can_ask=bool(keys)), Pages(site, keys),
            Judging(site, hours), Reports(site, keys, hours), CheckingPages(site, checking),
        )  # fmt: skip
        routes = [route for page in shown for route in page.routes()] + site.sign_in_routes()
        secure = (options.url or "").startswith("https:") or bool(options.tls_cert)
        remembers = [sessions(key, options.session_hours, secure=secure)]
        loops = (identities.watch, _follow(engine), writer.sign_heads, forwarder.run)

        async def drain() -> None:
            writer.sign_head()
            writer.committer.drain()
            await forwarder.drain(_DRAIN_SECONDS)

        yield Made(routes, remembers, loops, drain)
    finally:
        writer.close()
        await engine.close()


def _check(config: Config) -> None:
    """Whether there is all that pages need. Raises `UsageError`."""
    options = config.console
    if config.ext_authz.receiver is None:
        raise UsageError(
            "ext_authz.receiver is missing: each look is put on record there before a page is shown"
        )
    if options.oidc and not options.url:
        raise UsageError(
            "console.url is missing: where people come back to when they have signed in, such as"
            " https://audit.example.org"
        )
    if options.oidc and urlsplit(options.oidc.issuer).scheme != "https":
        host = urlsplit(options.oidc.issuer).hostname
        if host not in _LOCAL:
            raise UsageError(f"console.oidc.issuer: {options.oidc.issuer}: want https://")
    if options.everyone and not is_local(options.listen):
        raise UsageError(
            "console.everyone: anybody who reaches it would be that person; listen on 127.0.0.1, or"
            " let people sign in (console.oidc)"
        )
    if not (options.oidc or options.everyone or config.identity.issuers):
        raise UsageError(
            "nobody can come to be known here: give console.oidc, identity.issuers (tokens that"
            " Envoy passes on), or on this host alone console.everyone"
        )


def _session_key(path: Path) -> bytes:
    """What signs sessions: made at the first start. Raises `UsageError`."""
    try:
        with contextlib.suppress(FileExistsError):
            create_file(path, os.urandom(_KEY_BYTES))
        if is_open(path):
            raise UsageError(f"{path}: others may read this key; run: chmod 600 {path}")
        key = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(key) != _KEY_BYTES:
        raise UsageError(f"{path}: not a key of ours; delete it, and everybody signs in again")
    return key


def _privacy_keys(config: Config) -> list[PrivacyKey]:
    """Those that patients are searched by, if this console has any."""
    if config.privacy.key is None:
        return []
    paths = (config.privacy.key, *config.privacy.old_keys)
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no privacy key is there")
    return list({key.id: key for key in map(load_key, paths)}.values())


def _follow(engine: Engine) -> Loop:
    async def look() -> None:
        """Notice a changed policy; where it is wrong, the last good one stays."""
        while True:
            await asyncio.sleep(engine.watch_seconds)
            try:
                await engine.look()
            except AuthzError as error:
                logger.error("the policy is not taken over", error=str(error))

    return look
