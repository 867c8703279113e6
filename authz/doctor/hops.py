"""Whose address is in the records: one request through Envoy, and what its record says.

The request brings an x-forwarded-for of addresses that nobody has (RFC 5737). The one of them that
is recorded as the client's, if any, tells by how much `xff_num_trusted_hops` is too high: each
proxy in front that appends to the header puts one address to the right of them.
"""

import http.client
import ipaddress
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from authz.doctor.documents import is_true
from authz.doctor.envoy import Envoy, items
from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError, UsageError
from authz.store.client import QUERY_ERRORS, connect, explain

FORGED: Final = tuple(f"192.0.2.{number}" for number in range(10, 0, -1))
"""From left to right, as in the header: the last is the first that too high a count reaches."""

_SECONDS: Final = 10
_ANSWER_BYTES: Final = 1 << 20
_EVERY_SECONDS: Final = 0.2
_MANY: Final = "anyone can choose the address in the records"
_FEW: Final = "all users look like one: the records name the proxy that they all come through"


@dataclass(frozen=True, slots=True)
class Sent:
    """The request, as its record can be known by."""

    trace_id: str
    own: str
    """The address it was sent from."""
    host: str
    """The address it was sent to."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How Envoy finds the client's address."""

    hops: int
    remote: bool
    """`use_remote_address`"""


def settings(envoys: Iterable[Envoy]) -> Settings | None:
    """What the given configurations say, if they say one thing only."""
    found = set()
    for envoy in envoys:
        for manager in envoy.managers:
            if items(manager.value, "original_ip_detection_extensions"):
                return None
            hops = manager.value.get("xff_num_trusted_hops", 0)
            if not str(hops).isdecimal():
                return None
            found.add(Settings(int(hops), is_true(manager.value.get("use_remote_address"))))
    return found.pop() if len(found) == 1 else None


def check(
    url: str, path: str, store: str, token: str | None, known: Settings | None, *,
    client_address: str | None = None, wait_seconds: float = 15,
) -> Iterator[Finding]:  # fmt: skip
    """Send the request, find its record, explain it. Raises `UnavailableError`, `UsageError`."""
    sent = send(url, path, token)
    own = client_address or sent.own
    for source, writer in find(store, sent.trace_id, wait_seconds):
        part = f"source_ip, told by {writer.removeprefix('envoy:')}"
        yield explained(part, source, own, known)
        if not client_address and _same(own, sent.host):
            yield Finding(
                Level.WARN, part, "this was sent from the host that it was sent to",
                "a proxy on this host would look as this program does", "run it from another host",
            )  # fmt: skip


def send(url: str, path: str, token: str | None) -> Sent:
    """GET `path` of the Envoy at `url`, with a forged x-forwarded-for, and let its answer be."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    try:
        if (
            parts.scheme not in kinds
            or not parts.hostname
            or parts.username
            or parts.path.strip("/")
        ):
            raise ValueError
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--envoy: want http://host:port or https://host:port") from None
    trace_id = secrets.token_hex(16)
    headers = {
        "x-forwarded-for": ", ".join(FORGED),
        "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
        "user-agent": "authz-doctor",
    }
    if token:
        headers["authorization"] = f"Bearer {token}"
    connection = kinds[parts.scheme](host, port, timeout=_SECONDS, source_address=_source(host))
    try:
        with closing(connection):
            connection.connect()
            own, there = connection.sock.getsockname()[0], connection.sock.getpeername()[0]
            connection.request("GET", path, headers=headers)
            connection.getresponse().read(_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"no answer from {parts.scheme}://{host} ({type(error).__name__}); is Envoy there?"
        ) from None
    except ValueError:
        raise UsageError(
            "--path, or the token, holds characters that HTTP does not allow"
        ) from None
    return Sent(trace_id, own, there)


def _source(host: str) -> tuple[str, int] | None:
    """To a server on this host, an address that no proxy on this host has."""
    if host != "localhost" and not host.startswith("127."):
        return None
    own = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(256)}.{secrets.randbelow(250) + 2}"
    with closing(socket.socket()) as probe:
        try:
            probe.bind((own, 0))
        except OSError:  # not every system has all of 127.0.0.0/8
            return None
    return own, 0


def find(store: str, trace_id: str, seconds: float) -> list[tuple[str, str]]:
    """(source_ip, writer) of each access that was recorded under `trace_id`. Raises
    `UnavailableError` if there is none after `seconds`."""
    query = (
        "SELECT source_ip, writer FROM audit_log"
        " WHERE kind = 'access' AND trace_id = %(trace)s ORDER BY time"
    )
    until = time.monotonic() + seconds
    try:
        with connect(store) as client:
            while not (rows := client.execute(query, {"trace": trace_id})):
                if time.monotonic() >= until:
                    raise UnavailableError(
                        f"no access of the request (trace {trace_id}) is in the store after"
                        f" {seconds:g} s: is the receiver up, has Envoy's access log `traceparent`"
                        " in additional_request_headers_to_log, and did the request come to this"
                        " Envoy?"
                    )
                time.sleep(_EVERY_SECONDS)
    except QUERY_ERRORS as error:
        raise explain(error, store) from None
    return [(str(source), str(writer)) for source, writer in rows]


def explained(part: str, source: str, own: str, known: Settings | None) -> Finding:
    """What the recorded address says about the hop count. `own` is the right one."""
    has = f"; xff_num_trusted_hops is {known.hops}" if known else ""
    if source in FORGED:
        return _too_high(part, _place(FORGED, source), known)
    if _same(source, own):
        right = ", as it should be" if known else ""
        return Finding(Level.OK, part, f"{source}, where the request came from{has}{right}")
    if not source:
        return Finding(
            Level.WARN, part, f"empty{has}", "nobody can tell where a request came from",
            "let clients come in by TCP",
        )  # fmt: skip
    more = f"at least {known.hops + 1}" if known else "at least one more than it is"
    return Finding(
        Level.FAIL, part,
        f"{source}, and the request came from {own}: the hop count is too low{has}", _FEW,
        f"set xff_num_trusted_hops to {more} (the number of your proxies in front that append to"
        f" x-forwarded-for), and run this again; if {source} is this host as the outermost proxy"
        f" sees it (address translation), say so with --client-address {source}",
    )  # fmt: skip


def _too_high(part: str, place: int, known: Settings | None) -> Finding:
    """A forged address was believed, the one at `place`, from 1, counted from the right."""
    seen = "an address that the request made up: the hop count is too high"
    if known is None:
        mend = f"lower xff_num_trusted_hops by {place}; set use_remote_address: true if it is not"
        return Finding(Level.FAIL, part, seen, _MANY, mend)
    seen += f"; xff_num_trusted_hops is {known.hops}"
    # By use_remote_address, n hops take the n-th address from the right; without it, the n+1-th.
    right = known.hops + (not known.remote) - place
    if right < 0:
        mend = "the configuration given is not that of the Envoy that told this; look at that one"
    elif known.remote:
        mend = f"set xff_num_trusted_hops: {right}"
    else:
        seen = f"{seen}, and use_remote_address is off"
        mend = f"set use_remote_address: true and xff_num_trusted_hops: {right}"
    return Finding(Level.FAIL, part, seen, _MANY, mend)


def _place(forged: Sequence[str], source: str) -> int:
    return len(forged) - forged.index(source)


def _same(one: str, other: str) -> bool:
    return _address(one) == _address(other)


def _address(text: str) -> object:
    """Equal for two spellings of one address."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    return getattr(found, "ipv4_mapped", None) or found
