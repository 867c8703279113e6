"""A record, as far as detection looks at it."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from authz.record import Record

_MET = 1 << 16  # decisions whose other half may still come: about a minute at a thousand a second
_DAY_US = 86_400_000_000
_AHEAD_US = 300_000_000
_FAILED = ("jwt_authn_access_denied", "rbac_access_denied")


@dataclass(slots=True)
class Event:
    """One request. `id` is what ``authz prove`` takes for it."""

    id: str
    time: int
    """Microseconds since the epoch, UTC."""
    subject: str
    roles: tuple[str, ...]
    tenant: str
    patients: tuple[str, ...]
    allowed: bool
    path: str
    address: str
    country: str
    agent: str
    break_glass: bool
    barred: bool
    """Denied by a block, whatever was asked for: that tells nothing about who asks."""
    failed: bool
    """Nobody came to be known: a token that is missing, expired or forged."""
    first: bool
    """Not the second record of a request that was seen already."""


class Events:
    """`of` each record in time order. A request has a decision, an access and perhaps disclosures:
    the first of them is the request, the others add whose data it held."""

    def __init__(self) -> None:
        self._met: OrderedDict[str, None] = OrderedDict()

    def of(self, record: Record) -> Event | None:
        """None for what is no request of anybody's."""
        kind = record.get("kind")
        if kind not in ("access", "decision", "disclosure"):
            return None
        get = record.get
        time: Any = get("time", 0)
        sealed: Any = get("sealed_at", 0)
        if sealed and not sealed - _DAY_US <= time <= sealed + _AHEAD_US:
            time = sealed  # told times can be forged
        decision = str(get("decision_id", ""))
        first = kind != "disclosure"
        if decision:
            if decision in self._met:
                first = False
            elif first:
                self._met[decision] = None
                if len(self._met) > _MET:
                    self._met.popitem(last=False)
        details = str(get("response_details", ""))
        subject = str(get("subject", ""))
        failed = not subject and (get("status") == 401 or details.startswith(_FAILED))
        if not subject and not failed:
            return None
        roles, patients = get("roles", ()), get("patients", ())
        # What reached the service was seen, whatever was decided.
        status: Any = get("status", 0)
        allowed = bool(get("allowed")) or (kind == "access" and 200 <= status < 400)
        return Event(
            record_id(record), time, subject, tuple(roles), str(get("tenant", "")),  # type: ignore[arg-type]
            tuple(patients), allowed, str(get("path", "")), str(get("source_ip", "")),  # type: ignore[arg-type]
            str(get("country", "")), str(get("user_agent", "")), bool(get("break_glass")),
            get("reason_code") == "blocked", failed, first,
        )  # fmt: skip


def record_id(record: Record) -> str:
    """``ORIGIN@INDEX``; of a record that is in no log yet, whatever names its request."""
    if "origin" in record:
        return f"{record['origin']}@{record.get('index', 0)}"
    return str(record.get("decision_id") or record.get("request_id") or "")
