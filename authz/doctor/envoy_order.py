"""Checks of the filters beside ext_authz: who is asked before it, and what comes after it."""

import re
from collections.abc import Iterator
from typing import Final

from authz.doctor.envoy import HTTP_EXT_AUTHZ, Envoy, items
from authz.doctor.envoy_authz import EnvoyCheck
from authz.doctor.findings import Finding

_CACHE: Final = re.compile(r"\.http\.cache(_v2)?\.v\w+\.CacheV?2?Config$")
_TOKENS: Final = re.compile(r"\.http\.jwt_authn\.v\w+\.JwtAuthentication$")
_ALTERS: Final = re.compile(
    r"\.http\.(lua|wasm|golang|dynamic_modules|header_mutation|grpc_json_transcoder|"
    r"grpc_http1_reverse_bridge)\.v\w+\."
)
_BEFORE: Final = "put it before ext_authz (deploy/envoy/envoy.yaml)"


def order(envoy: Envoy) -> Iterator[Finding]:
    """What is decided on is what the service gets, from whom the token says, and nobody answers
    for it."""
    for manager in envoy.managers:
        kinds = envoy.filter_types(items(manager.value, "http_filters"))
        asked = [at for at, kind in enumerate(kinds) if HTTP_EXT_AUTHZ.search(kind)]
        if not asked:
            continue  # `asked_first` tells that
        for kind in kinds[: asked[0]]:
            if _CACHE.search(kind):
                yield envoy.fail(
                    manager, "a cache stands before ext_authz",
                    "what it has kept it gives to anyone, and nobody decides on it",
                    "put it after ext_authz, and keep no answers about patients in it",
                )  # fmt: skip
        for kind in kinds[asked[0] + 1 :]:
            if _TOKENS.search(kind):
                yield envoy.warn(
                    manager, "jwt_authn stands after ext_authz",
                    "the policy is asked before the token is checked, and is not shown its claims",
                    _BEFORE,
                )  # fmt: skip
            elif found := _ALTERS.search(kind):
                yield envoy.warn(
                    manager, f"the filter {found[1]} stands after ext_authz",
                    "it can change a request that was decided on: the service gets another one",
                    _BEFORE,
                )  # fmt: skip


CHECKS: Final[tuple[EnvoyCheck, ...]] = (order,)
