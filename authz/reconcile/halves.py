"""Two records of one request, as far as they must fit each other."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from authz.reconcile.tally import Gap, Tally
from authz.record import DECIDED, Record

RECONCILED = frozenset(("decision", "access", "disclosure"))
"""The kinds of record that are held against each other."""

# How Envoy says that it ended an answer itself, for the service or authz broke off.
_BROKEN = ("upstream_reset_", "ext_proc_error")
_ENVOYS_ERRORS = (500, 502, 503, 504)

_SAID = tuple(name for name in DECIDED if name not in ("roles", "patients"))
_SAID_NOTHING = hash((*(None for _ in _SAID), None))


@dataclass(slots=True, eq=False)
class Half:
    """A decision, an access or a disclosure, as far as its other half must fit."""

    tally: Tally
    origin: str
    index: int
    sealed_at: int
    source: str
    allowed: bool
    enforced: bool
    reached: bool  # the access: an upstream was contacted
    request_id: str
    decided_by: str  # the access: whose decision it repeats
    said: int  # stands for the decision's values; the access repeats them
    shown: bool  # the access: Envoy showed the answer, so its disclosure comes
    revised: bool = False


Halves = dict[str, Half]  # by decision id


@dataclass(frozen=True, slots=True)
class Left:
    """What has not met: `decided` and `accessed` each other, `undisclosed` (accesses) and
    `disclosed` each other."""

    decided: Halves
    accessed: Halves
    undisclosed: Halves
    disclosed: Halves

    @property
    def parts(self) -> tuple[Halves, Halves, Halves, Halves]:
        return self.decided, self.accessed, self.undisclosed, self.disclosed

    @property
    def ids(self) -> list[str]:
        """The decisions that these are about, each once."""
        return list(dict.fromkeys(chain(*self.parts)))


def half_of(record: Record, tally: Tally) -> Half:
    """Of a record whose values are of their fields' types."""
    get: Any = record.get
    return Half(
        tally,
        get("origin", ""),
        get("index", 0),
        get("sealed_at", 0),
        get("writer", ""),
        get("allowed", False),
        get("enforced", False),
        "upstream" in record,
        get("request_id", ""),
        get("decided_by", ""),
        hash((*map(get, _SAID), *get("roles", ()), None, *get("patients", ()))),
        "discloses" in record and _is_shown(record),
    )


def _is_shown(record: Record) -> bool:
    """Whether it is an access to whose answer a disclosure belongs: the service began to answer, or
    Envoy did for it. An answer that is held and breaks off becomes an error of Envoy's, perhaps
    before authz has seen any of it; the client gets nothing of it."""
    if "upstream" not in record or not record.get("status"):
        return False
    broken = str(record.get("response_details", "")).startswith(_BROKEN)
    return not (broken and record["status"] in _ENVOYS_ERRORS)


def judge(decision_id: str, decided: Half, access: Half) -> Gap | None:
    """What is wrong with an access and its decision, if anything is."""
    # In dry-run a denial is recorded and not enforced: the service is reached all the same.
    if access.reached and decided.enforced and not decided.allowed:
        kind = "denied_but_reached"
    elif decided.allowed != access.allowed or not (
        access.said in (decided.said, _SAID_NOTHING) or decided.revised
    ):
        kind = "disagrees"
    else:
        return None
    return Gap(kind, access.origin, access.index, access.source, decision_id)


def undisclosed(decision_id: str, access: Half) -> Gap:
    """That nobody told whose data the answer to an access held."""
    return Gap("no_disclosure", access.origin, access.index, access.source, decision_id)
