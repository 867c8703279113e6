"""Issuers' public keys: JWK sets (RFC 7517) from files and URLs, kept fresh.

Each `KeySet` has one writer, the event loop, which puts a whole new set in place of the old one.
Checks read it from other threads, without a lock and without waiting for anything.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from authz.errors import UsageError
from authz.identity.config import IssuerConfig

PublicKey: TypeAlias = (
    RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey
)  # what PyJWT verifies with

_MAX_BYTES: Final = 1 << 20
_MIN_RSA_BITS: Final = 2048  # RFC 7518, section 3.3
_FILE_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 30.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)

_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_SECRET: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

logger = structlog.get_logger()


class KeysError(Exception):
    """What was read is no JWK set, or could not be read. The text quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms it may verify."""

    public: PublicKey
    algorithms: frozenset[str]


class Keys:
    """A JWK set as it was read: never changed, only replaced. Members of no use are left out."""

    def __init__(self, text: bytes) -> None:
        """Raises `KeysError` if `text` is no JWK set. One without a usable key is one."""
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise KeysError("it is no JSON") from None
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise KeysError('it is no JWK set: want {"keys": [...]}')
        self._by_id: dict[str, list[Key]] = {}
        self._all: list[Key] = []
        for member in members:
            key = _key(member) if isinstance(member, dict) else None
            if key is not None:
                self._all.append(key)
                if isinstance(name := member.get("kid"), str):
                    self._by_id.setdefault(name, []).append(key)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        """The key of this id for `algorithm`. Without an id, the only one there is for it."""
        named = self._all if key_id is None else self._by_id.get(key_id, [])
        fitting = [key for key in named if algorithm in key.algorithms]
        return fitting[0].public if len(fitting) == 1 else None


def _key(member: Mapping[str, Any]) -> Key | None:
    """A key for signatures, or None: for encryption, symmetric, too short, unknown or broken."""
    kind, operations = member.get("kty"), member.get("key_ops")
    if kind not in ("RSA", "EC", "OKP") or member.get("use", "sig") != "sig":
        return None
    if isinstance(operations, list) and "verify" not in operations:
        return None
    stated = member.get("alg")
    # Without the private members, lest a careless set makes this a private key.
    shared = {name: value for name, value in member.items() if name not in _SECRET}
    try:
        public = jwt.PyJWK(shared, "EdDSA" if kind == "OKP" else None).key
    except (jwt.PyJWTError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    algorithms = _algorithms(public)
    if stated is not None:
        algorithms &= {stated} if isinstance(stated, str) else set()
    return Key(public, algorithms) if algorithms else None


def _algorithms(public: object) -> frozenset[str]:
    if isinstance(public, RSAPublicKey):
        return _RSA if public.key_size >= _MIN_RSA_BITS else frozenset()
    if isinstance(public, EllipticCurvePublicKey):
        return frozenset({_CURVES[public.curve.name]} if public.curve.name in _CURVES else ())
    if isinstance(public, Ed25519PublicKey | Ed448PublicKey):
        return frozenset({"EdDSA"})
    return frozenset()


class KeySet:
    """One issuer's keys, from where the configuration says."""

    def __init__(self, config: IssuerConfig) -> None:
        """Reads a file at once. Raises `UsageError` if it cannot, or holds no usable key."""
        self._config = config
        self._url = config.jwks if config.jwks.startswith(("http://", "https://")) else ""
        self._text: bytes | None = None
        self._keys: tuple[Keys | None, float] = (None, 0.0)  # and until when they count
        self._asked = asyncio.Event()
        self._asking = False
        self._loop: asyncio.AbstractEventLoop | None = None
        if not self._url:
            try:
                self._take(_read(Path(config.jwks)))
            except KeysError as error:
                raise UsageError(f"identity.issuers: jwks {config.jwks}: {error}") from None
            if self.current() is None:
                raise UsageError(
                    f"identity.issuers: jwks {config.jwks}: it has no public key for signatures;"
                    " want RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519 or Ed448"
                )

    def current(self) -> Keys | None:
        """The keys in force, if there are any. Until a set changes, this is the same object."""
        keys, until = self._keys
        return keys if time.monotonic() < until else None

    def ask(self) -> None:
        """From any thread: have the keys fetched again soon, for one that is not among them."""
        if self._url and not self._asking and self._loop is not None:
            self._asking = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all of us soon will
                self._loop.call_soon_threadsafe(self._asked.set)

    async def start(self) -> None:
        """Fetch the keys, once: if that fails there are none, until `watch` gets them."""
        self._loop = asyncio.get_running_loop()
        if not self._url:
            return
        if self._config.jwks.startswith("http://"):
            logger.warning(
                "keys come without TLS: whoever is on the way can make their own",
                issuer=self._config.issuer,
            )
        try:
            self._take(await _fetch(self._url))
        except KeysError as error:
            self._log(str(error))

    async def watch(self) -> None:
        """Keep the keys fresh, until cancelled."""
        self._loop = asyncio.get_running_loop()
        await (self._watch_url() if self._url else self._watch_file())

    async def _watch_file(self) -> None:
        fault = ""
        while True:
            await asyncio.sleep(_FILE_SECONDS)
            before, fault = fault, ""
            try:
                self._take(_read(Path(self._config.jwks)))
            except KeysError as error:
                fault = str(error)
                if fault != before:
                    self._log(fault)

    async def _watch_url(self) -> None:
        wait = self._config.refresh_seconds if self.current() else 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._asked.wait()
            # Cleared before the fetch: a key that is asked for during it may be newer than it.
            self._asked.clear()
            self._asking = False
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(KeysError),
                wait=wait_random_exponential(
                    multiplier=0.5, max=min(_RETRY_SECONDS, self._config.refresh_seconds)
                ),
                before_sleep=self._log_attempt,
            ):
                with attempt:
                    self._take(await _fetch(self._url))
            pause = min(self._config.unknown_key_seconds, self._config.refresh_seconds)
            await asyncio.sleep(pause)
            wait = self._config.refresh_seconds - pause

    def _take(self, text: bytes) -> None:
        """Put what was read in force. Raises `KeysError` if it is no JWK set."""
        keys, _ = self._keys
        if text != self._text:
            read = Keys(text)
            # A set that has no usable key takes back the old ones all the same.
            keys = read if len(read) else None
            self._text = text
            log = logger.info if keys else logger.error
            log("an issuer's keys were read", issuer=self._config.issuer, usable=len(read))
        self._keys = (keys, time.monotonic() + self._config.max_age_seconds)

    def _log_attempt(self, state: RetryCallState) -> None:
        self._log(str(state.outcome.exception()) if state.outcome else "")

    def _log(self, fault: str) -> None:
        logger.error(
            "an issuer's keys could not be read; known ones count until they are too old",
            issuer=self._config.issuer,
            error=fault,
            known=self.current() is not None,
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _bounded(file.read(_MAX_BYTES + 1))
    except OSError as error:
        raise KeysError(error.strerror or type(error).__name__) from None


async def _fetch(url: str) -> bytes:
    """The body behind `url`; redirects are not followed: they could lead away from TLS."""
    body = b""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise KeysError(f"HTTP status {response.status}")
            async for chunk in response.content.iter_chunked(1 << 16):
                body = _bounded(body + chunk)
    except TimeoutError:
        raise KeysError("no answer in time") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: no host of that form
        raise KeysError(f"{type(error).__name__}: {error}") from None
    return body


def _bounded(text: bytes) -> bytes:
    if len(text) > _MAX_BYTES:
        raise KeysError(f"it is larger than {_MAX_BYTES} bytes")
    return text
