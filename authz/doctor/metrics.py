"""What the Check server's own metrics say of it."""

import http.client
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
_WANTED: Final = (DRY_RUN, _FILL, _CONNECTED, _UNSENT)
_SECONDS: Final = 5
_FILLING, _FULL = 0.5, 0.9


def metrics(address: str) -> Iterator[Finding]:
    """Whether decisions are enforced, and whether they get away."""
    values = read(address)
    if missing := [name for name in _WANTED if name not in values]:
        raise UnavailableError(f"no metrics of `authz serve ext-authz`: {', '.join(missing)}")
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
    yield _journal(address, values[_FILL])
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


def _journal(address: str, fill: float) -> Finding:
    seen = f"the journal is {fill:.0%} full"
    if fill < _FILLING:
        return Finding(Level.OK, address, seen)
    return Finding(
        Level.FAIL if fill >= _FULL else Level.WARN, address, seen,
        "at 100 % every request is denied (503 `journal_unavailable`)",
        "see that the receiver takes records; raise journal.max_bytes",
    )  # fmt: skip


def read(address: str) -> dict[str, float]:
    """The metrics without labels at `address` (host:port). Raises `UnavailableError`."""
    host, _, port = address.rpartition(":")
    try:
        with closing(
            http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_SECONDS)
        ) as to:
            to.request("GET", "/metrics")
            text = to.getresponse().read().decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(
            f"no metrics ({type(error).__name__}); is --metrics right?"
        ) from None
