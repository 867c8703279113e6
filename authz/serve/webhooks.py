"""Tells other systems of findings over HTTP: each finding at least once, in the log's order.

Findings are in the log, so nothing is queued here. Each webhook has a file with the index, in each
log, of the last finding it is done with; what is beyond is read from the database, a few at a time.
An outage of whatever length, and a restart, are the same case. One finding is sent at a time:

1. The message is posted until it is taken (2xx), or refused for what it says (400, 413, 422) three
   times: then it is given up, which is logged and counted. Nothing else gives one up.
2. The file is replaced. A crash before that sends the finding again, under the same ``webhook-id``.

A webhook that is new begins with what is found from then on.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from prometheus_client import Counter, Gauge
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from authz import config
from authz.errors import UsageError
from authz.files import replace_file
from authz.record import Record, place_of
from authz.report.messages import FORMS, Manner
from authz.store import checkpoints, findings
from authz.store.client import QUERY_ERRORS, connect, explain

SENT = Counter("authz_webhook_sent", "Posts of findings, by how they ended", ["form", "result"])
WAITING = Gauge("authz_webhook_waiting", "Findings that wait to be sent", ["webhook"])

_POLL_SECONDS: Final = 2.0
_AT_ONCE: Final = 100
_REFUSALS: Final = 3
_REFUSED: Final = (400, 413, 422)
_PATIENCE: Final = 300.0  # the longest Retry-After that is heeded
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 60.0  # between attempts
_LEAST_SECRET: Final = 16

logger = structlog.get_logger()


class _Failed(Exception):  # noqa: N818 - it is tried again
    """An attempt that is to be repeated. The text names no address."""

    def __init__(self, reason: str, after: float = 0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(slots=True)
class _Hook:
    """One webhook: where it stands, and what it is sent with."""

    config: config.Webhook
    path: Path
    tls: ssl.SSLContext | bool
    secrets: Sequence[bytes]
    url: str
    sent: dict[str, int] | None
    """By log, the index of the last finding it is done with; None before its first start."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, record: Record) -> None:
        index = record.get("index", 0)
        assert isinstance(index, int)
        self.save({**(self.sent or {}), str(record["origin"]): index})

    def save(self, sent: Mapping[str, int]) -> None:
        """A disk that fails stops nothing: a restart would then send some findings again."""
        try:
            replace_file(self.path, orjson.dumps({"version": 1, "sent": sent}))
        except OSError as error:
            logger.error(
                "what a webhook was sent is not on disk", webhook=self.config.name,
                error=error.strerror,
            )  # fmt: skip
        self.sent = dict(sent)


class Webhooks:
    """`run` until cancelled; nothing is lost by that. `wake` when a finding was just stored.

    The directory is one process's own: two would send each finding twice.
    """

    def __init__(self, webhooks: Sequence[config.Webhook], directory: Path, store: str) -> None:
        """Raises `UsageError` for a file, name or address that will not do."""
        names = [webhook.name for webhook in webhooks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"watch.webhooks: {', '.join(twice)} is there twice; rename one")
        place = directory / "webhooks"
        if webhooks:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._hooks = [_hook(webhook, place) for webhook in webhooks]
        self._store = store
        self._client = connect(store)
        self._asking = ThreadPoolExecutor(1, "webhooks")  # whose the client is

    def wake(self) -> None:
        """Look at once whether there is something to send."""
        for hook in self._hooks:
            hook.woken.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for hook in self._hooks:
                    group.create_task(self._serve(hook))
        finally:
            self._asking.submit(self._client.disconnect)
            self._asking.shutdown(wait=False)

    async def _serve(self, hook: _Hook) -> None:
        timeout = aiohttp.ClientTimeout(total=hook.config.timeout_seconds)
        connector = aiohttp.TCPConnector(ssl=hook.tls, limit=1)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, cookie_jar=jar
        ) as session:
            while True:
                hook.woken.clear()
                records = await self._waiting(hook)
                for count, record in enumerate(records):
                    WAITING.labels(hook.config.name).set(len(records) - count)
                    if record.get("lane") in hook.config.lanes:
                        result = await _deliver(hook, session, record)
                        SENT.labels(hook.config.form, result).inc()
                    hook.done(record)
                    WAITING.labels(hook.config.name).set(len(records) - count - 1)
                if len(records) < _AT_ONCE:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(hook.woken.wait(), _POLL_SECONDS)

    async def _waiting(self, hook: _Hook) -> Sequence[Record]:
        """The next few; none if the database does not answer."""
        asking = asyncio.get_running_loop().run_in_executor
        try:
            if hook.sent is None:
                ends = await asking(self._asking, checkpoints.sizes, self._client)
                hook.save({origin: size - 1 for origin, size in ends.items()})
            sent = hook.sent or {}
            return await asking(self._asking, findings.after, self._client, sent, _AT_ONCE)
        except QUERY_ERRORS as error:
            self._asking.submit(self._client.disconnect)
            logger.warning("webhooks wait", error=str(explain(error, self._store)))
            return ()


async def _deliver(hook: _Hook, session: aiohttp.ClientSession, record: Record) -> str:
    """How it ended: ``sent`` or ``refused``."""
    refusals = 0

    def failed(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        SENT.labels(hook.config.form, "failed").inc()
        logger.warning(
            "webhook fails", webhook=hook.config.name, finding=place_of(record),
            attempt=state.attempt_number, reason=str(error),
        )  # fmt: skip

    tries = AsyncRetrying(
        retry=retry_if_exception_type(_Failed), wait=_pause, before_sleep=failed, reraise=True
    )
    async for attempt in tries:
        with attempt:
            status = await _post(hook, session, record)
            if status not in _REFUSED:
                return "sent"
            refusals += 1
            if refusals < _REFUSALS:
                raise _Failed(f"HTTP {status}")
            logger.error(
                "webhook refuses a finding, which is given up", webhook=hook.config.name,
                finding=place_of(record), status=status,
            )  # fmt: skip
    return "refused"


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, _Failed) else 0
    usual = wait_random_exponential(multiplier=_FIRST_SECONDS, max=_MOST_SECONDS)(state)
    return max(min(asked, _PATIENCE), usual)


async def _post(hook: _Hook, session: aiohttp.ClientSession, record: Record) -> int:
    """The answer's status, if it is taken or refused for good. Raises `_Failed`."""
    manner = Manner(hook.config.phi, hook.config.subjects, hook.config.link)
    now = time.time()
    message = FORMS[hook.config.form](record, manner, datetime.fromtimestamp(now, UTC))
    body = orjson.dumps(message)
    headers = _headers(place_of(record), int(now), body, hook.secrets)
    try:
        async with session.post(
            hook.url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            status, asked = answer.status, answer.headers.get("retry-after", "")
    except TimeoutError:
        raise _Failed("no answer in time") from None
    except (aiohttp.ClientError, OSError) as error:  # its text may hold the address, a secret
        raise _Failed(type(error).__name__) from None
    if 200 <= status < 300 or status in _REFUSED:
        return status
    raise _Failed(f"HTTP {status}", float(asked) if asked.isdecimal() else 0)


def _headers(identity: str, at: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """As Standard Webhooks has them; without a secret there is no signature."""
    name = f"finding_{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    headers = {
        "content-type": "application/json",
        "user-agent": f"authz/{version('authz')}",
        "webhook-id": name,
        "webhook-timestamp": str(at),
    }
    signed = f"{name}.{at}.".encode() + body
    digests = [hmac.digest(secret, signed, "sha256") for secret in secrets]
    if digests:
        told = (f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
        headers["webhook-signature"] = " ".join(told)
    return headers


def _hook(webhook: config.Webhook, directory: Path) -> _Hook:
    where = f"watch.webhooks, {webhook.name}"
    parts = urlsplit(webhook.url)
    if parts.scheme == "http" and not webhook.plaintext and not _is_here(parts.hostname or ""):
        raise UsageError(f"{where}: its url is http; use https, or say plaintext: true")
    tls: ssl.SSLContext | bool = True
    if webhook.ca is not None:
        try:
            tls = ssl.create_default_context(cafile=webhook.ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{where}: ca {webhook.ca}: {error}") from None
    url = webhook.url
    if webhook.form == "alertmanager" and not parts.path.endswith("/api/v2/alerts"):
        url = f"{url.rstrip('/')}/api/v2/alerts"
    path = directory / f"{webhook.name}.json"
    return _Hook(webhook, path, tls, _secrets(where, webhook.secret), url, _load(path))


def _is_here(host: str) -> bool:
    """Whether what goes there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _secrets(where: str, path: Path | None) -> Sequence[bytes]:
    """The keys in a file, one a line: ``whsec_`` and base64, or text that is the key itself."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise UsageError(f"{where}: secret {path}: {error.strerror}") from None
    try:
        secrets = [
            base64.b64decode(line[6:], validate=True) if line.startswith(b"whsec_") else line
            for line in lines
            if line
        ]
    except binascii.Error:
        raise UsageError(f"{where}: secret {path}: want base64 after whsec_") from None
    if not secrets or min(map(len, secrets)) < _LEAST_SECRET:
        raise UsageError(
            f"{where}: secret {path}: want {_LEAST_SECRET} bytes or more in each line, such as"
            " from: openssl rand -base64 32"
        )
    return secrets


def _load(path: Path) -> dict[str, int] | None:
    try:
        sent: Any = orjson.loads(path.read_bytes())["sent"]
        if not all(type(index) is int for index in sent.values()):
            raise TypeError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{path}: not what a webhook was sent; restore it, or delete it to begin with what is"
            " found from now on"
        ) from None
    return dict(sent)
