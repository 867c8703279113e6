"""What Envoy tells after a request: access log entries as plain values.

What a match with the decision can rest on, seen with Envoy 1.40 and deploy/envoy/envoy.yaml (the
entries are tests/vectors/als/*.json). "id": whether the entry has the `decision_id`, "-" where
authz was not asked; "up": whether the service had the request and `upstream` is set.

| case                                 | status | response_details              | id  | up  |
|--------------------------------------|--------|-------------------------------|-----|-----|
| allowed: GET, POST, 302, WebSocket   | its    | via_upstream                  | yes | yes |
| allowed, retried: one entry for all  | its    | via_upstream                  | yes | yes |
| denied                               | 403    | ext_authz_denied              | yes | no  |
| a policy's change of :path refused   | 500    | ext_authz_invalid             | yes | no  |
| JWT missing or expired               | 401    | jwt_authn_access_denied{..}   | -   | no  |
| escaped slash                        | 400    | path_normalization_failed     | -   | no  |
| headers too large, not HTTP: no path | 4xx    | http1.headers_too_large, ..   | -   | no  |
| client gone while the check runs     | none   | downstream_remote_disconnect  | NO  | no  |
| authz slower than Envoy waits        | 503    | ext_authz_error               | NO  | no  |
| authz down                           | 503    | ext_authz_error               | -   | no  |
| service refuses the connection       | 503    | upstream_reset_before_..      | yes | no  |
| service breaks off, POST             | 503    | upstream_reset_before_..      | yes | yes |
| service too slow                     | 504    | response_timeout              | yes | yes |
| client gone while the service works  | none   | downstream_remote_disconnect  | yes | yes |
| client gone while the answer streams | its    | downstream_remote_disconnect  | yes | yes |
| TCP, no ext_authz in the chain       | none   | none                          | -   | yes |
| TCP, allowed                         | none   | none                          | yes | yes |
| TCP, denied (opened, no byte passed) | none   | none                          | yes | no  |

With `access_log_flush_interval`, entries that are no end of a stream, every so often:

| case                                 | status | response_details              | id  | up  |
|--------------------------------------|--------|-------------------------------|-----|-----|
| under way, no answer yet             | none   | none                          | yes | yes |
| under way: streaming, a WebSocket    | its    | via_upstream                  | yes | yes |
| under way while the check runs       | none   | none                          | -   | no  |
| TCP under way, allowed               | none   | none                          | yes | yes |
| TCP, the client has not spoken yet   | none   | none                          | -   | no  |

NO: authz decided, and Envoy's entry does not say which decision. Only `request_id` relates the
two then (`request.http.id` of the Check is another number than the entry's `stream_id`); none of
them had an upstream host.
"""

from typing import Any, Final, TypeAlias

import orjson
from envoy.config.core.v3.address_pb2 import Address
from envoy.config.core.v3.base_pb2 import RequestMethod
from envoy.data.accesslog.v3.accesslog_pb2 import (
    AccessLogCommon,
    AccessLogType,
    HTTPAccessLogEntry,
    TCPAccessLogEntry,
)
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from authz.envoy.parsing import trace_id_of

Plain: TypeAlias = str | int | bool | list[str]
Said: TypeAlias = dict[str, str | dict[str, str | bool | list[str]]]
Access: TypeAlias = dict[str, Plain | Said]
"""Keys of `http_access` and `tcp_access`. One whose value is empty, 0 or False is left out."""

MAX_INTEGER: Final = 2**53 - 1
_HTTP_EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
_TCP_EXT_AUTHZ: Final = "envoy.filters.network.ext_authz"
_METHODS: Final[dict[int, str]] = {
    number: name for name, number in RequestMethod.items() if number != 0
}

_TYPES: Final = frozenset((str, bool, list))  # of what a decision says

_NOT_SET: Final[int] = AccessLogType.NotSet
_ENDS: Final[frozenset[int]] = frozenset(
    {AccessLogType.DownstreamEnd, AccessLogType.TcpConnectionEnd}
)
"""The types that tell a downstream request or connection as a whole, once each. `NotSet` is one
too, from Envoys before 1.26, unless marked as intermediate. Not: `UpstreamEnd`, one attempt of the
router's own log; starts, periodic entries and tunnels set up, which more entries follow; UDP."""


def identifier(message: StreamAccessLogsMessage) -> tuple[str, str, str]:
    """(node id, node cluster, log name). Empty in all but a stream's first message: keep that."""
    node = message.identifier.node
    return node.id, node.cluster, message.identifier.log_name


def http_access(entry: HTTPAccessLogEntry) -> Access:
    """The plain values of one HTTP entry.

    `time` (microseconds since the epoch, when the request came), `method` (from a logged `:method`
    if Envoy's schema has no name for it), `host`, `raw_path` (with its query, normalised by Envoy,
    as policy and service saw it; not `original_path`, which is a header), `source_ip`,
    `user_agent`, `status` (none if the client went away before), `response_details`, `bytes_in`
    and `bytes_out` (of bodies), `duration_us`, `upstream` (ip:port, only if the service had any of
    the request), `request_id`, `trace_id`, `flags` (response flags, sorted), `principal` (the
    first URI in the client's certificate), `authz` (what ext-authz said in its dynamic metadata:
    {"decision_id": ..., "authz": {...}}, each where it was said), and `end_of_stream`.
    """
    common = entry.common_properties
    request = entry.request
    response = entry.response
    headers = request.request_headers
    access = _common(common, _HTTP_EXT_AUTHZ)
    if method := _METHODS.get(request.request_method) or headers.get(":method", ""):
        access["method"] = method
    if text := request.authority:
        access["host"] = text
    if text := request.path:
        access["raw_path"] = text
    if text := request.user_agent:
        access["user_agent"] = text
    if text := request.request_id:
        access["request_id"] = text
    if status := response.response_code.value:
        access["status"] = status
    if text := response.response_code_details:
        access["response_details"] = text
    if size := request.request_body_bytes:
        access["bytes_in"] = min(size, MAX_INTEGER)
    if size := response.response_body_bytes:
        access["bytes_out"] = min(size, MAX_INTEGER)
    if (header := headers.get("traceparent", "")) and (trace := trace_id_of(header)):
        access["trace_id"] = trace
    return access


def tcp_access(entry: TCPAccessLogEntry) -> Access:
    """The plain values of one TCP entry: those of `http_access` that a connection has.

    `bytes_in` and `bytes_out` are of the connection, `response_details` is why it ended, where
    Envoy says so.
    """
    common = entry.common_properties
    access = _common(common, _TCP_EXT_AUTHZ)
    if text := common.connection_termination_details:
        access["response_details"] = text
    if size := entry.connection_properties.received_bytes:
        access["bytes_in"] = min(size, MAX_INTEGER)
    if size := entry.connection_properties.sent_bytes:
        access["bytes_out"] = min(size, MAX_INTEGER)
    return access


def _common(common: AccessLogCommon, ext_authz: str) -> Access:
    access: Access = {}
    start = common.start_time
    if (time := start.seconds * 1_000_000 + start.nanos // 1000) > 0:
        access["time"] = min(time, MAX_INTEGER)
    # `duration` is there for broken requests too; before 1.24 there was only the other.
    span = common.duration
    if not (took := span.seconds * 1_000_000 + span.nanos // 1000):
        span = common.time_to_last_downstream_tx_byte
        took = span.seconds * 1_000_000 + span.nanos // 1000
    if took > 0:
        access["duration_us"] = min(took, MAX_INTEGER)
    # The x-forwarded-for hop that Envoy trusts, in canonical form. A Check's source.address is the
    # direct peer; behind a proxy this is what it has as x-envoy-external-address.
    if text := common.downstream_remote_address.socket_address.address:
        access["source_ip"] = text
    # A host is also named that refused, or that a denied TCP connection was opened to. The bytes
    # are of all attempts.
    if common.upstream_wire_bytes_sent or common.upstream_wire_bytes_received:
        access["upstream"] = _endpoint(common.upstream_remote_address)
    if common.HasField("response_flags") and (flags := common.response_flags.ListFields()):
        access["flags"] = sorted([field.name for field, _ in flags])
    if common.HasField("tls_properties"):
        for name in common.tls_properties.peer_certificate_properties.subject_alt_name:
            if name.uri:
                access["principal"] = name.uri
                break
    kind = common.access_log_type
    if kind in _ENDS or (kind == _NOT_SET and not common.intermediate_log_entry):
        access["end_of_stream"] = True
    said = common.metadata.filter_metadata.get(ext_authz)
    if said is not None and (decision := decision_told(said)):
        access["authz"] = decision
    return access


def _endpoint(address: Address) -> str:
    socket = address.socket_address
    host = socket.address
    if ":" in host:
        return f"[{host}]:{socket.port_value}"
    return f"{host}:{socket.port_value}" if host else address.pipe.path or "unknown"


def decision_told(said: Struct) -> Said:
    """What ext-authz said in its metadata: `decision_id` and `authz`; what else a policy put beside
    them is not ours to record."""
    decision: Said = {}
    fields = said.fields
    value = fields.get("decision_id")
    if value is not None and (text := value.string_value):
        decision["decision_id"] = text
    value = fields.get("authz")
    if value is None:
        return decision
    # A structure is what the version before this one sent.
    text = value.string_value
    told = _object(text) if text else MessageToDict(value.struct_value)
    if values := told if _is_plain(told) else _plain(told):
        decision["authz"] = values
    return decision


def _object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_plain(told: dict[str, Any]) -> bool:
    """Whether all values are of types that ours are, and none is its type's default. Seldom not,
    so it is asked by what is fastest."""
    return _TYPES.issuperset(map(type, told.values())) and all(told.values())


def _plain(told: dict[str, Any]) -> dict[str, str | bool | list[str]]:
    """Those values of `told` that are."""
    values: dict[str, str | bool | list[str]] = {}
    for name, item in told.items():
        kept = _texts(item) if isinstance(item, list) else item
        if kept and type(kept) in _TYPES:
            values[name] = kept
    return values


def _texts(items: list[Any]) -> list[str]:
    return [text for text in items if isinstance(text, str) and text]
