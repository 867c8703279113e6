"""What people ask the database themselves goes on record by `authz watch`, once, whatever dies."""

import time
from contextlib import contextmanager

import pytest
from clickhouse_driver import Client
from programs import AUTHZ, until
from receiving import receiving

from authz.demo.stack import Part
from authz.record import details_of
from authz.store.client import connect

ORIGIN = "test/receiver"
FIRST, SECOND, THIRD = 20, 15, 10


@pytest.fixture
def there(clickhouse, tmp_path):
    """A receiver with a database of its own."""
    with receiving(clickhouse, tmp_path, f"sql_{time.time_ns()}", ORIGIN) as site:
        yield site


@contextmanager
def watching(there):
    command = [*AUTHZ, "watch", "--data-dir", str(there.directory / "watch")]
    part = Part("watch", command, there.directory / "watch.log", dict(there.ours.environment), "")
    try:
        part.start()
        yield part
    finally:
        part.stop()


def looks(store):
    """What is on record: the keys of the queries, and their texts."""
    with connect(store) as client:
        client.execute("SYSTEM FLUSH LOGS")
        rows = client.execute("SELECT details FROM notices WHERE event = 'look' ORDER BY index")
    told = [details_of({"details": details}) for (details,) in rows]
    return [key for it in told for key in it["queries"]], {it["query"] for it in told}


@pytest.mark.thorough
def test_on_record_once(there):
    """Each query of somebody who knows a password is on record within seconds, once, though watch
    is killed in the middle of it, twice; and none of watch's own."""
    with Client.from_url(there.store) as person:

        def ask(times):
            for number in range(times):
                person.execute(f"SELECT count() FROM requests WHERE subject = 'p-{number}'")

        wanted = 0
        for times in (FIRST, SECOND):
            ask(times)
            wanted += times
            with watching(there) as part:
                assert until(lambda: looks(there.store)[0], 60)
                ask(times)
                wanted += times
                part.kill()
        with watching(there):
            ask(THIRD)
            wanted += THIRD
            assert until(lambda: len(looks(there.store)[0]) >= wanted, 60)
            time.sleep(6)  # another pass
    keys, texts = looks(there.store)
    assert (len(keys), len(set(keys))) == (wanted, wanted)
    assert texts == {"SELECT count() FROM requests WHERE subject = ?"}
