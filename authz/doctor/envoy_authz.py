"""Checks of every ext_authz filter: each request is asked about, and no answer is no access."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from authz.doctor.documents import Mapping, is_true
from authz.doctor.envoy import (
    ANY_EXT_AUTHZ,
    HTTP_EXT_AUTHZ,
    NETWORK_EXT_AUTHZ,
    PER_ROUTE,
    Envoy,
    Node,
    filter_type,
    items,
    seconds,
    section,
)
from authz.doctor.findings import Finding, Level

EnvoyCheck: TypeAlias = Callable[[Envoy], Iterator[Finding]]

_OPEN: Final = "whenever authz is down, slow or unreachable, every request is allowed, undecided"
_UNASKED: Final = "a request that authz is not asked about reaches the service undecided"
_ASK_FIRST: Final = "put ext_authz before the router (deploy/envoy/envoy.yaml)"
_DEFAULT_SECONDS: Final = 0.2  # Envoy's own, where the service has no timeout
_LEAST_SECONDS: Final = 0.06  # authz answers 50 ms before Envoy stops waiting
_WHOLES: Final = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000,
                  "0": 100, "1": 10_000, "2": 1_000_000}  # fmt: skip
_FAIL_OPEN_OF: Final = re.compile("ext_?authz|ext_?auth$", re.IGNORECASE)
_ROUTER: Final = re.compile(r"\.http\.router\.v\w+\.Router$")
_EXT_PROC: Final = re.compile(r"\.ext_proc\.v\w+\.")
_FILTER_CONFIG: Final = re.compile(r"\.route\.v3\.FilterConfig$")


def failure_mode(envoy: Envoy) -> Iterator[Finding]:
    """No setting lets requests through without an answer, in whatever it stands."""
    off = "set failure_mode_allow: false, or take it out"
    for node in envoy.nodes:
        if is_true(node.value.get("failure_mode_allow")):
            if is_true(node.value.get("observability_mode")):
                continue  # nothing waits for that filter; what it does not see is a gap
            if _EXT_PROC.search(node.type):
                unseen = "answers pass whose disclosures nobody recorded"
                yield envoy.warn(node, "failure_mode_allow is on in ext_proc", unseen, off)
            else:
                yield envoy.fail(node, "failure_mode_allow is on", _OPEN, off)
        if is_true(node.value.get("failure_mode_allow_header_add")):
            seen = "failure_mode_allow_header_add is on"
            why = "it is for requests that pass without an answer, of which there must be none"
            yield envoy.warn(node, seen, why, "take it out, and failure_mode_allow with it")
        if is_true(node.value.get("fail_open")) and _FAIL_OPEN_OF.search(".".join(node.keys)):
            off_here = "set failOpen: false, or take it out"
            yield envoy.fail(node, "failOpen is on for external authorization", _OPEN, off_here)
    for place in envoy.document.unread:
        seen = f"failure_mode_allow or failOpen is on in the text at {place}"
        yield envoy.fail(Node({}), seen, _OPEN, off)


def shadow(envoy: Envoy) -> Iterator[Finding]:
    """Denials are carried out."""
    for node in envoy.of(ANY_EXT_AUTHZ):
        if is_true(node.value.get("shadow_mode")):
            yield envoy.fail(
                node, "shadow_mode is on", "denials are not carried out", "take shadow_mode out"
            )


def share(envoy: Envoy) -> Iterator[Finding]:
    """All requests are asked about, and that cannot be changed at run time."""
    for node in envoy.of(ANY_EXT_AUTHZ):
        if "filter_enabled_metadata" in node.value:
            yield from _partly(envoy, node, "filter_enabled_metadata leaves requests out")
        if "filter_enabled" not in node.value:
            continue
        enabled = section(node.value, "filter_enabled")
        percent = _percent(section(enabled, "default_value"))
        if percent < 100:
            yield from _partly(envoy, node, f"filter_enabled is {percent:g} %, not 100 %")
        elif enabled.get("runtime_key"):
            seen = "filter_enabled has a runtime_key: it can be switched off at run time"
            yield from _partly(envoy, node, seen)


def _partly(envoy: Envoy, node: Node, seen: str) -> Iterator[Finding]:
    mend = "take filter_enabled and filter_enabled_metadata out"
    if is_true(section(node.value, "deny_at_disable").get("default_value")):
        why = "what is not asked about is denied (deny_at_disable) without a decision on record"
        yield envoy.warn(node, seen, why, mend)
    else:
        yield envoy.fail(node, seen, _UNASKED, mend)


def _percent(value: Mapping) -> float:
    """Of a FractionalPercent; 0 for one that is none."""
    whole = _WHOLES.get(str(value.get("denominator", "HUNDRED")))
    try:
        return 100 * float(value.get("numerator", 0)) / whole if whole else 0
    except (TypeError, ValueError):
        return 0


def switched_off(envoy: Envoy) -> Iterator[Finding]:
    """No route, and no filter's entry, switches the asking off."""
    names = {"envoy.filters.http.ext_authz"}
    entries = [
        node
        for node in envoy.nodes
        if node.keys[-1:] in {("http_filters",), ("filters",), ("discovered",)}
        and ANY_EXT_AUTHZ.search(filter_type(node.value))
    ]
    names |= {str(node.value.get("name")) for node in entries}
    for node in entries:
        for key, why in (
            ("disabled", "the filter asks nothing but where a route enables it"),
            ("is_optional", "an Envoy that does not know the filter runs without it"),
        ):
            if is_true(node.value.get(key)):
                yield envoy.fail(node, f"{key} is on for the ext_authz filter", why,
                                 f"take {key} out")  # fmt: skip
        if "extension_config" in section(node.value, "typed_config"):
            yield envoy.warn(node, "a matcher decides which requests ext_authz is asked about",
                             _UNASKED, "put the ext_authz filter itself in its place")  # fmt: skip
    for node in envoy.nodes:
        per_route = node.keys[-2:-1] == ("typed_per_filter_config",) and node.keys[-1] in names
        wrapper = per_route and _FILTER_CONFIG.search(node.own_type)
        if (wrapper or PER_ROUTE.search(node.own_type)) and is_true(node.value.get("disabled")):
            mend = "take it out of typed_per_filter_config; let the policy allow the path"
            yield envoy.fail(node, "ext_authz is disabled for this route", _UNASKED, mend)


def asked_first(envoy: Envoy) -> Iterator[Finding]:
    """Before a request is routed, ext_authz is asked."""
    for manager in envoy.managers:
        kinds = envoy.filter_types(items(manager.value, "http_filters"))
        routers = [at for at, kind in enumerate(kinds) if _ROUTER.search(kind)]
        before = kinds[: routers[0]] if routers else kinds
        if any(HTTP_EXT_AUTHZ.search(kind) for kind in before):
            continue
        if "" in before:
            yield Finding(
                Level.UNKNOWN, envoy.part(manager),
                "some HTTP filters come by discovery (config_discovery) and are not here;"
                " look at the running Envoy with --envoy-admin",
            )  # fmt: skip
        else:
            yield envoy.fail(manager, "no ext_authz filter before the router", _UNASKED, _ASK_FIRST)


def tcp_asked_first(envoy: Envoy) -> Iterator[Finding]:
    """TCP connections are asked about, too."""
    for node in envoy.nodes if envoy.document.is_envoy else ():
        if node.keys[-1:] not in {("filter_chains",), ("default_filter_chain",)} or node.outbound:
            continue
        kinds = envoy.filter_types(items(node.value, "filters"))
        proxied = [at for at, kind in enumerate(kinds) if kind.endswith(".TcpProxy")]
        if proxied and not any(NETWORK_EXT_AUTHZ.search(kind) for kind in kinds[: proxied[0]]):
            yield envoy.warn(
                node,
                "tcp_proxy without a network ext_authz filter before it",
                "these connections are recorded and not decided on",
                "put envoy.filters.network.ext_authz before it, and set ext_authz.tcp: true",
            )


def asks_us(envoy: Envoy) -> Iterator[Finding]:
    """The questions come in the form that authz answers, and no route asks somebody else."""
    for node in envoy.of(HTTP_EXT_AUTHZ):
        if "http_service" in node.value:
            why = "authz answers gRPC only: no decision is made or recorded here"
            yield envoy.fail(node, "ext_authz asks an http_service", why, "use grpc_service")
    for node in envoy.of(PER_ROUTE):
        if {"grpc_service", "http_service"} & section(node.value, "check_settings").keys():
            why = "its requests are decided on, and recorded, by another service than the filter's"
            yield envoy.warn(node, "a route asks a service of its own", why,
                             "take the service out of check_settings")  # fmt: skip


def told_whole(envoy: Envoy) -> Iterator[Finding]:
    """The policy is told what it decides on."""
    minded = envoy.config is not None and minds_truncation(Path(envoy.config.ext_authz.policy))
    for node in envoy.nodes:
        if is_true(node.value.get("allow_partial_message")) and not minded:
            yield envoy.warn(
                node,
                "allow_partial_message is on",
                "the policy is shown a body cut short, and what follows reaches the service unseen",
                "take it out, or deny input.truncated_body in the policy (and give --config)",
            )
    for node in envoy.of(ANY_EXT_AUTHZ):
        if is_true(node.value.get("encode_raw_headers")):
            yield envoy.warn(
                node,
                "encode_raw_headers is on",
                "Envoy then leaves `headers` empty; where a name stands twice, authz joins the"
                " values itself",
                "take it out",
            )
        if not is_true(node.value.get("include_peer_certificate")):
            yield envoy.warn(
                node,
                "include_peer_certificate is off",
                "the policy is not shown the certificate of the workload that asks",
                "set include_peer_certificate: true",
            )


def minds_truncation(policy: Path) -> bool:
    """Whether the policy in these files reads `input.truncated_body`."""
    if policy == Path():  # none is configured
        return False
    files = policy.rglob("*.rego") if policy.is_dir() else [policy]
    return any(
        "truncated_body" in path.read_text(errors="replace")
        for path in files
        if path.suffix == ".rego" and path.is_file() and not path.stem.endswith("_test")
    )


def waits_long_enough(envoy: Envoy) -> Iterator[Finding]:
    """Envoy waits for the answer that authz is configured to give."""
    for node in envoy.of(ANY_EXT_AUTHZ):
        if "http_service" in node.value:
            continue
        told = section(node.value, "grpc_service").get("timeout")
        waits = _DEFAULT_SECONDS if told is None else seconds(told)
        if waits is None or waits == 0:
            continue
        seen = f"Envoy waits {waits * 1000:g} ms for ext_authz" + (
            " (its default)" * (told is None)
        )
        wanted = envoy.config.ext_authz.timeout_ms / 1000 if envoy.config else _LEAST_SECONDS
        if waits >= wanted:
            continue
        if envoy.config:
            yield envoy.warn(
                node,
                f"{seen}, and ext_authz.timeout_ms is {wanted * 1000:g}",
                "authz answers 50 ms before the shorter of the two: slow decisions are denied"
                " (503 `deadline`) sooner than configured",
                "give both the same value",
            )
        else:
            yield envoy.fail(
                node, seen, "authz answers 50 ms before: nothing can be decided in what is left",
                "set grpc_service.timeout to ext_authz.timeout_ms (0.25s)",
            )  # fmt: skip


CHECKS: Final[tuple[EnvoyCheck, ...]] = (
    failure_mode,
    shadow,
    share,
    switched_off,
    asked_first,
    tcp_asked_first,
    asks_us,
    told_whole,
    waits_long_enough,
)
