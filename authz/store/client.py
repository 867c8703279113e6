"""Connections to ClickHouse: clickhouse-driver, native protocol, one client per thread."""

import logging
from urllib.parse import urlsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import NetworkError, ServerException

from authz.errors import AuthzError, UnavailableError, UsageError

# What a broken connection raises: the driver's own errors, and bare ones from the socket.
CONNECTION_ERRORS = (NetworkError, EOFError, OSError)
QUERY_ERRORS = (ClickHouseError, EOFError, OSError)


def connect(url: str, **settings: object) -> Client:
    """A client for `url`, ``clickhouse://user:password@host:9000/database?secure=true``.

    Nothing is sent yet. Raises `UsageError`, which does not repeat the password.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("clickhouse", "clickhouses") or not parts.hostname or port == 0:
        raise UsageError(
            "--store: want clickhouse://user:password@host:9000/database, "
            f"not {parts.scheme or 'no scheme'}://{parts.hostname or 'no host'}"
        )
    # What the driver cannot do it raises; its own log only repeats it, with a traceback.
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)
    client = Client.from_url(url)
    client.connection.connect_timeout = 5
    client.connection.send_receive_timeout = 60
    client.connection.compression_enabled = True
    client.settings |= {"async_insert": 0, **settings}
    return client


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
