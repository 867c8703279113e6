"""Certificates of our servers; the gRPC ones read them again when their files change."""

import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import structlog

from authz.config import ExtAuthz, Served, is_local
from authz.errors import UsageError
from authz.serve.forward import CHANNEL_OPTIONS

logger = structlog.get_logger()


def of_server(section: str, options: Served) -> grpc.ServerCredentials | None:
    """The credentials that `options` ask for; None for plain text. Raises `UsageError`, also for
    plain text that other hosts can reach."""
    files = _files(section, options)
    return ServerTls(section, *files).credentials() if files else None


def of_http_server(section: str, options: Served) -> ssl.SSLContext | None:
    """The same for a server that speaks HTTP; its files are read now, and not again."""
    files = _files(section, options)
    if files is None:
        return None
    cert, key, client_ca = files
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
        context.load_cert_chain(cert, key)
    except OSError as error:  # what PEM does not hold is one too
        raise UsageError(f"{section}: tls_cert, tls_key or tls_client_ca: {error}") from None
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _files(section: str, options: Served) -> tuple[Path, Path, Path | None] | None:
    """Certificate, key and the clients' authority; None for plain text, where that may be."""
    files = (options.tls_cert, options.tls_key, options.tls_client_ca)
    if options.tls_cert and options.tls_key:
        return options.tls_cert, options.tls_key, options.tls_client_ca
    if any(files):
        raise UsageError(f"{section}.tls_cert and {section}.tls_key are needed together")
    if not options.plaintext and not is_local(options.listen):
        raise UsageError(
            f"--listen {options.listen}: other hosts can reach it, and there is no TLS; give"
            f" {section}.tls_cert and tls_key, or listen on 127.0.0.1, or set"
            f" {section}.plaintext: true where the network is private"
        )
    return None


class ServerTls:
    """The certificate chain and key of a server, and the authority its clients must be of (None:
    clients show no certificate). PEM files; a handshake after a change uses the new ones. New files
    that cannot be used leave the last good ones in force."""

    def __init__(self, option: str, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._option = option
        self._files = [path for path in (key, cert, client_ca) if path is not None]
        self._seen: tuple[int, ...] = ()

    def credentials(self) -> grpc.ServerCredentials:
        """Raises `UsageError` for files that cannot be used."""
        self._seen = self._look()
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._changed,  # type: ignore[arg-type] # None is for no change
            require_client_authentication=len(self._files) == 3,
        )

    def _look(self) -> tuple[int, ...]:
        try:
            return tuple(part for path in self._files for part in _stamp(path))
        except OSError as error:
            raise UsageError(f"{self._option}: {error.filename}: {error.strerror}") from None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            key, cert, *client_ca = [path.read_bytes() for path in self._files]
        except OSError as error:
            raise UsageError(f"{self._option}: {error.filename}: {error.strerror}") from None
        for path, content in zip(self._files, (key, cert, *client_ca), strict=True):
            if b"-----BEGIN " not in content:
                raise UsageError(f"{self._option}: {path}: not PEM")
        return grpc.ssl_server_certificate_configuration([(key, cert)], *client_ca)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """At each handshake: what to use from now on, or None for what is in use."""
        try:
            seen = self._look()
            if seen == self._seen:
                return None
            configuration = self._read()
        except UsageError as error:
            logger.error("certificates not read; the last good ones stay", error=str(error))
            return None
        self._seen = seen
        logger.info("certificates read again")
        return configuration


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def to_receiver(options: ExtAuthz) -> Callable[[], grpc.aio.Channel]:
    """Opens a channel to the receiver of `options`: in plain text without `receiver_ca`, otherwise
    with TLS by that authority, and with our own certificate if there is one. Files are read at each
    opening. Raises `UsageError` now if they cannot be."""
    address = options.receiver
    if address is None:
        raise UsageError("--receiver is missing: host:port or unix:///path")
    files = (options.receiver_ca, options.receiver_key, options.receiver_cert)
    if options.receiver_ca is None and any(files):
        raise UsageError("ext_authz.receiver_ca is missing: without it, there is no TLS")

    def read(path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None

    def open_channel() -> grpc.aio.Channel:
        if options.receiver_ca is None:
            return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(*map(read, files))
        return grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)

    for path in files:
        read(path)
    return open_channel
