"""Who somebody is, and why it was not believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from authz.identity.config import IdentityConfig, Source

Reason: TypeAlias = Literal[
    "malformed_token",
    "bad_signature",
    "wrong_issuer",
    "wrong_audience",
    "unknown_key",
    "token_expired",
    "token_not_yet_valid",
    "keys_unavailable",
    "conflicting_identities",
    "no_identity",
]

_STATUS: Final[Mapping[str, int]] = {"keys_unavailable": 503, "conflicting_identities": 403}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes the request. It may be shared between requests: nothing in it is changed."""

    subject: str = ""
    roles: tuple[str, ...] = ()
    tenant: str = ""
    source: Source | Literal[""] = ""
    """Which source told it; empty if none did."""
    claims: Mapping[str, object] | None = None
    """Claims whose signature was verified, by us or by Envoy."""


NOBODY: Final = Identity()


class RefusedError(Exception):
    """The request is to be denied: what it brings as an identity does not hold.

    `reason` is one of a few fixed words; nothing that a caller wrote is in it. `status` is HTTP's.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.status = _STATUS.get(reason, 401)


class Claims:
    """Reads subject, roles and tenant from verified claims."""

    def __init__(self, config: IdentityConfig) -> None:
        self._subject = config.subject_claim
        self._roles = config.roles_claim
        self._tenant = config.tenant_claim

    def identity(
        self, claims: Mapping[str, object], source: Source, subject_prefix: str = ""
    ) -> Identity:
        """A subject that is missing or no text is empty; roles that are no text are left out."""
        subject = claim(claims, self._subject)
        roles = claim(claims, self._roles)
        if isinstance(roles, str):
            roles = [roles]
        elif not isinstance(roles, list):
            roles = []
        tenant = claim(claims, self._tenant) if self._tenant else ""
        return Identity(
            subject=subject_prefix + subject if isinstance(subject, str) and subject else "",
            roles=tuple(role for role in roles if isinstance(role, str) and role),
            tenant=tenant if isinstance(tenant, str) else "",
            source=source,
            claims=claims,
        )


def claim(claims: Mapping[str, object], name: str) -> object:
    """The claim of this name, else what its dots lead to (`realm_access.roles`), else None.

    The whole name comes first, because collision-resistant names have dots of their own
    (`https://example.com/roles`, RFC 7519, section 4.2).
    """
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
