"""What an OPA server says of itself: its policy, its bundles, and to whom it answers."""

import asyncio
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp

from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError
from authz.policy.opa import OpaOptions, session
from authz.policy.verdict import PolicyError, read_verdict

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5, connect=2)
_NOTHING: Final[dict[str, Any]] = {"input": {}}
_REFUSED: Final = (401, 403)


def check(options: OpaOptions, query: str) -> Iterator[Finding]:
    """Whether OPA is ready, has a decision at `query` (``envoy/authz/allow``) that lets nothing
    through of which nothing is known, takes only signed bundles, and asks who asks. Nothing is
    changed there. Raises `UnavailableError`."""
    part = options.url
    yield from _ready(part, options)
    yield from _decision(part, options, query)
    yield from _bundles(part, options)
    yield from _open(part, options)


def _ready(part: str, options: OpaOptions) -> Iterator[Finding]:
    status, _ = _ask(options, "GET", "/health?bundles&plugins")
    if status == 200:
        yield Finding(Level.OK, part, "OPA is ready")
    elif status not in _REFUSED:  # then only its decisions tell
        yield Finding(
            Level.FAIL, part, f"OPA is not ready (its /health answers {status})",
            "a bundle or a plugin of it was not loaded; until it is, its decisions are undefined,"
            " and every request is denied", "see its log for the bundle that it cannot get",
        )  # fmt: skip


def _decision(part: str, options: OpaOptions, query: str) -> Iterator[Finding]:
    status, told = _ask(options, "POST", f"/v1/data/{quote(query)}", _NOTHING)
    if status in _REFUSED:
        yield Finding(
            Level.FAIL, part, f"OPA does not answer us ({status})",
            "every request is denied (503 `policy_unavailable`)",
            "give ext_authz.opa_token or opa_cert as its system.authz wants them",
        )  # fmt: skip
    elif status != 200:
        raise UnavailableError(f"OPA answers {status} when asked for a decision")
    elif "result" not in told:
        # A policy may well be undefined where nothing is known; its package is there all the same.
        package = query.rpartition("/")[0]
        _, there = _ask(options, "POST", f"/v1/data/{quote(package)}", _NOTHING)
        if "result" not in there:
            yield Finding(
                Level.FAIL, part, f"its policy has no package {package.replace('/', '.')}",
                "every request is denied (undefined)",
                "load the policy, or set ext_authz.decision to the rule that it has",
            )  # fmt: skip
        else:
            yield _decides(part, query)
    else:
        yield _decided(part, query, told["result"])


def _decides(part: str, query: str) -> Finding:
    return Finding(Level.OK, part, f"it decides at {query}, and allows no empty request")


def _decided(part: str, query: str, result: object) -> Finding:
    """What the decision on an empty input document tells."""
    try:
        verdict = read_verdict(result)
    except PolicyError as error:
        return Finding(
            Level.FAIL, part, f"what it answers at {query} is no decision: {error}",
            "every such request is denied (500 `policy_error`)",
            "answer true, false, or an object with `allowed` (docs/policies.md)",
        )  # fmt: skip
    if not verdict.allowed:
        return _decides(part, query)
    return Finding(
        Level.FAIL, part, f"its policy allows a request of which nothing is known ({query})",
        "an empty input document is let through: what an input lacks, it does not miss",
        "let the rule be false by default, and allow by what the input has",
    )  # fmt: skip


def _bundles(part: str, options: OpaOptions) -> Iterator[Finding]:
    status, told = _ask(options, "GET", "/v1/config")
    configured = told.get("result") if status == 200 else None
    bundles = configured.get("bundles") if isinstance(configured, dict) else None
    for name, bundle in sorted(bundles.items()) if isinstance(bundles, dict) else ():
        signing = bundle.get("signing") if isinstance(bundle, dict) else None
        if isinstance(signing, dict) and signing.get("keyid"):
            yield Finding(Level.OK, part, f"its bundle {name} must be signed")
        else:
            yield Finding(
                Level.WARN, part, f"its bundle {name} need not be signed",
                "whoever can write where it comes from decides who may do what",
                "sign it (`authz policy build --signing-key`), and name the key in OPA's"
                f" bundles.{name}.signing",
            )  # fmt: skip


def _open(part: str, options: OpaOptions) -> Iterator[Finding]:
    if _is_near(options):
        return
    stranger = replace(options, token=None, cert=None, key=None)
    try:
        status, _ = _ask(stranger, "GET", "/v1/policies")
    except UnavailableError:
        return  # it does not even take a connection without our certificate
    if status == 200:
        yield Finding(
            Level.WARN, part, "its API answers whoever reaches it",
            "they read the policy, and may change it unless its system.authz says otherwise",
            "start it with --authentication=token --authorization=basic and a system.authz, or let"
            " it listen on 127.0.0.1 or a unix socket beside the Check server",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, part, "its API asks who asks")


def _is_near(options: OpaOptions) -> bool:
    """Whether only this machine, or this pod, reaches it by that address."""
    host = urlsplit(options.url).hostname or ""
    if options.socket or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ask(
    options: OpaOptions, method: str, path: str, document: object = None
) -> tuple[int, dict[str, Any]]:
    """The status, and the answer where it is a JSON object."""

    async def ask() -> tuple[int, Any]:
        async with (
            session(options, _TIMEOUT) as to,
            to.request(method, options.base + path, json=document) as answer,
        ):
            body = await answer.read()
            return answer.status, await answer.json(content_type=None) if body else None

    try:
        status, told = asyncio.run(ask())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise UnavailableError(f"OPA does not answer ({type(error).__name__})") from None
    return status, told if isinstance(told, dict) else {}
