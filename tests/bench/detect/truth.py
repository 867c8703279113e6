"""What was done wrong, as the generator knows it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

KINDS: Final = (
    "bulk_export", "slow_scrape", "ramp", "stolen_credential", "shared_credential", "off_hours",
    "terminated", "denied_burst", "failed_authentication", "break_glass", "service_drift",
    "household", "surname", "coworker", "vip",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Misuse:
    """One. `records` are the decision ids of its requests in time order, of failed authentications
    the request ids; those have no subject but an `address`. Times in microseconds."""

    kind: str
    subject: str
    address: str
    begin_us: int
    end_us: int
    records: tuple[str, ...]


def write_truth(path: Path, truth: Sequence[Misuse]) -> None:
    path.write_text(json.dumps([asdict(each) for each in truth], indent=1) + "\n")


def read_truth(path: Path) -> list[Misuse]:
    return [
        Misuse(**{**each, "records": tuple(each["records"])})
        for each in json.loads(path.read_text())
    ]
