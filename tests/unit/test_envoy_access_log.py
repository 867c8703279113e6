"""Access log entries as values, over entries that Envoy 1.40 sent (tests/vectors/als)."""

import json
from pathlib import Path
from typing import Any

import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import (
    AccessLogType,
    HTTPAccessLogEntry,
    TCPAccessLogEntry,
)
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from authz.envoy.access_log import MAX_INTEGER, http_access, identifier, tcp_access
from authz.envoy.check import facts, told

VECTORS = Path(__file__).parents[1] / "vectors" / "als"
UPSTREAM = "127.0.0.1:51495"
DISCONNECT = "downstream_remote_disconnect"
RESET = "upstream_reset_before_response_started"
CLOSED = "upstream_reset_after_response_started{connection_termination}"
REFUSED = RESET + "{remote_connection_failure|delayed_connect_error:_Connection_refused}"
DENIED_FLAGS = ["unauthorized_details"]
GONE_FLAGS = ["downstream_connection_termination"]
PROTOCOL_FLAGS = ["downstream_protocol_error"]
REFUSED_FLAGS = ["upstream_connection_failure", "upstream_retry_limit_exceeded"]
TERMINATED_FLAGS = ["upstream_connection_termination"]

# vector: (method, raw_path, status, response_details, decision_id, upstream, flags), None if absent
FACTS = {
    "allowed": (
        "GET", "/Patient/42?name=Ann&_count=5", 200, "via_upstream", "0190-0001", UPSTREAM, None),
    "spoofed": ("GET", "/Patient/42", 200, "via_upstream", "0190-0002", UPSTREAM, None),
    "mutual_tls": ("GET", "/Patient/42", 200, "via_upstream", "0190-0020", UPSTREAM, None),
    "odd_agent": ("GET", "/Patient/42?q=1", 200, "via_upstream", "0190-0016", UPSTREAM, None),
    "post": ("POST", "/Patient", 200, "via_upstream", "0190-0015", UPSTREAM, None),
    "custom_method": ("PURGE", "/Patient/42", 200, "via_upstream", "0190-0021", UPSTREAM, None),
    "redirect": ("GET", "/redirect/Patient/42", 302, "via_upstream", "0190-0013", UPSTREAM, None),
    "retried": ("GET", "/reset-once/Patient/42", 200, "via_upstream", "0190-0014", UPSTREAM, None),
    "websocket": (
        "GET", "/ws/Subscription", 101, CLOSED, "0190-0017", UPSTREAM, TERMINATED_FLAGS),
    "denied": (
        "GET", "/deny/Patient/43", 403, "ext_authz_denied", "0190-0003", None, DENIED_FLAGS),
    "bad_mutation": (
        "GET", "/badmut/Patient/45", 500, "ext_authz_invalid", "0190-0012", None, DENIED_FLAGS),
    "authz_down": ("GET", "/Patient/46", 503, "ext_authz_error", None, None, DENIED_FLAGS),
    "check_timeout": (
        "GET", "/slow-check/Patient/45", 503, "ext_authz_error", None, None, DENIED_FLAGS),
    "client_gone_in_check": (
        "GET", "/slow-check/Patient/44", None, DISCONNECT, None, None, GONE_FLAGS),
    "client_gone": (
        "GET", "/slow-up/Patient/44", None, DISCONNECT, "0190-0008", UPSTREAM, GONE_FLAGS),
    "client_gone_streaming": (
        "GET", "/stream/Patient/44", 200, DISCONNECT, "0190-0009", UPSTREAM, GONE_FLAGS),
    "jwt_missing": (
        "GET", "/Patient/42?name=Ann", 401, "jwt_authn_access_denied{Jwt_is_missing}",
        None, None, None),
    "jwt_expired": (
        "GET", "/Patient/42", 401, "jwt_authn_access_denied{Jwt_is_expired}", None, None, None),
    "escaped_slash": (
        "GET", "/Patient/../42", 400, "path_normalization_failed", None, None, None),
    "underscore_header": (
        None, None, 400, "http1.unexpected_underscore", None, None, PROTOCOL_FLAGS),
    "headers_too_large": (None, None, 431, "http1.headers_too_large", None, None, PROTOCOL_FLAGS),
    "garbage": (None, None, 426, "low_version", None, None, PROTOCOL_FLAGS),
    "upstream_refused": (
        "GET", "/dead/Patient/42", 503, REFUSED, "0190-0004", None, REFUSED_FLAGS),
    "upstream_reset_post": (
        "POST", "/reset/Patient", 503, RESET + "{connection_termination}", "0190-0006", UPSTREAM,
        TERMINATED_FLAGS),
    "upstream_timeout": (
        "GET", "/slow-up/Patient/42", 504, "response_timeout", "0190-0007", UPSTREAM,
        ["upstream_request_timeout"]),
    "request_begun": ("GET", "/Patient/42?s=1.5&name=Ann", None, None, None, None, None),
    "under_way_in_check": ("GET", "/Patient/44", None, None, None, None, None),
    "under_way": ("GET", "/Patient/42?s=1.5&name=Ann", None, None, "0190-0022", UPSTREAM, None),
    "under_way_streaming": (
        "GET", "/Patient/42/stream?s=1.5", 200, "via_upstream", "0190-0023", UPSTREAM, None),
    "websocket_open": (
        "GET", "/Subscription/socket", 101, "via_upstream", "0190-0024", UPSTREAM, None),
    "under_way_websocket": (
        "GET", "/Subscription/socket", 101, "via_upstream", "0190-0024", UPSTREAM, None),
    "tcp_begun": (None, None, None, None, "0190-0026", UPSTREAM, None),
    "tcp_under_way": (None, None, None, None, "0190-0026", UPSTREAM, None),
    "tcp": (None, None, None, None, None, UPSTREAM, None),
    "tcp_authz": (None, None, None, None, "0190-0018", UPSTREAM, None),
    "tcp_denied": (None, None, None, None, "0190-0019", None, DENIED_FLAGS),
    "tcp_refused": (None, None, None, None, None, None, REFUSED_FLAGS),
}  # fmt: skip

NO_END = frozenset(
    "request_begun under_way_in_check under_way under_way_streaming websocket_open"
    " under_way_websocket tcp_begun tcp_under_way".split()
)

AUTHZ = {
    "subject": "dr.weber",
    "roles": ["physician", "staff"],
    "tenant": "north",
    "allowed": True,
    "patients": ["k1.3fQ"],
    "purpose": "TREAT",
}


def message(name: str) -> StreamAccessLogsMessage:
    document = json.loads((VECTORS / f"{name}.json").read_bytes())
    parsed = ParseDict(document, StreamAccessLogsMessage())
    return StreamAccessLogsMessage.FromString(parsed.SerializeToString())


def access(name: str) -> dict[str, Any]:
    found = [http_access(entry) for entry in message(name).http_logs.log_entry]
    found += [tcp_access(entry) for entry in message(name).tcp_logs.log_entry]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.json")))
def test_each_case_gives_what_was_seen(name):
    """Each captured entry gives the facts of the module's table, and whether it is an end."""
    keys = ("method", "raw_path", "status", "response_details", "decision_id", "upstream", "flags")
    values = access(name)
    values |= values.get("authz", {})
    assert tuple(values.get(key) for key in keys) == FACTS[name]
    assert values.get("end_of_stream", False) is (name not in NO_END)


def test_every_case_is_captured():
    """No expectation stands without its vector."""
    assert {path.stem for path in VECTORS.glob("*.json")} == set(FACTS)


def test_an_allowed_request_in_full():
    """Every value of an ordinary request is taken over, and nothing beside them."""
    assert access("allowed") == {
        "time": 1795439617983059,
        "method": "GET",
        "host": "fhir.example",
        "raw_path": "/Patient/42?name=Ann&_count=5",
        "source_ip": "127.0.0.1",
        "user_agent": "chart/2.1",
        "status": 200,
        "response_details": "via_upstream",
        "bytes_out": 10,
        "duration_us": 13990,
        "upstream": UPSTREAM,
        "request_id": "41f5eeab-20e5-4757-a7af-5738169e2e8c",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "authz": {"decision_id": "0190-0001", "authz": AUTHZ},
        "end_of_stream": True,
    }


@pytest.mark.parametrize("name", sorted(NO_END))
def test_what_is_under_way_names_the_same_decision(name):
    """An entry that is no end says whose it is as an end does, or, before the decision, nothing."""
    said = access(name).get("authz")
    before = name in {"request_begun", "under_way_in_check"}
    assert (said is None) is before
    assert before or said["authz"] == AUTHZ


def test_a_tcp_connection_in_full():
    """A TCP entry gives its bytes, its peer, and its decision from the network filter."""
    assert access("tcp_authz") == {
        "time": 1795439644861580,
        "source_ip": "127.0.0.1",
        "bytes_in": 49,
        "bytes_out": 188,
        "duration_us": 5661,
        "upstream": UPSTREAM,
        "authz": {"decision_id": "0190-0018", "authz": AUTHZ},
        "end_of_stream": True,
    }


def test_the_client_certificate_names_the_principal():
    """The URI of the client's certificate becomes the principal, and none without one."""
    assert access("mutual_tls")["principal"] == "spiffe://hospital.example/chart"
    assert "principal" not in access("allowed")


def test_a_body_is_counted():
    """bytes_in is the size of the request's body, without its headers."""
    assert access("post")["bytes_in"] == 26


def test_what_a_client_says_of_itself_is_not_believed():
    """Spoofed x-forwarded-for, x-request-id and x-envoy-original-path reach no value."""
    values = access("spoofed")
    assert values["source_ip"] == "127.0.0.1"
    assert values["raw_path"] == "/Patient/42"
    assert values["request_id"] != "mine"


def test_no_vector_holds_a_credential():
    """Entries as Envoy sends them hold no token and no cookie, though each request had both."""
    for path in VECTORS.glob("*.json"):
        text = path.read_text().lower()
        assert "bearer" not in text
        assert "s=secret" not in text
        assert "authorization" not in text


def test_identifier_is_of_the_first_message():
    """Node and log are told by a stream's first message, and are empty in the others."""
    assert identifier(message("allowed")) == ("sidecar-0", "demo", "ingress")
    assert identifier(StreamAccessLogsMessage()) == ("", "", "")


@pytest.mark.parametrize("kind", AccessLogType.keys())
def test_only_ends_of_downstream_streams_count(kind):
    """Of all entry types, only those that come once per request or connection are ends."""
    entry = HTTPAccessLogEntry()
    entry.common_properties.access_log_type = AccessLogType.Value(kind)
    ends = kind in {"NotSet", "DownstreamEnd", "TcpConnectionEnd"}
    assert http_access(entry).get("end_of_stream", False) is ends


def test_an_old_envoys_intermediate_entry_is_no_end():
    """Without an entry type, the intermediate mark tells a periodic entry from the last."""
    entry = HTTPAccessLogEntry()
    entry.common_properties.intermediate_log_entry = True
    assert http_access(entry) == {}


def test_an_upstream_without_bytes_is_not_named():
    """A chosen or even connected host that got no byte did not have the request."""
    entry = TCPAccessLogEntry()
    common = entry.common_properties
    common.upstream_remote_address.socket_address.address = "fd00::7"
    common.upstream_remote_address.socket_address.port_value = 8000
    common.upstream_local_address.socket_address.address = "fd00::8"
    assert "upstream" not in tcp_access(entry)
    common.upstream_wire_bytes_received = 1
    assert tcp_access(entry)["upstream"] == "[fd00::7]:8000"
    common.upstream_remote_address.pipe.path = "/run/service.sock"
    assert tcp_access(entry)["upstream"] == "/run/service.sock"
    common.ClearField("upstream_remote_address")
    assert tcp_access(entry)["upstream"] == "unknown"


def test_only_our_keys_of_the_metadata_are_taken():
    """Of the dynamic metadata only decision_id and authz are values, and of its types ours."""
    entry = HTTPAccessLogEntry()
    said = entry.common_properties.metadata.filter_metadata["envoy.filters.http.ext_authz"]
    said.update({"decision_id": 7, "note": "PHI", "authz": "text"})
    assert http_access(entry) == {"end_of_stream": True}
    said.update({"authz": {"a": 1.5, "b": None, "c": {"d": "e"}, "f": ["g", 2, ""], "h": [True]}})
    assert http_access(entry)["authz"] == {"authz": {"f": ["g"]}}


@pytest.mark.parametrize(
    "header",
    [
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "\x00",
        "",
    ],
)
def test_the_trace_is_the_one_of_the_decision(header):
    """Decision and access read a traceparent alike, so that they never disagree over it."""
    check = CheckRequest()
    check.attributes.request.http.headers["traceparent"] = header
    entry = HTTPAccessLogEntry()
    entry.request.request_headers["traceparent"] = header
    assert http_access(entry).get("trace_id", "") == facts(told(check)).trace_id


def check_values(values) -> None:
    """What a record can hold: integers in range, text that is UTF-8, nothing empty."""
    for value in values.values():
        assert value
        assert isinstance(value, (str, int, list, dict))
        if isinstance(value, int):
            assert 0 < value <= MAX_INTEGER
        json.dumps(value, ensure_ascii=False).encode()
    for value in values.get("authz", {}).get("authz", {}).values():
        assert value
        assert value is True or isinstance(value, (str, list))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INT64 = st.integers(-(2**63), 2**63 - 1)
NANOS = st.integers(-(2**31), 2**31 - 1)


@given(TEXT, INT64, NANOS, st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_odd_values_give_values_of_a_record(text, seconds, nanos, size, number):
    """Any text, time, size and enum number gives values within a record's bounds."""
    entry = HTTPAccessLogEntry()
    common = entry.common_properties
    for moment in (common.start_time, common.duration, common.time_to_last_downstream_tx_byte):
        moment.seconds, moment.nanos = seconds, nanos
    common.downstream_remote_address.socket_address.address = text
    common.upstream_remote_address.socket_address.address = text
    common.upstream_wire_bytes_sent = size
    common.access_log_type = number
    common.tls_properties.peer_certificate_properties.subject_alt_name.add().uri = text
    said = common.metadata.filter_metadata["envoy.filters.http.ext_authz"]
    said.update({"decision_id": text, "authz": {text: text, "list": [text], "no": False}})
    entry.request.request_method = number
    entry.request.path = entry.request.authority = entry.request.user_agent = text
    entry.request.request_body_bytes = entry.response.response_body_bytes = size
    entry.request.request_headers["traceparent"] = text
    entry.response.response_code.value = number
    entry.response.response_code_details = text
    check_values(http_access(entry))
    tcp = TCPAccessLogEntry(common_properties=common)
    tcp.connection_properties.received_bytes = tcp.connection_properties.sent_bytes = size
    check_values(tcp_access(tcp))


@given(st.sampled_from(sorted(FACTS)), st.data())
def test_damaged_entries_do_not_crash(name, data):
    """An entry with flipped bytes is refused by protobuf, or gives values of a record."""
    raw = bytearray(message(name).SerializeToString())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[position] ^= data.draw(st.integers(1, 255))
    try:
        damaged = StreamAccessLogsMessage.FromString(bytes(raw))
    except DecodeError:
        return
    identifier(damaged)
    for entry in damaged.http_logs.log_entry:
        check_values(http_access(entry))
    for entry in damaged.tcp_logs.log_entry:
        check_values(tcp_access(entry))
