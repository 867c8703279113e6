"""``authz report``: what is given to patients, officers and auditors."""

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
from authz.errors import UsageError

if TYPE_CHECKING:
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
    from authz.report import kinds

    report = asked(
        "disclosures", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"with_suspended": with_suspended}, people=people,
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
        made = kinds.disclosures(
            client, report.frame, _named(identifier, name), tokens, each=each,
            with_suspended=with_suspended,
        )  # fmt: skip
        report.give(made, looked)

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
    from authz.report import kinds

    report = asked(
        "patient", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"limit": limit, "for_patient": for_patient}, people=people,
    )  # fmt: skip
    identifier, tokens, key_id = _one(report, patient)

    def ask(client: "Client") -> None:
        looked = report.look(tokens, key_id)
        made = kinds.patient_access(
            client, report.frame, _named(identifier, name), tokens, limit, for_patient=for_patient
        )
        report.give(made, looked)

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
    from authz.report import kinds

    report = asked(
        "breach", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"about": as_given("--subject", subject, "subject")},
        people=people, identifiers=identifiers,
    )  # fmt: skip
    report.ask(lambda client: report.give(kinds.breach(client, report.frame, subject)))


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
    from authz.report import kinds

    report = asked(
        "user", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, privacy_key=privacy_key, trust=trust,
        as_json=as_json, html=html, pdf=pdf, issuer=issuer,
        details={"about": as_given("--subject", subject, "subject"), "limit": limit},
        people=people, identifiers=identifiers,
    )  # fmt: skip
    report.ask(lambda client: report.give(kinds.activity(client, report.frame, subject, limit)))


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
    from authz.report import kinds

    report = asked(
        "review", file=file, store=store, receiver=receiver, data_dir=data_dir, reason=reason,
        purpose=purpose, since=since, until=until, trust=trust, as_json=as_json, html=html,
        pdf=pdf, issuer=issuer, details={},
    )  # fmt: skip
    hours = report.options.watch.break_glass_hours

    def ask(client: "Client") -> None:
        looked = report.look(())
        report.give(kinds.review(client, report.frame, hours), looked)

    report.ask(ask)


def _one(report: Asked, patient: str) -> tuple[str, list[str], str]:
    """The one identifier that was given, its tokens, and the id of the deployment's key."""
    given = identifiers_of([patient])
    if len(given) != 1:
        raise UsageError("--patient: want one identifier; a report is about one patient")
    keys = report.keys()
    [tokens] = tokens_of(keys, given)
    return given[0], tokens, keys[0].id


def _named(identifier: str, name: str) -> str:
    return f"{name} ({identifier})" if name else identifier
