"""``authz prove``, ``authz verify-proof``."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz import config
from authz.cli.app import ConfigFile, Json, Store, app, given
from authz.cli.block import DataDir, Purpose, Receiver, as_given, place_of, record_it, user
from authz.cli.lookup import printable
from authz.cli.times import shown
from authz.errors import UsageError
from authz.files import replace_file
from authz.ledger import NoteError, ProofError, TlogProof
from authz.proof import Proven, check_proof, make_proof
from authz.record import FIELD, Record
from authz.trust import TrustedLog, load_trust

if TYPE_CHECKING:
    from authz.store.client import Client
    from authz.store.tiles import Found

_MOST_BYTES = 1 << 20  # of a proof's file

Kind = Literal["decision", "access", "disclosure"]


class _No(Exception):  # noqa: N818 - the answer, not an error
    """The answer is no; the text says why."""


@app.command()
def prove(
    record_id: Annotated[
        str, typer.Argument(help="demo/receiver@10: a log and an index. Or a decision id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The proof, with the record in it.")
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="Which record of the decision id (default: its decision).")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why you look; it is recorded.")] = "",
    purpose: Purpose = "",
    trust: Annotated[
        Path | None, typer.Option(help="Write only what `verify-proof` accepts by this trust file.")
    ] = None,
    file: ConfigFile = None,
    store: Store = None,
    receiver: Receiver = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """One record's proof, for somebody without access to the log. With a --receiver the look is
    recorded first."""
    from authz.report.looks import look_notice
    from authz.store import migrations
    from authz.store.client import QUERY_ERRORS, connect, explain

    why = as_given("--reason", reason, "reason") if reason else ""
    code = as_given("--purpose", purpose, "purpose") if purpose else ""
    place = place_of(record_id)
    if place and kind:
        raise UsageError("--kind is for a decision id; a log and an index mean one record")
    logs = load_trust(trust) if trust else None
    options = config.load(file, given(store=store, ext_authz__receiver=receiver))
    url = options.database
    try:
        with connect(url) as client:
            migrations.check(client)
            origin, index = place or _of_decision(client, record_id, kind or "decision")
            proof, record = _proof(client, origin, index)
        if logs is not None:
            check_proof(str(proof), logs)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    except (_No, NoteError, ProofError) as error:
        _say_no(str(error), as_json=as_json)
    patients = record.get("patients", [])
    assert isinstance(patients, list)
    asked = {"record": f"{origin}@{index}"}
    notice = look_notice("prove", user(), why, code, patients, time.time_ns() // 1000, asked)
    looked = None
    if options.ext_authz.receiver is None:  # an auditor may have the database's address only
        print("authz: no --receiver: this look is not on record", file=sys.stderr)
    else:
        told = record_it(options.ext_authz, data_dir, notice)
        looked = {"origin": told.origin, "writer": told.writer, "seq": told.seq}
    data = str(proof).encode()
    try:
        replace_file(output, data)
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from None
    size = proof.claimed.size
    if as_json:
        print(json.dumps({"origin": origin, "index": index, "size": size, "file": str(output),
                          "bytes": len(data), "looked": looked}))  # fmt: skip
    else:
        print(f"{output}: {printable(origin)}@{index}, one of {size} records ({len(data)} bytes)")


@app.command("verify-proof")
def verify_proof(
    file: Annotated[
        Path,
        typer.Argument(
            help="What `authz prove` has written, or the manifest.json of an `authz export`."
        ),
    ],
    trust: Annotated[Path, typer.Option(help="Which logs there are, and their keys.")],
    as_json: Json = False,
) -> None:
    """Check a record's proof and show the record, or check an export; neither a database nor a
    network is needed."""
    logs = load_trust(trust)
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if data[:1] == b"{":
        _verify_export(file, logs, as_json=as_json)
        return
    try:
        if len(data) > _MOST_BYTES:
            raise ProofError(f"it has more than {_MOST_BYTES} bytes")
        proven = check_proof(data.decode(), logs)
    except UnicodeDecodeError:
        _say_no("not a proof: it holds bytes that are no text", as_json=as_json)
    except (NoteError, ProofError) as error:
        _say_no(str(error), as_json=as_json)
    if as_json:
        print(json.dumps(proven.to_json()))
    else:
        show(proven, Console())


def _verify_export(manifest: Path, logs: Sequence[TrustedLog], *, as_json: bool) -> None:
    from authz.report.exports.check import check_export
    from authz.report.exports.manifest import ManifestError
    from authz.report.exports.words import not_proven, proven

    try:
        checked = check_export(manifest, logs)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    except (ManifestError, NoteError, ProofError) as error:
        _say_no(str(error), as_json=as_json)
    if as_json:
        print(json.dumps(checked.to_json() | {"not_proven": not_proven(checked)}))
        return
    console = Console()
    for line in proven(checked):
        console.print(Text.assemble(("✓ ", "green"), printable(line)))
    for line in not_proven(checked):
        console.print(Text.assemble(("not proven: ", "yellow"), printable(line)))


def show(proven: Proven, console: Console) -> None:
    """The record as a person reads it, and what was checked."""
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name in FIELD:
        if name in proven.record:
            table.add_row(name, Text(_value(name, proven.record)))
    console.print(table)
    signed = ", ".join(f"{key.name}+{key.key_id.hex()}" for key in proven.signed)
    origin = printable(proven.checkpoint.origin)
    for line in (
        f"this record is number {proven.proof.index} of {origin}, and says so",
        (
            f"{len(proven.proof.hashes)} hashes lead from it to the root of"
            f" {proven.checkpoint.size} records"
        ),
        f"that root is signed by {printable(signed)}, which the trust file names",
    ):
        console.print(Text.assemble(("✓ ", "green"), line))
    console.print("[bold green]proven[/]: the log has this record, as it is here")


def _value(name: str, record: Record) -> str:
    value = record[name]
    if isinstance(value, list):
        return ", ".join(map(printable, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if FIELD[name].type == "time":
        assert isinstance(value, int)
        try:
            return f"{shown(value)}.{value % 1_000_000:06} UTC"
        except (OverflowError, ValueError):  # beyond the year 9999
            return str(value)
    return printable(str(value))


def _say_no(why: str, *, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"proven": False, "reason": why}))
    else:
        Console().print(Text.assemble(("NOT proven", "bold red"), f": {printable(why)}"))
    raise typer.Exit(1)


def _of_decision(client: "Client", decision_id: str, kind: str) -> tuple[str, int]:
    """The one record of `kind` with this decision id. Raises `_No` if there is none."""
    from authz.store.tiles import records_of

    found = records_of(client, decision_id)
    wanted = [one for one in found if one.kind == kind]
    if len(wanted) > 1:
        raise UsageError(f"RECORD_ID: there are several such records; give one: {_named(wanted)}")
    if not wanted:
        others = f"; there is: {_named(found)} (--kind)" if found else ""
        raise _No(f"no {kind} has this decision id{others}")
    return wanted[0].origin, wanted[0].index


def _named(found: "list[Found]") -> str:
    more = f", and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(f"{printable(str(one))} ({one.kind})" for one in found[:10]) + more


def _proof(client: "Client", origin: str, index: int) -> tuple[TlogProof, Record]:
    """The proof of the record at a place, and the record. Raises `_No` if it cannot be had."""
    from authz.store.tiles import Tiles, best_checkpoint, leaves

    found = leaves(client, origin, index, index + 1).get(index, set())
    if not found:
        raise _No(
            f"there is no record {origin}@{index}: it never was, has expired, or was removed;"
            " authz verify tells which"
        )
    checkpoint = best_checkpoint(client, origin, index)
    if checkpoint is None:
        raise _No(f"no checkpoint is over {origin}@{index} yet; try again in some seconds")
    wrong: Exception = _No()
    for leaf in found:
        try:
            proof = make_proof(leaf, index, checkpoint[1], Tiles(client, origin))
        except (NoteError, ProofError) as error:
            wrong = error
        else:
            return proof, orjson.loads(leaf)
    raise _No(f"{origin}@{index} cannot be proven ({wrong}); authz verify tells what was changed")
