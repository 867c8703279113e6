"""What Envoy's ext_proc filter tells of an answer, and what it is told back. Pure.

Seen with Envoy 1.40 and deploy/envoy/envoy.yaml: one gRPC stream for each request, which begins
when the answer does, so a request without an answer has none. Every message brings the dynamic
metadata of ext_authz along. An answer of Envoy's own (a denial, a broken upstream) is shown too.

In `observability_mode` nothing is awaited and whatever is sent back is ignored; Envoy closes the
stream a while after the answer. Otherwise (`FULL_DUPLEX_STREAMED`) nothing of the answer goes to
the client but what is sent back here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from envoy.type.v3.http_status_pb2 import StatusCode

from authz.envoy.access_log import Said, decision_told
from authz.envoy.check import joined

METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
_EXT_PROC: Final = "envoy.filters.http.ext_proc"
_UPSTREAM: Final = "via_upstream"
_CHUNK: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Begun:
    """The head of an answer. `headers` have lower-case names; repeated ones are joined by commas.
    `said` is what ext-authz said of the request: as in `authz.envoy.access_log`."""

    status: int
    headers: dict[str, str]
    said: Said = field(default_factory=dict)
    from_upstream: bool = True
    awaited: bool = False
    """Whether the client waits for what is sent back."""
    ended: bool = False
    """Nothing follows."""


@dataclass(frozen=True, slots=True)
class More:
    """Some of the body; `trailers` are the end too, and come without any."""

    body: bytes
    ended: bool
    trailers: bool = False


def read(data: bytes) -> Begun | More | None:
    """The message in `data`; None if it is of the request, which is not ours to see.

    Raises `google.protobuf.message.DecodeError`.
    """
    message = ProcessingRequest.FromString(data)
    kind = message.WhichOneof("request")
    if kind == "response_body":
        return More(message.response_body.body, message.response_body.end_of_stream)
    if kind == "response_trailers":
        return More(b"", ended=True, trailers=True)
    if kind == "response_headers":
        return _begun(message, message.response_headers)
    return None


def _begun(message: ProcessingRequest, told: HttpHeaders) -> Begun:
    headers = joined(told.headers)
    status = headers.pop(":status", "")
    said = message.metadata_context.filter_metadata.get(_EXT_AUTHZ)
    details = ""
    if (attributes := message.attributes.get(_EXT_PROC)) is not None:
        details = attributes.fields["response.code_details"].string_value
    return Begun(
        status=int(status) if status.isdecimal() and len(status) == 3 else 0,
        headers=headers,
        said=decision_told(said) if said is not None else {},
        from_upstream=details in ("", _UPSTREAM),
        awaited=not message.observability_mode,
        ended=told.end_of_stream,
    )


def release(
    body: Sequence[bytes], *, remove: Sequence[str], bodiless: bool, trailers: bool
) -> list[bytes]:
    """The messages that let a whole answer go to the client: its head, without the headers to
    `remove`, what was held of its `body`, and its trailers."""
    head = ProcessingResponse()
    head.response_headers.response.header_mutation.remove_headers.extend(remove)
    messages = [head]
    data = b"".join(body)
    for begin in range(0, max(len(data), 0 if bodiless or trailers else 1), _CHUNK):
        part = ProcessingResponse()
        streamed = part.response_body.response.body_mutation.streamed_response
        streamed.body = data[begin : begin + _CHUNK]
        streamed.end_of_stream = not trailers and begin + _CHUNK >= len(data)
        messages.append(part)
    if trailers:
        end = ProcessingResponse()
        end.response_trailers.SetInParent()
        messages.append(end)
    return [message.SerializeToString() for message in messages]


def refuse() -> bytes:
    """The message that has the client answered with 503 in place of what was held."""
    message = ProcessingResponse()
    message.immediate_response.status.code = StatusCode.ServiceUnavailable
    message.immediate_response.details = "authz_disclosure"
    data: bytes = message.SerializeToString()
    return data
