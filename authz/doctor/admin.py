"""A running Envoy, by its admin interface: the configuration in force, and what it has counted."""

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from authz.config import Config
from authz.doctor.certificates import dated
from authz.doctor.documents import Mapping, normalised
from authz.doctor.envoy import Envoy, from_dump, items, seconds, section
from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError, UsageError

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_DRAIN_SECONDS: Final = 60
_COUNTERS: Final = "failure_mode_allowed$|logs_dropped$|ext_authz.*(error|timeout)$"


@dataclass(frozen=True, slots=True)
class Running:
    """What an admin interface has told."""

    name: str
    envoy: Envoy
    stats: Mapping
    info: Mapping
    runtime: Mapping
    certs: Mapping


def ask(address: str, config: Config | None) -> Running:
    """Ask the admin interface at `address`. Raises `UnavailableError`."""
    dump, *others = asyncio.run(_ask(address))
    return Running(address, Envoy(from_dump(address, dump), config), *others)


async def _ask(address: str) -> list[Mapping]:
    local = address.startswith("unix://")
    connector = aiohttp.UnixConnector(address.removeprefix("unix://")) if local else None
    base = "http://envoy" if local else f"http://{address}"
    paths = ("/config_dump", f"/stats?format=json&filter={_COUNTERS}", "/server_info", "/runtime",
             "/certs")  # fmt: skip
    found = []
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            for path in paths:
                async with session.get(base + path) as response:
                    response.raise_for_status()
                    found.append(_object(await response.read()))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, UsageError) as error:
        raise UnavailableError(
            f"the admin interface does not answer as Envoy's does ({type(error).__name__}); is the"
            " address right, and may this user open it?"
        ) from None
    return found


def _object(text: bytes) -> Mapping:
    value = normalised(json.loads(text))
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what a reader of JSON raises
    return value


def counted(running: Running) -> Iterator[Finding]:
    """Nothing was let through without an answer, and no entry was dropped."""
    counters: dict[str, Any] = {
        str(item.get("name")): item.get("value") for item in items(running.stats, "stats")
    }
    for end, level, what, why, mend in (
        (
            "failure_mode_allowed", Level.FAIL, "requests were let through without an answer",
            "nobody decided on them", "set failure_mode_allow: false; look for them as bypasses",
        ),
        (
            "logs_dropped", Level.WARN, "access log entries were dropped",
            "these accesses are missing", "see whether the receiver is up, and its backlog",
        ),
        (
            ".error", Level.WARN, "Checks ended without an answer",
            "authz was down, or slower than Envoy waits", "see authz's log and its metrics",
        ),
    ):  # fmt: skip
        names = {name: value for name, value in counters.items()
                 if name.endswith(end) and isinstance(value, int) and value > 0}  # fmt: skip
        if names:
            seen = f"{max(names.values())} {what} since Envoy started ({', '.join(sorted(names))})"
            yield Finding(level, running.name, seen, why, mend)


def quiet(running: Running) -> Iterator[Finding]:
    """Envoy prints no headers."""
    options = section(running.info, "command_line_options")
    level = str(options.get("log_level", "")).lower()
    if level in {"debug", "trace"}:
        yield Finding(
            Level.FAIL, running.name, f"Envoy's log level is {level}",
            "it prints every header, tokens among them",
            "start it with --log-level info or quieter",
        )  # fmt: skip


def drains(running: Running) -> Iterator[Finding]:
    """Envoy can be drained in the time that a stop has."""
    told = section(running.info, "command_line_options").get("drain_time")
    if told is not None and (seconds(told) or 0) > _DRAIN_SECONDS:
        yield Finding(
            Level.WARN, running.name, f"Envoy drains for {told} (--drain-time-s)",
            "for so long it takes new connections; stopped before, it loses the last second of its"
            " access log",
            "start it with --drain-time-s 5 --drain-strategy immediate, and stop it with"
            " deploy/envoy/drain.sh",
        )  # fmt: skip


def certificates(running: Running) -> Iterator[Finding]:
    """How long the certificates hold that Envoy has in use: its listeners' and its clusters'."""
    renew = "put a new certificate in its place, and have Envoy read it: by SDS, or a restart"
    seen = set()
    for entry in items(running.certs, "certificates"):
        for kind in ("cert_chain", "ca_cert"):
            for one in items(entry, kind):
                path, ends = str(one.get("path", "")), str(one.get("expiration_time", ""))
                if not ends or (path, ends) in seen:
                    continue
                seen.add((path, ends))
                begins = str(one.get("valid_from") or ends)
                part = f"{running.name}, {path if path.startswith('/') else 'a certificate'}"
                yield dated(part, _time(begins), _time(ends), renew)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


CHECKS: Final = (counted, quiet, drains, certificates)
