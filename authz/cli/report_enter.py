"""``authz report enter``, ``authz report suspend``: what no request tells of."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from authz import config
from authz.cli.app import ConfigFile, Json, Store
from authz.cli.block import DataDir, Receiver, as_given, record_it, user
from authz.cli.lookup import identifiers_of, keys_of, tokens_of
from authz.cli.report import Patient, group
from authz.cli.report_made import Key, recorded
from authz.cli.times import duration, moment, shown
from authz.errors import UsageError
from authz.record import Record, read_place, text

if TYPE_CHECKING:
    from authz.report.entries import Entry

_LENGTHS = {"--recipient": 256, "--address": 512, "--description": 1024, "--purpose": 256,
            "--agency": 256}  # fmt: skip
_VALUES = ("recipient", "address", "description", "purpose", "date")
_DAY_US = 86_400 * 1_000_000

Why = Annotated[str, typer.Option(help="Why it is entered; it is recorded.")]
Maker = Callable[[Sequence[str], str, str, int, Mapping[str, object]], Record]


@group.command()
def enter(
    patient: Patient,
    recipient: Annotated[str, typer.Option(help="Who got it: a name, as the patient is told it.")],
    description: Annotated[str, typer.Option(help="What it was, in a few words.")],
    purpose: Annotated[
        str, typer.Option(help="What for: text, or an HL7 code (v3-ActReason), such as PUBHLTH.")
    ],
    date: Annotated[str, typer.Option(help="When: 2026-11-01, 2026-11-01T08:30, or 2d ago.")],
    reason: Why,
    address: Annotated[str, typer.Option(help="The recipient's, if it is known.")] = "",
    file: ConfigFile = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Enter a disclosure that was made outside: by fax, by letter, under a subpoena."""
    from authz.report.entries import entered

    now_us = time.time_ns() // 1000
    at = _date(date, now_us)
    told = {
        "--recipient": recipient, "--description": description, "--purpose": purpose,
        **({"--address": address} if address else {}),
    }  # fmt: skip
    details: dict[str, object] = {name[2:]: _short(name, value) for name, value in told.items()}
    said = _record(
        entered, _one(patient), reason, {**details, "date": at}, told,
        (file, receiver, privacy_key, data_dir), now_us,
    )  # fmt: skip
    print(json.dumps(said) if as_json else "the disclosure is entered")


@group.command()
def correct(
    record: Annotated[
        str, typer.Argument(help="Of the entry, as records of --json name it: demo/receiver@17")
    ],
    patient: Patient,
    reason: Annotated[str, typer.Option(help="What was wrong; the patient is told it.")],
    recipient: Annotated[str | None, typer.Option(help="Who got it, in truth.")] = None,
    description: Annotated[str | None, typer.Option(help="What it was.")] = None,
    purpose: Annotated[str | None, typer.Option(help="What for.")] = None,
    date: Annotated[str | None, typer.Option(help="When.")] = None,
    address: Annotated[str | None, typer.Option(help="The recipient's.")] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="It was never so: it is listed no more.")
    ] = False,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Correct a disclosure that was entered, or withdraw it. What is not given stays as it was."""
    from authz.report.entries import corrected, withdrawn

    now_us = time.time_ns() // 1000
    given = {
        "--recipient": recipient, "--description": description, "--purpose": purpose,
        "--address": address,
    }  # fmt: skip
    told = {name: value for name, value in given.items() if value is not None}
    new: dict[str, object] = {name[2:]: _short(name, value) for name, value in told.items()}
    if date is not None:
        new["date"] = _date(date, now_us)
    if withdraw == bool(new):
        raise UsageError(
            "give what is right (--recipient, --date, ...), or --withdraw what never was"
        )
    if read_place(record) is None:
        raise UsageError(f"{record}: want where the entry is, such as demo/receiver@17")
    identifier = _one(patient)
    entry = _entry(recorded(file, store, receiver, privacy_key), identifier, record)
    if withdraw and entry.withdrawn:
        raise UsageError(f"{record}: it is withdrawn already")
    details = {} if withdraw else {name: getattr(entry, name) for name in _VALUES} | new
    make = partial(withdrawn if withdraw else corrected, entry.record)
    where = file, receiver, privacy_key, data_dir
    said = _record(make, identifier, reason, details, told, where, now_us)
    done = "the entry is withdrawn" if withdraw else "the entry is corrected"
    print(json.dumps(said | {"entry": entry.record}) if as_json else done)


@group.command()
def suspend(
    patient: Patient,
    agency: Annotated[
        str,
        typer.Option(help="To whom disclosures are not told: as recipients are named in them."),
    ],
    until: Annotated[str, typer.Option(help="Before then: 2027-03-01, or 30d from now.")],
    reason: Why,
    oral: Annotated[
        bool,
        typer.Option("--oral/--written", help="How the agency stated it; oral: 30 days at most."),
    ] = False,
    file: ConfigFile = None,
    receiver: Receiver = None,
    privacy_key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tell a patient nothing of disclosures to an agency, for a time, since it asked for that."""
    from authz.report.disclosures import ORAL_DAYS, suspended

    now_us = time.time_ns() // 1000
    seconds = duration(until)
    end = moment("--until", until, now_us) if seconds is None else now_us + seconds * 1_000_000
    if oral and end > now_us + ORAL_DAYS * _DAY_US:
        raise UsageError(
            f"--until: a suspension by oral statement lasts {ORAL_DAYS} days at most; --written,"
            " if there is a written one"
        )
    name = _short("--agency", agency)
    if not re.search(r"[^\W_]", name):
        raise UsageError("--agency: want a name with a letter or digit in it")
    details = {"agency": name, "until": end, "oral": oral}
    said = _record(
        suspended, _one(patient), reason, details, {"--agency": agency},
        (file, receiver, privacy_key, data_dir), now_us,
    )  # fmt: skip
    print(json.dumps(said) if as_json else f"suspended until {shown(end)} UTC")


def _date(date: str, now_us: int) -> int:
    at = moment("--date", date, now_us)
    if at > now_us:
        raise UsageError("--date: it is in the future; enter what has been disclosed")
    return at


def _entry(options: config.Config, identifier: str, record: str) -> "Entry":
    """What was entered about the patient, and is named by `record`."""
    from authz.report import entries
    from authz.store import reports
    from authz.store.client import QUERY_ERRORS, connect, explain
    from authz.store.lookups import EVER

    [tokens] = tokens_of(keys_of(options), [identifier])
    try:
        with connect(options.database) as client:
            said = reports.notices(client, entries.EVENTS, EVER, tokens)
    except QUERY_ERRORS as error:
        raise explain(error, options.database) from None
    entry = entries.entries(said).get(record)
    if entry is None:
        raise UsageError(
            f"{record}: no entry about this patient is there; the records of each are in"
            " authz report disclosures --each --json"
        )
    return entry


def _one(patient: str) -> str:
    given = identifiers_of([patient])
    if len(given) != 1:
        raise UsageError("--patient: want one identifier")
    return given[0]


def _short(option: str, value: str) -> str:
    cap = _LENGTHS[option]
    if not value.strip() or text(value, cap) != value:
        raise UsageError(f"{option}: want text (UTF-8) of 1 to {cap} characters")
    return value.strip()


def _record(
    make: Maker, identifier: str, reason: str, details: Mapping[str, object],
    texts: Mapping[str, str], where: tuple[Path | None, str | None, Path | None, Path | None],
    now_us: int,
) -> dict[str, object]:  # fmt: skip
    """`texts`: what was written, by option, which is recorded as it is."""
    file, receiver, privacy_key, data_dir = where
    why = as_given("--reason", reason, "reason")
    for option, value in {**texts, "--reason": why}.items():
        if re.search(rf"(?<!\w){re.escape(identifier)}(?!\w)", value, re.IGNORECASE):
            raise UsageError(
                f"{option}: the patient's identifier stands in it; what is recorded names nobody,"
                " so write it without"
            )
    options = recorded(file, None, receiver, privacy_key)
    keys = keys_of(options)
    [tokens] = tokens_of(keys[:1], [identifier])
    record = make(tokens, user(), why, now_us, details)
    told = record_it(options.ext_authz, data_dir, record, keys[0].id)
    return {
        "event": record["event"], **details, "reason": why, "by": user(), "origin": told.origin,
        "writer": told.writer, "seq": told.seq,
    }  # fmt: skip
