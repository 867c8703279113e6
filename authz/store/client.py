"""Connections to ClickHouse: clickhouse-driver, native protocol, one client per thread."""

import logging
from urllib.parse import SplitResult, urlsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException

from authz.errors import AuthzError, UnavailableError, UsageError

__all__ = [
    "BY_PATIENT",
    "BY_PERSON",
    "LOG_COMMENT",
    "QUERY_ERRORS",
    "Client",
    "connect",
    "explain",
    "name_of",
]  # others know no driver

LOG_COMMENT = "authz"
"""By this, together with the user, the server's log of queries tells whose a query is."""

# What a query raises: the driver's own errors, and bare ones from a broken socket.
QUERY_ERRORS = (ClickHouseError, EOFError, OSError)

# How the server plans. Of a log of years an index leaves nearly nothing to read, and then what is
# done for each part is what costs: its statistics, a filter by the best rows so far, an index read
# again with the rows. The log's copies in another order are for questions that name a person or a
# patient (`BY_PERSON`, `BY_PATIENT`); the server would also take them where they cost more.
_PLANS = {
    "use_statistics": 0,
    "use_top_k_dynamic_filtering": 0,
    "use_skip_indexes_on_data_read": 0,
    "optimize_use_projections": 0,
}
BY_PERSON = {"optimize_use_projections": 1, "preferred_optimize_projection_name": "by_person",
             "use_skip_indexes": 0}  # fmt: skip
"""Settings of a question about one person: their records lie together in a copy of the log."""
BY_PATIENT = BY_PERSON | {"preferred_optimize_projection_name": "by_patient"}
"""Of one about records by their first patient."""

# An answer means that it is done. In a cluster: done on the row's own shard, by most of the servers
# there; whatever server is asked, a shard's first one is written and read, while it is up and has
# all, so that who reads sees what was written. Whether a row is there already is ours to know:
# ClickHouse would also take one for there that was lost.
_SETTINGS = {
    **_PLANS,
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "insert_quorum": "auto",
    "insert_quorum_timeout": 30_000,
    "insert_deduplicate": 0,
    "load_balancing": "in_order",
    "prefer_localhost_replica": 0,
    "max_replica_delay_for_distributed_queries": 1,
    "log_comment": LOG_COMMENT,
}


def connect(url: str, **settings: object) -> Client:
    """A client for `url`, ``clickhouse://user:password@host:9000/database?secure=true``.

    What goes over a network is compressed (LZ4), unless the URL says otherwise (``compression``).
    Nothing is sent yet. Raises `UsageError`, which does not repeat the password.
    """
    # What the driver cannot do it raises; its own log only repeats it, with a traceback.
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("clickhouse", "clickhouses"):
            raise ValueError(f"its scheme is {parts.scheme or 'missing'}")
        if not parts.hostname:
            raise ValueError("its host is missing")
        if not _has_port(parts):
            raise ValueError("its port is wrong (in a password, write / ? # as %2F %3F %23)")
        client = Client.from_url(_compressed(parts))
    except ValueError as error:
        raise UsageError(
            f"--store: want clickhouse://user:password@host:9000/database, but {error}"
        ) from None
    client.connection.connect_timeout = 5
    client.connection.send_receive_timeout = 60
    client.settings |= {**_SETTINGS, **settings}
    return client


def _compressed(parts: SplitResult) -> str:
    # On one machine it only costs: 1.5 µs a row, three times what an insert costs without.
    if "compression=" in parts.query or parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return parts.geturl()
    return parts._replace(query="&".join(filter(None, (parts.query, "compression=lz4")))).geturl()


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is one, or left out. What stands in its place may be of the password."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def name_of(url: str) -> str:
    """`url` without its user and password, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 9000}{parts.path}"


def explain(error: Exception, url: str) -> AuthzError:
    """What a user can do about `error` from a query: one line, no stack trace of the server."""
    if isinstance(error, ServerException):
        text = str(error.message).split(". Stack trace")[0].removeprefix("DB::Exception: ")
        if error.code in (192, 193, 194, 516):
            return UsageError(f"ClickHouse at {name_of(url)} refuses the user or password")
        return UnavailableError(f"ClickHouse at {name_of(url)}: {text}")
    return UnavailableError(
        f"ClickHouse at {name_of(url)} does not answer; is it running? (authz serve clickhouse)"
    )
