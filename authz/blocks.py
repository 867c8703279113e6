"""Blocks: subjects that get a denial whatever the policy says, until a time.

A block is a notice in the log (``block`` or ``unblock``, with who said so and why) and from then on
in force. The receiver's set of them is a fold over its log (`Standing`); each change travels to the
writers as the whole set, and they keep it on disk (`Blocks`), so that a restart without a receiver
forgets none. What findings say of people (`authz.risk`) goes the same way, for the policy to see.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog
from prometheus_client import Gauge

from authz import risk
from authz.errors import UsageError
from authz.files import replace_file
from authz.record import FIELD, MAX_INT, Record, notice
from authz.risk import Finding, Findings, Risk
from authz.v1 import stream_pb2 as pb

# Not at once: the log's clock never goes back, and one that ran ahead must not lift a block.
_FORGOTTEN_US = 7 * 86_400 * 1_000_000

IN_FORCE = Gauge("authz_blocks", "Subjects blocked, as the receiver told last")
AT_RISK = Gauge("authz_risk", "Subjects at risk, as the receiver told last")

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Block:
    """`subject` is denied before `until_us`; `id` is ``<origin>/<index>`` of its record."""

    subject: str
    until_us: int
    reason: str
    id: str


class Blocks:
    """A writer's copy of its receiver's set, kept in a file. `find` and `risk` may be called by any
    thread."""

    def __init__(
        self, path: Path, by_subject: Mapping[str, Block], risks: Sequence[Risk] = ()
    ) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._set(by_subject, risks)

    @classmethod
    def load(cls, path: Path) -> "Blocks":
        """As `path` has them, none if there is no such file. Raises `UsageError`."""
        try:
            content = orjson.loads(path.read_bytes())
            blocks = [Block(*_fields(*block)) for block in content["blocks"]]
            risks = [Risk.from_row(row) for row in content.get("risk", ())]  # once there was none
        except FileNotFoundError:
            return cls(path, {})
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path}: not the blocks that a receiver sent; restore it, or delete it and start"
                " with the receiver up: it sends them again"
            ) from None
        return cls(path, {block.subject: block for block in blocks}, risks)

    def find(self, subject: str, now_us: int) -> Block | None:
        """The block in force on `subject`, if there is one."""
        block = self._by_subject.get(subject)
        return block if block is not None and now_us < block.until_us else None

    def risk(self, subjects: Iterable[str], now_us: int) -> dict[str, object] | None:
        """What a policy is to see of a person who has these names; None if there is nothing."""
        if not self._risks:
            return None
        named = dict.fromkeys(subjects)
        return risk.shown([one for name in named for one in self._risks.get(name, ())], now_us)

    def replace(self, told: pb.Blocks) -> None:
        """Take over the set that the receiver sent: onto the disk, then in force.

        A disk that fails delays no block; the next set, or the next connection, tries again.
        """
        blocks = [
            Block(block.subject, block.until_us, block.reason, block.id) for block in told.blocks
        ]
        risks = [Risk.told(one) for one in told.risk]
        content = {
            "version": told.version,
            "blocks": [[block.subject, block.until_us, block.reason, block.id] for block in blocks],
            "risk": [one.to_row() for one in risks],
        }
        data = orjson.dumps(content, option=orjson.OPT_INDENT_2)
        with self._mutex:
            try:
                replace_file(self._path, data)
            except OSError as error:
                logger.error("blocks are in force, but not on disk", error=error.strerror)
            self._set({block.subject: block for block in blocks}, risks)

    def _set(self, by_subject: Mapping[str, Block], risks: Iterable[Risk]) -> None:
        """Both are never changed, only replaced as a whole."""
        of_subject: defaultdict[str, list[Risk]] = defaultdict(list)
        for one in risks:
            of_subject[one.subject].append(one)
        self._by_subject: Mapping[str, Block] = by_subject
        self._risks: Mapping[str, Sequence[Risk]] = dict(of_subject)
        IN_FORCE.set(len(by_subject))
        AT_RISK.set(len(of_subject))


def _fields(
    subject: object, until_us: object, reason: object, id_: object
) -> tuple[str, int, str, str]:
    if not (isinstance(subject, str) and isinstance(reason, str) and isinstance(id_, str)):
        raise TypeError
    if not isinstance(until_us, int):
        raise TypeError
    return subject, until_us, reason, id_


def block_notice(
    subject: str, until_us: int, reason: str, by: str, time_us: int, findings: Sequence[str] = ()
) -> Record:
    """Says that `subject` is blocked from now on until `until_us`, because of these findings
    (``<origin>@<index>``) if there are any."""
    details = {"until": until_us, "reason": reason, "by": by}
    record = notice("block", time_us, details, records=findings)
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
    """Who is blocked after a log's first records, and what was found of people. `version` grows
    with each change: it is the number of records up to it."""

    version: int = 0
    blocks: Mapping[str, Block] = field(default_factory=dict)
    findings: Findings = field(default_factory=dict)

    def after(self, records: Sequence[Record]) -> "Standing":
        """With `records`, which are the log's next in order; those that are neither blocks nor
        findings, or malformed ones, change nothing. What expired long before them, by the log's own
        clock, is forgotten.
        """
        telling = [record for record in records if record.get("kind") in ("notice", "finding")]
        changing = [record for record in telling if is_blocking(record) and not fault(record)]
        blocks = self._blocks_after(changing) if changing else self.blocks
        findings = risk.after(self.findings, telling)
        if findings is not self.findings:
            changing += [record for record in telling if risk.tells(record)]
        if not changing:
            return self
        return Standing(max(_index(record) for record in changing) + 1, blocks, findings)

    def _blocks_after(self, changing: Sequence[Record]) -> dict[str, Block]:
        blocks = dict(self.blocks)
        for record in changing:
            subject, until_us, reason = _read(record)
            blocks.pop(subject, None)
            if until_us:
                id_ = f"{record.get('origin', '')}/{_index(record)}"
                blocks[subject] = Block(subject, until_us, reason, id_)
        now = changing[-1].get("sealed_at", 0)
        assert isinstance(now, int)
        kept = now - _FORGOTTEN_US
        return {name: block for name, block in blocks.items() if block.until_us > kept}

    def message(self, now_us: int, risk_hours: float = risk.HOURS) -> pb.Blocks:
        """What writers are told: what is in force."""
        blocks = [
            pb.Block(subject=b.subject, until_us=b.until_us, reason=b.reason, id=b.id)
            for b in self.blocks.values()
            if b.until_us > now_us
        ]
        at_risk = risk.in_force(self.findings, risk_hours, now_us)
        return pb.Blocks(version=self.version, blocks=blocks, risk=at_risk)

    def to_json(self) -> list[object]:
        """Version and blocks; findings have a place of their own (`findings_json`), which versions
        that know none pass over."""
        rows = [[b.subject, b.until_us, b.reason, b.id] for b in self.blocks.values()]
        return [self.version, rows]

    def findings_json(self) -> list[object]:
        return [finding.to_row() for finding in self.findings.values()]

    @classmethod
    def from_json(
        cls, version: object, rows: object, findings: Iterable[object] = ()
    ) -> "Standing":
        """Raises `TypeError` or `ValueError` for what `to_json`, `findings_json` did not make."""
        if not isinstance(version, int) or not isinstance(rows, list):
            raise TypeError
        blocks = [Block(*_fields(*row)) for row in rows]
        found = [Finding.from_row(row) for row in findings]
        by_id = {finding.id: finding for finding in found}
        return cls(version, {block.subject: block for block in blocks}, by_id)


def _index(record: Record) -> int:
    index = record.get("index", 0)
    assert isinstance(index, int)
    return index
