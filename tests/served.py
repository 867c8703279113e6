"""Logs of known leaves in ClickHouse, and the console that serves them."""

import contextlib
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from logs import SIGNER, TestLog
from programs import free_port

from authz.demo.stack import HOST, Part
from authz.ledger import Signer
from authz.record import Record

NOW = 1_700_000_000_000_000


def record(number: int) -> Record:
    return {
        "kind": "decision", "time": NOW + number, "decision_id": f"d-{number}",
        "subject": f"person \u00e9 {number % 7}", "roles": ["nurse"], "allowed": number % 3 > 0,
    }  # fmt: skip


def fill(
    directory: Path, store: str, batches: Sequence[Sequence[Record]], signer: Signer = SIGNER
) -> list[bytes]:
    """The leaves of a new log in `store`, with a checkpoint after each of `batches`."""
    log = TestLog(directory, store, signer=signer)
    leaves: list[bytes] = []
    for batch in batches:
        log.append(list(batch))
        leaves += log.seal().leaves
    log.end()
    return leaves


@contextlib.contextmanager
def console(
    directory: Path, store: str, options: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> Iterator[Part]:
    """``authz serve console`` on a free port, as an operator would start it."""
    address = f"{HOST}:{free_port()}"
    command = [sys.executable, "-m", "authz", "serve", "console", "--listen", address, *options]
    part = Part(
        "console", command, directory / f"console-{secrets.token_hex(4)}.log",
        {"AUTHZ_STORE": store, **environment}, address,
    )  # fmt: skip
    try:
        part.start()
        part.wait_until_up()
        yield part
    finally:
        part.stop()


def token_file(directory: Path) -> tuple[Path, str]:
    """A file with a token for entries, and the token."""
    path, token = directory / "entries.token", secrets.token_hex(32)
    path.touch(0o600)
    path.write_text(token + "\n")
    return path, token
