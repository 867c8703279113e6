"""What a report rests on, so that somebody else can check that it leaves nothing out."""

import base64
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from authz.ledger import Checkpoint, NoteError
from authz.record.shown import shown
from authz.report.document import Section, count
from authz.store import checkpoints, lookups, reports
from authz.store.client import Client
from authz.store.lookups import Window


@dataclass(frozen=True, slots=True)
class Log:
    """A log's newest checkpoint, as the database has it; `root` is base64."""

    origin: str
    size: int
    root: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `authz verify` said of all logs; `text` says it to a person."""

    intact: bool
    text: str


@dataclass(frozen=True, slots=True)
class Completeness:
    """What there is to say of the logs, in the report's time."""

    made_at: int
    """Microseconds since the epoch, UTC."""
    logs: tuple[Log, ...]
    gaps: dict[str, int]
    """By kind: what does not add up between the accounts of each request, of anybody's."""
    disclosures: bool
    """Whether records say whose data answers held; with none, what is known is what requests
    named."""
    unresolved: int
    """Of how many answers, about anybody, it is not known in full whose data they held."""
    policies: tuple[str, ...]
    """The revisions of the policies that decided what is in the report."""
    other_keys: tuple[str, ...] = ()
    """Privacy keys that were not given: what was recorded under these was not searched."""
    verdict: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def completeness(
    client: Client, window: Window, made_at: int, policies: Iterable[str] = (),
    other_keys: Iterable[str] = (), verdict: Verdict | None = None,
) -> Completeness:  # fmt: skip
    """Errors are `authz.store.client.QUERY_ERRORS`."""
    answers = lookups.unresolved(client, window)
    logs = [Log(one.origin, one.size, _root(one.note)) for one in checkpoints.newest(client)]
    return Completeness(
        made_at, tuple(logs), reports.gaps(client, window), answers.disclosures,
        answers.unresolved, tuple(sorted(filter(None, set(policies)))), tuple(sorted(other_keys)),
        verdict,
    )  # fmt: skip


def _root(note: str) -> str:
    try:
        checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
    except NoteError:
        return "(no checkpoint)"
    return base64.b64encode(checkpoint.root).decode()


def section(found: Completeness) -> Section:
    """What is printed at a report's end."""
    notes = [
        (
            "This report was made from logs in which no record can be changed, dropped, added or"
            " reordered without it showing. A log's size and root hash stand for all records in it."
        )
    ]
    if found.verdict is None:
        notes.append("The logs were not verified when this report was made.")
    elif found.verdict.intact:
        notes.append(f"Verified when this report was made: {found.verdict.text}.")
    else:
        notes.append(f"NOT INTACT when this report was made: {found.verdict.text}.")
    gaps = sum(found.gaps.values())
    told = ", ".join(f"{number:,} {kind}" for kind, number in found.gaps.items())
    notes.append(
        f"Gaps in this time: {gaps:,}{f' ({told})' if told else ''}. A gap is a request of which"
        " one of its accounts is missing, whoever it was about."
    )
    notes.append(_answers(found))
    if found.other_keys:
        notes.append(
            f"NOT SEARCHED: records under other privacy keys ({', '.join(found.other_keys)})."
        )
    if found.policies:
        notes.append(f"Policy revisions that decided: {', '.join(found.policies)}.")
    notes.append(
        "To check it: authz verify --store URL --trust FILE recomputes these hashes from the"
        " records; the trust file has the logs' public keys. Each record that a report names is"
        " proven by itself with authz prove."
    )
    rows = tuple((log.origin, f"{log.size:,}", log.root) for log in found.logs)
    return Section(
        f"Proof of completeness, as of {shown(found.made_at)} UTC",
        ("log", "records", "root hash (SHA-256, base64)"), rows, tuple(notes),
        empty="There is no log yet.",
    )  # fmt: skip


def _answers(found: Completeness) -> str:
    if not found.disclosures:
        return (
            "No answer was looked into in this time: of searches and lists it is not known whose"
            " data they held."
        )
    if found.unresolved:
        whose = count(found.unresolved, "answer", "answers")
        return f"Of {whose} in this time it is not known in full whose data they held."
    return "Of every answer in this time it is known whose data it held."
