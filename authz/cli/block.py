"""``authz block``, ``authz unblock``."""

import asyncio
import datetime as dt
import json
import logging
import os
import pwd
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import structlog
import typer

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.times import duration
from authz.errors import UsageError
from authz.record import FIELD, MAX_INT, Record, text

if TYPE_CHECKING:
    from authz.serve.tell import Told

_LONGEST_SECONDS = 3650 * 86_400
# Look-ups show a record as demo/receiver/10.
_PLACE = re.compile(r"(.+)[@/]([0-9]{1,16})")

_PERSON = "The person, as decisions record them: dr.alder"
Subject = Annotated[str, typer.Argument(help=_PERSON)]
Receiver = Annotated[
    str | None,
    typer.Option(
        help="The receiver that puts this on record and tells its writers: host:port or"
        " unix:///path"
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="This command's journal and key (default: the user's, for this receiver)."),
]

Purpose = Annotated[
    str,
    typer.Option(
        help="The same as an HL7 code (v3-ActReason): PATRQT the patient asked, HCOMPL compliance,"
        " HLEGAL a court, HOPERAT operations."
    ),
]


@app.command()
def block(
    how_long: Annotated[str, typer.Option("--for", help="How long: 30m, 1h, 7d.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    subject: Annotated[
        str | None, typer.Argument(help=f"{_PERSON}. With a --finding, whom that is about.")
    ] = None,
    finding: Annotated[
        str | None, typer.Option(help="The finding that is the cause: demo/receiver@10.")
    ] = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Deny a person everything for a time, within a second, whatever the policy says."""
    from authz.blocks import block_notice

    seconds = _seconds(how_long)
    why = as_given("--reason", reason, "reason")
    place = _finding(finding) if finding is not None else None
    if subject is None:
        if place is None:
            raise UsageError("SUBJECT is missing: whom to block, or the --finding about them")
        subject = _subject_of(config.load(file, given(store=store)).store, *place)
    name = as_given("SUBJECT", subject, "subject")
    now_us = time.time_ns() // 1000
    until_us = now_us + seconds * 1_000_000
    named = [f"{place[0]}@{place[1]}"] if place else []
    record = block_notice(name, until_us, why, user(), now_us, named)
    until = dt.datetime.fromtimestamp(until_us / 1e6, dt.UTC).isoformat("T", "seconds")
    said = _tell(file, receiver, data_dir, record) | {"until": until, "until_us": until_us}
    print(json.dumps(said) if as_json else f"{subject} is blocked until {until}")


@app.command()
def unblock(
    subject: Subject,
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
    file: ConfigFile = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Lift a block, within a second."""
    from authz.blocks import unblock_notice

    why = as_given("--reason", reason, "reason") if reason else ""
    name = as_given("SUBJECT", subject, "subject")
    record = unblock_notice(name, why, user(), time.time_ns() // 1000)
    said = _tell(file, receiver, data_dir, record)
    print(json.dumps(said) if as_json else f"{subject} is not blocked any more")


def user() -> str:
    """Who runs this, as the operating system has it: the environment could say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def place_of(named: str, option: str = "RECORD_ID") -> tuple[str, int] | None:
    """The log and the index that `named` names; None for a decision id."""
    found = _PLACE.fullmatch(named)
    if not found:
        return None
    if int(found[2]) > MAX_INT:
        raise UsageError(f"{option}: there is no index {found[2]}; indexes end at {MAX_INT}")
    return found[1], int(found[2])


def _finding(named: str) -> tuple[str, int]:
    place = place_of(named, "--finding")
    if place is None:
        raise UsageError(f"--finding {named}: want a log and an index, such as demo/receiver@10")
    return place


def _subject_of(store: str | None, origin: str, index: int) -> str:
    """Whom the finding at a place is about. Raises `AuthzError`."""
    from authz.store import migrations, rows
    from authz.store.client import QUERY_ERRORS, connect, explain

    where = f"--finding {origin}@{index}"
    if store is None:
        raise UsageError(
            f"SUBJECT is missing; to take it from {where}, give the --store:"
            " clickhouse://user:password@host:9000/database"
        )
    try:
        with connect(store) as client:
            migrations.check(client)
            found = list(rows.read(client, "audit_log", origin, index, index + 1))
    except QUERY_ERRORS as error:
        raise explain(error, store) from None
    subjects = {str(one.get("subject", "")) for one in found if one.get("kind") == "finding"}
    if not subjects:
        raise UsageError(f"{where}: there is no finding of this name; see the view findings")
    if len(subjects) > 1 or "" in subjects:
        raise UsageError(f"{where} is not about a person whom it names; give the SUBJECT")
    return subjects.pop()


def _seconds(given: str) -> int:
    seconds = duration(given) or 0
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(
            f"--for {given}: want a number and s, m, h or d, up to 3650d, such as 30m, 1h or 7d"
        )
    return seconds


def as_given(option: str, value: str, field: str) -> str:
    """`value`, if the record can hold it as it is: a block on half a name would block nobody."""
    cap = FIELD[field].cap
    if not value.strip() or text(value, cap) != value:
        raise UsageError(f"{option}: want text (UTF-8) of 1 to {cap} characters")
    return value


def _tell(
    file: Path | None, receiver: str | None, data_dir: Path | None, record: Record
) -> dict[str, object]:
    options = config.load(file, given(ext_authz__receiver=receiver)).ext_authz
    told = record_it(options, data_dir, record)
    details = json.loads(str(record["details"]))
    because = record.get("records", [])
    return {
        "event": record["event"],
        "subject": record["subject"],
        "reason": details["reason"],
        "by": details["by"],
        **({"findings": because} if because else {}),
        "origin": told.origin,
        "writer": told.writer,
    }


def record_it(
    options: config.ExtAuthz, data_dir: Path | None, record: Record, privacy_key_id: str = ""
) -> "Told":
    """Get `record` into the log of the receiver of `options`, as the writer of `data_dir`; with
    `privacy_key_id`, only if that is the log's own. Raises `AuthzError`."""
    return record_all(options, data_dir, [record], privacy_key_id)


def record_all(
    options: config.ExtAuthz, data_dir: Path | None, records: Sequence[Record],
    privacy_key_id: str = "",
) -> "Told":  # fmt: skip
    """The same for several, in this order."""
    from authz.serve import tls
    from authz.serve.tell import tell

    connect, address = tls.to_receiver(options), str(options.receiver)
    # What happens to the connection is told by this command's own errors.
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent)
    directory = data_dir or own_directory(address)
    copies = [dict(record) for record in records]
    return asyncio.run(tell(address, connect, directory, copies, privacy_key_id))


def own_directory(receiver: str) -> Path:
    """The user's for this receiver: a writer is bound to one log."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "authz" / quote(receiver, safe="")
