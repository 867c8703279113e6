"""The accounting of disclosures of one patient (45 CFR 164.528), over at most six years.

In it is each request whose answer gave data of the patient away (one that only wrote did not), and
what was disclosed outside (by fax, under a subpoena) and entered since. What is left out is told by
`authz.report.purposes`, and counted. Several disclosures to one recipient for one purpose are one
line: the first in full, how many, and the last (164.528(b)(3)).

A health oversight agency or a law enforcement official may ask that disclosures to them are not
told for a time (164.528(a)(2)). While a suspension is in force, nothing in an accounting shows
them, nor that there is one.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from authz.record import Record, details_of, place_of
from authz.report.completeness import Completeness, section
from authz.report.document import Cell, Document, Row, Section, date, lines
from authz.report.entries import Correction, entries, said
from authz.report.lookup import Lookup, Request
from authz.report.people import Person
from authz.report.purposes import LeftOut, in_words, left_out
from authz.store.lookups import Window

SUSPENDED = "accounting_suspended"
YEARS = 6
ORAL_DAYS = 30
"""How long a suspension that was asked for by word of mouth lasts at most."""
INTERNAL = "INTERNAL: holds suspended disclosures; not for the patient"
_FAILED = 400  # of an HTTP status
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Disclosure:
    """Data of the patient that somebody got. Times are microseconds since the epoch, UTC."""

    time: int
    recipient: str
    address: str
    description: str
    purpose: str
    """A v3-ActReason code, or other text."""
    entered: bool
    """By hand, since it was made outside."""
    records: tuple[str, ...]
    known_as: tuple[str, str] = ("", "")
    """The recipient's subject and tenant in the log."""
    policy: str = ""
    """The revision of the policy that decided."""
    corrections: tuple[Correction, ...] = ()
    """Of what was entered; the last may have withdrawn it."""

    @property
    def withdrawn(self) -> bool:
        return bool(self.corrections) and self.corrections[-1].withdrawn


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the accounting: the first of `count` disclosures to one recipient for one purpose,
    and when the last was."""

    first: Disclosure
    count: int
    last: int
    corrections: tuple[Correction, ...] = ()
    """Of all of these."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """Disclosures to `agency` are not told before `until`; entered at `since`."""

    agency: str
    since: int
    until: int
    oral: bool
    by: str
    reason: str
    record: str

    def covers(self, disclosure: Disclosure) -> bool:
        """Whether it was to the agency: its name is in the recipient's, word by word."""
        return self.is_one_of((disclosure.recipient, *disclosure.known_as))

    def is_one_of(self, names: Iterable[str]) -> bool:
        agency = _words(self.agency)
        return any(agency in _words(name) for name in names)


@dataclass(frozen=True, slots=True)
class Accounting:
    listed: tuple[Listed, ...]
    left_out: Mapping[LeftOut, int]
    """How many disclosures, by why."""
    policies: frozenset[str] = frozenset()
    """The revisions of the policies that decided on all of these."""
    suspensions: tuple[Suspension, ...] = ()
    """Those in force. For the operator only, as is the next."""
    suspended: tuple[Listed, ...] = ()
    withdrawn: tuple[Disclosure, ...] = ()
    """Entries that do not hold any more. They are not listed, and were perhaps once."""


def suspended(
    tokens: Sequence[str], by: str, why: str, time_us: int, details: Mapping[str, object]
) -> Record:
    """Says that disclosures to an agency are not to be told; `details` are `agency`, `until`
    (microseconds) and `oral`."""
    return said(SUSPENDED, tokens, by, why, time_us, details)


def earliest(now_us: int) -> int:
    """The first moment of the day six years before `now_us`."""
    now = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    day = min(now.day, 28) if now.month == 2 else now.day  # 29 February has no such day
    at = datetime(now.year - YEARS, now.month, day, tzinfo=UTC)
    return int(at.timestamp()) * 1_000_000


def account(
    requests: Iterable[Request], notices: Iterable[Record], people: Mapping[str, Person],
    window: Window, now_us: int, *, summarise: bool = True,
) -> Accounting:  # fmt: skip
    """The accounting of what `requests` gave away and `notices` say, in the order of their first
    disclosure. `people` are the requests' by subject."""
    notices = list(notices)
    in_force = tuple(one for one in _suspensions(notices) if now_us < one.until)
    # Those of requests are of the window already, by the receiver's clock: the told time may be
    # anything.
    made = [_logged(one, people) for one in requests if gave_away(one)]
    first, end = window.since_us or 0, now_us + 1 if window.until_us is None else window.until_us
    made += [one for one in _by_hand(notices, in_force) if first <= one.time < end]
    told: list[Disclosure] = []
    hidden: list[Disclosure] = []
    gone: list[Disclosure] = []
    counted: Counter[LeftOut] = Counter()
    policies = set[str]()
    for one in made:
        if any(suspension.covers(one) for suspension in in_force):
            hidden.append(one)
            continue
        policies.add(one.policy)
        if why := left_out(one.purpose):
            if not one.withdrawn:
                counted[why] += 1
        else:
            (gone if one.withdrawn else told).append(one)
    return Accounting(
        _listed(told, summarise=summarise), dict(sorted(counted.items())),
        frozenset(policies - {""}), in_force, _listed(hidden, summarise=summarise), tuple(gone),
    )  # fmt: skip


def without_suspended(
    found: Lookup, notices: Iterable[Record], people: Mapping[str, Person], now_us: int
) -> Lookup:
    """What may be told to the patient of `found` while suspensions are in force."""
    in_force = [one for one in _suspensions(notices) if now_us < one.until]
    kept = tuple(
        request for request in found.requests
        if not any(one.covers(_logged(request, people)) for one in in_force)
    )  # fmt: skip
    if len(kept) == len(found.requests):
        return found
    return replace(
        found, requests=kept, total=len(kept) + found.more,
        people=len({one.subject for one in kept} - {""}),
        denied=sum(one.outcome in ("denied", "rejected") for one in kept),
        first=kept[0].time if kept else 0, last=kept[-1].time if kept else 0,
    )  # fmt: skip


def gave_away(request: Request) -> bool:
    """Whether somebody got data of the patient: an answer held it, or a request that reads named
    the patient, and was answered and not refused."""
    if "answer" in request.known:
        return True
    refused = request.outcome in ("denied", "rejected") or request.status >= _FAILED
    return request.answered and not refused and request.doing in ("read", "search", "execute")


def _logged(request: Request, people: Mapping[str, Person]) -> Disclosure:
    person = people.get(request.subject, Person(request.subject))
    who = person.shown or f"(not identified) from {request.source_ip}"
    roles = f", {', '.join(request.roles)}" if request.roles else ""
    what = request.resource_type or "records"
    how = {"read": "read", "search": "found by a search"}.get(request.doing, request.doing)
    return Disclosure(
        request.time, who + roles, person.address, f"{what} ({how})", request.purpose,
        entered=False, records=request.records,
        known_as=(request.subject, request.tenant), policy=request.policy_revision,
    )  # fmt: skip


def _by_hand(notices: Iterable[Record], in_force: Sequence[Suspension]) -> Iterator[Disclosure]:
    """What was entered. That it was corrected is not told where it was once said to be to an agency
    that is not to be told of."""
    for entry in {entry.record: entry for entry in entries(notices).values()}.values():
        silent = any(one.is_one_of(entry.recipients) for one in in_force)
        if silent and entry.withdrawn:
            continue
        corrections = () if silent else entry.corrections
        yield Disclosure(
            entry.date, entry.recipient, entry.address, entry.description, entry.purpose,
            entered=True, records=(entry.record, *(one.record for one in corrections)),
            corrections=corrections,
        )  # fmt: skip


def _suspensions(notices: Iterable[Record]) -> list[Suspension]:
    """For each agency the one that was entered last."""
    found: dict[str, Suspension] = {}
    for record in notices:
        told = details_of(record)
        agency, until = told.get("agency"), told.get("until")
        if record.get("event") != SUSPENDED or not isinstance(agency, str) or not agency:
            continue
        since = record.get("sealed_at") or record.get("time") or 0
        found[_words(agency)] = Suspension(
            agency, since if isinstance(since, int) else 0, until if isinstance(until, int) else 0,
            bool(told.get("oral")), str(told.get("by", "")), str(record.get("reason", "")),
            place_of(record),
        )  # fmt: skip
    return list(found.values())


def _listed(disclosures: Iterable[Disclosure], *, summarise: bool) -> tuple[Listed, ...]:
    groups: dict[object, list[Disclosure]] = {}
    for number, one in enumerate(disclosures):
        whom = one.known_as if one.known_as[0] else _words(one.recipient)
        key = (whom, _words(one.purpose)) if summarise else number
        groups.setdefault(key, []).append(one)
    found = []
    for group in groups.values():
        group.sort(key=lambda one: one.time)
        corrections = tuple(itertools.chain(*(one.corrections for one in group)))
        found.append(Listed(group[0], len(group), group[-1].time, corrections))
    return tuple(sorted(found, key=lambda one: (one.first.time, one.first.records)))


def _words(text: str) -> str:
    """As names are compared: whole words, whatever stands between them."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def to_json(found: Accounting, *, with_suspended: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "disclosures": [asdict(one) for one in found.listed],
        "left_out": dict(found.left_out),
        "withdrawn": [asdict(one) for one in found.withdrawn],
    }
    if with_suspended:
        told["suspensions"] = [asdict(one) for one in found.suspensions]
        told["suspended"] = [asdict(one) for one in found.suspended]
    return told


_LEFT_OUT: Mapping[LeftOut, str] = {
    "treatment": "for treatment",
    "payment": "for payment",
    "operations": "for health-care operations",
    "patient": "to the patient",
}
_COLUMNS = ("date (UTC)", "recipient and address", "what was disclosed", "purpose")


def document(
    found: Accounting, rests_on: Completeness, about: Sequence[tuple[str, Cell]], issuer: str, *,
    with_suspended: bool,
) -> Document:  # fmt: skip
    """What is given to the patient; `with_suspended`, what is not."""
    number = sum(one.count for one in found.listed)
    told = [f"{times:,} {_LEFT_OUT[why]}" for why, times in found.left_out.items()]
    out = (
        "Left out, as the rule says, are disclosures for treatment, payment and health-care"
        f" operations, and to the patients themselves: {', '.join(told) or 'none'}."
    )
    rows: list[Row] = []
    notes: list[Row] = []
    for one in found.listed:
        note = f"note {len(notes) + 1}" if one.corrections else ""
        rows.append(_row(one, note))
        if note:
            notes.append((note, "corrected", *_said(one.corrections)))
    for gone in found.withdrawn:
        what = f"withdrawn: what was listed of {date(gone.time)}, to {gone.recipient}"
        notes.append((f"note {len(notes) + 1}", what, *_said(gone.corrections[-1:])))
    sections = [
        Section(
            f"Disclosures: {number:,}", _COLUMNS, tuple(rows),
            empty="There was none that is to be accounted for in this time.",
        )
    ]  # fmt: skip
    if notes:
        sections.append(Section("Corrections", ("note", "what", "on (UTC)", "why"), tuple(notes)))
    if with_suspended:
        sections += _internal(found)
    return Document(
        "Accounting of disclosures",
        tuple(about),
        (*sections, section(rests_on)),
        notes=(
            (
                "Disclosures of your health information in this time, as 45 CFR 164.528 asks."
                " Several to one recipient for one purpose are one line."
            ),
            out,
        ),
        issuer=issuer,
        marking=INTERNAL if with_suspended else "",
    )


def _internal(found: Accounting) -> list[Section]:
    suspensions = tuple(
        (one.agency, f"{date(one.since)} to {date(one.until)}", "oral" if one.oral else "written",
         lines(one.by, one.reason, one.record))
        for one in found.suspensions
    )  # fmt: skip
    return [
        Section(
            "Suspensions in force", ("agency", "from, until", "statement", "entered by"),
            suspensions, empty="None.",
        ),
        Section(
            "Suspended: not to be told to the patient", _COLUMNS,
            tuple(map(_row, found.suspended)), empty="None.",
        ),
    ]  # fmt: skip


def _said(corrections: Sequence[Correction]) -> tuple[Cell, Cell]:
    """When, and why."""
    return lines(*(date(one.time) for one in corrections)), lines(
        *(one.reason for one in corrections)
    )


def _row(one: Listed, note: str = "") -> Row:
    first = one.first
    when = lines(date(first.time))
    if one.count > 1:
        when = lines(f"first {when[0]}", f"{one.count:,} times", f"last {date(one.last)}")
    return (
        lines(*when, note),
        lines(first.recipient, first.address or "(address not known)"),
        first.description,
        in_words(first.purpose) or "(not stated)",
    )
