"""How long certificates hold: those that a server shows, and those in files."""

import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from pydantic import BaseModel

from authz.config import Config
from authz.doctor.findings import Finding, Level
from authz.doctor.server import Tls
from authz.errors import UnavailableError

_SECONDS: Final = 5
_SOON_DAYS: Final = 30
_OURS: Final = "put a new certificate in its file: servers of authz take it up by themselves"
_THEIRS: Final = "put a new certificate in its file, and have the server read it"


def served(address: str, tls: Tls) -> Iterator[Finding]:
    """The certificate that one of authz's servers shows. Whether it is to be trusted, `health` has
    asked."""
    if tls.ca is not None:
        yield from shown(address, tls, _OURS)


def shown(address: str, tls: Tls, renew: str = _THEIRS) -> Iterator[Finding]:
    """The certificate that a TLS listener shows to whoever comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # an expired one is to be seen too
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        if tls.cert and tls.key:
            context.load_cert_chain(tls.cert, tls.key)
        with _connected(address) as plain, context.wrap_socket(plain) as wrapped:
            found = wrapped.getpeercert(binary_form=True)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"no TLS with the server: {type(error).__name__}") from None
    if found:
        yield _of(f"{address}, its certificate", x509.load_der_x509_certificate(found), renew)


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


def in_files(config: Config | None, tls: Tls) -> Iterator[Finding]:
    """The certificates in files: those given, and those of every part of the configuration."""
    files = {"--tls-ca": tls.ca, "--tls-cert": tls.cert}
    if config:
        files |= dict(_named("", config))
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
            yield _of(f"{option}{several}", certificate, _OURS)


def _named(before: str, part: BaseModel) -> Iterator[tuple[str, Path | None]]:
    for key in type(part).model_fields:
        value, name = getattr(part, key), f"{before}{key}"
        if isinstance(value, BaseModel):
            yield from _named(f"{name}.", value)
        elif key.endswith(("_cert", "_ca")) and (value is None or isinstance(value, Path)):
            yield name, value


def _of(part: str, certificate: x509.Certificate, renew: str) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return dated(part, begins, ends, renew)


def dated(part: str, begins: dt.datetime, ends: dt.datetime, renew: str) -> Finding:
    """What a certificate's dates mean today."""
    now = dt.datetime.now(dt.UTC)
    left = ends - now
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
