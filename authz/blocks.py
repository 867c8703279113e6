"""Blocks: subjects that get a denial whatever the policy says, until a time.

A block is a notice in the log (``block`` or ``unblock``, with who said so and why) and from then on
in force. The receiver's set of them is a fold over its log (`Standing`); each change travels to the
writers as the whole set, and they keep it on disk (`Blocks`), so that a restart without a receiver
forgets none.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog
from prometheus_client import Gauge

from authz.errors import UsageError
from authz.files import replace_file
from authz.record import FIELD, MAX_INT, Record, notice
from authz.v1 import stream_pb2 as pb

# Not at once: the log's clock never goes back, and one that ran ahead must not lift a block.
_FORGOTTEN_US = 7 * 86_400 * 1_000_000

IN_FORCE = Gauge("authz_blocks", "Subjects blocked, as the receiver told last")

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Block:
    """`subject` is denied before `until_us`; `id` is ``<origin>/<index>`` of its record."""

    subject: str
    until_us: int
    reason: str
    id: str


class Blocks:
    """A writer's copy of its receiver's set, kept in a file. `find` may be called by any thread."""

    def __init__(self, path: Path, by_subject: Mapping[str, Block]) -> None:
        self._path = path
        self._by_subject = by_subject  # never changed, only replaced as a whole
        self._mutex = threading.Lock()
        IN_FORCE.set(len(by_subject))

    @classmethod
    def load(cls, path: Path) -> "Blocks":
        """As `path` has them, none if there is no such file. Raises `UsageError`."""
        try:
            content = orjson.loads(path.read_bytes())
            blocks = [Block(*_fields(*block)) for block in content["blocks"]]
        except FileNotFoundError:
            return cls(path, {})
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path}: not the blocks that a receiver sent; restore it, or delete it and start"
                " with the receiver up: it sends them again"
            ) from None
        return cls(path, {block.subject: block for block in blocks})

    def find(self, subject: str, now_us: int) -> Block | None:
        """The block in force on `subject`, if there is one."""
        block = self._by_subject.get(subject)
        return block if block is not None and now_us < block.until_us else None

    def replace(self, told: pb.Blocks) -> None:
        """Take over the set that the receiver sent: onto the disk, then in force.

        A disk that fails delays no block; the next set, or the next connection, tries again.
        """
        blocks = [
            Block(block.subject, block.until_us, block.reason, block.id) for block in told.blocks
        ]
        rows = [[block.subject, block.until_us, block.reason, block.id] for block in blocks]
        data = orjson.dumps({"version": told.version, "blocks": rows}, option=orjson.OPT_INDENT_2)
        with self._mutex:
            try:
                replace_file(self._path, data)
            except OSError as error:
                logger.error("blocks are in force, but not on disk", error=error.strerror)
            self._by_subject = {block.subject: block for block in blocks}
        IN_FORCE.set(len(blocks))


def _fields(
    subject: object, until_us: object, reason: object, id_: object
) -> tuple[str, int, str, str]:
    if not (isinstance(subject, str) and isinstance(reason, str) and isinstance(id_, str)):
        raise TypeError
    if not isinstance(until_us, int):
        raise TypeError
    return subject, until_us, reason, id_


def block_notice(subject: str, until_us: int, reason: str, by: str, time_us: int) -> Record:
    """Says that `subject` is blocked from now on until `until_us`."""
    record = notice("block", time_us, {"until": until_us, "reason": reason, "by": by})
    return record | {"subject": subject}


def unblock_notice(subject: str, reason: str, by: str, time_us: int) -> Record:
    """Says that `subject` is blocked no more."""
    return notice("unblock", time_us, {"reason": reason, "by": by}) | {"subject": subject}


def is_blocking(record: Record) -> bool:
    """Whether `record` changes who is blocked."""
    return record.get("event") in ("block", "unblock") and record.get("kind") == "notice"


def fault(record: Record) -> str:
    """What is wrong with a notice that `is_blocking`; empty if nothing is."""
    try:
        _read(record)
    except (KeyError, TypeError):
        return "a block says until when, why, and by whom"
    except ValueError as error:
        return str(error)
    return ""


def _read(record: Record) -> tuple[str, int, str]:
    """Subject, until when (0 for an unblock) and reason."""
    subject = record.get("subject", "")
    details = orjson.loads(str(record.get("details", "")))
    reason, by = details["reason"], details["by"]
    until = details["until"] if record["event"] == "block" else 0
    if not isinstance(subject, str) or not subject:
        raise ValueError("a block names its subject")
    if not isinstance(reason, str) or len(reason) > FIELD["reason"].cap or not isinstance(by, str):
        raise ValueError("a block says why, and by whom")
    if type(until) is not int or not 0 <= until <= MAX_INT:
        raise ValueError("a block says until when, in microseconds")
    return subject, until, reason


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is blocked after a log's first records. `version` grows with each change: it is the
    number of records up to it."""

    version: int = 0
    blocks: Mapping[str, Block] = field(default_factory=dict)

    def after(self, records: Sequence[Record]) -> "Standing":
        """With `records`, which are the log's next in order; those that are no blocks, or malformed
        ones, change nothing. What expired long before them, by the log's own clock, is forgotten.
        """
        changes = [
            (record, _read(record))
            for record in records
            if is_blocking(record) and not fault(record)
        ]
        if not changes:
            return self
        newest = changes[-1][0]
        blocks = dict(self.blocks)
        for record, (subject, until_us, reason) in changes:
            blocks.pop(subject, None)
            if until_us:
                id_ = f"{record.get('origin', '')}/{record.get('index', 0)}"
                blocks[subject] = Block(subject, until_us, reason, id_)
        index, now = newest.get("index", 0), newest.get("sealed_at", 0)
        assert isinstance(index, int)
        assert isinstance(now, int)
        kept = now - _FORGOTTEN_US
        held = {name: block for name, block in blocks.items() if block.until_us > kept}
        return Standing(index + 1, held)

    def message(self, now_us: int) -> pb.Blocks:
        """What writers are told: what is in force."""
        blocks = [
            pb.Block(subject=b.subject, until_us=b.until_us, reason=b.reason, id=b.id)
            for b in self.blocks.values()
            if b.until_us > now_us
        ]
        return pb.Blocks(version=self.version, blocks=blocks)

    def to_json(self) -> list[object]:
        rows = [[b.subject, b.until_us, b.reason, b.id] for b in self.blocks.values()]
        return [self.version, rows]

    @classmethod
    def from_json(cls, version: object, rows: object) -> "Standing":
        """Raises `TypeError` or `ValueError` for what `to_json` did not make."""
        if not isinstance(version, int) or not isinstance(rows, list):
            raise TypeError
        blocks = [Block(*_fields(*row)) for row in rows]
        return cls(version, {block.subject: block for block in blocks})
