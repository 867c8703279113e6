"""Paths, queries and bodies of a request, read as opa-envoy-plugin reads them.

The plugin reads with Go's net/url, encoding/json, mime and mime/multipart. Policies are written
for what those see, so the rules here follow them, and are stricter only where it is said.
"""

import re
from typing import Final
from urllib.parse import unquote

import orjson

MAX_JSON_DEPTH: Final = 100
"""Levels of arrays and objects in a JSON body. orjson, which engines write the input document
with, stops at 254; Go at 10,000. Real documents (FHIR's too) stay under 30."""

MAX_QUERY_PARAMETERS: Final = 10_000
"""As in Go's net/url since 1.25.6."""

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"[+-]?0*[0-9]{1,19}")
_JSON_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)",
    re.DOTALL,
)
_LONE_SURROGATE: Final = len(r"\ud800")

_TCHARS: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE: Final = re.compile(rf"\s*({_TCHARS}(?:/{_TCHARS})?)\s*(?=;|\Z)")
_MEDIA_PARAMETER: Final = re.compile(
    rf'\s*;\s*({_TCHARS})\s*=\s*(?:({_TCHARS})|"((?:[^"\\\r\n]|\\[^\r\n])*)")'
)
_MEDIA_END: Final = re.compile(r"\s*(?:;\s*)?\Z")
_QUOTED_PAIR: Final = re.compile(r'\\([()<>@,;:\\"/\[\]?=])')
_LINE_END: Final = re.compile(rb"\r?\n")
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")
_NAME: Final = re.compile(rf"{_TCHARS}:")
_PARAMETER: Final = rf'{_TCHARS}[ \t]*=[ \t]*(?:[^\s",]+|"(?:[^"\\]|\\.)*")'
_CREDENTIALS: Final = re.compile(
    rf"{_TCHARS}(?: +(?:[A-Za-z0-9\-._~+/]+=*|{_PARAMETER}(?:[ \t]*,[ \t]*{_PARAMETER})*))?"
)
_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_TRACEPARENT: Final = re.compile(
    r"(?:00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}"
    r"|(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?)",
    re.DOTALL,
)


class BadRequestError(Exception):
    """The request cannot be parsed. The text is short, shows none of the body, and may go to the
    caller: `request_parse_error: invalid URL escape "%zz"`, the plugin's words where it has some.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"request_parse_error: {why}")


def parse_path(path: str) -> tuple[list[str], dict[str, list[str]]]:
    """The unescaped segments of the path part, and the query's values by key.

    Escaped bytes that are no UTF-8 show as U+FFFD, as they do in the plugin's JSON.
    Raises BadRequestError.
    """
    raw, _, query = path.partition("?")
    return _unescape(raw).lstrip("/").split("/"), parse_query(query) if query else {}


def parse_query(query: str) -> dict[str, list[str]]:
    """`a=1&b=%20&a=3` as {"a": ["1", "3"], "b": [" "]}. Raises BadRequestError."""
    if query.count("&") >= MAX_QUERY_PARAMETERS:
        raise BadRequestError("number of URL query parameters exceeded limit")
    values: dict[str, list[str]] = {}
    for pair in query.split("&"):
        if ";" in pair:
            raise BadRequestError("invalid semicolon separator in query")
        if pair:
            key, _, value = pair.replace("+", " ").partition("=")
            values.setdefault(_unescape(key), []).append(_unescape(value))
    return values


def parse_body(headers: dict[str, str], body: str, raw_body: bytes) -> tuple[object, bool]:
    """(the body as JSON values or None, whether Envoy cut it off); `headers` by lowercase name.

    JSON, form and multipart bodies are read; any other type, and gRPC without its descriptors,
    gives None. Raises BadRequestError for a body that is not what its content type says.
    """
    if headers.get("x-envoy-auth-partial-body") == "true":
        return None, True
    content_type = headers.get("content-type")
    if content_type is None or not (body or raw_body):
        return None, False
    # The plugin's order, and its substring match: application/fhir+json is not parsed.
    if "application/json" in content_type:
        kind = "json"
    elif "application/grpc" in content_type:
        return None, False
    elif "application/x-www-form-urlencoded" in content_type:
        kind = "form"
    elif "multipart/form-data" in content_type:
        kind = "multipart"
    else:
        return None, False
    payload = body.encode() if body else raw_body
    if _is_truncated(headers, len(payload)):
        return None, True
    if kind == "json":
        return _json(payload), False
    if kind == "form":
        return parse_query(payload.decode(errors="replace")), False
    boundary = _media_parameters(content_type, "boundary")[1]
    return (None if boundary is None else _multipart(payload, boundary)), False


def _unescape(text: str) -> str:
    if "%" not in text:
        return text
    if bad := _BAD_ESCAPE.search(text):
        start = text[bad.start() : bad.start() + 3].encode()[:3].decode(errors="backslashreplace")
        raise BadRequestError(f"invalid URL escape {_quoted(start)}")
    return unquote(text, errors="replace")


def _quoted(text: str) -> str:
    """Go's strconv.Quote, near enough for three characters."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    return f'"{"".join(shown)}"'


def _is_truncated(headers: dict[str, str], size: int) -> bool:
    length = headers.get("content-length")
    if length is None:
        return False
    if not _INTEGER.fullmatch(length):
        raise BadRequestError("invalid content-length")
    return int(length) > size


def _json(raw: bytes) -> object:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        value = _forgiving_json(raw, error)
    if raw.count(b"[") + raw.count(b"{") > MAX_JSON_DEPTH and _is_deep(value):
        raise BadRequestError(f"JSON nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _forgiving_json(raw: bytes, error: orjson.JSONDecodeError) -> object:
    """Go reads bytes that are no UTF-8 and escapes of half a surrogate pair as U+FFFD.

    Texts cut in the middle of an emoji hold the latter; a client that gets its answer from a
    service written for the plugin gets it here.
    """
    text = raw.decode(errors="replace")
    text = _JSON_ESCAPE.sub(_replace_lone_surrogate, text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # orjson's text names a position and never shows the document
        ended = "unexpected end" in error.msg or "empty" in error.msg
        why = "unexpected EOF" if ended else f"invalid JSON: {error}"
        raise BadRequestError(why) from None


def _replace_lone_surrogate(escape: re.Match[str]) -> str:
    text = escape[0]
    return r"\ufffd" if len(text) == _LONE_SURROGATE else text


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(value, (dict, list)) for value in level)


def _media_parameters(value: str, wanted: str) -> tuple[str, str | None]:
    """(media type in lower case, the wanted parameter or None). Raises BadRequestError.

    RFC 2231's encoded form of the wanted parameter is refused: few senders use it, and fewer
    readers agree on what it says.
    """
    start = _MEDIA_TYPE.match(value)
    if not start:
        raise BadRequestError("mime: invalid media type")
    found: dict[str, str] = {}
    position = start.end()
    while parameter := _MEDIA_PARAMETER.match(value, position):
        position = parameter.end()
        name, token, quoted = parameter[1].lower(), parameter[2], parameter[3]
        text = token if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        if found.setdefault(name, text) != text:
            raise BadRequestError("mime: duplicate parameter name")
        if name.startswith(wanted + "*"):
            raise BadRequestError(f"mime: encoded parameter {wanted}")
    if not _MEDIA_END.match(value, position):
        raise BadRequestError("mime: invalid media parameter")
    return start[1].lower(), found.get(wanted)


def _multipart(payload: bytes, boundary: str) -> dict[str, list[object]]:
    """A form's values by name (RFC 7578); a part of type JSON as its value, any other as text.

    Lines end in CRLF, or all in LF if the first boundary's does. Raises BadRequestError for
    whatever two readers could take apart differently.
    """
    if not boundary:
        raise BadRequestError("multipart: boundary is empty")
    escaped = re.escape(b"--" + boundary.encode())
    first = re.search(rb"^" + escaped + rb"(--)?[ \t]*(\r?\n|\Z)", payload, re.MULTILINE)
    if not first or (not first[2] and not first[1]) or (first[1] and first[2] == b"\n"):
        raise BadRequestError("multipart: NextPart: EOF")
    newline = first[2]
    line = re.compile(escaped + rb"(--)?[ \t]*(?:" + newline + rb"|\Z)")
    ahead = escaped + rb"(?=[ \t\r\n]|--|\Z)"
    empty, after_content = re.compile(ahead), re.compile(newline + ahead)
    values: dict[str, list[object]] = {}
    position = first.start()
    while True:
        delimiter = line.match(payload, position)
        if not delimiter:
            raise BadRequestError("multipart: expecting a new Part")
        if delimiter[1]:
            return values
        headers, start = _part_headers(payload, delimiter.end())
        if empty.match(payload, start):  # a part without content may leave out its line end
            end = position = start
        elif following := after_content.search(payload, start):
            end, position = following.start(), following.start() + len(newline)
        else:
            raise BadRequestError("multipart: unexpected EOF")
        if name := _form_name(headers):
            values.setdefault(name, []).append(_part_value(headers, payload[start:end]))


def _part_headers(payload: bytes, start: int) -> tuple[dict[str, str], int]:
    """A part's headers by lowercase name, and where its content starts."""
    headers: dict[str, str] = {}
    if none := _LINE_END.match(payload, start):
        return headers, none.end()
    blank = _BLANK_LINE.search(payload, start)
    if not blank:
        raise BadRequestError("multipart: unexpected EOF")
    block = payload[start : blank.start()].decode(errors="replace")
    for line in _FOLD.sub(" ", block).replace("\r\n", "\n").split("\n"):
        name, _, value = line.partition(":")
        if not _NAME.match(line):
            raise BadRequestError("multipart: malformed MIME header line")
        if headers.setdefault(name.lower(), value.strip()) != value.strip():
            raise BadRequestError("multipart: duplicate MIME header")
    if headers.get("content-transfer-encoding", "").lower() == "quoted-printable":
        raise BadRequestError("multipart: quoted-printable part")
    return headers, blank.end()


def _form_name(headers: dict[str, str]) -> str:
    disposition = headers.get("content-disposition")
    if disposition is None:
        return ""
    kind, name = _media_parameters(disposition, "name")
    return (name or "") if kind == "form-data" else ""


def _part_value(headers: dict[str, str], content: bytes) -> object:
    if "application/json" in headers.get("content-type", ""):
        return _json(content)
    return content.decode(errors="replace")


def ambiguous_credentials(authorization: str) -> bool:
    """Whether `authorization` holds anything but one set of credentials (RFC 9110, 11.6.2).

    Envoy joins repeated lines by `,`, and its jwt_authn finds a `Bearer ` anywhere in the value: of
    `Basic <root>,Bearer <mine>` it verifies the second, where a service may read the first.
    """
    return bool(authorization) and not _CREDENTIALS.fullmatch(authorization)


def trace_id_of(traceparent: str) -> str:
    """https://www.w3.org/TR/trace-context/#traceparent-header"""
    match = _TRACEPARENT.fullmatch(traceparent)
    if not match:
        return ""
    trace, parent = match[1] or match[3], match[2] or match[4]
    return trace if trace.strip("0") and parent.strip("0") else ""
