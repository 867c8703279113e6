"""Answers of an HTTP server, to be read as they come.

Nothing leads elsewhere than to the host that was named: redirections are not followed, and other
hosts get no token. An answer that ends before it said it would is an error, and one that cannot
tell where it ends is refused: half a table would take the whole one's place.
"""

import http.client
import ipaddress
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from authz.errors import UnavailableError, UsageError
from authz.files import is_open

_SECONDS = 60  # without a byte
_ACCEPT = "application/fhir+json, application/fhir+ndjson;q=0.9, text/csv;q=0.8, */*;q=0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """`kind` is its media type, `name` what messages call it: the address without its query."""

    file: http.client.HTTPResponse
    kind: str
    name: str

    def end(self) -> None:
        """Raises `UnavailableError` if it was cut off. All of it has been read."""
        if self.file.length:
            raise UnavailableError(f"{self.name}: the answer was cut off; nothing is changed")


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


class Web:
    """Asks one server. Raises `UsageError` for what is not to be asked."""

    def __init__(
        self,
        url: str,
        token: Path | None = None,
        ca: Path | None = None,
        *,
        plaintext: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self._host = (parts.scheme, parts.netloc)
        if "@" in parts.netloc:
            raise UsageError(
                "SOURCE: its address holds a password; give a --token file in its place"
            )
        if not parts.hostname:
            raise UsageError("SOURCE: want https://HOST/PATH")
        if parts.scheme == "http" and not plaintext and not _is_here(parts.hostname):
            raise UsageError("SOURCE: its address is http; use https, or say --plaintext")
        self._headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {_secret(token)}"
        try:
            tls = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"--ca {ca}: {error}") from None
        https = urllib.request.HTTPSHandler(context=tls)
        self._opener = urllib.request.build_opener(_Stay, https)

    def ask(self, url: str) -> Answer:
        name = name_of(url)
        request = urllib.request.Request(url, headers=self._headers)  # noqa: S310 - http(s) by `Web`
        try:
            file = self._opener.open(request, timeout=_SECONDS)
        except HTTPError as error:
            error.close()
            mend = "; does its --token still hold?" if error.code in (401, 403) else ""
            if 300 <= error.code < 400:
                mend = ", a redirection; give the address that it leads to"
            raise UnavailableError(f"{name}: HTTP {error.code}{mend}") from None
        except (URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            told = getattr(reason, "strerror", None) or type(reason).__name__
            raise UnavailableError(f"{name}: {told}") from None
        if file.status != 200:
            file.close()
            raise UnavailableError(f"{name}: HTTP {file.status}")
        if file.length is None and not file.chunked:
            file.close()
            raise UnavailableError(
                f"{name}: the answer tells no length, so that nobody would see it cut off; have the"
                " server send content-length, or load a file"
            )
        return Answer(file, file.headers.get_content_type(), name)

    def next(self, bundle: dict[str, object], url: str) -> str | None:
        """Where the page after `bundle`, that of `url`, is."""
        links = bundle.get("link")
        found = [
            link.get("url")
            for link in (links if isinstance(links, list) else ())
            if isinstance(link, dict) and link.get("relation") == "next"
        ]
        if not found:
            return None
        if not isinstance(found[0], str):
            raise UsageError(f"{name_of(url)}: Bundle.link: the next page has no address")
        following = urljoin(url, found[0])
        parts = urlsplit(following)
        if (parts.scheme, parts.netloc) != self._host:
            raise UsageError(
                f"{name_of(url)}: Bundle.link leads to another host, {parts.scheme}://"
                f"{parts.hostname}, which is not asked; load from the address that the server has"
                " in its links"
            )
        return following


def name_of(url: str) -> str:
    """`url` without what may hold a secret or a patient: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _secret(path: Path) -> str:
    try:
        if is_open(path):
            raise UsageError(f"--token {path}: others may read it; run: chmod 600 {path}")
        secret = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "not a text"
        raise UsageError(f"--token {path}: {told}") from None
    if not secret.isascii() or not secret.isprintable() or not secret or " " in secret:
        raise UsageError(f"--token {path}: want one line, the bearer token alone")
    return secret


def _is_here(host: str) -> bool:
    """Whether what goes there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
