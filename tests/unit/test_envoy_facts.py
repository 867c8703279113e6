"""What a record takes from a request: unsafe paths are seen, and only verified claims count."""

from urllib.parse import unquote

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from envoy_requests import REQUESTS, UNHURRIED, vector, with_http
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given
from hypothesis import strategies as st

from authz.envoy.check import (
    Facts,
    facts,
    input_document,
    told,
    unsafe_path,
    verified_claims,
)

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
