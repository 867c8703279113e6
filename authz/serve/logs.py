"""JSON logs on standard error. Nothing in them may hold a header, a token, a path or a name."""

import logging
import sys

import structlog
from structlog.typing import EventDict


def configure(*, dry_run: bool = False) -> None:
    """Send our log lines, and the libraries' warnings, to standard error as JSON. Under `dry_run`
    each line says so."""

    def mark(_logger: object, _method: str, event: EventDict) -> EventDict:
        return {"dry_run": True, **event} if dry_run else event

    def ordered(_logger: object, _method: str, event: EventDict) -> EventDict:
        """For who reads them as they come: first when, how bad, and what."""
        return {"time": "", "level": "", "message": "", **event}

    structlog.configure(
        processors=[
            mark,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.ExceptionRenderer(),
            structlog.processors.EventRenamer("message"),
            ordered,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
