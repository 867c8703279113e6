"""An input document without what could be used to be somebody: tokens, cookies, bodies.

Verified claims stay: they say who it was, and open nothing. Each place that was taken away is
told, so that a policy that reads there can be told apart.
"""

import re
from base64 import b64decode
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote_plus

import orjson

Path = tuple[str, ...]

REPLACED: Final = "[removed]"

_HTTP: Final = ("attributes", "request", "http")
_BODIES: Final = ("body", "rawBody")

_CREDENTIAL: Final = re.compile(
    r"authoriz|cookie|token|secret|passw|session|api.?key|credential|jwt|assertion|signature"
    r"|client-cert|saml"
)
_PARAMETERS: Final = frozenset("auth code key otp pin pwd sid sig ticket".split())
_SEPARATOR: Final = re.compile(r"([&;#])")
_JWT: Final = re.compile(r"eyJ[\w-]{5,}(?:\.[\w-]*)+")
# A FHIR search for a code (8867-4, http://loinc.org|8867-4,...) is none of OAuth's.
_CODES: Final = re.compile(r"(?:(?:[^|,\s]*\|)?[\w.-]{1,18}(?:,|\Z))+")


def without_credentials(
    document: Mapping[str, Any], *, bodies: bool = False
) -> tuple[bytes, list[Path]]:
    """The document as JSON, and where something was taken away. It is not changed itself."""
    removed: list[Path] = []
    shown = dict(document)
    if not bodies and shown.get("parsed_body") is not None:
        del shown["parsed_body"]
        removed.append(("parsed_body",))
    if query := shown.get("parsed_query"):
        shown["parsed_query"] = _query(query, removed)
    if attributes := shown.get("attributes"):
        shown["attributes"] = attributes = dict(attributes)
        if extensions := attributes.get("contextExtensions"):
            place = ("attributes", "contextExtensions")
            attributes["contextExtensions"] = _named(extensions, place, removed)
        request = attributes.get("request")
        if request and (http := request.get("http")):
            attributes["request"] = {**request, "http": _http(http, removed, bodies=bodies)}
    content = orjson.dumps(shown)
    if b"eyJ" in content:  # how every JSON Web Token begins, wherever it stands
        content = orjson.dumps(_without_tokens(shown, (), removed))
    return content, removed


def _http(http: Mapping[str, Any], removed: list[Path], *, bodies: bool) -> dict[str, Any]:
    shown = dict(http)
    if not bodies:
        removed += [(*_HTTP, name) for name in _BODIES if shown.pop(name, None)]
    for name in ("path", "query"):
        text = shown.get(name)
        if text and "=" in text:
            kept = _target(text) if name == "path" else _parameters(text)
            if kept != text:
                shown[name] = kept
                removed.append((*_HTTP, name))
    if headers := shown.get("headers"):
        # Envoy repeats the path as a header.
        path = shown.get("path", "")
        clean = path if path == http.get("path") else ""
        shown["headers"] = _named(headers, (*_HTTP, "headers"), removed, clean)
    if header_map := shown.get("headerMap"):
        kept_headers = [header for header in header_map.get("headers", ()) if _kept(header)]
        if len(kept_headers) != len(header_map.get("headers", ())):
            removed.append((*_HTTP, "headerMap"))
        shown["headerMap"] = {**header_map, "headers": kept_headers}
    return shown


def _named(
    values: Mapping[str, str], place: Path, removed: list[Path], clean: str = ""
) -> dict[str, str]:
    """Without the values that a name gives away, and with the URLs in others cleaned; `clean` is
    known to be so."""
    shown = {}
    for name, value in values.items():
        if is_credential(name):
            removed.append((*place, name))
            continue
        kept = _target(value) if "?" in value and value != clean else value
        if kept != value:
            removed.append((*place, name))
        shown[name] = kept
    return shown


def _kept(header: Mapping[str, str]) -> bool:
    """Of `headerMap`: whether a header stays. Its raw value is base64, which hides tokens."""
    if is_credential(header.get("key", "")):
        return False
    value = header.get("value", "") or b64decode(header.get("rawValue", "")).decode(errors="ignore")
    return "eyJ" not in value and ("?" not in value or _target(value) == value)


@lru_cache(4096)  # names come from clients: bounded
def is_credential(name: str) -> bool:
    """Whether a header of this name holds one."""
    return _CREDENTIAL.search(name.lower().replace("_", "-")) is not None


@lru_cache(4096)
def _is_parameter(name: str) -> bool:
    """Whether a query parameter of this name, still escaped, holds a credential."""
    plain = unquote_plus(name).lower()
    return plain in _PARAMETERS or is_credential(plain)


def _is_secret(name: str, value: str, *, state: bool) -> bool:
    if not _is_parameter(name):
        return False
    return name != "code" or state or not _CODES.fullmatch(unquote_plus(value))


def _query(query: Mapping[str, list[str]], removed: list[Path]) -> dict[str, list[str]]:
    shown = dict(query)
    state = "state" in query
    for name, values in query.items():
        kept = [REPLACED if _is_secret(name, value, state=state) else value for value in values]
        if kept != values:
            shown[name] = kept
            removed.append(("parsed_query", name))
    return shown


def _target(text: str) -> str:
    path, mark, query = text.partition("?")
    return f"{path}{mark}{_parameters(query)}" if mark else text


def _parameters(query: str) -> str:
    """A query, escaped, with the values of credentials replaced."""
    parts = _SEPARATOR.split(query)
    state = None
    for number, part in enumerate(parts):
        name, _, value = part.partition("=")
        if value and _is_parameter(name):
            if state is None:
                state = any(other.startswith("state=") for other in parts)
            if _is_secret(name, value, state=state):
                parts[number] = f"{name}={REPLACED}"
    return "".join(parts)


def _without_tokens(value: Any, place: Path, removed: list[Path]) -> Any:
    """Any text that holds a JSON Web Token, without it; names of fields, too."""
    if isinstance(value, str):
        kept = _JWT.sub(REPLACED, value) if "eyJ" in value else value
        if kept != value:
            removed.append(place)
        return kept
    if isinstance(value, Mapping):
        return {
            _without_tokens(name, place, removed): _without_tokens(inner, (*place, name), removed)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_tokens(inner, place, removed) for inner in value]
    return value
