"""The log's keys in the receiver: made at the first start, and taken over when one is rotated.

`authz keys rotate` puts the next key beside the log's. From there, each step durable:

1. ``trust.yaml`` names both keys, the old one first.
2. The rotation is a leaf in the journal. Found by a start: it is not told again.
3. From the checkpoint over that leaf on, the new key signs (`authz.receiver.sequence`).
4. That checkpoint is stored. Only now the new key takes the old one's place.
"""

import asyncio
import os
import socket
import time
from pathlib import Path

import structlog
import yaml

from authz.errors import UsageError
from authz.files import replace_file, sync_directory
from authz.journal.commit import Committer
from authz.journal.segments import JournalError
from authz.keys import LOG_KEY, NEXT_KEY, read_key, rotation_notice
from authz.ledger import Signer, Verifier
from authz.receiver.sequence import Log
from authz.record import Entry

_LOOK_SECONDS = 1

logger = structlog.get_logger()


class LogKeys:
    """Looks for the next key while the receiver runs, and takes it over."""

    def __init__(self, directory: Path, log: Log, committer: Committer[list[Entry]]) -> None:
        self._directory = directory
        self._log = log
        self._committer = committer
        self._complaint = ""
        self._write_trust()

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except (UsageError, JournalError, OSError) as error:
                self._complain(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """The next of the steps, if it is time for it."""
        path = self._directory / NEXT_KEY
        if not path.exists():
            return
        log = self._log
        following = _read_following(path, log.origin)
        key = str(following.verifier)
        if log.stored.keys[-1:] == (key,):
            path.replace(self._directory / LOG_KEY)
            sync_directory(self._directory)
            logger.info("the log's key is another now", key=key)
        elif log.keys[-1:] != (key,):
            if key in log.keys or key == str(log.signer.verifier):
                raise UsageError(f"{path}: the log has or had this key; remove the file")
            log.expect(following)
            self._write_trust()
            rotation = rotation_notice(log.signer, following, time.time_ns() // 1000)
            await self._committer.submit([(rotation, b"")])
            logger.info("the log's key is rotated", key=key)

    def _write_trust(self) -> None:
        write_trust(self._directory / "trust.yaml", self._log.origin, self._log.verifiers)

    def _complain(self, error: Exception) -> None:
        """Once, while it is the same."""
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if text != self._complaint:
            logger.error("the log's key is not rotated", error=text)
        self._complaint = text


def load_log_key(path: Path, origin: str | None) -> Signer:
    """The log's private key, made at the first start; its name is the log's origin for good."""
    if not path.exists():
        if (path.parent / "checkpoint").exists():
            raise UsageError(
                f"{path}: the log has been signed with a key that is not there; restore it from"
                " backup, or begin a log that follows it: an empty --data-dir, another --origin,"
                " and receiver.follows"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        name = origin or f"{socket.gethostname()}/receiver"
        replace_file(path, (Signer(name, os.urandom(32)).private_text() + "\n").encode())
    signer = read_key(path)
    if origin not in (None, signer.name):
        raise UsageError(
            f"receiver.origin is {origin}, but {path} belongs to {signer.name};"
            " a log keeps its origin: use another --data-dir for another log"
        )
    return signer


def following_key(directory: Path, origin: str) -> Signer | None:
    """The key that waits to follow the log's own. One that cannot be used keeps no log from going
    on, unless it has been signing already."""
    path = directory / NEXT_KEY
    try:
        return _read_following(path, origin) if path.exists() else None
    except UsageError as error:
        logger.error("the log's key is not rotated", error=str(error))
        return None


def _read_following(path: Path, origin: str) -> Signer:
    following = read_key(path)
    if following.name != origin:
        raise UsageError(f"{path}: a key of {following.name}, and the log is {origin}; remove it")
    return following


def write_trust(path: Path, origin: str, keys: list[Verifier]) -> None:
    """A trust file for `authz verify`: hand it to the auditor by a way of its own."""
    logs = [{"origin": origin, "keys": [str(key) for key in keys]}]
    text = "# Which logs there must be, and whose signatures count (C2SP verifier keys).\n"
    replace_file(path, (text + yaml.safe_dump({"logs": logs}, sort_keys=False)).encode(), 0o644)
