"""``authz keys``: the key that signs a log's checkpoints."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from authz.cli.app import ConfigFile, DataDir, Json, app, given
from authz.config import Origin, load
from authz.errors import UsageError
from authz.files import is_open
from authz.keys import LOG_KEY, NEXT_KEY, read_key, write_key
from authz.ledger import NoteError, Signer

group = typer.Typer(help="The key that signs a log's checkpoints.", no_args_is_help=True)
app.add_typer(group, name="keys")


@group.command()
def new(
    origin: Annotated[str, typer.Option(help="The log's name, <cluster>/<receiver>; for good.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The key's file; none is there.")],
    as_json: Json = False,
) -> None:
    """Make a log's key before its receiver's first start, so that its trust file can be written."""
    try:
        TypeAdapter(Origin).validate_python(origin)
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--origin: {text}") from None
    signer = Signer(origin, os.urandom(32))
    _write("--output", output, signer)
    _print(as_json, {"origin": origin, "key": str(signer.verifier), "file": str(output)})


@group.command()
def show(
    path: Annotated[Path, typer.Argument(help="A key's file: DATA_DIR/log.key.")],
    as_json: Json = False,
) -> None:
    """Print the public key that belongs to a private one, as trust files name it.

    Exit code 1 if others may read the private key: every other command then refuses it.
    """
    try:
        exposed = is_open(path)
        signer = Signer.parse(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (NoteError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    _print(as_json, {"origin": signer.name, "key": str(signer.verifier), "exposed": exposed})
    if exposed:
        print(
            f"authz: {path}: others may read this private key; run: chmod 600 {path}, and rotate"
            " it if anybody may have",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@group.command()
def rotate(file: ConfigFile = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make the log's next key; its receiver takes it over, at once or at its next start.

    Give the printed key to everyone who verifies the log, beside the old one, which stays.
    """
    directory = load(file, given(data_dir=data_dir)).data_dir
    old = read_key(directory / LOG_KEY)
    path = directory / NEXT_KEY
    if path.exists():
        raise UsageError(
            f"{path}: a rotation is under way; the receiver ends it as soon as it runs"
        )
    following = Signer(old.name, os.urandom(32))
    _write("--data-dir", path, following)
    owner = (directory / LOG_KEY).stat()
    if owner.st_uid != os.geteuid():  # an administrator runs this, and the receiver must read it
        os.chown(path, owner.st_uid, owner.st_gid)
    _print(
        as_json, {"origin": old.name, "key": str(following.verifier), "old": str(old.verifier)}
    )  # fmt: skip


def _write(option: str, path: Path, signer: Signer) -> None:
    try:
        write_key(path, signer)
    except FileExistsError:
        raise UsageError(f"{option} {path}: is there already; choose another name") from None
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None


def _print(as_json: bool, said: dict[str, object]) -> None:
    print(json.dumps(said) if as_json else said["key"])
