"""The answer Envoy gets, as opa-envoy-plugin builds it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.protobuf.struct_pb2 import NULL_VALUE, Value

_PERMISSION_DENIED: Final = 7  # google.rpc.Code


class Verdict(Protocol):
    """What an answer is made of; authz.policy.verdict.Verdict has it, with every text checked."""

    @property
    def allowed(self) -> bool: ...
    @property
    def http_status(self) -> int: ...
    @property
    def headers(self) -> Iterable[tuple[str, str]]: ...
    @property
    def body(self) -> str: ...
    @property
    def response_headers(self) -> Iterable[tuple[str, str]]: ...
    @property
    def request_headers_to_remove(self) -> Iterable[str]: ...
    @property
    def query_set(self) -> Iterable[tuple[str, str]]: ...
    @property
    def query_remove(self) -> Iterable[str]: ...
    @property
    def dynamic_metadata(self) -> Mapping[str, object]: ...
    @property
    def plain(self) -> bool: ...
    @property
    def message(self) -> str: ...


def answer(verdict: Verdict, metadata: Mapping[str, object]) -> bytes:
    """A serialised CheckResponse.

    The dynamic metadata is the verdict's with `metadata` laid over it, so that a policy cannot
    take the place of our keys; it is set on denials too, since access logs carry it. A plain
    decision has no HTTP part: Envoy then denies with 403.

    Headers carry no append action, as in the plugin: Envoy sets, and does not append.

    Raises TypeError for metadata that is not of JSON values.
    """
    response = CheckResponse()
    if verdict.allowed:
        response.status.SetInParent()
        if not verdict.plain:
            _fill_ok(response.ok_response, verdict)
    else:
        response.status.code = _PERMISSION_DENIED
        if verdict.message:
            response.status.message = verdict.message
        if not verdict.plain:
            denied = response.denied_response
            denied.status.code = verdict.http_status
            denied.body = verdict.body
            _add_headers(denied.headers, verdict.headers)
    response.dynamic_metadata.SetInParent()
    fields = response.dynamic_metadata.fields
    for key, value in verdict.dynamic_metadata.items():
        if key not in metadata:
            _fill(fields[key], value)
    for key, value in metadata.items():
        _fill(fields[key], value)
    serialised: bytes = response.SerializeToString()
    return serialised


def _fill_ok(response: Any, verdict: Verdict) -> None:
    response.SetInParent()
    _add_headers(response.headers, verdict.headers)
    response.headers_to_remove.extend(verdict.request_headers_to_remove)
    _add_headers(response.response_headers_to_add, verdict.response_headers)
    for key, value in verdict.query_set:
        response.query_parameters_to_set.add(key=key, value=value)
    response.query_parameters_to_remove.extend(verdict.query_remove)


def _add_headers(options: Any, headers: Iterable[tuple[str, str]]) -> None:
    for key, value in headers:
        header = options.add().header
        header.key = key
        header.value = value


def _fill(slot: Value, value: object) -> None:
    """Set a protobuf Value. By hand: Struct.update takes twice the time."""
    if isinstance(value, str):
        slot.string_value = value
    elif isinstance(value, bool):  # before int, which it also is
        slot.bool_value = value
    elif isinstance(value, (int, float)):
        slot.number_value = value
    elif isinstance(value, (list, tuple)):
        slot.list_value.SetInParent()
        items = slot.list_value.values
        for item in value:
            _fill(items.add(), item)
    elif isinstance(value, dict):
        slot.struct_value.SetInParent()
        fields = slot.struct_value.fields
        for key, item in value.items():
            _fill(fields[key], item)
    elif value is None:
        slot.null_value = NULL_VALUE
    else:
        raise TypeError(f"{type(value).__name__} is no JSON value")
