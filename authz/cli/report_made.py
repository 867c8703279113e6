"""How ``authz report`` asks, records and shows: what its commands share."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import given
from authz.cli.block import as_given, record_all, user
from authz.cli.lookup import keys_of
from authz.cli.times import moment
from authz.errors import UsageError
from authz.files import replace_file
from authz.record.privacy import PrivacyKey

if TYPE_CHECKING:
    from authz.report.completeness import Verdict
    from authz.report.document import Document
    from authz.report.kinds import Frame, Made
    from authz.store.client import Client
    from authz.store.lookups import Window

T = TypeVar("T")

Reason = Annotated[str, typer.Option(help="Why you look; it is recorded.")]
Since = Annotated[str | None, typer.Option(help="From 2026-11-01, 2026-11-01T08:30 or 7d ago on.")]
Until = Annotated[str | None, typer.Option(help="Before then, in the same forms.")]
Key = Annotated[
    Path | None, typer.Option(help="Privacy key file: a copy of the one that ext-authz has.")
]
Trust = Annotated[
    Path | None, typer.Option(help="Trust file: verify the logs, and print what that says.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page to this file.")]
Pdf = Annotated[Path | None, typer.Option("--pdf", help="Write a PDF to this file.")]
Issuer = Annotated[str, typer.Option(help="Whose report it is, printed at its head.")]
People = Annotated[
    Path | None,
    typer.Option(help="people.csv of the feeds, with the columns name and address if there are."),
]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Of so many requests, the newest.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """A report that somebody asks for."""

    command: str
    options: config.Config
    data_dir: Path | None
    reason: str
    purpose: str
    window: "Window"
    now_us: int
    trust: Path | None
    as_json: bool
    html: Path | None
    pdf: Path | None
    issuer: str
    details: Mapping[str, object]
    """What else was asked, for the record of the look."""
    people: Path | None
    identifiers: Path | None

    @property
    def frame(self) -> "Frame":
        from authz.report.kinds import Frame

        return Frame(
            self.window, self.now_us, user(), self.issuer, self.people, self.identifiers,
            self.keys() if self.identifiers else (), self._verify if self.trust else None,
        )  # fmt: skip

    def keys(self) -> list[PrivacyKey]:
        return keys_of(self.options)

    def look(self, patients: Sequence[str], key_id: str = "") -> dict[str, object]:
        """Puts the look on record, with the tokens of the patients that are shown."""
        from authz.report.looks import look_notices

        since, until = self.window.since_us or 0, self.window.until_us or 0
        notices = look_notices(
            f"report {self.command}", user(), self.reason, self.purpose, patients, self.now_us,
            {"since": since, "until": until, **self.details},
        )  # fmt: skip
        told = record_all(self.options.ext_authz, self.data_dir, notices, key_id)
        return {"origin": told.origin, "writer": told.writer, "seq": told.seq}

    def ask(self, ask: "Callable[[Client], T]") -> T:
        """What the database answers."""
        from authz.store import migrations
        from authz.store.client import QUERY_ERRORS, connect, explain

        url = self.options.database
        try:
            with connect(url) as client:
                migrations.check(client)
                return ask(client)
        except QUERY_ERRORS as error:
            raise explain(error, url) from None

    def _verify(self, client: "Client") -> "Verdict":
        from authz.cli.verify import progress_bar
        from authz.report.completeness import Verdict
        from authz.store.logs import StoredLogs
        from authz.trust import load_expiry_writers, load_trust
        from authz.verify.logs import verify_logs

        assert self.trust
        logs, writers = load_trust(self.trust), load_expiry_writers(self.trust)
        with progress_bar("verifying") as update:
            report = verify_logs(
                StoredLogs(client), logs, {}, update, expiry_writers=writers
            )  # fmt: skip
        if report.verified:
            return Verdict(
                intact=True,
                text=f"nothing changed, dropped, added or reordered in {report.checked:,} records",
            )
        kinds = ", ".join(sorted({finding.kind for finding in report.findings})) or "no log"
        return Verdict(intact=False, text=f"{len(report.findings):,} findings ({kinds})")

    def give(self, made: "Made", looked: Mapping[str, object] | None = None) -> None:
        """Write and print the report. `looked`: where the look is on record; without, it is put
        there first, with whom the report turned out to name."""
        from authz.report import pages

        if looked is None:
            looked = self.look(made.tokens, self.keys()[0].id if self.identifiers else "")
        if self.html:
            page = pages.html(made.document).encode("utf-8", "backslashreplace")
            _write("--html", self.html, page)
        if self.pdf:
            _write("--pdf", self.pdf, pages.pdf(made.document))
        if self.as_json:
            whole = {**made.told, "completeness": made.rests_on.to_json(), "looked": looked}
            print(json.dumps({"report": self.command, **whole}))
        elif not (self.html or self.pdf):
            show(made.document, Console())


def asked(
    command: str, *, file: Path | None, store: str | None, receiver: str | None,
    data_dir: Path | None, reason: str, purpose: str = "", since: str | None, until: str | None,
    privacy_key: Path | None = None, trust: Path | None, as_json: bool, html: Path | None,
    pdf: Path | None, issuer: str, details: Mapping[str, object], people: Path | None = None,
    identifiers: Path | None = None,
) -> Asked:  # fmt: skip
    """Raises `UsageError` for what could not be recorded, answered or written as it was meant."""
    from authz.report import pages
    from authz.store.lookups import Window
    from authz.trust import load_trust

    now_us = time.time_ns() // 1000
    window = Window(
        None if since is None else moment("--since", since, now_us),
        None if until is None else moment("--until", until, now_us),
    )
    why = as_given("--reason", reason, "reason")
    code = as_given("--purpose", purpose, "purpose") if purpose else ""
    for option, path in (("--html", html), ("--pdf", pdf)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no directory {path.parent}")
    for option, path in (("--people", people), ("--identifiers", identifiers)):
        if path and not path.is_file():
            raise UsageError(f"{option} {path}: there is no such file")
    if pdf:
        pages.check_pdf()
    if trust:
        load_trust(trust)
    options = recorded(file, store, receiver, privacy_key)
    _ = options.database
    return Asked(
        command, options, data_dir, why, code, window, now_us,
        trust, as_json, html, pdf, issuer, details, people, identifiers,
    )  # fmt: skip


def recorded(
    file: Path | None, store: str | None, receiver: str | None, privacy_key: Path | None
) -> config.Config:
    """The configuration, with a receiver in it."""
    options = config.load(
        file, given(store=store, ext_authz__receiver=receiver, privacy__key=privacy_key)
    )
    if options.ext_authz.receiver is None:
        raise UsageError(
            "--receiver is missing: a look is recorded before anything is shown; or --config FILE,"
            " with ext_authz.receiver in it"
        )
    return options


def show(document: "Document", console: Console) -> None:
    """A report on a terminal."""
    from authz.report.document import cell_text as plain

    if document.marking:
        console.print(Text(plain(document.marking), "bold red"))
    console.print(Text(plain(document.title), "bold"))
    for name, value in document.about:
        console.print(Text.assemble((f"{plain(name)}: ", "dim"), plain(value)))
    for note in document.notes:
        console.print(Text(plain(note)))
    for section in document.sections:
        console.print()
        console.print(Text(plain(section.title), "bold"))
        for note in section.notes:
            console.print(Text(plain(note), "dim"))
        if not section.rows:
            console.print(Text(plain(section.empty)))
            continue
        table = Table(show_lines=True)
        for column in section.columns:
            table.add_column(Text(plain(column)), overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        console.print(table)


def _write(option: str, path: Path, data: bytes) -> None:
    """For its owner's eyes only."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
