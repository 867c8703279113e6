"""Full: the receiver's disk, its journal, and ext-authz's disk. Nobody is told that something is
kept which is not, all say why, and all go on by themselves."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter

import grpc
import pytest
from clickhouse_driver.errors import ServerException
from envoy.service.auth.v3 import external_auth_pb2 as auth
from grpc_health.v1.health_pb2 import HealthCheckResponse

from authz.demo.stack import free_port
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import verify_store

from .cutting import Cutter
from .feeding import AUTHZ, Feeder, Server, check, health, ready, rss, site

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SMALL_BYTES = 6 << 20
MAX_BYTES = 1 << 20  # of a journal
GROWTH = 32 << 20  # of memory, while nothing is taken in


@pytest.fixture
def small_disk():
    """Mounts a disk of 6 MB at a directory."""
    with contextlib.ExitStack() as mounted:

        def mount(directory, size=SMALL_BYTES):
            directory.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"a full disk needs a tmpfs, which may not be mounted: {done.stderr}")
            mounted.callback(subprocess.run, ["umount", "-l", directory], check=True)

        yield mount


@pytest.fixture
def cutter(database):
    cutter = Cutter(database)
    yield cutter
    cutter.close()


async def fill(here, feeder, cutter):
    """Take ClickHouse away, and send until nothing more is taken."""
    await feeder.feed(0.3)
    await feeder.settle()
    cutter.away = True
    cutter.cut_all()
    limit = time.monotonic() + 30
    while await health(here.address) == SERVING:
        assert time.monotonic() < limit, "it does not get full"
        for _ in range(5):
            feeder.decide(50)
            feeder.tell()
            await asyncio.sleep(0.02)


async def not_taken(here, feeder):
    """While it is full: no more is acknowledged, whatever is sent; memory stays where it is."""
    acknowledged, sure = feeder.acknowledged, len(feeder.sure)
    before = here.rss()
    for _ in range(40):
        feeder.decide(100)
        feeder.tell()
        await asyncio.sleep(0.05)
    taken = feeder.acknowledged - acknowledged + len(feeder.sure) - sure
    print(f"full: {taken} still taken; {before >> 20} MB, then {here.rss() >> 20} MB")
    assert taken < 1000
    assert here.rss() < before + GROWTH
    assert await health(here.address) == NOT_SERVING
    assert here.metric("authz_receiver_journal_failing") == 1


async def filled_and_emptied(tmp_path, cutter, **settings):
    with site(tmp_path, cutter.url, **settings) as here:
        here.start()
        await ready(here)
        async with Feeder(tmp_path / "writer", here.address) as feeder:
            await fill(here, feeder, cutter)
            await not_taken(here, feeder)
            cutter.away = False
            begun = time.monotonic()
            await feeder.settle()
            print(f"all is taken {time.monotonic() - begun:.1f} s after ClickHouse came back")
            counted = check(here, feeder)
            assert counted.wrong == []
            assert feeder.unsure == set()
            await ready(here)
            assert here.metric("authz_receiver_journal_failing") == 0
        assert here.stop() == 0


@pytest.mark.thorough
def test_disk_of_the_receiver(tmp_path, small_disk, cutter):
    """With its disk full while ClickHouse is away, the receiver takes nothing more, and says so;
    once ClickHouse is back it empties by itself, for it left itself the room to do so."""
    small_disk(tmp_path / "receiver")
    asyncio.run(filled_and_emptied(tmp_path, cutter))


@pytest.mark.thorough
def test_bound_of_the_receiver(tmp_path, cutter):
    """So it is with its journal's own bound."""
    asyncio.run(filled_and_emptied(tmp_path, cutter, AUTHZ_JOURNAL__MAX_BYTES=str(MAX_BYTES)))


HASTY = """import authz.serve.receiver as receiver
receiver._DRAIN_SECONDS = 2
from authz.cli import main
main()
"""


@pytest.mark.thorough
@pytest.mark.parametrize("back", [True, False])
def test_stopped_while_full(tmp_path, cutter, back):
    """SIGTERM ends a receiver whose journal is full, with ClickHouse back or away for good; what it
    acknowledged is there after the next start."""

    async def run():
        with site(tmp_path, cutter.url, AUTHZ_JOURNAL__MAX_BYTES=str(MAX_BYTES)) as here:
            here.start(program=[sys.executable, "-c", HASTY])
            await ready(here)
            async with Feeder(tmp_path / "writer", here.address) as feeder:
                await fill(here, feeder, cutter)
                cutter.away = not back
                assert await asyncio.to_thread(here.stop) == 0
                cutter.away = False
                here.start()
                await feeder.settle()
                assert check(here, feeder).wrong == []

    asyncio.run(run())


@pytest.mark.thorough
def test_health_comes_back_without_traffic(tmp_path, cutter):
    """A receiver that got full is healthy once it is empty, though nobody sends anything: what is
    not healthy may be kept from all who would."""

    async def run():
        with site(tmp_path, cutter.url, AUTHZ_JOURNAL__MAX_BYTES=str(MAX_BYTES)) as here:
            here.start()
            await ready(here)
            async with Feeder(tmp_path / "writer", here.address) as feeder:
                await fill(here, feeder, cutter)
            assert await health(here.address) == NOT_SERVING
            cutter.away = False
            await ready(here)

    asyncio.run(run())


def test_disk_of_clickhouse(tmp_path, small_disk):
    """The embedded ClickHouse takes nothing in while there is still room on its disk: merges that
    are under way must not run out of it. What it has can be read, and it goes on by itself."""
    small_disk(tmp_path / "clickhouse", 256 << 20)
    server = Server(tmp_path / "clickhouse")
    try:
        with connect(server.store) as client:
            client.execute("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
            client.execute("INSERT INTO t SELECT number FROM numbers(1000)")
            disk = os.statvfs(tmp_path / "clickhouse")
            ballast = tmp_path / "clickhouse" / "ballast"
            with ballast.open("wb") as file:
                room = disk.f_bavail * disk.f_frsize - (32 << 20)
                os.posix_fallocate(file.fileno(), 0, room)
            with pytest.raises(ServerException, match="not enough space"):
                client.execute("INSERT INTO t SELECT number FROM numbers(1000)")
            assert client.execute("SELECT count() FROM t") == [(1000,)]
            ballast.unlink()
            client.execute("INSERT INTO t SELECT number FROM numbers(1000)")
            assert client.execute("SELECT count() FROM t") == [(2000,)]
    finally:
        server.stop()


POLICY = "package envoy.authz\nimport rego.v1\nallow := true\n"


class Checks:
    """An ext-authz with its data in `directory`, and Checks to it."""

    def __init__(self, directory, data_dir, receiver):
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        (directory / "policy.rego").write_text(POLICY)
        command = [*AUTHZ, "serve", "ext-authz", "--listen", self.address, "--data-dir", data_dir]
        command += ["--policy", directory / "policy.rego", "--receiver", receiver]
        with (directory / "ext-authz.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    async def ask(self, count):
        """The statuses that Envoy would give, 0 for allowed."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            ask = channel.unary_unary(
                "/envoy.service.auth.v3.Authorization/Check",
                request_serializer=auth.CheckRequest.SerializeToString,
                response_deserializer=auth.CheckResponse.FromString,
            )
            answers = await asyncio.gather(*[ask(request()) for _ in range(count)])
            return [answer.denied_response.status.code for answer in answers]


def request():
    asked = auth.CheckRequest()
    http = asked.attributes.request.http
    http.method, http.host, http.path = "GET", "fhir.example", "/fhir/Patient/1"
    http.headers["x-request-id"] = str(uuid.uuid4())
    http.headers["user-agent"] = "x" * 500
    return asked


async def served_again(checks, limit):
    """Ask until all of 50 at once are allowed (there is little room yet, or the machine is busy);
    how many were."""
    allowed, answers = 0, Counter()
    while answers != {0: 50}:
        assert time.monotonic() < limit, "it stays full"
        answers = Counter(await checks.ask(50))
        assert answers.keys() <= {0, 503}
        allowed += answers[0]
    return allowed


def test_disk_of_ext_authz(tmp_path, small_disk, database):
    """With its disk full while the receiver is away, ext-authz denies with 503 and is not healthy;
    once the receiver is there it goes on by itself, and every answer is on record."""
    small_disk(tmp_path / "ext-authz")

    async def run():
        with site(tmp_path, database) as here:
            checks = Checks(tmp_path, tmp_path / "ext-authz", here.address)
            try:
                limit = time.monotonic() + 60
                while await health(checks.address) != SERVING:
                    assert time.monotonic() < limit
                    await asyncio.sleep(0.05)
                answers = []
                while await health(checks.address) == SERVING:
                    assert time.monotonic() < limit, "it does not get full"
                    answers += await checks.ask(200)
                full = [await checks.ask(200) for _ in range(3)]  # what a denial needs is made once
                memory = rss(checks.process.pid)
                full += [await checks.ask(200) for _ in range(10)]
                print(f"full: {memory >> 20} MB, then {rss(checks.process.pid) >> 20} MB")
                assert set(itertools.chain(*full)) == {503}
                assert rss(checks.process.pid) < memory + GROWTH
                allowed = answers.count(0)
                assert set(answers) == {0, 503}
                here.start()
                await ready(here)
                begun = time.monotonic()
                while await health(checks.address) != SERVING:
                    assert time.monotonic() < begun + 30, "it stays full"
                    await asyncio.sleep(0.05)
                print(f"{allowed} allowed, then full; well again {time.monotonic() - begun:.1f} s"
                      " after the receiver")  # fmt: skip
                allowed += await served_again(checks, begun + 30)
            finally:
                checks.process.terminate()
                assert checks.process.wait(30) == 0
            assert here.stop() == 0
            return allowed

    allowed = asyncio.run(run())
    with connect(database) as client:
        query = "SELECT reason_code, count() FROM decisions GROUP BY reason_code"
        print("on record:", dict(client.execute(query)))
        report = verify_store(client, load_trust(tmp_path / "receiver" / "trust.yaml"))
        assert report.findings == []
        query = "SELECT uniqExact(decision_id) FROM decisions WHERE allowed"
        assert client.execute(query)[0][0] >= allowed
        events = "SELECT details FROM notices WHERE event = 'journal_unavailable'"
        told = [json.loads(details)["records"] for (details,) in client.execute(events)]
    print("told as not recorded:", told)
    assert told
