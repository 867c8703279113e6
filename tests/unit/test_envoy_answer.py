"""The answers equal opa-envoy-plugin's, and no answer can be one that Envoy fails to parse."""

import json
from functools import cache
from pathlib import Path

import pytest
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from regopy import Interpreter

from authz.envoy.answer import answer
from authz.envoy.check import BadRequestError, input_document
from authz.policy.verdict import (
    MAX_METADATA_DEPTH,
    UNDEFINED,
    PolicyError,
    denial,
    read_verdict,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "ext_authz"
REQUESTS = json.loads((VECTORS / "requests.json").read_text())
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
PAIRS = [(policy, name) for policy, cases in EXPECTED.items() for name in cases]
METADATA = {"authz": {"subject": "x"}, "decision_id": "d1"}
UNHURRIED = settings(max_examples=100)


@cache
def engine(policy):
    interpreter = Interpreter()
    interpreter.add_module(policy, (VECTORS / "policies" / policy).read_text())
    return interpreter, interpreter.build("x = data.envoy.authz.result")


def decide(policy, document):
    interpreter, bundle = engine(policy)
    # Not set_input(Input(...)): regopy 1.5 takes the text of strings as it is, so that a quote in
    # a body breaks out of its string in the decision.
    interpreter.set_input_term(json.dumps(document))
    out = interpreter.query_bundle(bundle)
    if str(out) == "undefined":
        return UNDEFINED
    return json.loads(out.binding("x").json())


def verdict_of(policy, name):
    """The steps of a check: request, input, decision, verdict."""
    try:
        document = input_document(ParseDict(REQUESTS[name], CheckRequest()))
    except BadRequestError as error:
        return denial(400, "bad_request", body=str(error))
    try:
        return read_verdict(decide(policy, document))
    except PolicyError:
        return denial(403, "policy_error")


def comparable(response):
    """Go's maps have no order: headers of different names are compared without one."""
    document = MessageToDict(response)
    for part in ("okResponse", "deniedResponse"):
        for field in ("headers", "responseHeadersToAdd"):
            if field in document.get(part, {}):
                document[part][field].sort(key=lambda option: option["header"]["key"])
    return document


@pytest.mark.parametrize(("policy", "name"), PAIRS)
def test_answers_are_the_plugins(policy, name):
    """Each vector's answer is the plugin's; where it fails the call, ours is a denial by 403."""
    response = CheckResponse.FromString(answer(verdict_of(policy, name), METADATA))
    for ours in METADATA:
        del response.dynamic_metadata.fields[ours]
    expected = CheckResponse()
    if "response" in EXPECTED[policy][name]:
        ParseDict(EXPECTED[policy][name]["response"], expected)
    else:
        expected.status.code = 7
        expected.denied_response.status.code = 403
    expected.dynamic_metadata.SetInParent()  # ours is on every answer
    assert comparable(response) == comparable(expected)


ANSWERED = [
    read_verdict(True),
    read_verdict(False),
    read_verdict({"allowed": True}),
    read_verdict({"allowed": False, "http_status": 404}),
    denial(503, "deadline"),
]


@pytest.mark.parametrize("verdict", ANSWERED)
def test_every_answer_carries_our_metadata(verdict):
    """Access logs get the decision's id and values whatever the decision was."""
    response = CheckResponse.FromString(answer(verdict, METADATA))
    assert MessageToDict(response.dynamic_metadata) == METADATA


def test_our_metadata_wins():
    """A policy cannot put its own values in the place of ours."""
    forged = {"decision_id": {"forged": True}, "authz": "forged", "kept": [1, {"a": None}, []]}
    verdict = read_verdict({"allowed": True, "dynamic_metadata": forged})
    response = CheckResponse.FromString(answer(verdict, METADATA))
    assert MessageToDict(response.dynamic_metadata) == {**METADATA, "kept": forged["kept"]}
    assert verdict.dynamic_metadata == forged


def test_status_and_http_part_agree():
    """Envoy allows by the gRPC code alone: it is OK with an allow, and with nothing else."""
    for verdict in ANSWERED:
        response = CheckResponse.FromString(answer(verdict, {}))
        assert response.HasField("status")
        assert (response.status.code == 0) is verdict.allowed
        part = "ok_response" if verdict.allowed else "denied_response"
        assert response.WhichOneof("http_response") == (None if verdict.plain else part)


def test_denial_states_its_body():
    """Our own denial sends its status, and the body also as the status's message."""
    response = CheckResponse.FromString(answer(denial(413, "bad_request", "too large"), {}))
    assert response.denied_response.status.code == 413
    assert response.denied_response.body == response.status.message == "too large"


@pytest.mark.parametrize("wrap", [lambda v: {"k": v}, lambda v: [v]])
def test_the_deepest_metadata_can_be_parsed(wrap):
    """The deepest metadata we accept can be parsed in the answer and in an access log entry."""
    value = 1
    for _ in range(MAX_METADATA_DEPTH - 1):
        value = wrap(value)
    metadata = {"v": value}
    verdict = read_verdict({"allowed": True, "dynamic_metadata": metadata})
    response = CheckResponse.FromString(answer(verdict, METADATA))
    log = StreamAccessLogsMessage()
    common = log.http_logs.log_entry.add().common_properties
    common.metadata.filter_metadata["f"].CopyFrom(response.dynamic_metadata)
    assert StreamAccessLogsMessage.FromString(log.SerializeToString()) == log


def test_metadata_of_no_json_type_is_a_bug():
    """A value that is no JSON value is our bug, and shows as one."""
    with pytest.raises(TypeError):
        answer(read_verdict(True), {"authz": {1, 2}})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)


@UNHURRIED
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.booleans())
def test_metadata_arrives_as_it_is(metadata, allowed):
    """Any JSON object that a verdict accepts as metadata arrives equal."""
    verdict = read_verdict({"allowed": allowed, "dynamic_metadata": metadata})
    response = CheckResponse.FromString(answer(verdict, {}))
    assert MessageToDict(response.dynamic_metadata) == metadata


@UNHURRIED
@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_whatever_is_a_verdict_can_be_answered(name, text):
    """Any text that read_verdict lets through can be serialised and parsed."""
    for field, value in (
        ("headers", {name: text}),
        ("body", text),
        ("request_headers_to_remove", [name]),
        ("query_parameters_to_set", {name: text}),
        ("query_parameters_to_remove", [text]),
        ("dynamic_metadata", {name: text}),
    ):
        for allowed in (True, False):
            try:
                verdict = read_verdict({"allowed": allowed, field: value})
            except PolicyError:
                continue
            CheckResponse.FromString(answer(verdict, METADATA))
