"""The input document equals opa-envoy-plugin's, and no request gets anything worse than a 400."""

import base64
import contextlib
import math

import orjson
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from envoy_requests import ECHOED, REQUESTS, UNHURRIED, vector, with_http
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from hypothesis import assume, given
from hypothesis import strategies as st

from authz.envoy.check import BadRequestError, facts, input_document, told


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
