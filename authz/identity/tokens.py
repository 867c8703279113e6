"""The source `jwt`: bearer tokens that are verified here (RFC 7519, RFC 8725).

Istio and Envoy Gateway run ext_authz before their JWT filters, so that Envoy has verified nothing
yet when it asks.
"""

import hashlib
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
import orjson
from cachetools import LRUCache
from jwt.utils import base64url_decode

from authz.identity.config import IdentityConfig, IssuerConfig
from authz.identity.keys import Keys, KeySet
from authz.identity.values import Claims, Identity, Reason, RefusedError

_MAX_TOKEN: Final = 16_384
_FORM: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_TIMES: Final = ("exp", "nbf", "iat")

_REASONS: Final[Sequence[tuple[type[jwt.PyJWTError], Reason]]] = (  # the first that fits
    (jwt.ExpiredSignatureError, "token_expired"),
    (jwt.ImmatureSignatureError, "token_not_yet_valid"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.InvalidSignatureError, "bad_signature"),
    (jwt.InvalidAlgorithmError, "bad_signature"),
    (jwt.InvalidKeyError, "bad_signature"),
)


class _StrictJWT(jwt.PyJWT):
    """PyJWT, with claims that JSON can carry on: no NaN, no half of a surrogate pair."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        claims = _json_object(decoded["payload"])
        for name in _TIMES:
            if type(claims.get(name, 0)) not in (int, float):
                raise jwt.DecodeError(f"{name} is no number")
        return claims


@dataclass(frozen=True, slots=True)
class _Issuer:
    config: IssuerConfig
    keys: KeySet


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token that was verified: it counts until `until`, while `keys` are the issuer's keys."""

    identity: Identity
    issuer: _Issuer
    keys: Keys
    until: float


class Tokens:
    """Reads and verifies the tokens of all issuers. Several threads may call `read` at once."""

    def __init__(self, config: IdentityConfig, key_sets: Sequence[KeySet]) -> None:
        """`key_sets` are those of `config.issuers`, in that order."""
        self._claims = Claims(config)
        places: dict[tuple[str, str], dict[str, _Issuer]] = {}
        for issuer, keys in zip(config.issuers, key_sets, strict=True):
            place = places.setdefault((issuer.header, issuer.prefix.lower()), {})
            place[issuer.issuer] = _Issuer(issuer, keys)
        self._places = [
            _Place(header, prefix, issuers, self._claims, LRUCache(config.cache_entries))
            for (header, prefix), issuers in places.items()
        ]

    def read(self, headers: Mapping[str, str]) -> Identity | None:
        """Whom the token names, None if there is none.

        Where tokens may be in several places, each that is there must be good, and all must name
        the same person. Raises `RefusedError`.
        """
        found: Identity | None = None
        for place in self._places:
            value = headers.get(place.header)
            token = None if value is None else bearer(value, place.prefix)
            if token is None:
                continue
            identity = place.identity(token)
            if found is not None and found.subject != identity.subject:
                raise RefusedError("conflicting_identities")
            found = found or identity
        return found


def bearer(value: str, prefix: str) -> str | None:
    """The token in a header's value, None if it holds none but, say, `Basic` credentials.

    `prefix` is in lowercase. A header that came twice is one value with commas between (no token
    and no base64 has one): two tokens are malformed, and so is one behind something else.
    """
    parts = [part.strip() for part in value.split(",")]
    tokens = [token for part in parts if (token := _after(part, prefix)) is not None]
    if not tokens:
        return None
    if len(parts) > 1:
        raise RefusedError("malformed_token")
    return tokens[0]


def _after(part: str, prefix: str) -> str | None:
    scheme = prefix.rstrip()
    if not scheme:
        return part or None
    rest = part[len(scheme) :]
    if not part.lower().startswith(scheme):
        return None
    if scheme != prefix and rest and not rest[0].isspace():
        return None  # another scheme, whose name begins like this one
    return rest.strip()


class _Place:
    """A header and prefix, the issuers whose tokens may be there, and those verified before."""

    def __init__(
        self, header: str, prefix: str, issuers: Mapping[str, _Issuer], claims: Claims,
        cache: "LRUCache[bytes, _Verified]",
    ) -> None:  # fmt: skip
        self.header = header
        self.prefix = prefix
        self._issuers = issuers
        self._claims = claims
        self._cache = cache
        self._lock = threading.Lock()
        self._jwt = _StrictJWT()

    def identity(self, token: str) -> Identity:
        """Whom `token` names. Raises `RefusedError`."""
        # Kept by its hash: a dump of the memory holds no credential that somebody could use.
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = self._cache.get(digest)
        if known is not None:
            keys = known.issuer.keys.current()
            if keys is None:
                raise RefusedError("keys_unavailable")
            if keys is known.keys and time.time() < known.until:
                return known.identity
        verified = self._verify(token)
        if verified.until > time.time() and self._cache.maxsize:
            with self._lock:
                self._cache[digest] = verified
        return verified.identity

    def _verify(self, token: str) -> _Verified:
        """Everything that makes a token count, in this order:

        1. it has the form of a signed token (RFC 7515, compact), and no critical extension;
        2. its issuer is one whose tokens may be here;
        3. the issuer's keys are known;
        4. its algorithm is one of those configured for the issuer;
        5. its key is among the issuer's, and one for that algorithm;
        6. its signature, its times, its issuer and its audience hold;
        7. it names a subject.
        """
        header, claims = _unverified(token)  # 1
        name = claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:  # 2
            raise RefusedError("wrong_issuer")
        keys = issuer.keys.current()
        if keys is None:  # 3
            issuer.keys.ask()
            raise RefusedError("keys_unavailable")
        algorithm = header.get("alg")
        if algorithm not in issuer.config.algorithms:  # 4
            raise RefusedError("bad_signature")
        key = keys.find(header.get("kid"), algorithm)
        if key is None:  # 5
            issuer.keys.ask()
            raise RefusedError("unknown_key")
        try:  # 6
            verified = self._jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                options={"require": ["exp", "iss", "aud"]},
                audience=issuer.config.audiences,
                issuer=issuer.config.issuer,
                leeway=issuer.config.leeway_seconds,
            )
        except jwt.PyJWTError as error:
            raise RefusedError(_reason(error)) from None
        identity = self._claims.identity(verified, "jwt", issuer.config.subject_prefix)
        if not identity.subject:  # 7
            raise RefusedError("malformed_token")
        return _Verified(identity, issuer, keys, verified["exp"])


def _unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of what has the form of a token. Nothing is known of its signature."""
    form = _FORM.fullmatch(token) if len(token) <= _MAX_TOKEN else None
    if form is None:
        raise RefusedError("malformed_token")
    try:
        header, claims = (_json_object(_base64(part)) for part in form.groups()[:2])
    except jwt.DecodeError:
        raise RefusedError("malformed_token") from None
    if "crit" in header or not isinstance(header.get("kid", ""), str):
        raise RefusedError("malformed_token")
    return header, claims


def _base64(part: str) -> bytes:
    try:
        return base64url_decode(part)
    except ValueError:
        raise jwt.DecodeError("no base64") from None


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise jwt.DecodeError("no JSON") from None
    if not isinstance(value, dict):
        raise jwt.DecodeError("no JSON object")
    return value


def _reason(error: jwt.PyJWTError) -> Reason:
    if isinstance(error, jwt.MissingRequiredClaimError) and error.claim == "aud":
        return "wrong_audience"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "malformed_token")
