"""gRPC health (grpc.health.v1) on the Check server's own port."""

import threading
from collections.abc import Sequence

import structlog
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz.serve.core_stream import Handler, Stream, Unary

logger = structlog.get_logger()


class CoreHealth:
    """Health of the services named, serving only while `set(serving=True)` was said last."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(("", *services))
        self._lock = threading.Lock()
        self._watching: dict[Stream, str] = {}
        self._leaving = False
        self.serving = False

    def handlers(self) -> dict[str, Handler]:
        check = Unary(self._check)
        return {"/grpc.health.v1.Health/Check": check, "/grpc.health.v1.Health/Watch": self}

    def set(self, *, serving: bool, reason: str = "") -> None:
        """`reason` says why not, for the log."""
        with self._lock:
            if serving == self.serving or self._leaving:
                return
            self.serving = serving
            for stream, service in self._watching.items():
                stream.send(self._answer(service))
        logger.info("health changed", serving=serving, **({"reason": reason} if reason else {}))

    def leave(self) -> None:
        """Not serving, for good: the process is about to end."""
        self.set(serving=False)
        with self._lock:
            self._leaving = True
            for stream in self._watching:
                stream.end()

    def _check(self, request: bytes) -> bytes | None:
        service = _service(request)
        return self._answer(service) if service in self._services else None

    def received(self, stream: Stream, message: bytes) -> bool:
        service = _service(message)
        with self._lock:
            self._watching[stream] = service
            stream.send(self._answer(service))
        return True

    def half_closed(self, stream: Stream) -> None:
        """A watcher listens until it leaves."""

    def left(self, stream: Stream) -> None:
        with self._lock:
            self._watching.pop(stream, None)

    def _answer(self, service: str) -> bytes:
        status = HealthCheckResponse.SERVICE_UNKNOWN
        if service in self._services:
            status = (
                HealthCheckResponse.SERVING if self.serving else HealthCheckResponse.NOT_SERVING
            )
        answer: bytes = HealthCheckResponse(status=status).SerializeToString()
        return answer


def _service(request: bytes) -> str:
    service: str = HealthCheckRequest.FromString(request).service
    return service
