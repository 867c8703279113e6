"""``authz report``: what is given to patients, officers and auditors."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from authz.cli.app import ConfigFile, Json, Store, app
from authz.cli.block import DataDir, Purpose, Receiver, as_given
from authz.cli.lookup import identifiers_of, tokens_of
from authz.cli.report_made import (
    Asked,
    Html,
    Issuer,
    Key,
    Limit,
    Pdf,
    People,
    Reason,
    Since,
    Trust,
    Until,
    asked,
)
from authz.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from authz.report.document import Cell
    from authz.report.lookup import Lookup
    from authz.store.client import Client

group = typer.Typer(
    no_args_is_help=True, help="For patients, officers and auditors: as a table, HTML or PDF."
)
app.add_typer(group, name="report")

Patient = Annotated[
    str,
    typer.Option(help="Identifier, as requests have it: p-0042; - reads it from standard input."),
]
Named = Annotated[str, typer.Option("--name", help="The patient's name, printed at the head.")]
Subject = Annotated[str, typer.Option(help="The person, as decisions record them: dr.alder")]
Identifiers = Annotated[
    Path | None,
    typer.Option(
        help="Patients to tell tokens by: an identifier a line, or patients.csv (patient, name,"
        " address)."
    ),
]
_ALL = 1_000_000  # requests: an accounting that leaves out older ones is none


@group.command()
def disclosures(
    patient: Patient,
    reason: Reason,
    purpose: Purpose = "PATRQT",
    name: Named = "",
    since: Annotated[
        str | None, typer.Option(help="Not all six years, but from 2026-11-01 or 90d ago on.")
    ] = None,
    until: Until = None,
    each: Annotated[
        bool, typer.Option("--each", help="A line for each, also of many to one recipient.")
    ] = False,
    with_suspended: Annotated[
        bool,
        typer.Option("--with-suspended", help="Also what is suspended. Not for the patient."),
    ] = False,
    people: People = None,
    issuer: Issuer = "",
    trust: Trust = None,
    html: Html = None,
    pdf: Pdf = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Accounting of disclosures of a patient, as 45 CFR 164.528 has it."""
    from authz.report import disclosures as accounting
    from authz.report.people import people as known_people
    from authz.store import reports
    from authz.store.lookups import EVER

    report = asked(
        "disclosures", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"with_suspended": with_suspended}, reads={"--people": people},
    )  # fmt: skip
    earliest = accounting.earliest(report.now_us)
    if (report.window.since_us or earliest) < earliest:
        raise UsageError(
            f"--since: an accounting goes back {accounting.YEARS} years at most; leave it out"
        )
    first = report.window.since_us or earliest
    report = replace(report, window=replace(report.window, since_us=first))
    identifier, tokens, key_id = _one(report, patient)

    def ask(client: "Client") -> None:
        looked = report.look(tokens, key_id)
        found = _seen(client, report, tokens, _ALL)
        said = reports.notices(client, [accounting.ENTERED, accounting.SUSPENDED], EVER, tokens)
        known = known_people(client, {one.subject for one in found.requests}, people)
        told = accounting.account(
            found.requests, said, known, report.window, report.now_us, summarise=not each
        )
        if found.more:
            raise UnavailableError(f"there are more than {_ALL:,} requests; give a later --since")
        if not said:
            _could_tell(found)
        rests_on = report.rests_on(client, sorted(told.policies), found.other_keys)
        document = accounting.document(
            told, rests_on, [*_whom(identifier, name), *report.about], issuer,
            with_suspended=with_suspended,
        )  # fmt: skip
        report.give(
            document, accounting.to_json(told, with_suspended=with_suspended), rests_on, looked
        )

    report.ask(ask)


@group.command("patient")
def patient_(
    patient: Patient,
    reason: Reason,
    purpose: Purpose = "",
    name: Named = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = 10_000,
    for_patient: Annotated[
        bool,
        typer.Option("--for-patient", help="Without what is suspended: to be given to them."),
    ] = False,
    people: People = None,
    issuer: Issuer = "",
    trust: Trust = None,
    html: Html = None,
    pdf: Pdf = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Access report: everybody who saw a patient or tried to, and each request."""
    from dataclasses import asdict

    from authz.report import access
    from authz.report import disclosures as accounting
    from authz.report.people import people as known_people
    from authz.store import reports
    from authz.store.lookups import EVER

    report = asked(
        "patient", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"limit": limit, "for_patient": for_patient}, reads={"--people": people},
    )  # fmt: skip
    identifier, tokens, key_id = _one(report, patient)

    def ask(client: "Client") -> None:
        looked = report.look(tokens, key_id)
        found = _seen(client, report, tokens, limit)
        _could_tell(found)
        known = known_people(client, {one.subject for one in found.requests}, people)
        said = reports.notices(client, [accounting.SUSPENDED], EVER, tokens)
        kept = accounting.without_suspended(found, said, known, report.now_us)
        marking = "" if for_patient or kept is found else accounting.INTERNAL
        found = kept if for_patient else found
        known = {one.subject: known[one.subject] for one in found.requests if one.subject}
        used = {one.policy_revision for one in found.requests}
        rests_on = report.rests_on(client, sorted(used), found.other_keys)
        head = [*_whom(identifier, name), *report.about]
        document = access.document(found, known, rests_on, head, issuer, marking)
        told = found.to_json() | {"known": [asdict(one) for one in known.values()]}
        report.give(document, told, rests_on, looked)

    report.ask(ask)


@group.command()
def breach(
    subject: Subject,
    reason: Reason,
    since: Annotated[str, typer.Option(help="From 2026-11-01, 2026-11-01T08:30 or 7d ago on.")],
    until: Until = None,
    purpose: Purpose = "",
    identifiers: Identifiers = None,
    people: People = None,
    issuer: Issuer = "",
    trust: Trust = None,
    html: Html = None,
    pdf: Pdf = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Breach list: every patient whose data one person may have got, as 164.404 wants it."""
    from authz.report import breach as breaches
    from authz.report.people import identified
    from authz.store import reports

    report = asked(
        "breach", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"about": as_given("--subject", subject, "subject")},
        reads={"--identifiers": identifiers, "--people": people},
    )  # fmt: skip
    keys = report.keys() if identifiers else []

    def ask(client: "Client") -> None:
        attempts, affected = reports.affected(client, subject, report.window)
        tokens = [one.token for one in affected]
        known = identified(tokens, keys, identifiers) if identifiers else {}
        found = breaches.breach(attempts, affected, known)
        rests_on = report.rests_on(client)
        head = [("Person", _person(client, subject, people)), *report.about]
        document = breaches.document(
            found, rests_on, head, issuer, asked=identifiers is not None
        )  # fmt: skip
        looked = report.look(tokens, keys[0].id if keys else "")
        report.give(document, {"subject": subject, **found.to_json()}, rests_on, looked)

    report.ask(ask)


@group.command()
def user(
    subject: Subject,
    reason: Reason,
    purpose: Purpose = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = 10_000,
    identifiers: Identifiers = None,
    people: People = None,
    issuer: Issuer = "",
    trust: Trust = None,
    html: Html = None,
    pdf: Pdf = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Activity report: what a person did, when, in which confirmed roles, and why."""
    from authz.report import activity
    from authz.report.people import identified
    from authz.report.people import people as known_people

    report = asked(
        "user", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"about": as_given("--subject", subject, "subject"), "limit": limit},
        reads={"--identifiers": identifiers, "--people": people},
    )  # fmt: skip
    keys = report.keys() if identifiers else []

    def ask(client: "Client") -> None:
        found = activity.activity(client, subject, report.window, limit)
        known = identified(found.tokens, keys, identifiers) if identifiers else {}
        used = {one.policy_revision for one in found.requests}
        rests_on = report.rests_on(client, sorted(used))
        head = [("Person", _person(client, subject, people)), *report.about]
        persons = known_people(client, [subject], people)
        document = activity.document(found, persons, known, rests_on, head, issuer)
        looked = report.look(found.tokens, keys[0].id if keys else "")
        report.give(document, {"subject": subject, **found.to_json()}, rests_on, looked)

    report.ask(ask)


@group.command()
def review(
    reason: Reason,
    purpose: Purpose = "HCOMPL",
    since: Annotated[str, typer.Option(help="From 2026-11-01 or 30d ago on.")] = "90d",
    until: Until = None,
    issuer: Issuer = "",
    trust: Trust = None,
    html: Html = None,
    pdf: Pdf = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Periodic review, for the compliance file: what was recorded, found, said and changed."""
    from authz.report import periodic

    report = asked(
        "review", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, trust=trust, as_json=as_json, html=html,
        pdf=pdf, issuer=issuer, details={},
    )  # fmt: skip
    hours = report.options.watch.break_glass_hours

    def ask(client: "Client") -> None:
        looked = report.look(())
        found = periodic.periodic(client, report.window, report.now_us, hours)
        used = [one.revision for one in found.policies]
        rests_on = report.rests_on(client, used)
        document = periodic.document(found, rests_on, report.about, issuer)
        report.give(document, found.to_json(), rests_on, looked)

    report.ask(ask)


def _one(report: Asked, patient: str) -> tuple[str, list[str], str]:
    """The one identifier that was given, its tokens, and the id of the deployment's key."""
    given = identifiers_of([patient])
    if len(given) != 1:
        raise UsageError("--patient: want one identifier; a report is about one patient")
    keys = report.keys()
    [tokens] = tokens_of(keys, given)
    return given[0], tokens, keys[0].id


def _whom(identifier: str, name: str) -> list[tuple[str, str]]:
    return [("Patient", f"{name} ({identifier})" if name else identifier)]


def _seen(client: "Client", report: Asked, tokens: Sequence[str], limit: int) -> "Lookup":
    from authz.report.lookup import look_up

    return look_up(client, [tokens], report.window, limit)


def _could_tell(found: "Lookup") -> None:
    """Raises `UnavailableError` where "nobody" cannot be said."""
    if not found.requests and found.other_keys:
        raise UnavailableError(
            "nobody is found, but records are under other privacy keys:"
            f" {', '.join(found.other_keys)}; give their files as privacy.old_keys"
        )


def _person(client: "Client", subject: str, file: Path | None) -> "Cell":
    from authz.report.document import lines
    from authz.report.people import people

    person = people(client, [subject], file)[subject]
    return lines(person.shown, person.role, person.department, person.status)
