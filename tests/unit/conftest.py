"""What tests share: a log, and one to tamper with."""

import pytest
from logs import TestLog
from verified import fill, found, reset

from authz.store.client import connect


@pytest.fixture(scope="session")
def untouched_log(clickhouse, tmp_path_factory):
    """A database with an untouched log, and a second one to tamper with."""
    url = clickhouse.store.rpartition("/")[0]
    with connect(clickhouse.store) as admin:
        for name in ("verify_base", "verify_copy"):
            admin.execute(f"CREATE DATABASE {name}")
        log = TestLog(tmp_path_factory.mktemp("log"), f"{url}/verify_base")
        fill(log)
        log.end()
        other = TestLog(tmp_path_factory.mktemp("log"), f"{url}/verify_copy")
        other.end()
        yield f"{url}/verify_copy"
        for name in ("verify_base", "verify_copy"):
            admin.execute(f"DROP DATABASE {name}")


@pytest.fixture
def copied(untouched_log, monkeypatch):
    """The copy, as it was."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0.1)
    with connect(untouched_log, mutations_sync=1) as client:
        reset(client)
        yield client


@pytest.fixture
def log(database, tmp_path):
    """An empty log in a database of its own."""
    log = TestLog(tmp_path, database)
    yield log
    log.end()


@pytest.fixture
def new_log(log, monkeypatch):
    """The same, to be verified at once."""
    monkeypatch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0.1)
    return log


@pytest.fixture
def sealed(new_log):
    """Builds a log of records that `spoil` changed before sealing; returns its findings."""

    def build(spoil):
        fill(new_log, spoil)
        return found(new_log.client)

    return build
