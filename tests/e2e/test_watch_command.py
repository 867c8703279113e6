"""`authz watch` against a real receiver: what it finds is on record, once, whatever it dies of."""

import asyncio
import contextlib
import json
import signal
import subprocess
import time

import orjson
import pytest
from programs import AUTHZ, run, until
from receiving import receiving
from relay import Holding

from authz import config
from authz.serve import tls
from authz.serve.tell import tell
from authz.store.client import connect
from tests.detected import DAY_US, FIRST_DAY, access

ORIGIN = "test/receiver"


@pytest.fixture
def site(clickhouse, tmp_path):
    """A receiver, and a store of its own: (directory, receiver's address, client, world)."""
    name = f"watch_{time.time_ns()}"
    with receiving(clickhouse, tmp_path, name, ORIGIN) as there, connect(there.store) as client:
        yield tmp_path, there.address, client, there.ours


def write(site, records):
    """Into the log, as a writer's decisions."""
    directory, address, client, _ = site
    options = config.load(None, {"ext_authz": {"receiver": address}}).ext_authz
    before = count(client, "decisions")
    asyncio.run(tell(address, tls.to_receiver(options), directory / "writer", records))
    assert until(lambda: count(client, "decisions") >= before + len(records), 30)


def count(client, table):
    return client.execute(f"SELECT count() FROM {table}")[0][0]


def bulk(subject, number, begin):
    """So many charts within minutes, from now on."""
    now = time.time_ns() // 1000
    return [
        access(subject, 0, 0, f"{subject}-{n}") | {
            "kind": "decision", "decision_id": f"{subject}-{begin + n}", "time": now + n * 1000,
        }
        for n in range(number)
    ]  # fmt: skip


@contextlib.contextmanager
def watching(site, *arguments):
    """The command, for as long as the block lasts; what it has printed."""
    directory, _, _, ours = site
    out = directory / f"out-{time.time_ns()}"
    command = [*AUTHZ, "watch", "--json", "--data-dir", directory / "watch", *arguments]
    with out.open("w") as file, (directory / "err").open("a") as errors:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=errors,
            env=ours.environment,
        )
        try:
            yield process, lambda: [orjson.loads(line) for line in out.read_text().splitlines()]
        finally:
            process.kill()
            process.wait()


_PLACES = "SELECT index FROM decisions WHERE subject = 'n.reed'"


def findings(client):
    columns = "subject, rule, lane, evidence, records, JSONExtractString(details, 'key')"
    return client.execute(f"SELECT {columns} FROM findings ORDER BY index")


def test_found_while_it_happens_and_once(site):
    """A bulk read is told and on record while the reader goes on; a watch that is killed and
    started again makes none anew, and one that comes late finds what happened meanwhile."""
    _, _, client, _ = site
    with watching(site) as (process, told):
        time.sleep(1)
        write(site, bulk("n.reed", 120, 0))
        assert until(lambda: findings(client) and told(), 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = findings(client)
    assert {row[0] for row in first} == {"n.reed"}
    assert "different patients" in first[0][3]
    decided = {f"{ORIGIN}@{index}" for (index,) in client.execute(_PLACES)}
    assert set(first[0][4]) <= decided
    write(site, bulk("n.sedge", 120, 0))
    with watching(site) as (process, told):
        assert until(lambda: "n.sedge" in {row[0] for row in findings(client)}, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    keys = [row[5] for row in findings(client)]
    assert len(keys) == len(set(keys))
    assert [row for row in findings(client) if row[0] == "n.reed"][: len(first)] == first
    with watching(site, "--once") as (process, told):
        assert process.wait(60) == 0
        assert not told()
    assert [row[5] for row in findings(client)] == keys


@pytest.mark.thorough
def test_stopped_in_the_middle_of_a_look(site):
    """It ends when the look has, and well; what that found is on record later, once."""
    directory, _, client, ours = site
    store = ours.environment["AUTHZ_STORE"]
    address = store.rpartition("@")[2].partition("/")[0]
    relay = Holding(address, b"FROM audit_log WHERE origin = ")
    with watching(site, "--store", store.replace(address, relay.address)) as (process, _):
        running = "queries past authz are put on record"
        assert until(lambda: running in (directory / "err").read_text(), 30)
        write(site, bulk("n.reed", 120, 0))
        assert relay.held.wait(30)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None, (directory / "err").read_text()
        relay.may.set()
        assert process.wait(30) == 0, (directory / "err").read_text()
    relay.close()
    with watching(site):
        assert until(lambda: findings(client), 30)
        time.sleep(2)
    keys = [row[5] for row in findings(client)]
    assert len(keys) == len(set(keys))


@pytest.mark.thorough
def test_without_a_receiver(site, tmp_path):
    """It makes its directory and learns; `--what-if` goes by that."""
    _, _, _, ours = site
    alone = {name: it for name, it in ours.environment.items() if "RECEIVER" not in name}
    here = ("--data-dir", tmp_path / "new")
    run([*AUTHZ, "watch", "--once", *here], ours, env=alone)
    told = run([*AUTHZ, "watch", "--what-if", "--json", *here], ours, env=alone)
    assert orjson.loads(told.stdout)


@pytest.mark.thorough
def test_days_are_told_once(site, tmp_path):
    """Each day that is over, with the share of accesses that nothing explains; a second watch that
    learns the same tells none again."""
    _, _, client, ours = site
    midnight = time.time_ns() // 1000 // DAY_US * DAY_US
    times = [midnight - 3, midnight - 2, midnight - 1, midnight]
    write(site, [
        access("n.rush", 0, 0, f"p{n}")
        | {"kind": "decision", "time": at, "decision_id": f"rush-{n}"}
        for n, at in enumerate(times)
    ])  # fmt: skip
    days = "SELECT details FROM notices WHERE event = 'watch_day' ORDER BY index"
    for number in range(2):
        run([*AUTHZ, "watch", "--once", "--data-dir", tmp_path / str(number)], ours)
    assert until(lambda: client.execute(days), 20)
    [told] = [orjson.loads(details) for (details,) in client.execute(days)]
    assert (told["day"] + 1) * DAY_US == midnight
    assert (told["people"], told["charts"], told["unexplained"]) == (1, 3, 3)


def test_replay_prints_a_line_for_each(site, tmp_path):
    """The same rules over a file: the fields of the contract; a line that is none is named."""
    _, _, _, ours = site
    path = tmp_path / "records.ndjson"
    records = [access("n.reed", 0, 9 + n / 100, f"p-{n}") for n in range(200)]
    path.write_bytes(b"\n".join(map(orjson.dumps, records)))
    done = run([*AUTHZ, "watch", "--replay", path, "--json"], ours)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    for finding in found:
        assert {"time", "subject", "rule", "lane", "score", "evidence", "records"} == set(finding)
        assert finding["subject"] == "n.reed"
        assert finding["time"].startswith("2026-01-01T")
    assert FIRST_DAY % DAY_US == 0
    path.write_bytes(b'{"kind": "access", "time": "noon"}\n')
    done = run([*AUTHZ, "watch", "--replay", path], ours)
    assert done.returncode == 2
    assert "line 1: time: want microseconds" in done.stderr
