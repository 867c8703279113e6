"""The input document equals opa-envoy-plugin's, and no request gets anything worse than a 400."""

import base64
import contextlib
import json
import math
from pathlib import Path
from urllib.parse import unquote

import orjson
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import DecodeError
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from authz.envoy.check import (
    BadRequestError,
    Facts,
    facts,
    input_document,
    told,
    unsafe_path,
    verified_claims,
)
from authz.envoy.parsing import MAX_JSON_DEPTH, MAX_QUERY_PARAMETERS

VECTORS = Path(__file__).parents[1] / "vectors" / "ext_authz"
REQUESTS = json.loads((VECTORS / "requests.json").read_text())
ECHOED = json.loads((VECTORS / "expected.json").read_text())["echo.rego"]
UNHURRIED = settings(deadline=None, max_examples=100)


def vector(name):
    return ParseDict(REQUESTS[name], CheckRequest())


def with_http(**fields):
    request = vector("plain")
    http = request.attributes.request.http
    http.headers.update(fields.pop("headers", {}))
    for name, value in fields.items():
        setattr(http, name, value)
    return request


def parsed_body(content_type, body, **headers):
    raw = body if isinstance(body, bytes) else b""
    text = "" if raw else body
    headers = {"content-type": content_type, **headers}
    document = input_document(with_http(headers=headers, body=text, raw_body=raw))
    return document["truncated_body"] or document["parsed_body"]


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_input_is_the_plugins(name):
    """Each vector's input is what echo.rego saw, and each refusal has the plugin's text."""
    expected = ECHOED[name]["response"]
    if "deniedResponse" in expected:
        with pytest.raises(BadRequestError) as refused:
            input_document(vector(name))
        assert str(refused.value) == expected["deniedResponse"]["body"]
    else:
        assert input_document(vector(name)) == expected["dynamicMetadata"]["input"]


# -- against protobuf's own JSON, on random messages

TEXT = st.text(max_size=8)
SCALARS = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
}


def scalar(draw, field):
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    return draw(SCALARS[field.type])


def populate(draw, message, depth=0):
    """Set a random choice of the message's fields, whatever fields its schema has."""
    for field in message.DESCRIPTOR.fields:
        if depth > 12 or not draw(st.booleans()):
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            values = getattr(message, field.name)
            for key in draw(st.lists(TEXT, max_size=2)):
                if entry.fields_by_name["value"].message_type is None:
                    values[key] = scalar(draw, entry.fields_by_name["value"])
                else:
                    populate(draw, values[key], depth + 1)
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                populate(draw, getattr(message, field.name).add(), depth + 1)
        elif entry is not None:
            getattr(message, field.name).SetInParent()
            populate(draw, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, scalar(draw, field))


@st.composite
def any_request(draw):
    request = CheckRequest()
    populate(draw, request)
    return request


def reference(request):
    """The `attributes` as MessageToDict shows them, with what the plugin shows otherwise."""
    request = CheckRequest.FromString(request.SerializeToString())
    attributes = request.attributes
    special = {}
    for name, json_name in (
        ("metadata_context", "metadataContext"),
        ("route_metadata_context", "routeMetadataContext"),
    ):
        if attributes.HasField(name) and getattr(attributes, name).typed_filter_metadata:
            anys = getattr(attributes, name).typed_filter_metadata
            special[json_name] = {
                key: {
                    **({"typeUrl": value.type_url} if value.type_url else {}),
                    **({"value": base64.b64encode(value.value).decode()} if value.value else {}),
                }
                for key, value in anys.items()
            }
            anys.clear()
    time = attributes.request.time if attributes.request.HasField("time") else None
    shown_time = time and {name.name: value for name, value in time.ListFields()}
    if time is not None:
        attributes.request.ClearField("time")
        attributes.request.SetInParent()
    document = MessageToDict(request, use_integers_for_enums=True).get("attributes", {})
    for name, value in special.items():
        document[name]["typedFilterMetadata"] = value
    if time is not None:
        document["request"]["time"] = shown_time
    if "size" in document.get("request", {}).get("http", {}):
        document["request"]["http"]["size"] = int(document["request"]["http"]["size"])
    return document


@UNHURRIED
@given(any_request())
def test_attributes_are_protobufs_json(request):
    """Every field of a random request appears as protobuf's JSON (or the plugin) shows it."""
    http = request.attributes.request.http
    if request.attributes.request.HasField("http"):
        http.path = "/"  # random escapes and bodies are another test's business
        http.body = ""
        http.ClearField("raw_body")
    document = input_document(request)
    shown = document.get("attributes", {})
    if not http.headers and http.HasField("header_map"):
        del shown["request"]["http"]["headers"]
    assert shown == reference(request)
    assert ("attributes" in document) == request.HasField("attributes")


# -- hostile requests


@st.composite
def hostile_request(draw):
    """A vector with another path, content type, body, headers and metadata."""
    request = vector(draw(st.sampled_from(sorted(REQUESTS))))
    http = request.attributes.request.http
    pieces = st.sampled_from(
        ["/", "..", "%", "%2f", "%ff", "%zz", "?", "&", "=", ";", "+", "é", "a"]
    )
    http.path = "".join(draw(st.lists(pieces, max_size=9)))
    http.headers["content-type"] = draw(
        st.sampled_from(
            [
                "application/json",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=b",
                'multipart/form-data; boundary="',
                "application/grpc",
            ]
        )
        | TEXT
    )
    if draw(st.booleans()):
        http.headers["content-length"] = draw(st.sampled_from(["1", "-1", "x", "9" * 30]))
    parts = ["{", "[", '"a"', ":", "1e999", "NaN", '"\\ud800"', "--b", "\r\n", "--", "a=%", "\0"]
    body = "".join(draw(st.lists(st.sampled_from(parts), max_size=9)))
    if draw(st.booleans()):
        http.body, http.raw_body = body, b""
    else:
        http.body, http.raw_body = "", body.encode() + draw(st.binary(max_size=4))
    if draw(st.booleans()):
        number = request.attributes.metadata_context.filter_metadata["f"].fields["n"]
        number.number_value = draw(st.floats())
    return request


@st.composite
def damaged_request(draw):
    """A vector's bytes with some changed, if they still are a CheckRequest."""
    wire = bytearray(vector(draw(st.sampled_from(sorted(REQUESTS)))).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        assume(wire)
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    try:
        return CheckRequest.FromString(bytes(wire))
    except DecodeError:
        assume(False)


@UNHURRIED
@given(hostile_request() | damaged_request() | any_request())
def test_bad_requests_are_the_only_failure(request):
    """A hostile request gives BadRequestError or a document that every engine can be sent."""
    with contextlib.suppress(BadRequestError):
        orjson.dumps(input_document(request))
    with contextlib.suppress(BadRequestError):
        assert 0 <= facts(told(request)).time_us < 2**53


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_metadata_is_refused(number):
    """A number that JSON cannot write is a bad request, in the input and in the claims."""
    request = vector("metadata_context")
    claims = request.attributes.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"]
    claims.fields["verified_jwt"].struct_value.fields["exp"].number_value = number
    for read in (input_document, told):
        with pytest.raises(BadRequestError):
            read(request)


def test_the_deepest_parsable_metadata_is_shown():
    """Metadata as deep as protobuf parses it neither exhausts the stack nor orjson."""
    request = vector("plain")
    wire = request.SerializeToString()
    value = request.attributes.metadata_context.filter_metadata["f"].fields["v"]
    for _ in range(200):
        value = value.list_value.values.add()
        try:
            CheckRequest.FromString(request.SerializeToString())
        except DecodeError:
            break
        wire = request.SerializeToString()
    orjson.dumps(input_document(CheckRequest.FromString(wire)))


# -- bodies


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": 1, "a": 2}', {"a": 2}),
        (b'{"raw": "\xff"}', {"raw": "\N{REPLACEMENT CHARACTER}"}),
        (r'["cut \ud83d", "\ud83d\ude00", "\\ud83d"]', ["cut \ufffd", "\U0001f600", r"\ud83d"]),
        ("null", None),
    ],
)
def test_json_is_read_as_go_reads_it(body, expected):
    """The last of two keys wins; broken bytes and half pairs show as U+FFFD."""
    assert parsed_body("application/json", body) == expected


def test_json_depth_is_bounded():
    """Nesting up to the limit is read, one more is a bad request, a million too."""
    deepest = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert parsed_body("application/json", deepest)
    flat = "[" + "[]," * 500 + "{}]"
    assert len(parsed_body("application/json", flat)) == 501
    for bad in (f"[{deepest}]", "[" * 1_000_000, '{"a":' * 200 + "1" + "}" * 200):
        with pytest.raises(BadRequestError):
            parsed_body("application/json", bad)


@pytest.mark.parametrize(
    "body", ["NaN", "[Infinity]", "1e999", "{", "{} x", "'a'", "01", "\ufeff{}"]
)
def test_json_that_is_none_is_refused(body):
    """What is no JSON, numbers without a finite value included, is a bad request."""
    with pytest.raises(BadRequestError, match="request_parse_error: "):
        parsed_body("application/json", body)


@pytest.mark.parametrize(
    ("length", "truncated"),
    [("2", False), ("3", True), ("-1", False), ("+2", False), ("9" * 19, True)],
)
def test_a_short_body_is_truncated(length, truncated):
    """A body shorter than its content-length is not parsed, and marked."""
    document = input_document(
        with_http(headers={"content-type": "application/json", "content-length": length}, body="{}")
    )
    assert document["truncated_body"] is truncated
    assert document["parsed_body"] == (None if truncated else {})


@pytest.mark.parametrize("length", ["", "two", "1_0", "٢", "9" * 40])
def test_a_content_length_that_is_no_number_is_refused(length):
    """Only ASCII digits of a sensible count are a length."""
    with pytest.raises(BadRequestError, match="content-length"):
        parsed_body("application/json", "{}", **{"content-length": length})


MULTIPART = (
    "preamble\r\n--b\r\n"
    'Content-Disposition: form-data; name="id"\r\n\r\n12\r\n-3\r\n'
    '--b \r\ncontent-disposition: form-data;\r\n name="id"; filename="C:\\x"\r\n\r\n\r\n'
    '--b\r\nContent-Type: application/json\r\nContent-Disposition: form-data; name="a\\"b"\r\n\r\n'
    '{"x": [1]}\r\n'
    "--b\r\n\r\nno name\r\n"
    "--b\r\nContent-Disposition: attachment; name=x\r\n\r\nno field\r\n--b--\r\nepilogue"
)


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_multipart_fields_are_read(newline):
    """Each named part of a form is a value; JSON parts are parsed, others are text."""
    body = MULTIPART.replace("\r\n", newline)
    expected = {"id": [f"12{newline}-3", ""], 'a"b': [{"x": [1]}]}
    assert parsed_body("multipart/form-data; boundary=b", body) == expected
    assert parsed_body('multipart/form-data; Boundary="b";', body.encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "--b",
        "--b\r\n",
        "--b\r\nA: b\r\n\r\nnever ends",
        "--b\r\nno header\r\n\r\n1\r\n--b--",
        "--b\r\nA: b\r\nA: c\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name*=utf-8''x\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=x; name=y\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n1\r\n--b--",
        "--b\r\nA: b\r\n\r\n1\r\n--b trailing\r\n\r\n--b--",
        "--b--\n--b\n\nnot the end for everyone\n--b--",
    ],
)
def test_ambiguous_multipart_is_refused(body):
    """A form that two readers could take apart differently is a bad request."""
    with pytest.raises(BadRequestError):
        parsed_body("multipart/form-data; boundary=b", body or " ")


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=", "multipart/form-data, a"]
)
def test_multipart_without_a_readable_boundary_is_refused(content_type):
    """A media type that does not parse is a bad request; one without boundary is just not read."""
    with pytest.raises(BadRequestError):
        parsed_body(content_type, "--b--")
    assert parsed_body("multipart/form-data", "--b--") is None


def test_many_query_parameters_are_refused():
    """A query of more parameters than Go reads is a bad request."""
    query = "&".join(["a"] * MAX_QUERY_PARAMETERS)
    assert len(input_document(with_http(path="/?" + query))["parsed_query"]["a"]) == 10_000
    with pytest.raises(BadRequestError):
        input_document(with_http(path=f"/?{query}&"))


def test_a_semicolon_in_the_query_is_refused():
    """Go refuses `;` between parameters, since some servers split there."""
    with pytest.raises(BadRequestError, match="invalid semicolon separator in query"):
        input_document(with_http(path="/?a=1;b=2"))


# -- raw headers


def test_header_map_fills_headers():
    """Raw headers appear under lowercase names, joined by commas, with odd bytes escaped."""
    request = with_http(body='{"a": 1}')
    http = request.attributes.request.http
    http.headers.clear()
    for key, raw, value in (
        ("Content-Type", b"application/json", ""),
        ("x-many", b"1", ""),
        ("X-Many", b"", "2"),
        ("x-odd", b"\xff\xc3\xa9", ""),
    ):
        http.header_map.headers.add(key=key, raw_value=raw, value=value)
    document = input_document(request)
    shown = document["attributes"]["request"]["http"]
    assert shown["headers"] == {
        "content-type": "application/json",
        "x-many": "1,2",
        "x-odd": "\\xff\N{LATIN SMALL LETTER E WITH ACUTE}",
    }
    assert shown["headerMap"]["headers"][1:3] == [
        {"key": "x-many", "rawValue": "MQ=="},
        {"key": "X-Many", "value": "2"},
    ]
    assert document["parsed_body"] == {"a": 1}


def test_facts_read_raw_headers():
    """The record's facts are the same whichever way Envoy encodes headers."""
    request = with_http(headers={"x-request-id": "r1"})
    raw = CheckRequest.FromString(request.SerializeToString())
    http = raw.attributes.request.http
    for key, value in request.attributes.request.http.headers.items():
        http.header_map.headers.add(key=key.title(), raw_value=value.encode())
    http.headers.clear()
    assert facts(told(raw)) == facts(told(request))
    assert facts(told(raw)).request_id == "r1"


# -- unsafe paths


@pytest.mark.parametrize(
    "path",
    [
        "/fhir/../admin",
        "..",
        "/a/..",
        "/a/.",
        "/./a",
        "/a/..?q",
        "//a",
        "/a//b",
        "/a%2fb",
        "/a%2Fb",
        "/a\\b",
        "/a%5cb",
        "/a;b=c",
        "/a%3Bb",
        "/a%00",
        "/a\0",
        "/a%0a",
        "/a\x7f",
        "/a%7F",
        "/a\x85",
        "/a%c2%85",
        "/%2e%2e/a",
        "/a/%2E",
        "/a%2efhir",
        "/a#b",
        "/a?q#b",
        "/a%252fb",
        "/a%2541",
        "/a%25%32%66b",
        "/a%252%66b",
        "/a%2%35%32fb",
        "/a%25u002fb",
        "/a%23",
        "/a%3Fb",
        "/a!",
        "a",
        "a/b",
        "?a",
        "http://a/b",
        "*/a",
        "/%ff",
        "/%c0%af",
        "/%c0%ae%c0%ae",
        "/%e0%80%af",
        "/%ed%a0%80",
        "/%zz",
        "/a%",
        "/a%2",
        "/%u002f",
    ],
)
def test_unsafe_paths_are_seen(path):
    """Whatever another reader could take for another path is unsafe."""
    assert unsafe_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/fhir/Patient/",
        "/fhir/Patient/1.2..3/...",
        "/fhir/Patient?name=a//../b;c%2f%zz",
        "/%C3%A9/O%27Brien%20x",
        "/é",
        "/100%25",
        "/a%21",
        "/a%25zz",
        "/fhir/$everything",
        "/.well-known/x",
    ],
)
def test_plain_paths_are_safe(path):
    """Paths that have one meaning are not refused, and queries are not looked into."""
    assert not unsafe_path(path)


PLAIN = st.sampled_from(["a", "%41", "%C3%A9", "é", ".x", "x.", "...", "%25", "%20", "$"])
RISKY = st.sampled_from(
    ["", ".", "..", "%2f", "%2e", "%C3", "\\", ";", "%5C", "%1", "41", "2f", "%"]
)


@st.composite
def mostly_safe_path(draw):
    pieces = draw(st.lists(PLAIN, max_size=6))
    if draw(st.booleans()):
        pieces.insert(draw(st.integers(0, len(pieces))), draw(RISKY))
    joins = [draw(st.sampled_from(["/", "/", ""])) for _ in pieces]
    return "/" + "".join(part for pair in zip(pieces, joins, strict=True) for part in pair)


@UNHURRIED
@given(mostly_safe_path())
def test_safe_paths_have_one_meaning(path):
    """For a safe path, splitting and unescaping commute, and unescaping again changes nothing."""
    assume(not unsafe_path(path))
    segments = input_document(with_http(path=path))["parsed_path"]
    assert segments == [unquote(part, errors="strict") for part in path[1:].split("/")]
    assert not {".", ".."} & set(segments)
    assert "" not in segments[:-1]
    assert [unquote(segment) for segment in segments] == segments
    assert not any(bad in segment for segment in segments for bad in "/\\;\0")


# -- facts


def test_facts_of_a_request():
    """A record's facts are the request's, with the time in microseconds."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    request = vector("principal")
    request.attributes.request.http.headers.update(
        {"x-request-id": "r1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    )
    traceparent = request.attributes.request.http.headers["traceparent"]
    assert facts(told(request)) == Facts(
        traceparent=traceparent,
        time_us=1_795_395_723_000_456,
        method="GET",
        host="ehr.local",
        path="/fhir/Patient/123",
        source_ip="10.0.0.9",
        principal="spiffe://hospital/ns/ehr/sa/web",
        request_id="r1",
        user_agent="curl/8",
        trace_id=trace,
        has_http=True,
    )


def test_facts_of_an_empty_request():
    """A request that says nothing has empty facts and no HTTP part."""
    assert facts(told(CheckRequest())) == Facts()


def test_facts_query_is_kept():
    """The path is raw, with its query: what to drop of it is the record's decision."""
    assert (
        facts(told(vector("query"))).path
        == REQUESTS["query"]["attributes"]["request"]["http"]["path"]
    )


@pytest.mark.parametrize("seconds", [-5, 2**62, -(2**62)])
def test_times_out_of_range_are_clamped(seconds):
    """A time no record can hold becomes the nearest it can."""
    request = vector("plain")
    request.attributes.request.time.seconds = seconds
    assert facts(told(request)).time_us == (0 if seconds < 0 else 2**53 - 1)


T, P = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{T}-{P}-00", T),
        (f"01-{T}-{P}-00-more", T),
        (f"00-{T}-{P}-00-more", ""),
        (f"ff-{T}-{P}-00", ""),
        (f"00-{T.upper()}-{P}-00", ""),
        (f"00-{'0' * 32}-{P}-00", ""),
        (f"00-{T}-{'0' * 16}-00", ""),
        (f"00-{T}-{P}-00\n", ""),
        (f" 00-{T}-{P}-00", ""),
        ("", ""),
    ],
)
def test_trace_id_needs_a_valid_traceparent(traceparent, expected):
    """Only a traceparent valid by W3C's rules gives a trace id."""
    assert facts(told(with_http(headers={"traceparent": traceparent}))).trace_id == expected


# -- claims


def jwt_metadata(metadata):
    document = {"attributes": {"metadataContext": {"filterMetadata": metadata}}}
    return ParseDict(document, CheckRequest())


def test_claims_are_the_verified_payload():
    """The JWT's payload is found under the operator's key; whole numbers are integers."""
    claims = verified_claims(told(vector("metadata_context")))
    assert claims == {"sub": "dr.alice", "roles": ["physician"], "exp": 1_790_000_000}
    assert type(claims["exp"]) is int
    assert facts(told(vector("metadata_context"))).claims == claims


def test_claims_are_not_the_header_or_the_failure():
    """What jwt_authn puts beside the payload, by names that sort before it, is no payload."""
    name = "envoy.filters.http.jwt_authn"
    beside = {"a_header": {"alg": "RS256", "kid": "1"}, "a_status": {"code": 3, "message": "x"}}
    assert verified_claims(told(jwt_metadata({name: beside}))) == {}
    claims = {"sub": "s", "half": 1.5, "none": None, "deep": {"l": [True, {}, []]}}
    assert verified_claims(told(jwt_metadata({name: {**beside, "p": claims}}))) == claims


@pytest.mark.parametrize("metadata", [{}, {"other": {"p": {"sub": "x"}}}])
def test_no_claims_without_jwt_authn(metadata):
    """Another filter's metadata is never taken for a verified JWT."""
    assert verified_claims(told(jwt_metadata(metadata))) == {}
    assert facts(told(jwt_metadata(metadata))).claims is None


def test_claims_of_two_providers_are_chosen_by_name():
    """With two payloads the choice does not depend on the order in the message."""
    name = "envoy.filters.http.jwt_authn"
    for order in (("a", "b"), ("b", "a")):
        both = {key: {"sub": key} for key in order}
        assert verified_claims(told(jwt_metadata({name: both}))) == {"sub": "a"}
