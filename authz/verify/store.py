"""Verification of the logs in a ClickHouse."""

from typing import Any

from authz.store.client import Client
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify.logs import Progress, State, verify_logs
from authz.verify.report import Report


def verify_store(
    client: Client,
    logs: list[TrustedLog],
    state: State | None = None,
    progress: Progress = lambda _done, _all: None,
    **part: Any,
) -> Report:
    """Check `logs` in `client`'s current database: `authz.verify.logs.verify_logs`."""
    return verify_logs(StoredLogs(client), logs, state, progress, **part)
