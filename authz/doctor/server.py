"""authz's own gRPC servers: whether they can do what they are for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError, UsageError

SERVICE: Final = "envoy.service.auth.v3.Authorization"
RECEIVER: Final = "authz.v1.RecordStream"
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files to speak to the server with. Without `ca`: plain text."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise UsageError("--tls-cert and --tls-key are needed together")
        if self.cert and not self.ca:
            raise UsageError("--tls-ca is missing: the authority of the server's certificate, PEM")
        for path in (self.ca, self.cert, self.key):
            if path:
                _bytes(path)


def health(address: str, tls: Tls) -> Iterator[Finding]:
    """Whether the Check server says that it can decide and record."""
    if _serving(address, tls, SERVICE, "Check server"):
        yield Finding(Level.OK, address, "serving: it can decide and record")
    else:
        yield Finding(
            Level.FAIL, address, "not serving",
            "it cannot decide or cannot record, and denies every request (503)",
            "see the reason in its log (`health changed`): its OPA, its journal's disk, or, with"
            " durability `receiver`, the receiver; --metrics tells them apart",
        )  # fmt: skip


def receiver_health(address: str, tls: Tls) -> Iterator[Finding]:
    """Whether the receiver says that it takes records in."""
    if _serving(address, tls, RECEIVER, "receiver"):
        yield Finding(Level.OK, address, "serving: it takes records in")
    else:
        yield Finding(
            Level.FAIL, address, "the receiver is not serving",
            "it takes nothing in: decisions wait in their journals, and accesses are lost",
            "see the reason in its log (`health changed`): its journal's disk is full or failing",
        )  # fmt: skip


def _serving(address: str, tls: Tls, service: str, what: str) -> bool:
    request = HealthCheckRequest(service=service)
    try:
        with _channel(address, tls) as channel:
            ask = channel.unary_unary(
                _HEALTH,
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            answer = ask(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        mend = "is it up, and does it speak TLS (--tls-ca; --tls-cert and --tls-key for mTLS)?"
        raise UnavailableError(f"no health from the {what} ({code}); {mend}") from None
    return bool(answer.status == HealthCheckResponse.SERVING)


def _channel(address: str, tls: Tls) -> grpc.Channel:
    if tls.ca is None:
        return grpc.insecure_channel(address)
    key, cert = (_bytes(path) if path else None for path in (tls.key, tls.cert))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(_bytes(tls.ca), key, cert))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
