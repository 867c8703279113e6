"""The section `identity` of the configuration."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Source = Literal["jwt", "jwt_authn", "mtls", "headers"]

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # never "none", and no HMAC: with it, a public key would be the secret

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, token
_JWKS: Final = re.compile(r"https?://[^\s@/]+(/[^\s@]*)?|(?!https?:)[^\s:][^:]*")


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        raise ValueError(f"want the name of a header, such as x-user, not {value!r}")
    return value.lower()


def _optional_header(value: str) -> str:
    return _header(value) if value else ""


def _jwks(value: str) -> str:
    if not _JWKS.fullmatch(value):
        raise ValueError("want a file, or http(s)://host/path without user or password")
    return value


_Text = Annotated[str, Field(min_length=1)]


class IssuerConfig(BaseModel):
    """Whose tokens the source `jwt` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: _Text = Field(description="the claim iss, exactly as the tokens have it")
    audiences: tuple[_Text, ...] = Field(
        min_length=1, description="a token must have one of these in its claim aud"
    )
    jwks: Annotated[str, AfterValidator(_jwks)] = Field(
        description="its public keys, a JWK set (RFC 7517): a file, or http(s)://..."
    )
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "PS256", "ES256", "EdDSA"), min_length=1, description="signatures that count"
    )
    leeway_seconds: float = Field(
        30, ge=0, le=300, description="how far clocks may differ, for exp, nbf and iat"
    )
    header: Annotated[str, AfterValidator(_header)] = Field(
        "authorization", description="the header that holds the token"
    )
    prefix: str = Field("Bearer ", description="what stands before the token, in any case")
    subject_prefix: str = Field(
        "", description="put before the subject, so that two issuers' people stay apart"
    )
    refresh_seconds: float = Field(300, ge=1, description="how often a URL is fetched")
    unknown_key_seconds: float = Field(
        10, ge=0.1, description="a token with an unknown key has a URL fetched at most this often"
    )
    max_age_seconds: float = Field(
        21_600, ge=1, description="keys that could not be read again for so long count no more"
    )

    @model_validator(mode="after")
    def _ages(self) -> Self:
        if self.max_age_seconds < self.refresh_seconds:
            raise ValueError(
                "max_age_seconds is below refresh_seconds, so keys would lapse between two"
                " fetches; raise it"
            )
        return self


class IdentityConfig(BaseModel):
    """Who makes the request: where the subject, its roles and its tenant come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[Source, ...] = Field(
        ("jwt_authn",),
        min_length=1,
        description="tried in this order: jwt, jwt_authn, mtls, headers; see docs/identity.md",
    )
    required: bool = Field(False, description="refuse a request that no source has a subject for")
    same: tuple[tuple[Source, ...], ...] = Field(
        (), description='groups of sources that must agree, such as [["jwt", "headers"]]'
    )
    subject_claim: _Text = Field("sub", description="claim of the subject; dots lead inward")
    roles_claim: str = Field(
        "roles", description="claim of the roles, text or a list, such as realm_access.roles"
    )
    tenant_claim: str = Field("", description="claim of the tenant; none if empty")
    subject_header: Annotated[str, AfterValidator(_optional_header)] = Field(
        "", description="trusted header of the subject, for 'headers'; your proxy must own it"
    )
    roles_header: Annotated[str, AfterValidator(_optional_header)] = Field(
        "", description="trusted header of the roles, with commas between them"
    )
    tenant_header: Annotated[str, AfterValidator(_optional_header)] = Field(
        "", description="trusted header of the tenant"
    )
    cache_entries: int = Field(
        10_000, ge=0, description="verified tokens that are remembered, until their exp"
    )
    issuers: tuple[IssuerConfig, ...] = Field((), description="whose tokens 'jwt' takes; each has:")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _once(self.sources, "sources")
        if ("jwt" in self.sources) != bool(self.issuers):
            raise ValueError("'jwt' in sources and issuers need each other; give both, or neither")
        if ("headers" in self.sources) != bool(self.subject_header):
            raise ValueError(
                "'headers' in sources and subject_header need each other; give both, or neither"
            )
        if (self.roles_header or self.tenant_header) and not self.subject_header:
            raise ValueError("roles_header and tenant_header need subject_header; give it too")
        for group in self.same:
            if len(group) < 2:
                raise ValueError("a group in same needs two sources at least")
            if absent := [name for name in group if name not in self.sources]:
                raise ValueError(f"same names {absent[0]!r}, which is not in sources; add it there")
        _once([name for group in self.same for name in group], "same")
        _once([f"{i.issuer} in {i.header}: {i.prefix.lower()}" for i in self.issuers], "issuers")
        _prefixes_apart(self.issuers)
        return self


def _once(names: Iterable[str], key: str) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"{key} names {name!r} twice; keep one")


def _prefixes_apart(issuers: Iterable[IssuerConfig]) -> None:
    """In one header, no prefix is the beginning of another: which one counts would be a choice."""
    places = sorted({(issuer.header, issuer.prefix.lower()) for issuer in issuers})
    for (header, prefix), (other, longer) in pairwise(places):
        if header == other and longer.startswith(prefix):
            raise ValueError(
                f"in the header {header}, the prefixes {prefix!r} and {longer!r} do not tell tokens"
                " apart; give issuers the same prefix, or ones that differ from their first letters"
            )
