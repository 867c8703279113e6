"""CheckRequests as Envoy sends them, changed in ways that nobody would send on purpose.

Each is made from a seed and a number alone, so that a finding can be made again. What a request
holds in confidence (credentials, bodies, query values, claims) has `SECRET` in it.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

SECRET: Final = "zQ7kV3hush"
VECTORS: Final = Path(__file__).parents[1] / "vectors" / "ext_authz" / "requests.json"
JWT_AUTHN: Final = "envoy.filters.http.jwt_authn"
ECHOED: Final = "fuzz.echo"  # the policy gives this metadata back

_NOT_UTF8: Final = (
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80",
    b"\xe2\x82",
    b"\x80",
)
_TEXTS: Final = (
    "", "\0", "a\0b", "\r\nx: y", "\ufffd", "\u202e", "\ud7ff\ue000", "\U0010ffff", "é" * 300,
    "x" * 2000, " ", "\t", "%", "%%", "%zz", "%00", "{}", '"', "\\", "true", "null", "-1", "NaN",
)  # fmt: skip
_INTEGERS: Final = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63))
_NUMBERS: Final = (
    0.0, -0.0, 1.0, -1.5, 2.0**53, 2.0**53 + 2, 1e22, 1e300, 5e-324, -1.7976931348623157e308,
    float("nan"), float("inf"), float("-inf"), 0.1,
)  # fmt: skip
_KINDS: Final = (
    "Patient", "Patient", "Patient", "Observation", "Observation", "Observation", "Bundle",
    "Binary", "Consent", "Condition", "Condition", "Specimen", "Basic", "Parameters", "Group",
    "patient",
)  # fmt: skip
_PATHS: Final = (
    "", "/", "//", "*", "/fhir", "/fhir/", "/fhir/../admin", "/fhir/./Patient/1", "/fhir//Patient",
    "/fhir/Patient/..;/1", "/fhir/%2e%2e/admin", "/fhir%2fPatient/1", "/fhir/Patient%5c1",
    "/fhir/Patient/%00", "/fhir/Patient/%zz", "/fhir/Patient/%252e", "/fhir/Patient/%c0%af",
    "/fhir/Patient/\x01", "/fhir/Patient/1#x", "/fhir/Pati%65nt/1", "fhir/Patient/1",
    "/%66hir/Patient", "http://other/fhir/Patient/1", "/fhir/Patient/é", "/fhir/Patient/%C3%A9",
    "/FHIR/Patient/1", f"/{SECRET}/{SECRET}", f"/fhir/Patient/1/{SECRET}", f"/fhir/{SECRET}/1",
)  # fmt: skip
_QUERIES: Final = (
    "purpose=RESEARCH", "purpose=RESEARCH&purpose=x", "purpose=RESEARCH&patient=7", "purpose=%zz",
    "purpose=RESEARCH;x=1", "a=1&" * 40, "&&&", "=", "x=%ff", "purpose=R%45SEARCH",
    "+=+&purpose=RESEARCH", f"_token={SECRET}", "patient=Patient/3,4,5", "#",
)  # fmt: skip
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "get", "GET ", "", "\0", "PROPFIND")
_CONTENT_TYPES: Final = (
    "application/json", "application/json; charset=utf-8", "application/fhir+json", "text/plain",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=B", "multipart/form-data",
    'multipart/form-data; boundary="B"; boundary=C', "application/grpc", "", "application/jsonx",
    "multipart/form-data; boundary*=utf-8''B", "multipart/form-data;application/json",
)  # fmt: skip
_MULTIPART: Final = (
    '--B\r\ncontent-disposition: form-data; name="consent"\r\n\r\nyes\r\n'
    f'--B\r\ncontent-disposition: form-data; name="other"\r\n\r\n{SECRET}\r\n--B--\r\n'
)
_BODIES: Final = (
    f'{{"status":"final","note":"{SECRET}"}}', '{"status":"final"}', '{"status":"draft"}',
    '{"status":"final","status":"draft"}', '{"consent":["yes"]}', '{"consent":["yes","no"]}',
    '{"consent":{"a":"yes"}}', '"\\ud800"', '{"\\ud83d\\ude00":"\\udc00"}', "[" * 90 + "]" * 90,
    "[" * 120 + "]" * 120, '{"a":1e400}', '{"a":123456789012345678901234567890}', "NaN", "\ufeff{}",
    "consent=yes", "consent=yes&consent=no", f"consent=yes&x={SECRET}", "consent=%79es", _MULTIPART,
    _MULTIPART.replace("\r\n", "\n"), SECRET, "null", "0", '{"status":"final"} ',
)  # fmt: skip
_HEADERS: Final = (
    ("cookie", f"session={SECRET}"), ("x-api-key", SECRET), ("x-break-glass", "yes"),
    ("x-break-glass", "no"), ("content-length", "5"), ("content-length", "99999"),
    ("content-length", "x"), ("content-length", "-1"), ("content-length", "+0000000000003"),
    ("x-envoy-auth-partial-body", "true"), ("x-request-id", "r" * 200), ("user-agent", "\xff\0"),
    ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), ("traceparent", "00-0-0-0"),
    ("x-forwarded-for", "1.2.3.4, 5.6.7.8"), ("", "empty"), ("x" * 300, "y"), ("X-Upper", "1"),
    ("authorization", f"Basic {SECRET}"), ("authorization", f"Bearer {SECRET}"),
    ("authorization", "Bearer"), ("authorization", ""), ("authorization", f"bearer a.b.{SECRET}"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens to send: `good` count, `bad` do not."""

    good: Sequence[str]
    bad: Sequence[str]


class Requests:
    """Serialised CheckRequests by number."""

    def __init__(self, seed: int, tokens: Tokens) -> None:
        self._seed = seed
        self._tokens = tokens
        vectors: Mapping[str, Any] = json.loads(VECTORS.read_text())
        self._bases = [
            ParseDict(vector, CheckRequest()).SerializeToString() for vector in vectors.values()
        ]
        own = [ParseDict(one, CheckRequest()).SerializeToString() for one in _own()]
        self._bases += own * 5

    def make(self, number: int) -> bytes:
        random = Random((self._seed << 40) + number)
        request = CheckRequest.FromString(random.choice(self._bases))
        self._likely(request, random)
        if random.random() < 0.7:
            for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
                random.choice(_CHANGES)(request, random)
        wire: bytes = request.SerializeToString(deterministic=True)
        if random.random() < 0.08:
            wire = _not_utf8(request, random)
        if random.random() < 0.22:
            for _ in range(random.choice((1, 1, 2, 4))):
                wire = random.choice(_BYTE_CHANGES)(wire, random, self._bases)
        return wire

    def _likely(self, request: CheckRequest, random: Random) -> None:
        """What differs between honest requests; and enough of them are allowed."""
        http = request.attributes.request.http
        http.id = str(random.getrandbits(60))
        if random.random() < 0.5:
            kind = random.choice(_KINDS)
            some = random.randrange(50) if random.random() < 0.5 else random.getrandbits(40)
            http.path = f"/fhir/{kind}/{some}"
            if random.random() < 0.3:
                http.path += "?" + random.choice(_QUERIES)
        if random.random() < 0.35:
            http.headers["authorization"] = "Bearer " + random.choice(self._tokens.good)
        elif random.random() < 0.06:
            http.headers["authorization"] = "Bearer " + random.choice(self._tokens.bad)


def _own() -> list[dict[str, Any]]:
    """Requests that the policy of `oracle` allows, one for each of its rules."""

    def one(method: str, path: str, roles: Sequence[str] = (), **more: Any) -> dict[str, Any]:
        headers = {":path": path, ":method": method, "user-agent": "fuzz/1", "cookie": SECRET}
        http = {"method": method, "path": path, "host": "ehr.local", "headers": headers}
        claims = {"iss": "https://idp", "sub": "dr.who", "roles": list(roles), "hush": SECRET}
        metadata: dict[str, Any] = {JWT_AUTHN: {"verified_jwt": claims}} if roles else {}
        headers |= more.pop("headers", {})
        http |= {name: more.pop(name) for name in ("body", "rawBody") if name in more}
        metadata |= more.pop("metadata", {})
        return {
            "attributes": {
                "source": {
                    "address": {"socketAddress": {"address": "10.0.0.9", "portValue": 5123}},
                    "principal": more.pop("principal", ""),
                },
                "request": {"time": "2026-11-23T01:02:03.000456Z", "http": http},
                "metadataContext": {"filterMetadata": metadata},
                **more,
            }
        }

    form = {"content-type": "application/x-www-form-urlencoded"}
    parts = {"content-type": "multipart/form-data; boundary=B"}
    final = {"content-type": "application/json"}
    deep: Any = {"end": [1, True, None, "é", {"x": -0.5}]}
    return [
        one("GET", "/fhir/Patient/1", ["physician"], contextExtensions={"tenant": "north"}),
        one("HEAD", "/fhir/Observation/2", ["nurse", "physician"]),
        one("POST", "/fhir/Observation", ["nurse"], headers=final, body=_BODIES[0]),
        one("POST", "/fhir/Consent", headers=form, body=f"x={SECRET}&consent=yes"),
        one("POST", "/fhir/Consent", headers=parts, body=_MULTIPART),
        one("GET", "/fhir/Group/3?purpose=RESEARCH", ["researcher"]),
        one("GET", "/fhir/Condition/4", ["physician"], headers={"x-break-glass": "yes"}),
        one("GET", "/fhir/Specimen/5", principal="spiffe://cluster.local/ns/lab/sa/a"),
        one("GET", "/fhir/Parameters/6", ["physician"], metadata={ECHOED: {"a": [{"b": deep}]}}),
    ]


# -- changes of the message


def _any_field(request: CheckRequest, random: Random) -> None:
    """Some scalar of some message that is there."""
    message = _some_message(request, random)
    fields = [field for field in message.DESCRIPTOR.fields if field.message_type is None]
    if fields and message.DESCRIPTOR.GetOptions().map_entry is False:
        field = random.choice(fields)
        if field.is_repeated:
            getattr(message, field.name).extend([_scalar(field, random)] * random.randrange(3))
        else:
            setattr(message, field.name, _scalar(field, random))


def _less(request: CheckRequest, random: Random) -> None:
    """A field that is there, gone."""
    message = _some_message(request, random)
    there = [field for field, _ in message.ListFields()]
    if there:
        message.ClearField(random.choice(there).name)


def _twice(request: CheckRequest, random: Random) -> None:
    """An item of a list, again."""
    message = _some_message(request, random)
    lists = [
        value
        for field, value in message.ListFields()
        if field.is_repeated and field.message_type and not hasattr(value, "keys") and value
    ]
    if lists:
        items = random.choice(lists)
        items.add().CopyFrom(random.choice(items))


def _some_message(request: CheckRequest, random: Random) -> Message:
    message: Message = request
    while random.random() < 0.8:
        inner: list[Message] = []
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            if not field.is_repeated:
                inner.append(value)
            elif not field.message_type.GetOptions().map_entry:
                inner += value
            elif field.message_type.fields_by_name["value"].message_type:
                inner += [value[key] for key in value]
        if not inner:
            break
        message = random.choice(inner)
    return message


def _scalar(field: FieldDescriptor, random: Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = random.choice(_TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return random.choice(_NUMBERS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return random.choice((0, 1, 2, 99))
        case FieldDescriptor.CPPTYPE_INT32:
            return max(min(random.choice(_INTEGERS), 2**31 - 1), -(2**31))
        case FieldDescriptor.CPPTYPE_UINT32:
            return max(min(random.choice(_INTEGERS), 2**32 - 1), 0)
        case FieldDescriptor.CPPTYPE_UINT64:
            return max(random.choice(_INTEGERS), 0)
        case _:
            return random.choice(_INTEGERS)


def _header(request: CheckRequest, random: Random) -> None:
    name, value = random.choice(_HEADERS)
    request.attributes.request.http.headers[name] = value


def _text_of_header(request: CheckRequest, random: Random) -> None:
    """A header's value with a piece out, in, or doubled: tokens that are nearly good too."""
    headers = request.attributes.request.http.headers
    if names := sorted(headers):
        name = random.choice(names)
        value, at = headers[name], random.randrange(len(headers[name]) + 1)
        headers[name] = random.choice(
            (
                value[:at] + value[at + 1 :],
                value[:at] + random.choice(_TEXTS[:12]) + value[at:],
                f"{value},{value}",
                value.upper(),
                value[:-1] + random.choice("ABCDEQgw_-"),
                f"  {value}  ",
            )
        )


def _header_map(request: CheckRequest, random: Random) -> None:
    """The other encoding of headers, with raw values; names may come twice, or both encodings."""
    http = request.attributes.request.http
    for name in sorted(http.headers):
        header = http.header_map.headers.add(key=name)
        raw = http.headers[name].encode()
        if random.random() < 0.1:
            raw += random.choice(_NOT_UTF8)
        if random.random() < 0.8:
            header.raw_value = raw
        else:
            header.value = http.headers[name]
        if random.random() < 0.1:
            http.header_map.headers.add(key=name.upper(), raw_value=raw)
    if random.random() < 0.8:
        http.ClearField("headers")


def _path(request: CheckRequest, random: Random) -> None:
    http = request.attributes.request.http
    at = random.randrange(len(http.path) + 1)
    http.path = random.choice(
        (
            random.choice(_PATHS),
            http.path.partition("?")[0] + "?" + random.choice(_QUERIES),
            http.path[:at] + random.choice(_TEXTS[:19]) + http.path[at:],
            http.path[:at],
            http.path + "?" + "&".join(random.choices(_QUERIES, k=3)),
        )
    )


def _method(request: CheckRequest, random: Random) -> None:
    request.attributes.request.http.method = random.choice(_METHODS)


def _body(request: CheckRequest, random: Random) -> None:
    """A body of some type, whole or cut, as text or raw."""
    http = request.attributes.request.http
    http.headers["content-type"] = random.choice(_CONTENT_TYPES)
    body = random.choice(_BODIES)
    if random.random() < 0.5:
        body = body[: random.randrange(len(body) + 1)]
    http.body = body if random.random() < 0.6 else ""
    if random.random() < 0.5:
        http.raw_body = body.encode() + random.choice((b"", b"", *_NOT_UTF8))
    http.method = random.choice(("POST", "POST", "PUT", "GET"))
    if random.random() < 0.1:
        http.headers["content-length"] = str(len(body.encode()) + random.choice((-1, 0, 1)))


def _metadata(request: CheckRequest, random: Random) -> None:
    """Another value, of any type, somewhere in the metadata."""
    metadata = request.attributes.metadata_context.filter_metadata
    name = random.choice((JWT_AUTHN, JWT_AUTHN, ECHOED, "other", ""))
    place: Struct = metadata[name]
    key = random.choice(("verified_jwt", "sub", "roles", "", "payload"))
    for _ in range(random.choice((0, 1, 1, 2))):
        value = place.fields[key]
        if value.WhichOneof("kind") != "struct_value":
            break
        place = value.struct_value
        key = random.choice((*sorted(place.fields), "sub", "roles", "exp", "new"))
    _value(place.fields[key], random, 3)


def _value(value: Value, random: Random, depth: int) -> None:
    value.Clear()
    match random.randrange(8):
        case 0:
            value.null_value = 0
        case 1:
            value.number_value = random.choice(_NUMBERS)
        case 2 | 3:
            value.string_value = random.choice((*_TEXTS, "physician", "nurse", SECRET))
        case 4:
            value.bool_value = random.random() < 0.5
        case 5 if depth:
            for key in ("a", "physician", "sub", "")[: random.randrange(5)]:
                _value(value.struct_value.fields[key], random, depth - 1)
        case 6 if depth:
            for _ in range(random.randrange(4)):
                _value(value.list_value.values.add(), random, depth - 1)
        case 7:
            _nested(value, random.choice((5, 20, 24, 30, 31, 32, 40)), random)
        case _:
            pass  # a value of no kind


def _nested(value: Value, depth: int, random: Random) -> None:
    for _ in range(depth):
        if random.random() < 0.5:
            value = value.list_value.values.add()
        else:
            value = value.struct_value.fields["n"]
    value.string_value = "deep"


def _typed_metadata(request: CheckRequest, random: Random) -> None:
    typed = request.attributes.metadata_context.typed_filter_metadata[random.choice(_TEXTS[:4])]
    typed.type_url = random.choice(("", "type.googleapis.com/google.protobuf.Struct", "x"))
    typed.value = random.randbytes(random.randrange(20))


def _peer(request: CheckRequest, random: Random) -> None:
    source = request.attributes.source
    source.principal = random.choice(
        ("spiffe://cluster.local/ns/lab/sa/a", "spiffe://cluster.local/ns/labs", "CN=x", *_TEXTS)
    )
    match random.randrange(4):
        case 0:
            source.address.pipe.path = "/run/x"
        case 1:
            source.address.socket_address.address = random.choice(_TEXTS)
        case 2:
            source.certificate = SECRET
        case _:
            source.labels[random.choice(_TEXTS[:6])] = random.choice(_TEXTS)


def _time(request: CheckRequest, random: Random) -> None:
    time = request.attributes.request.time
    time.seconds = random.choice(_INTEGERS)
    time.nanos = random.choice((0, -1, 2**31 - 1, 999_999_999, -(2**31)))


def _extension(request: CheckRequest, random: Random) -> None:
    name = random.choice(("tenant", "", *_TEXTS[:6]))
    request.attributes.context_extensions[name] = random.choice(_TEXTS)


_CHANGES: Final[Sequence[Callable[[CheckRequest, Random], None]]] = (
    _any_field, _any_field, _less, _less, _twice, _header, _header, _text_of_header,
    _text_of_header, _header_map, _path, _path, _method, _body, _body, _metadata, _metadata,
    _metadata, _typed_metadata, _peer, _time, _extension,
)  # fmt: skip


# -- changes of the bytes


def _not_utf8(request: CheckRequest, random: Random) -> bytes:
    """A text of the message with bytes in it that no text has; lengths stay right."""
    http = request.attributes.request.http
    bad = random.choice(_NOT_UTF8)
    good = "~" * len(bad)
    match random.randrange(4):
        case 0:
            http.path += good
        case 1:
            http.headers["user-agent"] = good
        case 2:
            request.attributes.source.principal = good
        case _:
            request.attributes.metadata_context.filter_metadata[JWT_AUTHN].fields[good].Clear()
    wire: bytes = request.SerializeToString(deterministic=True)
    return wire.replace(good.encode(), bad)


def _flip(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    if not wire:
        return wire
    at = random.randrange(len(wire))
    return wire[:at] + bytes([wire[at] ^ (1 << random.randrange(8))]) + wire[at + 1 :]


def _cut(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    begin = random.choice((0, 0, random.randrange(len(wire) + 1)))
    return wire[begin : random.randrange(len(wire) + 1)]


def _splice(wire: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return wire[: random.randrange(len(wire) + 1)] + other[random.randrange(len(other) + 1) :]


def _merge(wire: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Two messages one behind the other are one message, by protobuf's rules."""
    return random.choice((wire + random.choice(others), random.choice(others) + wire))


def _insert(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(wire) + 1)
    return wire[:at] + random.randbytes(random.choice((1, 2, 8))) + wire[at:]


def _giant_varint(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(wire) + 1)
    return wire[:at] + b"\xff" * random.choice((4, 9, 10, 11)) + b"\x01" + wire[at:]


def _length(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """A wrong length: a byte after a tag of a text or message, larger or smaller."""
    at = random.randrange(len(wire) + 1)
    for place in range(at, max(len(wire) - 1, at)):
        if wire[place] & 7 == 2:
            length = (wire[place + 1] + random.choice((-1, 1, 3, 64))) % 256
            return wire[: place + 1] + bytes([length]) + wire[place + 2 :]
    return wire


def _unknown(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """Fields that no version has, of every wire type; at the end, where they are whole."""
    number = random.choice((15, 100, 536_870_911, 0))
    kind = random.randrange(8)
    content = {
        0: _varint(random.getrandbits(64)), 1: random.randbytes(8), 2: b"\x03abc",
        3: _varint(number << 3 | 4), 5: struct.pack("<f", 1.0),
    }.get(kind, b"")  # fmt: skip
    return wire + _varint(number << 3 | kind) + content


def _groups(wire: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """Groups inside groups, all closed or not."""
    depth, number = random.choice((1, 50, 99, 101, 5000)), random.randrange(1, 20)
    ends = random.choice((depth, depth, depth - 1, depth + 1))
    return wire + _varint(number << 3 | 3) * depth + _varint(number << 3 | 4) * ends


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


_BYTE_CHANGES: Final[Sequence[Callable[[bytes, Random, Sequence[bytes]], bytes]]] = (
    _flip, _flip, _flip, _cut, _splice, _merge, _insert, _giant_varint, _length, _length,
    _unknown, _groups,
)  # fmt: skip
