"""The policy that is asked, and what it says of a request by another reading of both.

The request is read by protobuf's own JSON and Python's own parsers of URLs, JSON, forms and mail,
the policy in Python: nothing of `authz` is used. What the oracle cannot read it does not allow.
"""

import base64
import binascii
import email.parser
import email.policy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote, unquote_to_bytes

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from .mutation import ECHOED, JWT_AUTHN

POLICY: Final = f"""package envoy.authz

import rego.v1

# Not a name for all of `http`: reading its id would keep decisions out of the cache.
method := input.attributes.request.http.method

metadata := input.attributes.metadataContext.filterMetadata

claims := metadata["{JWT_AUTHN}"].verified_jwt

who := {{"subject": input.authz.subject, "roles": input.authz.roles}} if input.authz

else := {{"subject": claims.sub, "roles": claims.roles}} if claims != false

kind := input.parsed_path[1] if input.parsed_path[0] == "fhir"

tenant := {{"tenant": object.get(input.attributes.contextExtensions, "tenant", "none")}} if {{
	input.attributes.contextExtensions
}}

else := {{"tenant": "none"}} if true

default allow := {{"allowed": false, "audit": {{"reason": "no rule allows it"}}}}

allow := {{"allowed": false, "http_status": 429, "headers": {{"retry-after": "7"}}}} if {{
	kind == "Bundle"
}}

else := {{"allowed": "yes"}} if kind == "Binary"

else := granted("reads", tenant) if {{
	method in {{"GET", "HEAD"}}
	"physician" in who.roles
	kind in {{"Patient", "Observation"}}
}}

else := granted("writes", {{}}) if {{
	method == "POST"
	"nurse" in who.roles
	kind == "Observation"
	input.parsed_body.status == "final"
}}

else := {{"allowed": true, "response_headers_to_add": {{"x-consent": "given"}}}} if {{
	method == "POST"
	kind == "Consent"
	count(input.parsed_body.consent) == 1
	some answer in input.parsed_body.consent
	answer == "yes"
}}

else := granted("research", {{}}) if {{
	method == "GET"
	kind == "Group"
	"researcher" in who.roles
	input.parsed_query.purpose == ["RESEARCH"]
	not input.parsed_query.patient
}}

else := granted("glass", {{}}) if {{
	kind == "Condition"
	"physician" in who.roles
	object.get(input.attributes.request.http.headers, "x-break-glass", "no") == "yes"
}}

else := granted("echo", metadata["{ECHOED}"]) if {{
	kind == "Parameters"
	"physician" in who.roles
}}

else := true if {{
	method == "GET"
	kind == "Specimen"
	startswith(input.source_principal, "spiffe://cluster.local/ns/lab/")
}}

allow := {{"allowed": false, "http_status": 409}} if {{
	kind == "Basic"
	method == "PUT"
}}

allow := {{"allowed": false, "http_status": 410}} if {{
	kind == "Basic"
	input.parsed_query.purpose
}}

granted(rule, extra) := {{
	"allowed": true,
	"headers": {{"x-subject": who.subject, "x-rule": rule}},
	"dynamic_metadata": extra,
	"audit": {{"subject": who.subject, "reason": rule, "break_glass": rule == "glass"}},
}}
"""

_BEARER: Final = re.compile(r"\s*bearer(?:\s+(.*?))?\s*", re.IGNORECASE | re.DOTALL)


class NoReading(Exception):  # noqa: N818 - it is no fault, but an answer
    """The request says nothing that could be allowed."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the policy decides: None for a conflict, else the decision document."""

    decision: Any
    subject: str
    """Whose token was verified, if there was one."""
    document: Mapping[str, Any]
    """The input as far as the policy reads it, to ask OPA with."""
    guessed: bool
    """The body was read by rules for mail, which bear more than those for forms: what this allows
    may be denied."""


class Oracle:
    """Knows the tokens that were signed: text up to the signature, signature, claims."""

    def __init__(self, issued: Mapping[tuple[str, bytes], Mapping[str, Any]]) -> None:
        self._issued = issued

    def expected(self, wire: bytes) -> Expected:
        """Raises `NoReading` for what must be denied whatever the policy says."""
        try:
            request = CheckRequest.FromString(wire)
        except DecodeError:
            raise NoReading("no message") from None
        attributes = request.attributes
        if not attributes.request.HasField("http"):
            raise NoReading("no HTTP")
        try:
            http = MessageToDict(attributes.request.http)
            metadata = {
                name: MessageToDict(struct)
                for name, struct in attributes.metadata_context.filter_metadata.items()
            }
        except ValueError:  # a number that JSON has not
            raise NoReading("no JSON") from None
        headers = _headers(http)
        path, _, query = http.get("path", "").partition("?")
        _check_path(path, query)
        document: dict[str, Any] = {
            "attributes": {
                "request": {"http": {"method": http.get("method"), "headers": headers}},
                "metadataContext": {"filterMetadata": metadata},
            },
            "parsed_path": unquote(path).lstrip("/").split("/"),
            "parsed_query": _form(query),
            "parsed_body": _body(headers, http),
        }
        if not headers:
            del document["attributes"]["request"]["http"]["headers"]
        if attributes.context_extensions:
            document["attributes"]["contextExtensions"] = dict(attributes.context_extensions)
        if attributes.source.principal:
            document["source_principal"] = attributes.source.principal
        subject = ""
        if claims := self._verified(headers.get("authorization")):
            subject = claims["sub"]
            document["authz"] = {"subject": subject, "roles": claims.get("roles", [])}
        guessed = "multipart/" in headers.get("content-type", "")
        return Expected(_decide(document), subject, document, guessed)

    def _verified(self, value: str | None) -> Mapping[str, Any] | None:
        if value is None:
            return None
        parts = [_BEARER.fullmatch(part) for part in value.split(",")]
        if not any(parts):
            return None
        if len(parts) > 1 or not parts[0] or not parts[0][1]:
            raise NoReading("a token that is none")
        signed, _, signature = parts[0][1].rpartition(".")
        try:
            raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        except (binascii.Error, ValueError):
            raise NoReading("a signature that is none") from None
        claims = self._issued.get((signed, raw))
        if claims is None:
            raise NoReading("a token nobody issued")
        return claims


def _headers(http: Mapping[str, Any]) -> dict[str, str]:
    if headers := http.get("headers"):
        return dict(headers)
    joined: dict[str, list[str]] = {}
    for header in http.get("headerMap", {}).get("headers", ()):
        raw = base64.b64decode(header.get("rawValue", ""))
        value = raw.decode(errors="backslashreplace") or header.get("value", "")
        joined.setdefault(header.get("key", "").lower(), []).append(value)
    return {name: ",".join(values) for name, values in joined.items()}


def _check_path(path: str, query: str) -> None:
    """A path that means one thing only, whoever unescapes it."""
    try:
        once = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise NoReading("a path that is no text") from None
    if (
        any(part in (".", "..") for part in once.split("/"))
        or any(sign in once for sign in ("//", "\\", ";", "#"))
        or any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in once)
        or once.count("/") != path.count("/")
        or re.search("%(?![0-9a-fA-F]{2})", path)
        or re.search("%[0-9a-fA-F]{2}", once)
        or "#" in query
    ):
        raise NoReading("a path with two meanings")


def _form(text: str) -> dict[str, list[str]]:
    if ";" in text or re.search("%(?![0-9a-fA-F]{2})", text):
        raise NoReading("a form that is none")
    return parse_qs(text, keep_blank_values=True)


def _body(headers: Mapping[str, str], http: Mapping[str, Any]) -> Any:
    """The body by its type; None where the policy sees none."""
    kind = headers.get("content-type", "")
    payload = (
        http["body"].encode() if http.get("body") else base64.b64decode(http.get("rawBody", ""))
    )
    if headers.get("x-envoy-auth-partial-body") == "true" or not payload:
        return None
    length = headers.get("content-length")
    if length is not None and re.fullmatch(r"[+-]?[0-9]+", length) and int(length) > len(payload):
        return None
    if "application/json" in kind:
        try:
            return json.loads(payload.decode(errors="replace"))
        except (ValueError, RecursionError):
            raise NoReading("a body that is no JSON") from None
    if "application/grpc" in kind:
        return None
    if "application/x-www-form-urlencoded" in kind:
        return _form(payload.decode(errors="replace"))
    if "multipart/form-data" in kind:
        head = b"content-type: " + kind.encode() + b"\r\n\r\n"
        mail = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + payload)
        values: dict[str, list[str]] = {}
        for part in mail.iter_parts() if mail.is_multipart() else ():
            name = part.get_param("name", header="content-disposition")
            if name and part.get_content_disposition() == "form-data":
                content = part.get_payload(decode=True) or b""
                values.setdefault(str(name), []).append(content.decode(errors="replace"))
        return values
    return None


def _decide(document: Mapping[str, Any]) -> Any:
    """`POLICY`, in Python."""
    path = document["parsed_path"]
    kind = path[1] if path[0] == "fhir" and len(path) > 1 else None
    http = document["attributes"]["request"]["http"]
    method = http["method"]
    if kind == "Basic":
        denials = [409] * (method == "PUT") + [410] * ("purpose" in document["parsed_query"])
        if len(denials) > 1:
            return None
        return {"allowed": False, "http_status": denials[0] if denials else 403}
    if kind == "Binary":
        return {"allowed": "yes"}
    if kind == "Consent" and method == "POST":
        body = document["parsed_body"]
        answers = body.get("consent") if isinstance(body, dict) else None
        if _members(answers) == ["yes"]:
            return {"allowed": True, "response_headers_to_add": {"x-consent": "given"}}
    if kind == "Specimen" and method == "GET":
        principal = document.get("source_principal", "")
        if principal.startswith("spiffe://cluster.local/ns/lab/"):
            return True
    return _by_role(kind, method, document) or {
        "allowed": False,
        "http_status": 429 if kind == "Bundle" else 403,
    }


def _by_role(kind: str | None, method: str | None, document: Mapping[str, Any]) -> Any:
    """What a role allows; None if none does."""
    attributes, query = document["attributes"], document["parsed_query"]
    body, metadata = document["parsed_body"], attributes["metadataContext"]["filterMetadata"]
    headers = attributes["request"]["http"].get("headers", {})
    who, roles = _who(document, metadata)
    physician = "physician" in roles
    tenant = attributes.get("contextExtensions", {}).get("tenant", "none")
    if kind in ("Patient", "Observation") and method in ("GET", "HEAD") and physician:
        return _granted(who, "reads", {"tenant": tenant})
    if kind == "Observation" and method == "POST" and "nurse" in roles:
        final = isinstance(body, dict) and body.get("status") == "final"
        return _granted(who, "writes", {}) if final else None
    if kind == "Group" and method == "GET" and "researcher" in roles:
        research = query.get("purpose") == ["RESEARCH"] and "patient" not in query
        return _granted(who, "research", {}) if research else None
    if kind == "Condition" and physician and headers.get("x-break-glass") == "yes":
        return _granted(who, "glass", {})
    if kind == "Parameters" and physician and ECHOED in metadata:
        return _granted(who, "echo", metadata[ECHOED])
    return None


def _who(document: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The subject, and the roles: none if there is no subject."""
    if authz := document.get("authz"):
        return authz["subject"], authz["roles"]
    claims = metadata.get(JWT_AUTHN, {}).get("verified_jwt")
    if not isinstance(claims, dict) or "sub" not in claims or "roles" not in claims:
        return None, []
    return claims["sub"], _members(claims["roles"])


def _members(value: Any) -> list[Any]:
    """What Rego's ``in`` looks through."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _granted(subject: Any, rule: str, metadata: Any) -> dict[str, Any]:
    return {
        "allowed": True,
        "headers": {"x-subject": subject, "x-rule": rule},
        "dynamic_metadata": metadata,
    }
