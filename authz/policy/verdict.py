"""A policy's decision, read into a verdict; anything odd about it is an error, never an allow.

The decision document is opa-envoy-plugin's, with our `audit` object beside it.
"""

import math
import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = ["UNDEFINED", "Audit", "PolicyError", "Undefined", "Verdict", "denial", "read_verdict"]

MAX_METADATA_DEPTH: Final = 24
"""Levels of objects and arrays in `dynamic_metadata`. A level costs three protobuf messages,
access log entries wrap it in six more, and Envoy cannot parse more than 100: an answer it cannot
parse is a failed check, which `failure_mode_allow` would let through."""

_STATUSES: Final = frozenset(
    {100, *range(200, 209), 226, *range(300, 306), 307, 308, *range(400, 418), *range(421, 425)}
    | {426, 428, 429, 431, *range(500, 509), 510, 511}
)
"""Envoy's envoy.type.v3.StatusCode without `Empty`."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Envoy joins names and values with '&' and '=' as they are.
_NOT_IN_QUERY: Final = re.compile(r"[\x00-\x20\x7f&#]")


class PolicyError(Exception):
    """The decision is not one. The text names the field; it is for records and logs only."""


class Undefined(Enum):
    """The type of UNDEFINED, which no JSON value equals."""

    UNDEFINED = "undefined"


UNDEFINED: Final = Undefined.UNDEFINED
"""What an engine gives `read_verdict` when the policy decided nothing."""


class Audit(NamedTuple):
    """What the policy knows about who looked, at whose data, and why."""

    subject: str = ""
    roles: tuple[str, ...] = ()
    reason: str = ""
    purpose: str = ""
    patients: tuple[str, ...] = ()
    """Plain identifiers: tokens are made of them before anything is recorded."""
    resource: str = ""
    break_glass: bool = False
    tenant: str = ""


class Verdict(NamedTuple):
    """One decision, checked: every text can be sent, every status is one Envoy knows."""

    allowed: bool
    http_status: int
    """200 for an allow, 300 to 511 for a denial."""
    headers: tuple[tuple[str, str], ...] = ()
    """For the upstream request on an allow, for the client on a denial."""
    body: str = ""
    response_headers: tuple[tuple[str, str], ...] = ()
    request_headers_to_remove: tuple[str, ...] = ()
    query_set: tuple[tuple[str, str], ...] = ()
    query_remove: tuple[str, ...] = ()
    dynamic_metadata: Mapping[str, object] = MappingProxyType({})
    audit: Audit = Audit()
    reason_code: str = ""
    """`allowed` or `denied` if the policy said so, else why we denied."""
    plain: bool = False
    """The decision was a bare boolean: the answer then has no HTTP part."""
    message: str = ""
    """The gRPC status's message; Envoy does not show it to clients."""


_NO_AUDIT: Final = Audit()
_AUDIT_FIELDS: Final = Audit._fields


def denial(status: int, reason_code: str, body: str = "") -> Verdict:
    """A denial of our own. Raises ValueError for a status that is none or does not deny."""
    if status not in _STATUSES or status < 300:
        raise ValueError(f"HTTP status {status} does not deny")
    return Verdict(
        allowed=False, http_status=status, body=body, reason_code=reason_code, message=body
    )


def read_verdict(result: object) -> Verdict:
    """The verdict a decision document (JSON values) states; PolicyError for anything odd.

    Fields are checked whether the decision uses them or not: a wrong type there is a mistake in
    the policy, and what else it got wrong is anyone's guess. Unknown fields are ignored, as the
    plugin does, but not inside `audit`: a misspelt `patients` would hide a look.
    """
    if isinstance(result, bool):
        return _bare(allowed=result)
    if not isinstance(result, dict):
        raise PolicyError(f"the decision is {_kind(result)}, not a boolean or an object")
    if "allowed" not in result:
        raise PolicyError("the decision has no `allowed`")
    allowed = result["allowed"]
    if not isinstance(allowed, bool):
        raise PolicyError(f"`allowed` is {_kind(allowed)}, not a boolean")
    status = _status(result, allowed=allowed)
    body = _text(result.get("body", ""), "body")
    return Verdict(
        allowed=allowed,
        http_status=status,
        headers=_headers(result, "headers"),
        body="" if allowed else body,
        response_headers=_headers(result, "response_headers_to_add"),
        request_headers_to_remove=_names(result),
        query_set=_query_set(result),
        query_remove=_query_remove(result),
        dynamic_metadata=_metadata(result),
        audit=_audit(result["audit"]) if "audit" in result else _NO_AUDIT,
        reason_code="allowed" if allowed else "denied",
    )


def _bare(*, allowed: bool) -> Verdict:
    status, code = (200, "allowed") if allowed else (403, "denied")
    return Verdict(allowed=allowed, http_status=status, reason_code=code, plain=True)


def _kind(value: object) -> str:
    """A value's JSON type with its article; never the value, which may be a patient's."""
    if value is UNDEFINED:
        return "undefined"
    if value is None:
        return "null"
    kinds = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(
        type(value), "a number" if isinstance(value, (int, float)) else "no JSON value"
    )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"`{where}` is {_kind(value)}, not a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PolicyError(f"`{where}` holds half a surrogate pair") from None
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PolicyError(f"`{where}` is {_kind(value)}, not an array")
    return tuple([_text(item, where) for item in value])


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise PolicyError(f"`{where}` is {_kind(value)}, not an object")
    return value


def _status(decision: Mapping[str, object], *, allowed: bool) -> int:
    status = decision.get("http_status", 200 if allowed else 403)
    if not isinstance(status, int) or isinstance(status, bool):
        raise PolicyError(f"`http_status` is {_kind(status)}, not an integer")
    if status not in _STATUSES:
        raise PolicyError("`http_status` is no HTTP status that Envoy can send")
    if allowed:
        return 200  # an allow sends none; policies may state one all the same
    if status < 300:
        raise PolicyError(f"`http_status` {status} does not deny")
    return status


def _header_name(value: object, where: str) -> str:
    name = _text(value, where)
    if not _TOKEN.fullmatch(name):
        raise PolicyError(f"`{where}` holds a name that is no header name")
    return name


def _headers(decision: Mapping[str, object], where: str) -> tuple[tuple[str, str], ...]:
    """An object, or an array of them, of strings or arrays of strings; order is kept."""
    if where not in decision:
        return ()
    value = decision[where]
    pairs: list[tuple[str, str]] = []
    for headers in value if isinstance(value, list) else [value]:
        for key, texts in _object(headers, where).items():
            name = _header_name(key, where)
            for text in _texts(texts, where) if isinstance(texts, list) else [_text(texts, where)]:
                if _CONTROL.search(text):
                    raise PolicyError(f"`{where}` holds a value with a control character")
                pairs.append((name, text))
    return tuple(pairs)


def _names(decision: Mapping[str, object]) -> tuple[str, ...]:
    where = "request_headers_to_remove"
    if where not in decision:
        return ()
    return tuple([_header_name(name, where) for name in _texts(decision[where], where)])


def _query_text(value: object, where: str, forbidden: str = "") -> str:
    text = _text(value, where)
    if _NOT_IN_QUERY.search(text) or (forbidden and (not text or forbidden in text)):
        raise PolicyError(f"`{where}` holds text that is not escaped for a query")
    return text


def _query_set(decision: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    where = "query_parameters_to_set"
    if where not in decision:
        return ()
    parameters = [
        (_query_text(key, where, forbidden="="), texts if isinstance(texts, list) else [texts])
        for key, texts in _object(decision[where], where).items()
    ]
    return tuple([(name, _query_text(text, where)) for name, texts in parameters for text in texts])


def _query_remove(decision: Mapping[str, object]) -> tuple[str, ...]:
    where = "query_parameters_to_remove"
    if where not in decision:
        return ()
    return tuple([_text(name, where) for name in _texts(decision[where], where)])


def _metadata(decision: Mapping[str, object]) -> dict[str, object]:
    where = "dynamic_metadata"
    if where not in decision:
        return {}
    metadata = _object(decision[where], where)
    _check_metadata(metadata, MAX_METADATA_DEPTH)
    return metadata


def _check_metadata(value: object, depth: int) -> None:
    """Whether a protobuf Struct can hold it; `depth` levels of it may still open."""
    where = "dynamic_metadata"
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise PolicyError(f"`{where}` is nested deeper than {MAX_METADATA_DEPTH} levels")
        for item in value:
            if isinstance(value, dict):
                _text(item, where)
                _check_metadata(value[item], depth - 1)
            else:
                _check_metadata(item, depth - 1)
    elif isinstance(value, (int, float)):
        _check_number(value)
    elif value is not None:
        raise PolicyError(f"`{where}` holds {_kind(value)}")


def _check_number(number: float) -> None:
    try:
        finite = math.isfinite(number)
    except OverflowError:  # an int beyond the range of doubles
        finite = False
    if not finite:
        raise PolicyError("`dynamic_metadata` holds a number that is not finite")


def _audit(value: object) -> Audit:
    audit = _object(value, "audit")
    if not audit.keys() <= set(_AUDIT_FIELDS):
        raise PolicyError(f"`audit` has a field that is none of {', '.join(_AUDIT_FIELDS)}")
    break_glass = audit.get("break_glass", False)
    if not isinstance(break_glass, bool):
        raise PolicyError(f"`audit.break_glass` is {_kind(break_glass)}, not a boolean")
    return Audit(
        subject=_text(audit.get("subject", ""), "audit.subject"),
        roles=_texts(audit.get("roles", []), "audit.roles"),
        reason=_text(audit.get("reason", ""), "audit.reason"),
        purpose=_text(audit.get("purpose", ""), "audit.purpose"),
        patients=_texts(audit.get("patients", []), "audit.patients"),
        resource=_text(audit.get("resource", ""), "audit.resource"),
        break_glass=break_glass,
        tenant=_text(audit.get("tenant", ""), "audit.tenant"),
    )
