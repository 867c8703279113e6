"""OpenTelemetry spans of Checks, in the trace of the request they decide on.

A span has its stages' times, the outcome and the decision's id; nothing of who, what or whose.
Spans go to a collector as OTLP/HTTP in JSON, written here: OpenTelemetry's own exporters need its
protobuf package, and xds-protos brings an older copy of that under the same name.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.request import Request, urlopen

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_CONTEXT = TraceContextTextMapPropagator()
_SERVER = 2  # SpanKind of opentelemetry/proto/trace/v1
_TIMEOUT_SECONDS = 5


class CheckTracer:
    """Makes the spans; `exporter` is given them by a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.name": "authz", "service.version": version("authz")})
        # A request whose trace is not sampled has no span here either.
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(ALWAYS_ON))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("authz")

    def check(
        self, traceparent: str, start_ns: int, stages: Sequence[tuple[str, int]],
        attributes: dict[str, str | bool],
    ) -> None:  # fmt: skip
        """One span, with an event at the end of each of `stages` (name, `time.time_ns()`)."""
        context = _CONTEXT.extract({"traceparent": traceparent} if traceparent else {})
        span = self._tracer.start_span(
            "Check", context, SpanKind.SERVER, attributes, start_time=start_ns
        )
        end = start_ns
        for name, at in stages:
            span.add_event(name, timestamp=at)
            end = at
        span.end(end)

    def close(self) -> None:
        """Export what is waiting, and stop."""
        self._provider.shutdown()


class OtlpJson(SpanExporter):
    """Sends spans to ``<endpoint>/v1/traces`` (opentelemetry.io/docs/specs/otlp, JSON encoding).
    What cannot be sent is dropped: a trace is no record."""

    def __init__(self, endpoint: str) -> None:
        self._url = endpoint.rstrip("/") + "/v1/traces"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        headers = {"content-type": "application/json"}
        request = Request(self._url, orjson.dumps(_document(spans)), headers)  # noqa: S310 - checked
        try:
            with urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310 - http(s) by the config
                return SpanExportResult.SUCCESS
        except OSError:
            return SpanExportResult.FAILURE


def _document(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    resource = {"attributes": _attributes(spans[0].resource.attributes)}
    scope = {"scope": {"name": "authz"}, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    assert context is not None
    told = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": _SERVER,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "events": [{"name": one.name, "timeUnixNano": str(one.timestamp)} for one in span.events],
    }
    if span.parent is not None:
        told["parentSpanId"] = f"{span.parent.span_id:016x}"
    return told


def _attributes(values: Mapping[str, object]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"boolValue": v} if isinstance(v, bool) else {"stringValue": str(v)}}
        for key, v in values.items()
    ]
