"""An OPA server as the engine: decisions that came together are asked in one HTTP call.

A small wrapper policy decides each item of a batch ``with input as`` that item. Its answer is an
object keyed by item number: an undefined decision is a missing key, and can never shift one
person's allow onto another, as it would in an array. One conflict fails a whole query in OPA; the
items of a failed batch are asked one by one. A policy that calls something impure (``uuid``,
``http.send``, ...) is never batched, nor where the wrapper cannot be loaded. Each decision has a
wrapper of its own, in a package of its own: others ask the same OPA for other decisions.

opa-python-client does all but the hot path. That is libcurl (pycurl), asked by the thread that
answers: a call costs 80 µs of CPU where http.client's took 150 in the same run, and aiohttp's would
change threads. Connections go to TCP, TLS or a unix socket.
"""

import hashlib
import io
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
import pycurl
import structlog
from opa_client.errors import ConnectionsError, RegoParseError
from opa_client.opa_async import AsyncOpaClient

from authz.errors import AuthzError, UnavailableError, UsageError
from authz.policy.archive import archive, revision
from authz.policy.engine import Decisions, Document, Outcome
from authz.policy.rego_ast import Reads, reads
from authz.policy.verdict import UNDEFINED, PolicyError

_MODULE: Final = "authz/batch"
_PACKAGE: Final = "authz_batch"
_DECIDES: Final = re.compile(r"\tdecision := data\.(\S+) with input as item\n")
_MAX_BATCH: Final = 16
_CONNECT_MS: Final = 1000
_AGAIN_SECONDS: Final = 60
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=2)
_SERVERS: Final = ("http://", "https://", "unix://")

logger = structlog.get_logger()


def is_server(policy: str) -> bool:
    """Whether ``--policy`` is the address of an OPA server, and no files."""
    return policy.startswith(_SERVERS)


def own(query: str) -> str:
    """What is a wrapper's own: the end of its package's name, and of its module's."""
    return hashlib.sha256(query.encode()).hexdigest()[:16]


def wrapper(query: str, package: str = "") -> str:
    """The wrapper policy for the decision `query`; it may be shipped in the bundle as well."""
    return (
        f"package {package or f'{_PACKAGE}_{own(query)}'}\n\nimport rego.v1\n\n"
        "decisions[key] := decision if {\n"
        "\tsome key, item in input.items\n"
        f"\tdecision := data.{query.replace('/', '.')} with input as item\n"
        "}\n"
    )


def is_wrapper(text: str) -> bool:
    """Whether a module is the wrapper of some decision, this version's or the one of before, and so
    no part of the policy."""
    found = _DECIDES.search(text)
    query = found[1].replace(".", "/") if found else ""
    return bool(found) and text in (wrapper(query), wrapper(query, _PACKAGE))


@dataclass(frozen=True, slots=True)
class OpaOptions:
    """How to reach the server: `url` is http(s)://host:port or unix:///path.

    `ca`, `cert` and `key` are PEM files, for https; a changed file counts at the next connection.
    """

    url: str
    token: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def socket(self) -> str:
        """The path of a unix socket, or empty."""
        return self.url.removeprefix("unix://") if self.url.startswith("unix://") else ""

    @property
    def base(self) -> str:
        """What URLs of the API begin with."""
        parts = urlsplit(self.url)
        return "http://opa" if self.socket else f"{parts.scheme}://{parts.netloc}"


def session(
    options: OpaOptions, timeout: aiohttp.ClientTimeout = _TIMEOUT
) -> aiohttp.ClientSession:
    """A session with the server. Raises `UsageError` for certificates that cannot be used."""
    if options.socket:
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(options.socket)
    else:
        connector = aiohttp.TCPConnector(ssl=_tls(options))
    headers = {"content-type": "application/json"}
    if options.token:
        headers["authorization"] = f"Bearer {options.token}"
    return aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout, json_serialize=_dumps
    )


class OpaEngine:
    """Decides by asking OPA for `query` (``envoy/authz/allow``)."""

    watch_seconds = 0.5

    def __init__(self, options: OpaOptions, query: str) -> None:
        self._options = options
        self._query = query
        self.revision = ""
        self.archive = b""
        self.reads: Reads | None = None
        self._batches = False
        # The revision under which OPA did not take the wrapper, and when it is asked again.
        self._refused = "", 0.0
        self._answered = b""  # OPA's last answer about its policies
        self._base = options.base
        self._single = f"{self._base}/v1/data/{query}"
        self._batch = f"{self._base}/v1/data/{_PACKAGE}_{own(query)}/decisions"
        self._lines: list[_Line] = []

    @property
    def most(self) -> int:
        """How many documents `decide` takes well at once."""
        return _MAX_BATCH if self._batches else 1

    async def start(self) -> None:
        """Connect, learn about the policy, load the wrapper. Raises `AuthzError`."""
        options = self._options
        self._session = session(options)
        self._client = _Client(self._session, self._base)
        try:
            await self.look()
            if not _defines(orjson.loads(self._answered)["result"], self._query):
                raise UsageError(
                    f"--decision {self._query}: OPA at {options.url} has no rule of that name"
                )
        except AuthzError:
            await self.close()
            raise

    async def close(self) -> None:
        await self._session.close()
        while self._lines:
            self._lines.pop().close()

    def decide(self, documents: Sequence[Document], until: float) -> Decisions:
        """Each document's decision, `UNDEFINED` for none, or what went wrong with it:
        `PolicyError` when evaluation fails, `UnavailableError` when OPA does not answer before
        `until` (`time.monotonic()`). From any thread."""
        by = self.revision
        if len(documents) > 1 and self._batches:
            outcomes = self._ask_together(documents, until)
            if outcomes is not None:
                return Decisions(by, outcomes)
        return Decisions(by, [self._ask_singly(document, until) for document in documents])

    def _ask_together(self, documents: Sequence[Document], until: float) -> list[Outcome] | None:
        """None if they must be asked one by one."""
        keyed = {str(number): document for number, document in enumerate(documents)}
        try:
            decisions = self._post(self._batch, {"items": keyed}, until)
        except PolicyError:
            return None
        except UnavailableError as error:
            return [error] * len(documents)
        if not isinstance(decisions, dict):
            # The wrapper is gone (OPA was restarted): no decision was made by it.
            self._batches = False
            self._answered = b""
            return None
        return [decisions.get(key, UNDEFINED) for key in keyed]

    def _ask_singly(self, document: Document, until: float) -> Outcome:
        try:
            return self._post(self._single, document, until)
        except (PolicyError, UnavailableError) as error:
            return error

    def _post(self, url: str, document: object, until: float) -> object:
        try:
            body = orjson.dumps({"input": document})
        except (TypeError, ValueError) as error:
            raise PolicyError(f"the input cannot be sent to OPA ({type(error).__name__})") from None
        try:
            line = self._lines.pop()
        except IndexError:
            line = _Line(self._options)
        try:
            status, content = line.post(url, body, until - time.monotonic())
        finally:
            self._lines.append(line)
        return _read(status, content)

    async def look(self) -> None:
        """Read the policy's text and tree; see that the wrapper is there. Raises
        `UnavailableError`."""
        try:
            answered = await self._client.policies()
            if answered == self._answered:
                return
            policies = orjson.loads(answered).get("result", [])
            self._take([policy for policy in policies if not is_wrapper(policy["raw"])])
            batches = self.reads is not None and self.reads.batchable
            ours = wrapper(self._query)
            if batches and all(policy["raw"] != ours for policy in policies):
                refused, again = self._refused
                batches = False
                if refused != self.revision or time.monotonic() > again:
                    batches = await self._load_wrapper(ours)
                    if not batches:
                        self._refused = self.revision, time.monotonic() + _AGAIN_SECONDS
        except (ConnectionsError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            why = error.args[-1] if isinstance(error, ConnectionsError) else type(error).__name__
            raise UnavailableError(f"OPA at {self._options.url} does not answer ({why})") from None
        self._answered = answered
        if batches != self._batches:
            logger.info("decisions are asked", together=batches)
            self._batches = batches

    def _take(self, policies: list[dict[str, Any]]) -> None:
        """What `policies` read, before anything can be decided by their revision."""
        text = archive({policy["id"]: policy["raw"] for policy in policies})
        if text != self.archive or self.reads is None:
            self.reads = reads([policy["ast"] for policy in policies], self._query)
            self.archive = text
            self.revision = revision(text)

    async def _load_wrapper(self, text: str) -> bool:
        try:
            await self._client.update_policy_from_string(text, f"{_MODULE}/{own(self._query)}")
        except (ConnectionsError, RegoParseError, aiohttp.ClientError) as error:
            logger.warning(
                "the wrapper policy is not accepted; asking singly", error=str(error)[:200]
            )
            return False
        return True


class _Line:
    """One connection to OPA. For one thread at a time."""

    def __init__(self, options: OpaOptions) -> None:
        headers = ["content-type: application/json", "expect:"]
        if options.token:
            headers.append(f"authorization: Bearer {options.token}")
        self._curl = curl = pycurl.Curl()
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.PROXY, "")  # whatever the environment says
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, _CONNECT_MS)
        if options.socket:
            curl.setopt(pycurl.UNIX_SOCKET_PATH, options.socket)
        files = {
            pycurl.CAINFO: options.ca, pycurl.SSLCERT: options.cert, pycurl.SSLKEY: options.key
        }  # fmt: skip
        for option, file in files.items():
            if file is not None:
                curl.setopt(option, str(file))

    def post(self, url: str, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and content. Raises `UnavailableError`."""
        answer = io.BytesIO()
        curl = self._curl
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.setopt(pycurl.WRITEDATA, answer)
        curl.setopt(pycurl.TIMEOUT_MS, max(int(seconds * 1000), 1))
        try:
            curl.perform()
        except pycurl.error as error:
            raise UnavailableError(f"OPA does not answer (libcurl {error.args[0]})") from None
        return curl.getinfo(pycurl.RESPONSE_CODE), answer.getvalue()

    def close(self) -> None:
        self._curl.close()


class _Client(AsyncOpaClient):  # type: ignore[misc] # it has no types
    """opa-python-client over our session, which may go to a unix socket."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        super().__init__()
        self.root_url = f"{base}/v1"
        self._session = session

    async def policies(self) -> bytes:
        """``GET /v1/policies``: id, raw text and syntax tree of each module, as JSON."""
        async with self._request("GET", f"{self.root_url}/policies") as response:
            content: bytes = await response.read()
            if response.status != 200:
                raise ConnectionsError("policies", f"HTTP {response.status}")
            return content


def _read(status: int, content: bytes) -> object:
    """`decision_in` the JSON that OPA answered."""
    try:
        return decision_in(status, orjson.loads(content))
    except (orjson.JSONDecodeError, AttributeError):
        raise UnavailableError(f"OPA answers {status} with something that is no answer") from None


def decision_in(status: int, answer: Mapping[str, Any]) -> object:
    """The decision in OPA's answer. Raises `PolicyError` or `UnavailableError`."""
    if status == 200:
        return answer.get("result", UNDEFINED)
    codes = [str(error.get("code")) for error in answer.get("errors", ())]
    if codes and all(code.startswith("eval_") for code in codes):
        raise PolicyError(f"evaluation fails: {', '.join(codes)}")
    raise UnavailableError(f"OPA answers {status} ({answer.get('code')})")


def _defines(policies: list[dict[str, Any]], query: str) -> bool:
    """Whether some policy has a rule at `query`."""
    package, _, rule = query.rpartition("/")
    for policy in policies:
        path = "/".join(str(term["value"]) for term in policy["ast"]["package"]["path"][1:])
        names = (head["head"].get("name") for head in policy["ast"].get("rules", ()))
        if path == package and rule in names:
            return True
    return False


def _tls(options: OpaOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:
        raise UsageError(f"the certificates for OPA cannot be used: {error}") from None
    return context


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
