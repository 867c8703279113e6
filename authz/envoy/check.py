"""What a CheckRequest says: the input document for policies, and the facts for the record."""

import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote

from envoy.config.core.v3.base_pb2 import HeaderMap, Metadata
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from authz.envoy.client_address import client_address
from authz.envoy.parsing import BadRequestError, parse_body, parse_path, trace_id_of

__all__ = [
    "BadRequestError",
    "Document",
    "Facts",
    "complete",
    "facts",
    "input_document",
    "told",
    "unsafe_path",
    "verified_claims",
]

Document: TypeAlias = dict[str, Any]
"""JSON values by name."""

_NOTHING: Final[Document] = {}

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


def input_document(request: CheckRequest) -> Document:
    """opa-envoy-plugin's input document (`encoding` "protojson"): `told`, made `complete`.

    Raises BadRequestError, and nothing else for a request that came off the wire.
    """
    document = told(request)
    complete(document)
    return document


def told(request: CheckRequest) -> Document:
    """The part of the input document that Envoy tells, under `attributes`.

    Every populated field by its JSON name, fields a later Envoy adds included; enums as numbers,
    64-bit integers as numbers, times as {"seconds", "nanos"}, bytes as base64, an Any as its type
    and bytes, as that plugin shows them. If Envoy sent `header_map` instead of `headers`, it is
    shown too and `headers` is filled from it. Nesting stays under 150 levels: protobuf reads at
    most 100 messages deep, and a JSON body has its own limit.

    Raises BadRequestError if metadata holds a number that is not finite.
    """
    document = _message(request)
    http = document.get("attributes", _NOTHING).get("request", _NOTHING).get("http", _NOTHING)
    if "headerMap" in http and "headers" not in http:
        http["headers"] = joined(request.attributes.request.http.header_map)
    return document


def complete(document: Document) -> None:
    """Add to what Envoy told what policies find read already: path, query, body, principal.

    Raises BadRequestError; the document is then not complete.
    """
    attributes = document.get("attributes", _NOTHING)
    http = attributes.get("request", _NOTHING).get("http", _NOTHING)
    document["version"] = {"ext_authz": "v3", "encoding": "protojson"}
    if principal := attributes.get("source", _NOTHING).get("principal"):
        document["source_principal"] = principal
    document["parsed_path"], document["parsed_query"] = parse_path(http.get("path", ""))
    raw_body = b64decode(http["rawBody"]) if "rawBody" in http else b""
    document["parsed_body"], document["truncated_body"] = parse_body(
        http.get("headers", {}), http.get("body", ""), raw_body
    )


def _message(message: Message) -> Document:
    document: Document = {}
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
        convert = _SPECIAL.get(kind.full_name, _message)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        convert = _base64
    return field.json_name, _of_list(convert) if field.is_repeated else convert


def _of_map(convert: _Convert | None) -> _Convert:
    if convert is None:
        return lambda values: {key: values[key] for key in values}  # half the time of dict()
    return lambda values: {key: convert(values[key]) for key in values}


def _of_list(convert: _Convert | None) -> _Convert:
    if convert is None:
        return list
    return lambda values: [convert(value) for value in values]


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _struct(struct: Struct) -> Document:
    fields = struct.fields
    return {key: _value(fields[key]) for key in fields}


def _value(value: Value) -> object:
    if text := value.string_value:  # most are: this is what asking for the kind costs
        return text
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return ""
    if kind == "number_value":
        return _number(value.number_value)
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _struct(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    return None


def _once(kind: type[Message]) -> _Convert:
    """For what comes with many requests, the claims of one token and the two ends of a connection:
    it is read once. Documents that share it do not change it."""

    @lru_cache(2048)
    def read(message: bytes) -> Document:
        return _message(kind.FromString(message))

    return lambda message: read(message.SerializeToString())


_SPECIAL: Final[dict[str, _Convert]] = {
    Struct.DESCRIPTOR.full_name: _struct,
    Metadata.DESCRIPTOR.full_name: _once(Metadata),
    AttributeContext.Peer.DESCRIPTOR.full_name: _once(AttributeContext.Peer),
}


def _number(number: float) -> int | float:
    if -_MAX_INT <= number <= _MAX_INT:
        return int(number) if number.is_integer() else number
    if not math.isfinite(number):  # JSON has no way to write it
        raise BadRequestError("metadata holds a number that is not finite")
    return number


def joined(header_map: HeaderMap) -> dict[str, str]:
    """Headers as Envoy sends them as a map: lowercase names, values joined by ','."""
    headers: dict[str, str] = {}
    for header in header_map.headers:
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


class Facts(NamedTuple):
    """What a record takes from the request itself. Text as told: not shortened, not redacted."""

    time_us: int = 0
    """When Envoy saw the request, in microseconds since the epoch; 0 if it does not say."""
    method: str = ""
    host: str = ""
    path: str = ""
    """With the query, still escaped."""
    source_ip: str = ""
    """Empty if the peer is no socket, as with a pipe."""
    principal: str = ""
    request_id: str = ""
    """x-request-id, which a client may choose: evidence, no key."""
    user_agent: str = ""
    trace_id: str = ""
    """32 hex digits from a valid W3C `traceparent`."""
    traceparent: str = ""
    has_http: bool = False
    claims: dict[str, object] | None = None
    """`verified_claims`, or None if there are none."""


def facts(document: Document, *, trust_envoy: bool = False) -> Facts:
    """The plain values a record takes from what Envoy `told`; for `trust_envoy` see
    `client_address`."""
    attributes = document.get("attributes", _NOTHING)
    source = attributes.get("source", _NOTHING)
    peer = source.get("address", _NOTHING).get("socketAddress", _NOTHING)
    request = attributes.get("request", _NOTHING)
    time = request.get("time", _NOTHING)
    http = request.get("http")
    has_http = http is not None
    if http is None:
        http = _NOTHING
    headers = http.get("headers", _NOTHING)
    traceparent = headers.get("traceparent", "")
    microseconds = time.get("seconds", 0) * 1_000_000 + time.get("nanos", 0) // 1000
    return Facts(
        time_us=min(max(microseconds, 0), _MAX_INT - 1),
        method=http.get("method", ""),
        host=http.get("host", ""),
        path=http.get("path", ""),
        source_ip=client_address(peer.get("address", ""), headers, trust_envoy=trust_envoy),
        principal=source.get("principal", ""),
        request_id=headers.get("x-request-id", ""),
        user_agent=headers.get("user-agent", ""),
        trace_id=trace_id_of(traceparent),
        traceparent=traceparent,
        has_http=has_http,
        claims=verified_claims(document) or None,
    )


def verified_claims(document: Document) -> Document:
    """The payload of the JWT that Envoy's jwt_authn verified, or {}.

    With `payload_in_metadata: K`, jwt_authn puts it under K, a name of the operator's choosing;
    `header_in_metadata` and `failed_status_in_metadata` put other objects beside it. So it is the
    first object, by name, that has one of the claims iss, sub, aud or exp (RFC 7519).
    """
    metadata = document.get("attributes", _NOTHING).get("metadataContext", _NOTHING)
    payloads = metadata.get("filterMetadata", _NOTHING).get(_JWT_AUTHN, _NOTHING)
    for key in sorted(payloads):
        claims: Document = payloads[key]
        if isinstance(claims, dict) and not _REGISTERED_CLAIMS.isdisjoint(claims):
            return claims
    return {}
