"""What a CheckRequest says: the input document for policies, and the facts for the record."""

import math
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from authz.envoy.parsing import BadRequestError, parse_body, parse_path, trace_id_of

__all__ = ["BadRequestError", "Facts", "facts", "input_document", "unsafe_path", "verified_claims"]

_MAX_INT: Final = 2**53
"""Above this a double does not hold every integer, and a record no integer at all."""

_JWT_AUTHN: Final = "envoy.filters.http.jwt_authn"
_REGISTERED_CLAIMS: Final = frozenset({"iss", "sub", "aud", "exp"})

_UNSAFE: Final = re.compile(
    r"\A(?!/|\*\Z|\Z)|//|[\\;#!\x00-\x1f\x7f-\x9f]|(?:\A|/)\.\.?(?:/|\Z)"
    r"|%(?:2[3ef]|5c|3[bf]|[01][0-9a-f]|7f|(?![0-9a-f]{2}))",
    re.IGNORECASE,
)
_UNSAFE_UNESCAPED: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f]|%(?:[0-9a-f]{2}|u[0-9a-f]{4})", re.IGNORECASE
)

_Convert: TypeAlias = Callable[[Any], object]


def input_document(request: CheckRequest) -> dict[str, object]:
    """opa-envoy-plugin's input document (`encoding` "protojson").

    Every populated field by its JSON name, fields a later Envoy adds included; enums as numbers,
    64-bit integers as numbers, times as {"seconds", "nanos"}, bytes as base64, an Any as its type
    and bytes, as that plugin shows them. If Envoy sent `header_map` instead of `headers`, it is
    shown too and `headers` is filled from it. Nesting stays under 150 levels: protobuf reads at
    most 100 messages deep, and a JSON body has its own limit.

    Raises BadRequestError, and nothing else for a request that came off the wire.
    """
    document = _message(request)
    attributes: Any = document.get("attributes", {})
    http = attributes.get("request", {}).get("http", {})
    raw_body = b""
    if "headerMap" in http and "headers" not in http:
        http["headers"] = _joined_headers(request)
    if "rawBody" in http:
        raw_body = request.attributes.request.http.raw_body
    document["version"] = {"ext_authz": "v3", "encoding": "protojson"}
    if principal := attributes.get("source", {}).get("principal"):
        document["source_principal"] = principal
    document["parsed_path"], document["parsed_query"] = parse_path(http.get("path", ""))
    document["parsed_body"], document["truncated_body"] = parse_body(
        http.get("headers", {}), http.get("body", ""), raw_body
    )
    return document


def _message(message: Message) -> dict[str, object]:
    document: dict[str, object] = {}
    for field, value in message.ListFields():
        name, convert = _field(field)
        document[name] = value if convert is None else convert(value)
    return document


@cache  # one entry for each field of Envoy's messages: bounded by the schema, not by requests
def _field(field: FieldDescriptor) -> tuple[str, _Convert | None]:
    """A field's JSON name, and how its value becomes plain (None: it is already)."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return field.json_name, _of_map(_field(kind.fields_by_name["value"])[1])
    convert: _Convert | None = None
    if kind is not None:
        convert = _struct if kind.full_name == Struct.DESCRIPTOR.full_name else _message
    elif field.type == FieldDescriptor.TYPE_BYTES:
        convert = _base64
    return field.json_name, _of_list(convert) if field.is_repeated else convert


def _of_map(convert: _Convert | None) -> _Convert:
    if convert is None:
        return dict
    return lambda values: {key: convert(value) for key, value in values.items()}


def _of_list(convert: _Convert | None) -> _Convert:
    if convert is None:
        return list
    return lambda values: [convert(value) for value in values]


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _struct(struct: Struct) -> dict[str, object]:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: Value) -> object:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        return _number(value.number_value)
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _struct(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    return None


def _number(number: float) -> int | float:
    if -_MAX_INT <= number <= _MAX_INT:
        return int(number) if number.is_integer() else number
    if not math.isfinite(number):  # JSON has no way to write it
        raise BadRequestError("metadata holds a number that is not finite")
    return number


def _joined_headers(request: CheckRequest) -> dict[str, str]:
    """`header_map` as Envoy would have sent `headers`: lowercase names, values joined by ','."""
    headers: dict[str, str] = {}
    for header in request.attributes.request.http.header_map.headers:
        name = header.key.lower()
        value = header.raw_value.decode(errors="backslashreplace") or header.value
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def unsafe_path(path: str) -> bool:
    r"""Whether a path that went through Envoy's normalisation can still mean another one upstream.

    `path` is as in the request, with its query. True for dot segments, `//`, `\`, `;`, control
    characters, also escaped; an escaped `/`, `.`, `?` or `#`; `#` anywhere; what unescaping turns
    into an escape; escapes that are none or whose bytes are no shortest-form UTF-8; and a path that
    begins with no `/`, other than `*`. Also for `!`, which Envoy writes for each byte that is no
    UTF-8 while the service gets the byte; who means it can write %21.
    """
    raw, question, query = path.partition("?")
    if _UNSAFE.search(raw) or "#" in query or (question and not raw):
        return True
    if "%" not in raw:
        return False
    try:
        unescaped = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        return True
    return _UNSAFE_UNESCAPED.search(unescaped) is not None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a record takes from the request itself. Text as told: not shortened, not redacted."""

    time_us: int = 0
    """When Envoy saw the request, in microseconds since the epoch; 0 if it does not say."""
    method: str = ""
    host: str = ""
    path: str = ""
    """With the query, still escaped."""
    source_ip: str = ""
    """Empty if the peer is no socket, as with a pipe."""
    source_port: int = 0
    principal: str = ""
    request_id: str = ""
    """x-request-id, which a client may choose: evidence, no key."""
    user_agent: str = ""
    trace_id: str = ""
    """32 hex digits from a valid W3C `traceparent`."""
    stream_id: str = ""
    protocol: str = ""
    has_http: bool = False
    claims: dict[str, object] | None = None
    """`verified_claims`, or None if there are none."""


def facts(request: CheckRequest) -> Facts:
    """The plain values a record takes from the request.

    Raises BadRequestError if the claims hold a number that is not finite.
    """
    attributes = request.attributes
    source = attributes.source
    peer = source.address.socket_address
    told = attributes.request
    http = told.http
    has_http = told.HasField("http")
    headers = http.headers
    if not headers and http.HasField("header_map"):
        headers = _joined_headers(request)
    time = told.time
    return Facts(
        time_us=min(max(time.seconds * 1_000_000 + time.nanos // 1000, 0), _MAX_INT - 1),
        method=http.method,
        host=http.host,
        path=http.path,
        source_ip=peer.address,
        source_port=peer.port_value,
        principal=source.principal,
        request_id=headers.get("x-request-id", ""),
        user_agent=headers.get("user-agent", ""),
        trace_id=trace_id_of(headers.get("traceparent", "")),
        stream_id=http.id,
        protocol=http.protocol,
        has_http=has_http,
        claims=verified_claims(request) or None,
    )


def verified_claims(request: CheckRequest) -> dict[str, object]:
    """The payload of the JWT that Envoy's jwt_authn verified, or {}.

    With `payload_in_metadata: K`, jwt_authn puts it under K, a name of the operator's choosing;
    `header_in_metadata` and `failed_status_in_metadata` put other objects beside it. So it is the
    first object, by name, that has one of the claims iss, sub, aud or exp (RFC 7519).

    Raises BadRequestError if it holds a number that is not finite.
    """
    attributes = request.attributes
    if not attributes.HasField("metadata_context"):
        return {}
    by_filter = attributes.metadata_context.filter_metadata
    if _JWT_AUTHN not in by_filter:
        return {}
    payloads = by_filter[_JWT_AUTHN].fields
    for key in sorted(payloads):
        if payloads[key].WhichOneof("kind") == "struct_value":
            claims = payloads[key].struct_value
            if not _REGISTERED_CLAIMS.isdisjoint(claims.fields):
                return _struct(claims)
    return {}
