"""Only a decision that is right in every field becomes a verdict."""

import math

import pytest
from envoy.type.v3.http_status_pb2 import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.policy.verdict import (
    MAX_METADATA_DEPTH,
    UNDEFINED,
    Audit,
    PolicyError,
    Verdict,
    denial,
    read_verdict,
)

UNHURRIED = settings(max_examples=200)
FIELDS = [
    "http_status",
    "body",
    "headers",
    "response_headers_to_add",
    "request_headers_to_remove",
    "query_parameters_to_set",
    "query_parameters_to_remove",
    "dynamic_metadata",
    "audit",
]


def test_booleans_are_plain_verdicts():
    """A bare boolean is an allow or a denial with nothing else to it."""
    assert read_verdict(True) == Verdict(
        allowed=True, http_status=200, reason_code="allowed", plain=True
    )
    assert read_verdict(False) == Verdict(
        allowed=False, http_status=403, reason_code="denied", plain=True
    )


def test_an_allow_is_read():
    """Every field of an allow arrives, in the policy's order, lists taken apart."""
    decision = {
        "allowed": True,
        "headers": [{"x-a": "1"}, {"x-b": ["2", "3"], "X-C": ""}],
        "response_headers_to_add": {"x-r": "é\t"},
        "request_headers_to_remove": ["x-secret"],
        "query_parameters_to_set": {"tenant": "t1", "many": ["%20", "b=c"]},
        "query_parameters_to_remove": ["debug"],
        "dynamic_metadata": {"n": 3, "deep": {"a": [1.5, True, None, "x"]}},
        "audit": {
            "subject": "dr.alice",
            "roles": ["physician"],
            "reason": "treatment relationship",
            "purpose": "TREAT",
            "patients": ["p1", "p2"],
            "resource": "Observation/1",
            "break_glass": True,
            "tenant": "st-mary",
        },
        "a_field_of_the_policys_own": 1,
    }
    assert read_verdict(decision) == Verdict(
        allowed=True,
        http_status=200,
        headers=(("x-a", "1"), ("x-b", "2"), ("x-b", "3"), ("X-C", "")),
        response_headers=(("x-r", "é\t"),),
        request_headers_to_remove=("x-secret",),
        query_set=(("tenant", "t1"), ("many", "%20"), ("many", "b=c")),
        query_remove=("debug",),
        dynamic_metadata={"n": 3, "deep": {"a": [1.5, True, None, "x"]}},
        audit=Audit(
            subject="dr.alice",
            roles=("physician",),
            reason="treatment relationship",
            purpose="TREAT",
            patients=("p1", "p2"),
            resource="Observation/1",
            break_glass=True,
            tenant="st-mary",
        ),
        reason_code="allowed",
    )


def test_a_denial_is_read():
    """A denial keeps its status, body and headers; without a status it is 403."""
    decision = {"allowed": False, "http_status": 302, "headers": {"location": "/login"}}
    assert read_verdict(decision) == Verdict(
        allowed=False, http_status=302, headers=(("location", "/login"),), reason_code="denied"
    )
    bare = read_verdict({"allowed": False, "body": "no"})
    assert (bare.http_status, bare.body, bare.plain) == (403, "no", False)


def test_an_allow_sends_no_status_or_body():
    """Policies may compute a status and body either way; an allow uses neither."""
    verdict = read_verdict({"allowed": True, "http_status": 403, "body": "never sent"})
    assert (verdict.allowed, verdict.http_status, verdict.body) == (True, 200, "")


@pytest.mark.parametrize(
    "decision", [UNDEFINED, None, "yes", "true", 1, 0, 1.0, [], [True], {}, (), ...], ids=repr
)
def test_what_is_no_decision_is_an_error(decision):
    """An undefined or mistyped decision, however truthy, is a PolicyError."""
    with pytest.raises(PolicyError):
        read_verdict(decision)


@pytest.mark.parametrize("allowed", [None, 1, "true", [True], {}], ids=repr)
def test_allowed_must_be_a_boolean(allowed):
    """Nothing but true allows, and nothing but false denies without an error."""
    with pytest.raises(PolicyError, match="allowed"):
        read_verdict({"allowed": allowed})


def test_a_missing_allowed_is_an_error():
    """A decision that does not say is no denial either: the policy is broken."""
    with pytest.raises(PolicyError, match="no `allowed`"):
        read_verdict({"headers": {"x": "1"}})


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    "status", [True, "403", 403.0, None, [], 0, -403, 99, 306, 599, 999, 2**70]
)
def test_a_status_envoy_lacks_is_an_error(status, allowed):
    """A status that is no integer or none of Envoy's is an error, used or not."""
    with pytest.raises(PolicyError, match="http_status"):
        read_verdict({"allowed": allowed, "http_status": status})


def test_denials_are_exactly_envoys_statuses_that_deny():
    """Every status of Envoy's from 300 up denies; none below does, for policies and ourselves."""
    for status in range(-1, 1000):
        if status in StatusCode.values() and status >= 300:
            assert read_verdict({"allowed": False, "http_status": status}).http_status == status
            assert denial(status, "blocked").http_status == status
            continue
        with pytest.raises(PolicyError):
            read_verdict({"allowed": False, "http_status": status})
        with pytest.raises(ValueError, match="does not deny"):
            denial(status, "blocked")


@pytest.mark.parametrize("field", ["headers", "response_headers_to_add"])
@pytest.mark.parametrize(
    "headers",
    [
        None,
        "x: 1",
        1,
        ["x"],
        [["x", "1"]],
        {"x": 1},
        {"x": None},
        {"x": True},
        {"x": {"y": "1"}},
        {"x": ["1", 2]},
        {"": "1"},
        {":path": "/admin"},
        {"x y": "1"},
        {"x\n": "1"},
        {"é": "1"},
        {"x:": "1"},
        {"x": "1\r\nx-admin: true"},
        {"x": "1\n"},
        {"x": "\0"},
        {"x": "\x7f"},
        {"x": ["ok", "a\rb"]},
        {"x": "\ud800"},
        {1: "x"},
    ],
    ids=repr,
)
def test_headers_that_cannot_be_sent_are_errors(headers, field):
    """Header names are tokens, and values are strings without control characters."""
    for allowed in (True, False):
        with pytest.raises(PolicyError, match=field):
            read_verdict({"allowed": allowed, field: headers})


@pytest.mark.parametrize("names", [None, "x", {"x": "1"}, [1], [""], [":path"], ["a b"], [["x"]]])
def test_header_removal_wants_header_names(names):
    """Headers to remove are an array of header names."""
    with pytest.raises(PolicyError, match="request_headers_to_remove"):
        read_verdict({"allowed": True, "request_headers_to_remove": names})


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        [],
        "a=b",
        {"a": 1},
        {"a": [1]},
        {"a": None},
        {"": "x"},
        {"a=b": "x"},
        {"a&b": "x"},
        {"a": "x&admin=1"},
        {"a": "x#y"},
        {"a": "x y"},
        {"a": "x\r\n"},
    ],
    ids=repr,
)
def test_query_parameters_cannot_smuggle_others(parameters):
    """Envoy joins parameters unescaped, so that text which would start another is an error."""
    with pytest.raises(PolicyError, match="query_parameters_to_set"):
        read_verdict({"allowed": True, "query_parameters_to_set": parameters})


@pytest.mark.parametrize("names", [None, "debug", {"debug": ""}, [1], [None]])
def test_query_removal_wants_names(names):
    """Query parameters to remove are an array of strings."""
    with pytest.raises(PolicyError, match="query_parameters_to_remove"):
        read_verdict({"allowed": True, "query_parameters_to_remove": names})


@pytest.mark.parametrize("body", [None, 1, {}, ["x"], "\ud800"])
def test_a_body_is_text(body):
    """A body is a string that UTF-8 can write, used or not."""
    for allowed in (True, False):
        with pytest.raises(PolicyError, match="body"):
            read_verdict({"allowed": allowed, "body": body})


def nested(levels, wrap):
    value = 1
    for _ in range(levels):
        value = wrap(value)
    return {"dynamic_metadata": {"v": value}, "allowed": True}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        "x",
        {"n": math.nan},
        {"n": [{"x": math.inf}]},
        {"n": -math.inf},
        {"n": 10**400},
        {"n": {1, 2}},
        {"n": (1,)},
        {"n": b"x"},
        {"n": UNDEFINED},
        {1: "x"},
        {"\ud800": 1},
        {"n": "\ud800"},
    ],
    ids=repr,
)
def test_metadata_must_fit_a_struct(metadata):
    """Metadata that protobuf's Struct cannot hold is an error."""
    with pytest.raises(PolicyError, match="dynamic_metadata"):
        read_verdict({"allowed": True, "dynamic_metadata": metadata})


@pytest.mark.parametrize("wrap", [lambda v: {"k": v}, lambda v: [v]])
def test_metadata_depth_is_bounded(wrap):
    """Metadata up to the limit is read; deeper is an error, and no depth exhausts the stack."""
    read_verdict(nested(MAX_METADATA_DEPTH - 1, wrap))
    for levels in (MAX_METADATA_DEPTH, 100_000):
        with pytest.raises(PolicyError, match="nested deeper"):
            read_verdict(nested(levels, wrap))


@pytest.mark.parametrize("name", ["subject", "reason", "purpose", "resource", "tenant"])
@pytest.mark.parametrize("value", [None, 1, True, [], ["x"], {}, "\ud800"], ids=repr)
def test_audit_texts_are_text(name, value):
    """A mistyped audit text is an error that names it: the record would lack it."""
    with pytest.raises(PolicyError, match=rf"audit\.{name}"):
        read_verdict({"allowed": True, "audit": {name: value}})


@pytest.mark.parametrize("name", ["roles", "patients"])
@pytest.mark.parametrize("value", [None, "p1", 1, {}, {"p1": 1}, [1], [None], [["p1"]]], ids=repr)
def test_audit_lists_are_lists_of_text(name, value):
    """A mistyped audit list is an error that names it: a look at a patient would be hidden."""
    with pytest.raises(PolicyError, match=rf"audit\.{name}"):
        read_verdict({"allowed": True, "audit": {name: value}})


@pytest.mark.parametrize("value", [None, 1, "true", []], ids=repr)
def test_break_glass_is_a_boolean(value):
    """Whether the glass was broken is true or false, nothing else."""
    with pytest.raises(PolicyError, match=r"audit\.break_glass"):
        read_verdict({"allowed": True, "audit": {"break_glass": value}})


@pytest.mark.parametrize("audit", [None, [], "x", True, {"patient": ["p1"]}, {1: "x"}], ids=repr)
def test_audit_is_an_object_of_known_fields(audit):
    """A misspelt audit field is an error: what it was to say would be lost."""
    with pytest.raises(PolicyError, match="`audit`"):
        read_verdict({"allowed": False, "audit": audit})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "secret",
    [["Eve", 1], {"Eve\n": "Eve\ud800"}, {"Eve": {"Eve": {"Eve"}}}, "Eve\ud800"],
    ids=ascii,
)
def test_errors_show_no_values(field, secret):
    """An error names the field and the type, never text that a patient's record could hold."""
    with pytest.raises(PolicyError) as refused:
        read_verdict({"allowed": True, field: secret})
    assert "Eve" not in str(refused.value)


def test_denial_is_ours():
    """Our own denial has an HTTP part, its reason code, and a body only if one is given."""
    assert denial(503, "journal_unavailable") == Verdict(
        allowed=False, http_status=503, reason_code="journal_unavailable"
    )
    stated = denial(400, "bad_request", "request_parse_error: x")
    assert stated.body == stated.message == "request_parse_error: x"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
DECISIONS = st.fixed_dictionaries(
    {"allowed": st.booleans() | JSON}, optional=dict.fromkeys(FIELDS, JSON)
)


@UNHURRIED
@given(JSON | DECISIONS)
def test_nothing_but_true_allows(decision):
    """Whatever a policy returns, reading it gives a verdict or PolicyError; only true allows."""
    try:
        verdict = read_verdict(decision)
    except PolicyError:
        return
    assert verdict.allowed is (decision["allowed"] if isinstance(decision, dict) else decision)
    assert (verdict.http_status == 200) is verdict.allowed
