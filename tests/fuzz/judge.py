"""What must hold of one request, its answer and its records. Each fault is a text, never a value
of the request."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from envoy.type.v3.http_status_pb2 import StatusCode
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from .mutation import ECHOED, SECRET
from .oracle import Expected, NoReading, Oracle

MAX_DEPTH: Final = 100  # messages inside messages, at which Envoy's protobuf stops
LOG_ENTRY: Final = 6  # how many an access log entry puts around the metadata

BLOCKED: Final = "b.blocked"  # whose tokens are good, and who is denied all the same

# Ours, by what they answer. What the policy decides has "allowed" or "denied".
REASONS: Final[Mapping[str, frozenset[int]]] = {
    "bad_request": frozenset({400, 413}),
    "unsafe_path": frozenset({400}),
    "policy_error": frozenset({403}),
    "blocked": frozenset({403}),
    "malformed_token": frozenset({401}),
    "bad_signature": frozenset({401}),
    "wrong_issuer": frozenset({401}),
    "wrong_audience": frozenset({401}),
    "unknown_key": frozenset({401}),
    "token_expired": frozenset({401}),
    "token_not_yet_valid": frozenset({401}),
    "conflicting_identities": frozenset({403}),
}
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def faults(
    wire: bytes, answers: list[bytes], records: list[Mapping[str, Any]], oracle: Oracle, *,
    late: bool = False,
) -> Iterator[str]:  # fmt: skip
    """What is wrong; nothing for a request that was answered as it should be. Who was `late` may
    be told that there was no time."""
    if len(answers) != 1:
        yield f"{len(answers)} answers"
        return
    if not records:
        yield "no record"
        return
    response = CheckResponse()
    try:
        response.ParseFromString(answers[0])
    except DecodeError:
        yield "an answer that is no CheckResponse"
        return
    yield from _form(response)
    record = records[-1]
    yield from _same(response, record)
    if late and record.get("reason_code") in ("deadline", "policy_unavailable"):
        return
    yield from _right(wire, response, record, oracle)


def _form(response: CheckResponse) -> Iterator[str]:
    """Whether Envoy could take it."""
    if response.status.code not in (0, 7):
        yield f"gRPC status {response.status.code} in the answer"
    which = response.WhichOneof("http_response")
    if response.status.code == 0 and which == "denied_response":
        yield "an allow with a denial in it"
    if response.status.code and which == "ok_response":
        yield "a denial with an allow in it"
    if which == "denied_response":
        status = response.denied_response.status.code
        if status not in StatusCode.values() or status < 300:
            yield f"a denial with HTTP status {status}"
    for header in _headers(response):
        if not _TOKEN.fullmatch(header.key) or _CONTROL.search(header.value):
            yield "a header that is none"
    if _depth(response.dynamic_metadata) + LOG_ENTRY > MAX_DEPTH:
        yield "metadata too deep"


def _headers(response: CheckResponse) -> Iterator[Any]:
    ok, denied = response.ok_response, response.denied_response
    for options in (ok.headers, ok.response_headers_to_add, denied.headers):
        for option in options:
            yield option.header


def _depth(message: Message) -> int:
    """Messages inside messages, itself included; a map's entry is one too."""
    inner = [0]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if not field.is_repeated:
            inner.append(_depth(value))
        elif field.message_type.GetOptions().map_entry:
            inner += [1 + _depth(value[key]) for key in value]
        else:
            inner += [_depth(item) for item in value]
    return 1 + max(inner)


def _same(response: CheckResponse, record: Mapping[str, Any]) -> Iterator[str]:
    """Whether the record says what was answered."""
    allowed = response.status.code == 0
    if record.get("allowed", False) is not allowed:
        yield f"answered {allowed}, the last record says {not allowed}"
    if not record.get("enforced"):
        yield "a record that is not enforced"
    status = 403
    if response.HasField("denied_response"):
        status = response.denied_response.status.code
    if not allowed and record.get("status") != status:
        yield f"answered {status}, the last record says {record.get('status')}"
    fields = response.dynamic_metadata.fields
    if "decision_id" in fields and fields["decision_id"].string_value != record["decision_id"]:
        yield "the answer names another decision"
    if "authz" in fields:
        for name, value in orjson.loads(fields["authz"].string_value).items():
            if record.get("writer" if name == "decided_by" else name) != value:
                yield f"answer and record differ in {name}"
    elif allowed:
        yield "an allow without what the record says"


def _right(
    wire: bytes, response: CheckResponse, record: Mapping[str, Any], oracle: Oracle
) -> Iterator[str]:
    """Whether it is what the policy says, and otherwise a refusal with a reason."""
    reason = record.get("reason_code", "")
    status = record.get("status", 0)
    if reason not in ("allowed", "denied"):
        if status not in REASONS.get(reason, ()):
            yield f"{reason} with status {status}"
        return
    try:
        expected = oracle.expected(wire)
    except NoReading as why:
        if reason == "allowed":
            yield f"allowed: {why}"
        return
    yield from _decided(response, record, expected)


def _decided(
    response: CheckResponse, record: Mapping[str, Any], expected: Expected
) -> Iterator[str]:
    decision = expected.decision
    allowed = response.status.code == 0
    if allowed and expected.subject == BLOCKED:
        yield "who is blocked is allowed"
    if decision is None or (decision is not True and type(decision["allowed"]) is not bool):
        yield "decided, where the policy has no decision"
        return
    if decision is True:
        decision = {"allowed": True}
    if decision["allowed"] is not allowed:
        if expected.guessed and not allowed:
            return
        yield f"decided {allowed}, the oracle says {decision['allowed']}"
        return
    if not allowed:
        if decision["http_status"] != record.get("status"):
            yield "the policy's denial has another status"
        return
    for told, there in (
        ("headers", response.ok_response.headers),
        ("response_headers_to_add", response.ok_response.response_headers_to_add),
    ):
        pairs = {option.header.key: option.header.value for option in there}
        if pairs != decision.get(told, {}):
            yield f"another's {told}"
    metadata = MessageToDict(response.dynamic_metadata)
    brought = {k: v for k, v in metadata.items() if k not in ("decision_id", "authz")}
    told_metadata = decision.get("dynamic_metadata", {})
    if brought != {k: v for k, v in told_metadata.items() if k not in ("decision_id", "authz")}:
        yield "another's metadata"


def leaks(payload: bytes, wire: bytes) -> bool:
    """Whether `payload` (a record or an answer) shows what `wire` holds in confidence.

    The bytes of a request may have been cut so that a secret became a host or a user agent, which
    are recorded: those are not in confidence any more.
    """
    if SECRET.encode() not in payload:
        return False
    try:
        request = CheckRequest.FromString(wire)
    except DecodeError:
        return True
    attributes, http = request.attributes, request.attributes.request.http
    headers = [(name.lower(), value) for name, value in http.headers.items()]
    headers += [
        (header.key.lower(), header.raw_value.decode(errors="replace") + header.value)
        for header in http.header_map.headers
    ]
    told = [http.method, http.host, attributes.source.principal]
    told.append(attributes.source.address.socket_address.address)
    told += [value for name, value in headers if name in ("user-agent", "x-request-id")]
    # A resource's id, the claims that say who it is, and what the policy gives back.
    segments = http.path.partition("?")[0].split("/")
    told += segments[3:4] if segments[1:2] == ["fhir"] else []
    for name, struct in attributes.metadata_context.filter_metadata.items():
        told += _claims(_plain(struct), seen=name == ECHOED)
    return not any(SECRET in text for text in told)


def _plain(struct: Message) -> dict[str, Any]:
    try:
        return MessageToDict(struct)
    except ValueError:  # a number that JSON has not
        return {}


def _claims(value: Any, *, seen: bool) -> list[str]:
    """Texts under sub and roles, wherever they stand; all of them, keys too, if `seen`."""
    if isinstance(value, str):
        return [value] if seen else []
    if isinstance(value, list):
        return [text for item in value for text in _claims(item, seen=seen)]
    if isinstance(value, dict):
        inner = [
            text
            for key, item in value.items()
            for text in _claims(item, seen=seen or key in ("sub", "roles"))
        ]
        return inner + (list(value) if seen else [])
    return []
