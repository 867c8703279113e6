"""The embedded ClickHouse as a child process: its configuration, its start, its clean stop."""

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from authz.errors import UnavailableError, UsageError
from authz.files import lock_directory
from authz.store.client import QUERY_ERRORS, connect

# Queries are kept for a week, so that `authz watch` can put on record who asked past authz.
# Some room is kept free: with it, a disk that gets full refuses inserts and merges before they
# begin. Without, a merge that runs out of room in the middle puts an empty part into service in
# place of what it merged, in this version of ClickHouse, and fsync_after_merge does not help.
_CONFIG = """<clickhouse>
  <listen_host>127.0.0.1</listen_host>
  <tcp_port>{tcp}</tcp_port>
  <http_port>{http}</http_port>
  <users_config>users.xml</users_config>
  <max_server_memory_usage>1500000000</max_server_memory_usage>
  <mark_cache_size>134217728</mark_cache_size>
  <storage_configuration><disks><default>
    <keep_free_space_bytes>67108864</keep_free_space_bytes>
  </default></disks></storage_configuration>
  <query_log>
    <database>system</database><table>query_log</table>
    <partition_by>event_date</partition_by><ttl>event_date + INTERVAL 7 DAY DELETE</ttl>
  </query_log>
  <logger><level>warning</level></logger>
</clickhouse>
"""

# `default` is whom the engine's own session logs in as, without a password: it may only open the
# ports and wait, and that one session is all it may have, so nobody gets in through it. Nobody can
# keep a query out of the log of queries.
_USERS = """<clickhouse>
  <profiles>
    <default>
      <log_queries_min_type>QUERY_FINISH</log_queries_min_type>
      <log_profile_events>0</log_profile_events>
      <log_query_settings>0</log_query_settings>
      <constraints>
        <log_queries><const/></log_queries>
        <log_queries_min_type><const/></log_queries_min_type>
        <log_queries_min_query_duration_ms><const/></log_queries_min_query_duration_ms>
        <log_queries_probability><const/></log_queries_probability>
      </constraints>
    </default>
    <boot>
      <max_sessions_for_user>1</max_sessions_for_user>
      <constraints><max_sessions_for_user><const/></max_sessions_for_user></constraints>
    </boot>
  </profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <password/><networks><ip>127.0.0.1</ip></networks>
      <profile>boot</profile><quota>default</quota>
      <grants>
        <query>GRANT SYSTEM LISTEN ON *.*</query>
        <query>GRANT READ ON FILE</query>
        <query>GRANT CREATE TEMPORARY TABLE ON *.*</query>
      </grants>
    </default>
    <admin>
      <password>{password}</password><networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile><quota>default</quota>
    </admin>
  </users>
</clickhouse>
"""

_DATABASE = "authz"
_START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running embedded ClickHouse. The URLs carry the administrator's generated password."""

    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    store: str
    http: str
    lock: int

    def stop(self) -> None:
        """The clean stop: up to 5 s while connections are open."""
        self.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.lock)


def start(data_dir: Path, tcp: int = 0, http: int = 0) -> Embedded:
    """Start the server on loopback ports (0: any free one) and wait until it answers.

    Raises `UsageError` for a taken port or an unwritable directory, `UnavailableError` when it
    does not come up; its log is ``DATA_DIR/clickhouse.log``.
    """
    if importlib.util.find_spec("chdb") is None:
        raise UsageError("the embedded ClickHouse is missing; run: pip install 'authz[demo]'")
    if tcp and tcp == http:
        raise UsageError(f"--http {http}: --tcp has that port; choose another")
    tcp, http = _free_port(tcp, "--tcp"), _free_port(http, "--http")
    home = data_dir.resolve()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = lock_directory(home)  # two in one would spoil each other's configuration
        password = _password(home / "admin.password")
        (home / "clickhouse-local.xml").write_text(_CONFIG.format(tcp=tcp, http=http))
        _write_private(home / "users.xml", _USERS.format(password=password))
        log = (home / "clickhouse.log").open("wb")
    except OSError as error:
        raise UsageError(
            f"--data-dir {data_dir}: {error.strerror}; choose a directory this user may write"
        ) from None
    deadline = time.monotonic() + _START_SECONDS
    with log:
        while True:
            process = subprocess.Popen(
                [sys.executable, "-m", "authz.store.embedded_server", str(home / "data")],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home,
                start_new_session=True,  # a Ctrl-C is the parent's to turn into a clean stop
            )
            assert process.stdin is not None
            url = f"clickhouse://admin:{password}@127.0.0.1:{tcp}/{_DATABASE}"
            if _ready(process, tcp, password, deadline):
                return Embedded(process, process.stdin, url, f"http://127.0.0.1:{http}", lock)
            process.kill()
            process.wait()
            if time.monotonic() > deadline:
                os.close(lock)
                raise UnavailableError(f"ClickHouse did not start; see {home / 'clickhouse.log'}")
            # A server that was just killed may still hold the directory: try again.
            time.sleep(0.2)


def _ready(process: "subprocess.Popen[bytes]", tcp: int, password: str, deadline: float) -> bool:
    """Whether it answers queries; false once the process has ended or time is up."""
    while process.poll() is None and time.monotonic() < deadline:
        client = connect(f"clickhouse://admin:{password}@127.0.0.1:{tcp}/default")
        try:
            client.execute(f"CREATE DATABASE IF NOT EXISTS {_DATABASE}")
        except QUERY_ERRORS:
            time.sleep(0.03)
        else:
            return True
        finally:
            client.disconnect()
    return False


def _free_port(port: int, option: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UsageError(f"{option} {port}: the port is in use; choose another") from None
        return int(probe.getsockname()[1])


def _password(path: Path) -> str:
    if not path.exists():
        _write_private(path, secrets.token_hex(16))
    return path.read_text()


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
