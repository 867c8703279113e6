"""authz's own Check server: whether it can decide and record, and for how long its certificates
hold."""

import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz.config import Config
from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError, UsageError

SERVICE: Final = "envoy.service.auth.v3.Authorization"
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SECONDS: Final = 5
_SOON_DAYS: Final = 30


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
    """Whether the server says that it can decide and record."""
    request = HealthCheckRequest(service=SERVICE)
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
        raise UnavailableError(f"no health from the Check server ({code}); {mend}") from None
    if answer.status == HealthCheckResponse.SERVING:
        yield Finding(Level.OK, address, "serving: it can decide and record")
    else:
        yield Finding(
            Level.FAIL, address, "not serving",
            "it cannot decide or cannot record, and denies every request (503)",
            "see the reason in its log (`health changed`): its OPA, its journal's disk, or, with"
            " durability `receiver`, the receiver; --metrics tells them apart",
        )  # fmt: skip


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


def served_certificate(address: str, tls: Tls) -> Iterator[Finding]:
    """How long the certificate holds that the server shows. Whether it is to be trusted, `health`
    has asked."""
    if tls.ca is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # an expired one is to be seen too
    context.set_alpn_protocols(["h2"])
    try:
        if tls.cert and tls.key:
            context.load_cert_chain(tls.cert, tls.key)
        with _connected(address) as plain, context.wrap_socket(plain) as wrapped:
            shown = wrapped.getpeercert(binary_form=True)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"no TLS with the server: {type(error).__name__}") from None
    if shown:
        yield dated(f"{address}, its certificate", x509.load_der_x509_certificate(shown))


def _connected(address: str) -> socket.socket:
    if not address.startswith("unix://"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), _SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_SECONDS)
    try:
        connection.connect(address.removeprefix("unix://"))
    except OSError:
        connection.close()
        raise
    return connection


def certificates(config: Config | None, tls: Tls) -> Iterator[Finding]:
    """How long the certificates in files hold: those given, and those of the configuration."""
    files = {"--tls-ca": tls.ca, "--tls-cert": tls.cert}
    if config:
        for name in ("ext_authz", "receiver"):
            part = getattr(config, name)
            for key in type(part).model_fields:
                if key.endswith(("_cert", "_ca")):
                    files[f"{name}.{key}"] = getattr(part, key)
    for option, path in files.items():
        if path is None:
            continue
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            yield Finding(Level.UNKNOWN, option, "its file cannot be read here as PEM")
            continue
        for number, certificate in enumerate(found, 1):
            several = f", certificate {number}" if len(found) > 1 else ""
            yield dated(f"{option}{several}", certificate)


def dated(part: str, certificate: x509.Certificate) -> Finding:
    """What a certificate's dates mean today."""
    now = dt.datetime.now(dt.UTC)
    ends, left = certificate.not_valid_after_utc, certificate.not_valid_after_utc - now
    renew = "put a new certificate in its file: servers of authz take it up by themselves"
    begins = certificate.not_valid_before_utc
    if left.total_seconds() <= 0:
        why = "nobody can connect by it: every request is denied (503)"
        return Finding(Level.FAIL, part, f"expired on {ends:%Y-%m-%d}", why, renew)
    if begins > now:
        why = "nobody can connect by it yet"
        mend = "see the clocks, or issue it anew"
        return Finding(Level.FAIL, part, f"not valid before {begins:%Y-%m-%d}", why, mend)
    if left < dt.timedelta(days=_SOON_DAYS):
        seen = f"expires in {left.days} days, on {ends:%Y-%m-%d}"
        return Finding(Level.WARN, part, seen, "after that every request is denied (503)", renew)
    return Finding(Level.OK, part, f"holds until {ends:%Y-%m-%d}")
