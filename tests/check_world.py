"""A Check service with an engine, a disk and a receiver that a test can stop, break and let go."""

import threading
import time

import orjson
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from authz.blocks import Blocks
from authz.config import ExtAuthz
from authz.identity.config import IdentityConfig
from authz.identity.sources import Identities
from authz.journal.chain import Chain, split
from authz.journal.group import GroupCommit
from authz.journal.receipts import Receipts
from authz.journal.segments import Journal, JournalError
from authz.places import nowhere
from authz.policy.engine import Decisions
from authz.record.privacy import PrivacyKey
from authz.record.resource import Resources
from authz.serve.check import CheckService
from authz.serve.core_server import Exchange
from authz.serve.metrics import CHECKS

ALLOW = {"allowed": True, "audit": {"subject": "ash"}}


class Call(Exchange):
    """A call without gRPC: keeps its answers, or breaks at the first."""

    __slots__ = ("answers", "broken", "decision_id")

    def __init__(self, path="/fhir/Patient/1", *, seconds=60.0, broken=False, **headers):
        super().__init__(None, time.time() + seconds)
        request = CheckRequest()
        http = request.attributes.request.http
        http.method, http.path = "GET", path
        http.headers.update(headers)
        self.request = request.SerializeToString()
        self.answers = []
        self.broken = broken

    def answer(self, response):
        if self.broken:
            raise RuntimeError("broken call")
        self.answers.append(CheckResponse.FromString(response))

    @property
    def status(self):
        """The one answer's: 200 for an allow."""
        [answer] = self.answers
        return answer.denied_response.status.code or (403 if answer.status.code else 200)


class Watched(CheckService):
    """Tells each call its decision's id, which a late answer does not name."""

    def _begin(self, exchange):
        check = super()._begin(exchange)
        exchange.decision_id = check.decision_id
        return check


class Engine:
    """Decides by `decide_one`, which tests replace."""

    revision = "r1"

    def __init__(self):
        self.decide_one = lambda _: ALLOW
        self.free = threading.Event()
        self.free.set()
        self.reached = threading.Event()

    def decide(self, documents, until):
        self.reached.set()
        self.free.wait()
        return Decisions(self.revision, [self.decide_one(document) for document in documents])


class Disk(Journal):
    """A journal that fails while `failing`, and hangs while not `free`."""

    failing = False

    def __init__(self, directory):
        super().__init__(directory)
        self.free = threading.Event()
        self.free.set()
        self.reached = threading.Event()

    def append(self, payloads):
        self.reached.set()
        self.free.wait()
        if self.failing:
            raise JournalError("no disk")
        super().append(payloads)


class World:
    """A service and its parts; `watch_deadlines` runs. With `receipts`, answers wait for a
    receiver, whose part the test plays."""

    def __init__(self, directory, *, receipts=False, country=nowhere, **config):
        self.engine = Engine()
        self.journal = Disk(directory / "journal")
        self.keeper = GroupCommit(self.journal, Chain("w", self.journal))
        self.receipts = None
        if receipts:
            self.receipts = Receipts(self.keeper, config.get("timeout_ms", 250) / 1000)
        self.identities = Identities(IdentityConfig())
        self.key = PrivacyKey.of(bytes(32))
        self.service = Watched(
            ExtAuthz(**config), self.identities, Blocks(directory / "blocks.json", {}),
            self.engine, self.receipts or self.keeper, self.key, Resources(), country=country,
        )  # fmt: skip
        self.watching = threading.Thread(target=self.service.watch_deadlines)
        self.watching.start()

    def handle(self, *calls):
        self.service.handle(list(calls))
        return calls

    def handling(self, *calls):
        """As `handle`, in a thread of its own."""
        thread = threading.Thread(target=self.handle, args=calls)
        thread.start()
        return thread

    def records(self, call):
        """All of `call`, in the order of the journal."""
        self.keeper.drain()
        return [r for r in self.every() if r["decision_id"] == call.decision_id]

    def every(self):
        reader = self.journal.reader(1)
        found = [orjson.loads(split(payload)[0]) for payload in reader.take(1_000_000)]
        reader.close()
        return found

    def close(self):
        self.engine.free.set()
        self.journal.free.set()
        self.service.close()
        self.watching.join()
        self.keeper.close()
        self.journal.close()


@pytest.fixture
def world(tmp_path):
    made = []

    def make(**config):
        made.append(World(tmp_path, **config))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.002)


def reasons(records):
    return [record["reason_code"] for record in records]


def counted(reason_code):
    return sum(
        sample.value
        for metric in CHECKS.collect()
        for sample in metric.samples
        if sample.name == "authz_checks_total" and sample.labels["reason_code"] == reason_code
    )
