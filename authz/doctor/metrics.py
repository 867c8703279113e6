"""What the metrics of authz's own servers say of them."""

import http.client
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from authz.doctor.findings import Finding, Level
from authz.errors import UnavailableError

_STALE: Final = "authz_policy_stale"
DRY_RUN: Final = "authz_dry_run"
_FILL: Final = "authz_journal_fill_ratio"
_CONNECTED: Final = "authz_writer_connected"
_UNSENT: Final = "authz_writer_unacknowledged"
_WAITING: Final = "authz_receiver_waiting"
_FAILING: Final = "authz_receiver_journal_failing"
_RECEIVER_FILL: Final = "authz_receiver_journal_fill_ratio"
_QUERIES: Final = "authz_watch_query_log"
_AWAY: Final = re.compile(r"authz_receiver_(envoy|anchor)_up=(.*)")
_WANTED: Final = (DRY_RUN, _FILL, _CONNECTED, _UNSENT)
_SECONDS: Final = 5
_FILLING, _FULL = 0.5, 0.9


def metrics(address: str) -> Iterator[Finding]:
    """Of the Check server: whether decisions are enforced and get away. Of a receiver: whether
    records are taken in and stored. Of watch: whether it sees who asks the database."""
    values = read(address)
    if _WAITING in values:
        yield from _receiver(address, values)
    elif _QUERIES in values:
        yield from _watch(address, values)
    elif missing := [name for name in _WANTED if name not in values]:
        raise UnavailableError(f"no metrics of `authz serve ext-authz`: {', '.join(missing)}")
    else:
        yield from _check_server(address, values)


def _receiver(address: str, values: dict[str, float]) -> Iterator[Finding]:
    if values[_FAILING]:
        yield Finding(
            Level.FAIL, address, "the receiver takes nothing in",
            "its journal or its disk is full or failing: decisions wait, accesses are lost",
            "see its log; make room, or mend the disk",
        )  # fmt: skip
    yield _journal(
        address, values[_RECEIVER_FILL], f"; {values[_WAITING]:.0f} records are not stored yet",
        "at 100 % the receiver takes nothing in", "see that ClickHouse is up and takes inserts",
    )  # fmt: skip
    for name, value in values.items():
        if value == 0 and (away := _AWAY.match(name)):
            what = {"envoy": "Envoy's admin interface", "anchor": "the anchor or witness"}[away[1]]
            yield Finding(
                Level.WARN, address, f"{what} {away[2]} does not answer the receiver",
                "what that Envoy lost is not told" if away[1] == "envoy" else
                "a log that is taken back shows later",
                "see the receiver's log; is the address right, and may its user open it?",
            )  # fmt: skip


def _watch(address: str, values: dict[str, float]) -> Iterator[Finding]:
    if values[_QUERIES]:
        yield Finding(Level.OK, address, "who asks the database past authz is put on record")
    else:
        yield Finding(
            Level.FAIL, address, "watch does not see the database's log of queries",
            "who asks the database itself, past authz, is not on record",
            "GRANT SELECT ON system.query_log to its user; see its log (docs/operating.md)",
        )  # fmt: skip


def _check_server(address: str, values: dict[str, float]) -> Iterator[Finding]:
    if values[DRY_RUN]:
        yield dry_run(address)
    else:
        yield Finding(Level.OK, address, "decisions are enforced (no dry run)")
    if values.get(_STALE):
        yield Finding(
            Level.FAIL, address, "the policy cannot be read",
            "its files do not compile, and an older revision decides; or its OPA does not answer,"
            " and every request is denied (503 `policy_unavailable`)",
            "see the reason in its log; `authz policy check` names the line, or the server",
        )  # fmt: skip
    yield _journal(
        address, values[_FILL], "", "at 100 % every request is denied (503 `journal_unavailable`)",
        "see that the receiver takes records; raise journal.max_bytes",
    )  # fmt: skip
    if values[_CONNECTED]:
        yield Finding(Level.OK, address, "connected to the receiver")
    else:
        yield Finding(
            Level.WARN, address,
            f"not connected to the receiver; {values[_UNSENT]:.0f} records wait",
            "decisions stay in the journal; when it is full, every request is denied (503)",
            "see that the receiver is up, and ext_authz.receiver its address",
        )  # fmt: skip


def dry_run(address: str) -> Finding:
    return Finding(
        Level.WARN, address, "DRY RUN: every request is allowed",
        "decisions are recorded and not enforced: what the policy denies is served all the same",
        "set ext_authz.dry_run: false",
    )  # fmt: skip


def _journal(address: str, fill: float, more: str, why: str, mend: str) -> Finding:
    seen = f"the journal is {fill:.0%} full{more}"
    if fill < _FILLING:
        return Finding(Level.OK, address, seen)
    return Finding(Level.FAIL if fill >= _FULL else Level.WARN, address, seen, why, mend)


def read(address: str) -> dict[str, float]:
    """The metrics at `address` (host:port), by name; those with one label by `name=value`. Raises
    `UnavailableError`."""
    host, _, port = address.rpartition(":")
    try:
        with closing(
            http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_SECONDS)
        ) as to:
            to.request("GET", "/metrics")
            text = to.getresponse().read().decode()
        return {
            "=".join((sample.name, *sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if len(sample.labels) <= 1
        }
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(
            f"no metrics ({type(error).__name__}); is --metrics right?"
        ) from None
