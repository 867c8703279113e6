"""Who looks: a token that Envoy passes on, a sign-in at an OpenID provider, or everybody alike.

A sign-in is kept in a cookie that this console signs and only the browser's own site sends back. It
holds the person's name and roles, and no token. A token, where the configuration reads any
(``identity.sources``), is verified here again: a header by itself is believed of nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import OAuth
from httpx2 import HTTPError
from itsdangerous import BadData, URLSafeTimedSerializer
from joserfc.errors import JoseError
from starlette.requests import Request

from authz.config import Config, Oidc
from authz.envoy.check import Facts
from authz.errors import UsageError
from authz.identity.sources import Identities, RefusedError
from authz.identity.values import Claims

_MARK_SECONDS: Final = 12 * 3600
Use = Literal["form", "live"]

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks, in the names that decisions have for people."""

    subject: str
    roles: tuple[str, ...] = ()
    tenant: str = ""
    signed_in: bool = False
    """By a session of ours, which they may end."""


class NobodyError(Exception):
    """It is not known who looks. `status` is HTTP's."""

    def __init__(self, reason: str, status: int = 401) -> None:
        super().__init__(reason)
        self.status = status


class People:
    """Tells who sends a request, and gives the forms they get a mark that only they can have."""

    def __init__(self, config: Config, identities: Identities, key: bytes) -> None:
        self._config = config.console
        self._identities = identities
        self._claims = Claims(config.identity)
        self._tokens = "jwt" in config.identity.sources
        self._marks = URLSafeTimedSerializer(key)
        self._client = config.console.oidc.client_id if config.console.oidc else ""
        self._provider = _provider(config.console.oidc) if config.console.oidc else None

    @property
    def can_sign_in(self) -> bool:
        return self._provider is not None

    def who(self, request: Request) -> Person:
        """Raises `NobodyError`."""
        if self._tokens and (person := self._by_token(request)):
            return person
        if (kept := request.session.get("person")) and isinstance(kept, dict):
            roles = tuple(map(str, kept.get("roles", ())))
            return Person(str(kept["subject"]), roles, str(kept.get("tenant", "")), signed_in=True)
        if self._config.everyone:
            return Person(self._config.everyone, self._config.everyone_roles)
        raise NobodyError("nobody is signed in")

    def _by_token(self, request: Request) -> Person | None:
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        try:
            found = self._identities.read(Facts(), headers)
        except RefusedError as error:
            raise NobodyError(error.reason, error.status) from None
        return Person(found.subject, found.roles, found.tenant) if found.subject else None

    async def begin(self, request: Request, back: str) -> Any:
        """A redirect to the provider. Raises `NobodyError` where that cannot be asked."""
        request.session["back"] = back
        try:
            return await self._provider.authorize_redirect(  # type: ignore[union-attr]
                request, f"{self._config.url}/signed-in"
            )
        except (HTTPError, OAuthError, ValueError) as error:
            logger.error("the sign-in service does not answer", error=str(error))
            raise NobodyError("the sign-in service does not answer", 503) from None

    async def end(self, request: Request) -> str:
        """Somebody comes back from the provider: they are signed in. Returns where they wanted to
        go. Raises `NobodyError`."""
        try:
            token = await self._provider.authorize_access_token(request)  # type: ignore[union-attr]
        except HTTPError as error:
            logger.error("the sign-in service does not answer", error=str(error))
            raise NobodyError("the sign-in service does not answer", 503) from None
        except (OAuthError, JoseError, ValueError, KeyError) as error:
            logger.warning("a sign-in did not hold", error=str(error))
            raise NobodyError("the sign-in did not hold; try again") from None
        claims: Mapping[str, object] = token.get("userinfo") or {}
        audience = claims.get("aud")
        if self._client not in (audience if isinstance(audience, list) else [audience]):
            raise NobodyError("the sign-in is for another program", 403)
        found = self._claims.identity(claims, "jwt")
        if not found.subject:
            raise NobodyError("the sign-in service names nobody", 403)
        back = str(request.session.get("back", "/"))
        request.session.clear()  # what was there before belongs to nobody
        request.session["person"] = {
            "subject": found.subject, "roles": list(found.roles), "tenant": found.tenant,
        }  # fmt: skip
        return back

    def mark(self, person: Person, use: Use = "form") -> str:
        """What only this person can have: for their forms, or a page that goes on telling."""
        return str(self._marks.dumps(person.subject, salt=use))

    def is_theirs(self, mark: str, person: Person, use: Use = "form") -> bool:
        """Whether a mark was given to this person, for this use, not too long ago."""
        try:
            told = self._marks.loads(mark, max_age=_MARK_SECONDS, salt=use)
        except BadData:
            return False
        return bool(told == person.subject)


def _provider(options: Oidc) -> Any:
    secret = _secret(options.client_secret_file) if options.client_secret_file else None
    way = "none" if secret is None else "client_secret_basic"
    return OAuth().register(
        "provider", client_id=options.client_id, client_secret=secret,
        server_metadata_url=f"{options.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={
            "scope": options.scope, "code_challenge_method": "S256",
            "token_endpoint_auth_method": way,
        },
    )  # fmt: skip


def _secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"console.oidc.client_secret_file: {path}: {error}") from None
