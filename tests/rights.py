"""The users of deploy/clickhouse on a server of a test's own; each one's password is its name."""

import gc
import hashlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from clickhouse_client import statements
from clickhouse_driver import Client
from programs import CHECKOUT
from typer.testing import CliRunner

from authz.cli import program
from authz.errors import AuthzError
from authz.store import embedded

HERE = CHECKOUT / "deploy" / "clickhouse"
# What a test itself wants: an administrator who sees all users.
_ADMIN = "<users><admin><access_management>1</access_management></admin></users>"


def names(*files: str) -> list[str]:
    """The users in these files of ``users.d``."""
    text = "".join((HERE / "users.d" / file).read_text() for file in files)
    return [name.lower() for name in re.findall(r'from_env="AUTHZ_(\w+)_SHA256"', text)]


@contextmanager
def users(home: Path, *files: str, more: str = "") -> Iterator[None]:
    """A server that starts in `home` within this has the users of these files of ``users.d``, and
    those of the elements `more`."""
    (home / "users.d").mkdir(parents=True)
    for file in files:
        shutil.copy(HERE / "users.d" / file, home / "users.d")
    (home / "users.d" / "test.xml").write_text(f"<clickhouse>{_ADMIN}</clickhouse>")
    (home / "users.d" / "more.xml").write_text(f"<clickhouse><users>{more}</users></clickhouse>")
    with pytest.MonkeyPatch.context() as patch:
        for name in names(*files):
            digest = hashlib.sha256(name.encode()).hexdigest()
            patch.setenv(f"AUTHZ_{name.upper()}_SHA256", digest)
        yield


def configured(home: Path, **parts: str) -> None:
    """Give the server that starts in `home` further parts of a configuration."""
    (home / "clickhouse-local.d").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        text = f"<clickhouse>{part}</clickhouse>"
        (home / "clickhouse-local.d" / f"{name}.xml").write_text(text)


def shipped(home: Path, file: str, instead: Mapping[str, str] = {}) -> None:
    """The same with a file of ``config.d``, in which each text of `instead` becomes another."""
    text = (HERE / "config.d" / file).read_text()
    for old, new in instead.items():
        assert old in text
        text = text.replace(old, new)
    (home / "clickhouse-local.d").mkdir(parents=True, exist_ok=True)
    (home / "clickhouse-local.d" / file).write_text(text)


@contextmanager
def serving(home: Path, *files: str) -> Iterator[embedded.Embedded]:
    """A server with the users of these files."""
    with users(home, *files):
        server = embedded.start(home)
    try:
        yield server
    finally:
        server.stop()


def told_in_sql(admin: Client, *files: str) -> set[str]:
    """The statements of these files of ``sql``, as ClickHouse writes them."""
    found: set[str] = set()
    for file in files:
        for statement in statements(HERE / "sql" / file):
            query = "SELECT formatQuerySingleLine(%(text)s)"
            [(told,)] = admin.execute(query, {"text": statement})
            found |= _plain(told)
    return found


def told_by_server(admin: Client) -> set[str]:
    """The same of all that the server has, but for its own users."""
    found = {each for (told,) in admin.execute("SHOW ACCESS") for each in _plain(told)}
    its = (
        r"CREATE (USER|SETTINGS PROFILE|QUOTA) (admin|boot|default)\b|GRANT .* TO (admin|default)\b"
    )
    return {each for each in found if not re.match(its, each)}


def _plain(statement: str) -> set[str]:
    """Without what the two forms write differently: whether it is there already, the password, the
    database that is the session's, numbers. Roles that are granted together stand alone."""
    statement = re.sub(r" (IF NOT EXISTS|OR REPLACE)", "", statement).replace("`", "")
    statement = re.sub(r"IDENTIFIED WITH sha256_\w+( BY \S+)?", "IDENTIFIED", statement)
    statement = re.sub(
        r"(\d)\.(?= |,|$)", r"\1", statement.replace("false", "0").replace("true", "1")
    )
    if granted := re.fullmatch(r"GRANT ((?:\w+, )*\w+) TO (\w+)", statement):
        return {f"GRANT {role} TO {granted[2]}" for role in granted[1].split(", ")}
    if "TABLE ENGINE" in statement or re.search(r" ON (REMOTE|DISK) ", statement):
        return {statement}
    return {re.sub(r" ON (?=[\w*]+ (FOR SELECT|TO) )", " ON authz.", statement)}


def authz(environment: Mapping[str, str], *line: str | Path) -> tuple[int, str]:
    """Runs a command here: its exit code, and what it prints. How it logs ends with it."""
    before, configure = structlog.get_config(), structlog.configure

    def uncached(**settings: Any) -> None:
        configure(**settings | {"cache_logger_on_first_use": False})

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", uncached)
        # A command leaves its connections to the end of its process, which goes on here.
        warnings.simplefilter("ignore", ResourceWarning)
        done = CliRunner().invoke(program(), list(map(str, line)), env=dict(environment))
        code, told = done.exit_code, done.output
        if isinstance(done.exception, AuthzError):
            code, told = done.exception.exit_code, str(done.exception)
        del done
        gc.collect()
    configure(**before)
    return code, told


def as_user(store: str, name: str) -> str:
    """`store`, an administrator's URL, as that of another user."""
    return re.sub("//.*@", f"//{name}:{name}@", store)
