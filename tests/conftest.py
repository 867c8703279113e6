"""What tests share: a real ClickHouse for the session, an empty database for a test, and OPA."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from authz.store import embedded
from authz.store.client import connect

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _own_log_settings() -> Iterator[None]:
    """A command that is run here, in this process, leaves nothing to other tests."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory) -> Iterator[embedded.Embedded]:
    """The embedded ClickHouse, started once."""
    server = embedded.start(tmp_path_factory.mktemp("clickhouse"))
    yield server
    server.stop()


@pytest.fixture
def database(clickhouse) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    name = f"t{uuid.uuid4().hex}"
    with connect(clickhouse.store) as client:
        client.execute(f"CREATE DATABASE {name}")
        yield clickhouse.store.rpartition("/")[0] + "/" + name
        client.execute(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def opa() -> str:
    """The OPA program. Without it its tests are skipped, and in CI that is a failure."""
    found = shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))
    if found is None:
        reason = "needs OPA: go install github.com/open-policy-agent/opa@v1.22.2"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
