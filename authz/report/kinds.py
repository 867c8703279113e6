"""The reports, each from its question to the document: for ``authz report`` and for the console.

Whoever asks puts the look on record before anything is shown: with the patient's tokens where one
is asked about, else with those that the report turns out to hold (`Made.tokens`). Errors are those
of the database (`authz.store.client.QUERY_ERRORS`), and `UnavailableError` for what cannot be told.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from authz.errors import UnavailableError
from authz.record.privacy import PrivacyKey
from authz.record.shown import shown
from authz.report import access, entries, periodic
from authz.report import activity as activities
from authz.report import breach as breaches
from authz.report import disclosures as accounting
from authz.report.completeness import Completeness, Verdict, completeness
from authz.report.document import Cell, Document, lines
from authz.report.lookup import Lookup, look_up
from authz.report.people import Patient, Person, identified, people
from authz.store import reports
from authz.store.client import Client
from authz.store.lookups import EVER, Window

_ALL = 1_000_000  # requests: an accounting that leaves out older ones is none


@dataclass(frozen=True, slots=True)
class Frame:
    """What all reports have: of what time, when and by whom they are made, and for whom.

    `people` is a file of names, `identifiers` one of patients to tell tokens by, under `keys`.
    """

    window: Window
    now_us: int
    by: str
    issuer: str = ""
    people: Path | None = None
    identifiers: Path | None = None
    keys: Sequence[PrivacyKey] = ()
    verify: Callable[[Client], Verdict] | None = None

    @property
    def about(self) -> list[tuple[str, Cell]]:
        """The end of a report's head."""
        since, until = self.window.since_us, self.window.until_us
        first = shown(since) if since else "the beginning"
        last = shown(until if until is not None else self.now_us)
        return [
            ("Period (UTC)", f"{first} to {last}"),
            ("Made", f"{shown(self.now_us)} UTC by {self.by}"),
        ]

    def rests_on(
        self, client: Client, policies: Iterable[str] = (), other_keys: Iterable[str] = ()
    ) -> Completeness:
        verdict = self.verify(client) if self.verify else None
        return completeness(client, self.window, self.now_us, policies, other_keys, verdict)


@dataclass(frozen=True, slots=True)
class Made:
    """A report: as people read it, and its values."""

    document: Document
    told: dict[str, Any]
    rests_on: Completeness
    tokens: tuple[str, ...] = ()
    """Of the patients in it, where nobody knew them before."""


def disclosures(
    client: Client, frame: Frame, patient: str, tokens: Sequence[str], *, each: bool = False,
    with_suspended: bool = False,
) -> Made:  # fmt: skip
    """Accounting of disclosures of `patient`, as the head has them; `each` in a line of its own."""
    found = look_up(client, [tokens], frame.window, _ALL)
    events = [*entries.EVENTS, accounting.SUSPENDED]
    said = reports.notices(client, events, EVER, tokens)
    known = people(client, {one.subject for one in found.requests}, frame.people)
    told = accounting.account(
        found.requests, said, known, frame.window, frame.now_us, summarise=not each
    )
    if found.more:
        raise UnavailableError(f"there are more than {_ALL:,} requests; ask for a later beginning")
    if not said:
        _could_tell(found)
    rests_on = frame.rests_on(client, sorted(told.policies), found.other_keys)
    document = accounting.document(
        told, rests_on, [("Patient", patient), *frame.about], frame.issuer,
        with_suspended=with_suspended,
    )  # fmt: skip
    return Made(document, accounting.to_json(told, with_suspended=with_suspended), rests_on)


def patient_access(
    client: Client, frame: Frame, patient: str, tokens: Sequence[str], limit: int, *,
    for_patient: bool,
) -> Made:  # fmt: skip
    """Access report: everybody who saw a patient or tried to; `for_patient` without what is
    suspended."""
    found = look_up(client, [tokens], frame.window, limit)
    _could_tell(found)
    known = people(client, {one.subject for one in found.requests}, frame.people)
    said = reports.notices(client, [accounting.SUSPENDED], EVER, tokens)
    kept = accounting.without_suspended(found, said, known, frame.now_us)
    marking = "" if for_patient or kept is found else accounting.INTERNAL
    found = kept if for_patient else found
    known = {one.subject: known[one.subject] for one in found.requests if one.subject}
    used = {one.policy_revision for one in found.requests}
    rests_on = frame.rests_on(client, sorted(used), found.other_keys)
    head = [("Patient", patient), *frame.about]
    document = access.document(found, known, rests_on, head, frame.issuer, marking)
    told = found.to_json() | {"known": [asdict(one) for one in known.values()]}
    return Made(document, told, rests_on)


def breach(client: Client, frame: Frame, subject: str) -> Made:
    """Breach list: every patient whose data one person may have got."""
    attempts, affected = reports.affected(client, subject, frame.window)
    tokens = tuple(one.token for one in affected)
    found = breaches.breach(attempts, affected, _identified(frame, tokens))
    rests_on = frame.rests_on(client)
    person = people(client, [subject], frame.people)[subject]
    head = [("Person", _who(person)), *frame.about]
    document = breaches.document(
        found, rests_on, head, frame.issuer, asked=frame.identifiers is not None
    )
    return Made(document, {"subject": subject, **found.to_json()}, rests_on, tokens)


def activity(client: Client, frame: Frame, subject: str, limit: int) -> Made:
    """Activity report: what a person did, when, in which confirmed roles, and why."""
    found = activities.activity(client, subject, frame.window, limit)
    known = _identified(frame, found.tokens)
    used = {one.policy_revision for one in found.requests}
    rests_on = frame.rests_on(client, sorted(used))
    persons = people(client, [subject], frame.people)
    head = [("Person", _who(persons[subject])), *frame.about]
    document = activities.document(found, persons, known, rests_on, head, frame.issuer)
    return Made(document, {"subject": subject, **found.to_json()}, rests_on, found.tokens)


def review(client: Client, frame: Frame, hours: float) -> Made:
    """Periodic review; `hours` are those within which a use of break-glass is to be reviewed."""
    found = periodic.periodic(client, frame.window, frame.now_us, hours)
    rests_on = frame.rests_on(client, [one.revision for one in found.policies])
    document = periodic.document(found, rests_on, frame.about, frame.issuer)
    return Made(document, found.to_json(), rests_on)


def _could_tell(found: Lookup) -> None:
    """Raises `UnavailableError` where "nobody" cannot be said."""
    if not found.requests and found.other_keys:
        raise UnavailableError(
            "nobody is found, but records are under other privacy keys:"
            f" {', '.join(found.other_keys)}; give their files as privacy.old_keys"
        )


def _identified(frame: Frame, tokens: Sequence[str]) -> dict[str, Patient]:
    return identified(tokens, frame.keys, frame.identifiers) if frame.identifiers else {}


def _who(person: Person) -> Cell:
    return lines(person.shown, person.role, person.department, person.status)
