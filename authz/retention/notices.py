"""The notices of retention: what is held, what is held no more, and what has expired.

`legal_hold` names in its fields whom it holds (`subject`, `patients` as tokens) or in its details a
`window`; `legal_release` names the hold's `id`. `expired` has the `rule`, and in its details:

- ``before``: only what was sealed before then (microseconds) expires;
- ``ranges``: of each log ``{origin, first, end, root, gone}``: of the records from `first` on and
  before `end` those that may be gone (``0,5-9``), and the RFC 6962 root over all before `end`;
- ``holds``: the holds that were known, each of which has been kept to;
- ``sealed``: ``{before, rule}`` of the inputs kept sealed beside the log, where some expired;
- ``by``, and ``override``: why the rule is shorter than six years;
- ``signature``: by the writer's key, over all of that.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from authz.errors import UsageError
from authz.ledger import HASH_BYTES, Signer
from authz.record import MAX_INT, Record, clean, details_of, form, notice
from authz.retention.rule import Rule
from authz.retention.spans import Spans

HOLD, RELEASE, EXPIRED = "legal_hold", "legal_release", "expired"
EVENTS = (HOLD, RELEASE, EXPIRED)
KEPT_EVENTS = (*EVENTS, "writer_started", "key_rotation")
"""Notices that never expire: without them what is kept could not be understood or verified."""
_MOST_BYTES = 60_000  # of the notice of what has expired: a record that is longer would be cut

Place = tuple[str, int]
"""A record's: its log and index."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What may not expire: all of `subject`, of `patients` (tokens), or sealed or happened from
    `since_us` on and before `until_us`."""

    id: str
    reason: str
    by: str
    subject: str = ""
    patients: tuple[str, ...] = ()
    since_us: int = 0
    until_us: int = 0
    place: Place = ("", 0)
    sealed_at: int = 0

    def __str__(self) -> str:
        if self.subject:
            return f"subject {self.subject}"
        if self.patients:
            return f"{len(self.patients)} patient tokens"
        return "window"


@dataclass(frozen=True, slots=True)
class Expired:
    """Of `origin`'s records from `first` on and before `end`, `gone` may be missing. `root` is over
    all before `end`."""

    origin: str
    first: int
    end: int
    root: bytes
    gone: Spans

    def to_json(self) -> dict[str, object]:
        root = base64.b64encode(self.root).decode()
        told = {"origin": self.origin, "first": self.first, "end": self.end}
        return told | {"root": root, "gone": str(self.gone)}


@dataclass(frozen=True, slots=True)
class Expiry:
    """What an `expired` notice tells."""

    rule: Rule
    before_us: int
    by: str
    ranges: tuple[Expired, ...] = ()
    holds: tuple[str, ...] = ()
    override: str = ""
    sealed_rule: str = ""
    sealed_before_us: int = 0
    signature: bytes = b""
    place: Place = ("", 0)
    sealed_at: int = 0
    writer: str = ""

    @property
    def text(self) -> bytes:
        """What its signature is over."""
        told = orjson.dumps(self._details(), option=orjson.OPT_SORT_KEYS)
        return f"authz expiry v1\n{self.rule}\n".encode() + told + b"\n"

    def _details(self) -> dict[str, object]:
        told: dict[str, object] = {
            "before": self.before_us,
            "by": self.by,
            "ranges": [one.to_json() for one in self.ranges],
            "holds": list(self.holds),
        }
        if self.override:
            told["override"] = self.override
        if self.sealed_before_us:
            told["sealed"] = {"before": self.sealed_before_us, "rule": self.sealed_rule}
        return told

    def signed(self, signer: Signer) -> "Expiry":
        return replace(self, signature=signer.sign(self.text))

    def details(self) -> dict[str, object]:
        return self._details() | {"signature": base64.b64encode(self.signature).decode()}


def expired_notice(expiry: Expiry, time_us: int) -> Record:
    """Says that records may be gone from now on. Raises `ValueError` if it is too long to be kept
    as it is."""
    record = notice(EXPIRED, time_us, expiry.details(), rule=str(expiry.rule))
    if details_of(record) != expiry.details() or len(form(record)) > _MOST_BYTES:
        raise ValueError("a notice's details take 60,000 bytes")
    return record


def hold_notice(hold: Hold, time_us: int) -> Record:
    """Says that what `hold` names does not expire from now on."""
    details: dict[str, object] = {"id": hold.id, "by": hold.by}
    if hold.until_us:
        details["window"] = {"since": hold.since_us, "until": hold.until_us}
    named = {"subject": hold.subject, "patients": list(hold.patients), "reason": hold.reason}
    return notice(HOLD, time_us, details) | clean(named)


def release_notice(hold_id: str, reason: str, by: str, time_us: int) -> Record:
    """Says that the hold is lifted."""
    record = notice(RELEASE, time_us, {"id": hold_id, "by": by})
    return record | clean({"reason": reason})


def expiry_of(record: Record) -> Expiry:
    """What an `expired` notice tells. Raises `ValueError` for one that tells nothing clear."""
    told = details_of(record)
    try:
        sealed = told.get("sealed", {})
        expiry = Expiry(
            Rule.parse(_text(record.get("rule", ""))),
            _number(told["before"]),
            _text(told["by"]),
            tuple(_range(one) for one in told["ranges"]),
            tuple(_text(one) for one in told["holds"]),
            _text(told.get("override", "")),
            _text(sealed.get("rule", "")),
            _number(sealed.get("before", 0)),
            base64.b64decode(_text(told["signature"]), validate=True),
            place_of(record),
            _number(record.get("sealed_at", 0)),
            _text(record.get("writer", "")),
        )
    except (AttributeError, KeyError, TypeError, binascii.Error):
        raise ValueError("the notice is malformed") from None
    except UsageError:
        raise ValueError("the notice's rule is none") from None
    if expiry.details() != told:
        raise ValueError("the notice is malformed")
    return expiry


def _range(told: Mapping[str, Any]) -> Expired:
    origin, first, end = _text(told["origin"]), _number(told["first"]), _number(told["end"])
    root, gone = base64.b64decode(_text(told["root"]), validate=True), Spans.parse(told["gone"])
    if len(root) != HASH_BYTES or not gone or gone.within(first, end) != gone:
        raise ValueError("a range is malformed")
    return Expired(origin, first, end, root, gone)


def holds_in_force(records: Iterable[Record]) -> list[Hold]:
    """Of the notices `records`, in log order: the holds that none of them lifts.

    A release lifts what was held before it in its own log; in which order two logs tell something
    is not known, and a hold's id is known only once it is told.
    """
    holds: list[Hold] = []
    released: dict[str, list[Place]] = {}
    for record in records:
        if hold := hold_of(record):
            holds.append(hold)
        elif record.get("event") == RELEASE:
            released.setdefault(str(details_of(record).get("id", "")), []).append(place_of(record))
    return [hold for hold in holds if not lifted(hold.place, released.get(hold.id, ()))]


def lifted(hold: Place, releases: Sequence[Place]) -> bool:
    """Whether one of the `releases` of its id lifts the hold at place `hold`."""
    return any(origin != hold[0] or index > hold[1] for origin, index in releases)


def hold_of(record: Record) -> Hold | None:
    """The hold that `record` tells; None if it is no such notice, or holds nothing."""
    if record.get("event") != HOLD:
        return None
    told = details_of(record)
    window, patients = told.get("window", {}), record.get("patients", [])
    try:
        hold = Hold(
            _text(told["id"]),
            str(record.get("reason", "")),
            str(told.get("by", "")),
            str(record.get("subject", "")),
            tuple(map(_text, patients)),  # type: ignore[arg-type]
            _number(window.get("since", 0)),
            _number(window.get("until", 0)),
            place_of(record),
            _number(record.get("sealed_at", 0)),
        )
    except (AttributeError, KeyError, TypeError):
        return None
    return hold if hold.id and (hold.subject or hold.patients or hold.until_us) else None


def place_of(record: Record) -> Place:
    return str(record.get("origin", "")), _number(record.get("index", 0))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
