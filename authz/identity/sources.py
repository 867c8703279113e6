"""Who makes the request: the sources, in the order the configuration gives them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from authz.envoy.check import Facts
from authz.identity.config import IdentityConfig, Source
from authz.identity.keys import KeySet
from authz.identity.tokens import Tokens
from authz.identity.values import NOBODY, Claims, Identity, RefusedError

__all__ = ["Identities", "Identity", "RefusedError", "shown"]

_Reader: TypeAlias = Callable[[Facts, Mapping[str, str]], Identity | None]


class Identities:
    """Reads who makes a request. `read` may be called from several threads at once."""

    def __init__(self, config: IdentityConfig) -> None:
        """Raises `UsageError` for a file of keys that cannot be used."""
        self._config = config
        self._key_sets = [KeySet(issuer) for issuer in config.issuers]
        self._claims = Claims(config)
        tokens = Tokens(config, self._key_sets)
        self._readers: dict[Source, _Reader] = {
            "jwt": lambda _, headers: tokens.read(headers),
            "jwt_authn": self._jwt_authn,
            "mtls": _mtls,
            "headers": self._headers,
        }

    async def start(self) -> None:
        """Fetch the keys that come from URLs. Without them, their tokens are refused with 503."""
        await asyncio.gather(*(keys.start() for keys in self._key_sets))

    async def watch(self) -> None:
        """Keep the keys fresh, until cancelled. On the loop that ran `start`."""
        async with asyncio.TaskGroup() as group:
            for keys in self._key_sets:
                group.create_task(keys.watch())
            await asyncio.Event().wait()

    def read(self, facts: Facts, headers: Mapping[str, str]) -> Identity:
        """Whom the first source that has an identity tells; one without a source if none has.

        `headers` are by lowercase name, those that came twice joined by ",". No I/O. Raises
        `RefusedError`: what is there and does not hold is never passed over for the next source.
        """
        read: dict[Source, Identity | None] = {}
        identity = NOBODY
        for source in self._config.sources:
            read[source] = told = self._readers[source](facts, headers)
            if told is not None:
                identity = told
                break
        for group in self._config.same:
            _agree(
                read[source] if source in read else self._readers[source](facts, headers)
                for source in group
            )
        if self._config.required and not identity.subject:
            raise RefusedError("no_identity")
        return identity

    def _jwt_authn(self, facts: Facts, _: Mapping[str, str]) -> Identity | None:
        if facts.claims is None:
            return None
        return self._claims.identity(facts.claims, "jwt_authn")

    def _headers(self, _: Facts, headers: Mapping[str, str]) -> Identity | None:
        config = self._config
        subject = _single(headers.get(config.subject_header, ""))
        if not subject:
            return None
        roles = headers.get(config.roles_header, "").split(",") if config.roles_header else ()
        return Identity(
            subject=subject,
            roles=tuple(role for told in roles if (role := told.strip())),
            tenant=_single(headers.get(config.tenant_header, "")) if config.tenant_header else "",
            source="headers",
        )


def _mtls(facts: Facts, _: Mapping[str, str]) -> Identity | None:
    """The peer's SPIFFE ID. Where its certificate has none, Envoy tells a DNS name or a subject
    there, which other authorities may give to anybody."""
    if not facts.principal.startswith("spiffe://"):
        return None
    return Identity(subject=facts.principal, source="mtls")


def _single(value: str) -> str:
    """The value of a header that may be there once only: a comma is what a second one leaves."""
    if "," in value:
        raise RefusedError("conflicting_identities")
    return value.strip()


def _agree(identities: Iterable[Identity | None]) -> None:
    """Those that are there have one subject, and one tenant where they tell any."""
    there = [identity for identity in identities if identity is not None]
    subjects = {identity.subject for identity in there}
    tenants = {identity.tenant for identity in there if identity.tenant}
    if len(subjects) > 1 or len(tenants) > 1:
        raise RefusedError("conflicting_identities")


def shown(identity: Identity) -> dict[str, object]:
    """What a policy sees as `input.authz`: an identity that Envoy's own input does not show.

    Empty for `jwt_authn` and `mtls`, which are under `input.attributes`.
    """
    if identity.source not in ("jwt", "headers"):
        return {}
    return {
        "subject": identity.subject,
        "roles": list(identity.roles),
        "tenant": identity.tenant,
        "claims": dict(identity.claims or {}),
    }
