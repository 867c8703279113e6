"""Checks of the HTTP listeners: one spelling of a path, true addresses, the access log."""

import re
from collections.abc import Iterator
from typing import Final

from authz.doctor.documents import Mapping, is_true
from authz.doctor.envoy import (
    HTTP_EXT_AUTHZ,
    Envoy,
    Node,
    filter_type,
    items,
    seconds,
    section,
    texts,
)
from authz.doctor.envoy_authz import EnvoyCheck
from authz.doctor.findings import Finding

_TWO_PATHS: Final = "the policy decides on a path that the service may read as another"
_DECIDED: Final = frozenset({"REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "2", "3"})
_SECRET: Final = frozenset(
    "authorization cookie set-cookie proxy-authorization x-api-key x-forwarded-client-cert".split()
)
_TCP_PROXY: Final = re.compile(r"\.TcpProxy$")
_PRINTERS: Final = (".FileAccessLog", ".StdoutAccessLog", ".StderrAccessLog")
_FLUSH_SECONDS: Final = 5
_GRACE_SECONDS: Final = 60  # the default of receiver.grace_seconds


def one_path(envoy: Envoy) -> Iterator[Finding]:
    """The policy and the service see the same path."""
    lenient = envoy.config is not None and envoy.config.ext_authz.unsafe_paths == "allow"
    for manager in envoy.managers:
        told = envoy.fail if lenient else envoy.warn
        if not is_true(manager.value.get("normalize_path")):
            yield envoy.fail(
                manager, "normalize_path is off", _TWO_PATHS, "set normalize_path: true"
            )
        if not is_true(manager.value.get("merge_slashes")):
            yield told(manager, "merge_slashes is off", _TWO_PATHS, "set merge_slashes: true")
        action = str(manager.value.get("path_with_escaped_slashes_action", "left to its default"))
        if action not in _DECIDED:
            seen = f"path_with_escaped_slashes_action is {action}"
            mend = "set path_with_escaped_slashes_action: REJECT_REQUEST"
            yield told(manager, seen, _TWO_PATHS, mend)


def true_addresses(envoy: Envoy) -> Iterator[Finding]:
    """Clients choose neither their address nor their request's id."""
    for manager in envoy.managers:
        value = manager.value
        if not (is_true(value.get("use_remote_address"))
                or items(value, "original_ip_detection_extensions")):  # fmt: skip
            yield envoy.warn(
                manager,
                "use_remote_address is off",
                "Envoy believes the x-forwarded-for that comes in: clients choose the address in"
                " the records",
                "set use_remote_address: true, and xff_num_trusted_hops to your proxies in front",
            )
        if is_true(value.get("preserve_external_request_id")):
            yield envoy.warn(
                manager,
                "preserve_external_request_id is on",
                "clients choose the request id in the records, and can repeat it",
                "take it out",
            )


def access_log(envoy: Envoy) -> Iterator[Finding]:
    """Every request is told to the receiver, with its decision's id, and nothing secret."""
    for manager in envoy.managers:
        logs = [(entry, filter_type(entry)) for entry in items(manager.value, "access_log")]
        ours = [entry for entry, kind in logs if kind.endswith(".HttpGrpcAccessLogConfig")]
        if not ours:
            yield envoy.fail(
                manager,
                "no gRPC access log (envoy.access_loggers.http_grpc)",
                "nothing tells what became of a request: each allowed decision counts as one"
                " without an access, and what goes round authz is not seen",
                "add the access_log of deploy/envoy/envoy.yaml",
            )
        if ours and all("filter" in entry for entry in ours):
            why = "requests that it leaves out count as decisions without an access"
            yield envoy.warn(
                manager, "the gRPC access log has a filter", why, "take the filter out"
            )
        for entry in ours:
            yield from _logged_headers(envoy, manager, section(entry, "typed_config"))
        if any(kind.endswith(_PRINTERS) for _, kind in logs):
            why = "paths and metadata name patients, and would stand in a text"
            yield envoy.warn(
                manager, "an access log to a file or to standard output", why, "remove it"
            )
    for node in envoy.of(HTTP_EXT_AUTHZ):
        ingested = node.value.get("enable_dynamic_metadata_ingestion")
        if ingested is not None and not is_true(ingested):
            why = "the access log lacks the decision's id: every access counts as a bypass"
            yield envoy.fail(node, "enable_dynamic_metadata_ingestion is off", why, "take it out")


def _logged_headers(envoy: Envoy, manager: Node, config: Mapping) -> Iterator[Finding]:
    named = {
        kind: [name.lower() for name in texts(config, f"additional_{kind}_to_log")]
        for kind in ("request_headers", "response_headers", "response_trailers")
    }
    for name in sorted({name for names in named.values() for name in names} & _SECRET):
        why = "whoever gets an entry can act as the person it is of"
        yield envoy.fail(manager, f"the access log sends the header {name}", why,
                         f"take {name} out of the headers to log")  # fmt: skip
    if "traceparent" not in named["request_headers"]:
        yield envoy.warn(
            manager,
            "the access log does not send traceparent",
            "accesses without a decision cannot be found by their trace",
            'set additional_request_headers_to_log: [traceparent, ":method"]',
        )


def flushed(envoy: Envoy) -> Iterator[Finding]:
    """What Envoy holds of the access log is bounded, sent soon, and sent before it ends."""
    for manager in envoy.managers:
        for entry in items(manager.value, "access_log"):
            if not filter_type(entry).endswith(".HttpGrpcAccessLogConfig"):
                continue
            config = section(entry, "typed_config", "common_config")
            every = config.get("buffer_flush_interval")
            if every is None or (seconds(every) or 0) > _FLUSH_SECONDS:
                seen = "is left to its default" if every is None else f"is {every}"
                why = "what is not sent yet is lost when Envoy is killed"
                yield envoy.warn(manager, f"buffer_flush_interval {seen}", why,
                                 "set buffer_flush_interval: 1s")  # fmt: skip
            if "buffer_size_bytes" not in config:
                yield envoy.warn(
                    manager,
                    "buffer_size_bytes is left to its default, 16 KiB",
                    "it is also the limit from which entries are dropped while the receiver waits",
                    "set buffer_size_bytes: 1048576",
                )
        if "drain_timeout" not in manager.value:
            yield envoy.warn(
                manager,
                "drain_timeout is left to its default",
                "how long a stop of Envoy must wait, to lose no entry, is not written down",
                "set drain_timeout: 5s, and drain before stopping (deploy/envoy/README.md)",
            )


def under_way(envoy: Envoy) -> Iterator[Finding]:
    """A request that runs for long is told to be under way."""
    grace = envoy.config.receiver.grace_seconds if envoy.config else _GRACE_SECONDS
    for node in (*envoy.managers, *envoy.of(_TCP_PROXY)):
        told = [filter_type(entry) for entry in items(node.value, "access_log")]
        if node.outbound or not any(kind.endswith("GrpcAccessLogConfig") for kind in told):
            continue
        every = section(node.value, "access_log_options").get("access_log_flush_interval")
        if every is None or (seconds(every) or 0) > grace / 2:
            seen = "is left out" if every is None else f"is {every}"
            why = f"what lasts for more than {grace:g} s counts as without access until it ends"
            mend = "set access_log_options: {access_log_flush_interval: 20s}"
            yield envoy.warn(node, f"access_log_flush_interval {seen}", why, mend)


CHECKS: Final[tuple[EnvoyCheck, ...]] = (one_path, true_addresses, access_log, flushed, under_way)
