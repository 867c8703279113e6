"""OpenTelemetry spans of Checks, in the trace of the request they decide on.

A span has its stages' times, the outcome and the decision's id; nothing of who, what or whose.
"""

from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_CONTEXT = TraceContextTextMapPropagator()


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


def otlp(endpoint: str) -> CheckTracer:
    """Spans to an OTLP collector over gRPC: ``http://host:4317`` or ``https://...``."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - optional
        OTLPSpanExporter,
    )

    return CheckTracer(OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://")))
