"""What does not add up is told as what it is: with a real Envoy, each kind of trouble by itself."""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from live import ACCOUNTS, Account, Answer, Caller, Told, Tuned, account, edited, told
from relay import Relay

from authz.demo.people import Request
from authz.demo.stack import running
from authz.serve.decided import new_decision_id
from authz.store.client import connect

SERVED = Request("linden", "GET", "/fhir/metadata")
DENIED = Request("alder", "GET", "/fhir/Patient/p-0200")
OPEN = Request("linden", "GET", "/fhir/metadata?open")
SOON = "access_log_flush_interval: 1s"
ROUTE = "                        - match: {prefix: /}\n                          route:"
UNCHECKED = """                        - match:
                            prefix: /fhir/metadata
                            query_parameters: [{name: open, present_match: true}]
                          typed_per_filter_config:
                            envoy.filters.http.ext_authz:
                              "@type": type.googleapis.com/TYPE
                              disabled: true
                          route: {cluster: service}
""".replace("TYPE", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute")

GAPS = {
    "denied_but_reached": 1,
    "no_decision": 4,
    "bypass": 4,
}
LONG = Request("linden", "GET", "/fhir/_fault/stream?s=14")


class Relayed(Tuned):
    """A stack whose ways to the receiver can be cut: the decisions', and the access log's."""

    decisions: Relay
    accesses: Relay

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        self.decisions = Relay(self._receiver)
        command = self.parts["ext-authz"].command
        command[command.index("--receiver") + 1] = self.decisions.address

    def _add_envoy(self) -> None:
        receiver, self.accesses = self._receiver, Relay(self._receiver)
        self._receiver = self.accesses.address
        super()._add_envoy()
        self._receiver = receiver

    def forge(self, *decision_ids: str, decided_by: str = "") -> None:
        """Tell the receiver of accesses that no Envoy saw."""

        def messages() -> Iterator[als_pb2.StreamAccessLogsMessage]:
            message = als_pb2.StreamAccessLogsMessage()
            message.identifier.node.id = "forger"
            for decision_id in decision_ids:
                entry = message.http_logs.log_entry.add()
                common = entry.common_properties
                common.access_log_type = AccessLogType.DownstreamEnd
                common.upstream_wire_bytes_sent = 1
                common.upstream_remote_address.socket_address.address = "10.0.0.1"
                authz = {"allowed": True, "enforced": True, "decided_by": decided_by}
                said = {"decision_id": decision_id, "authz": json.dumps(authz)}
                common.metadata.filter_metadata["envoy.filters.http.ext_authz"].update(said)
            yield message

        with grpc.insecure_channel(self._receiver) as channel:
            als_pb2_grpc.AccessLogServiceStub(channel).StreamAccessLogs(messages(), timeout=10)


def ask(stack: Relayed, request: Request, count: int) -> list[Answer]:
    async def send() -> list[Answer]:
        async with Caller(stack) as caller:
            return [await caller.send(request) for _ in range(count)]

    return asyncio.run(send())


def wait_for(stack: Relayed, query: str, **values: str) -> str:
    """The first value that the query finds, as soon as it finds one."""
    with connect(stack.store) as client:
        for _ in range(400):
            if found := client.execute(query, values):
                return str(found[0][0])
            time.sleep(0.1)
    raise AssertionError(f"nothing found by {query}")


def decision_of(stack: Relayed, answer: Answer) -> str:
    """Its id, once the log has it."""
    query = "SELECT decision_id FROM decisions WHERE trace_id = %(trace)s"
    return wait_for(stack, query, trace=answer.trace)


@dataclass
class Day:
    """What was done, and what the log says of it."""

    found: Account
    told: Told
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """How many allowed requests have no access: the way was cut, and Envoy was killed with its
        buffer full."""
        names = ("cut", "buffered")
        return sum(one.trace not in self.found.accesses for n in names for one in self.answers[n])


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    receiver = {**ACCOUNTS, "AUTHZ_RECEIVER__WRITER_PATIENCE_SECONDS": "3"}
    directory = tmp_path_factory.mktemp("gaps")
    admin = f"unix://{directory / 'envoy-admin.sock'}"
    receiver["AUTHZ_RECEIVER__ENVOY_ADMINS"] = json.dumps([admin])
    bootstrap = edited((ROUTE, UNCHECKED + ROUTE), ("access_log_flush_interval: 20s", SOON))
    stack = Relayed(directory, bootstrap=bootstrap, receiver=receiver)
    answers = {}
    with running(stack, lambda _: None), ThreadPoolExecutor(1) as beside:
        long = beside.submit(ask, stack, LONG, 1)
        time.sleep(13)
        answers["ordinary"] = ask(stack, SERVED, 10)
        answers["long"] = long.result()
        time.sleep(1.5)
        stack.accesses.cut()
        answers["cut"] = ask(stack, SERVED, 20)
        [denied] = answers["denied"] = ask(stack, DENIED, 1)
        time.sleep(3)
        stack.accesses.mend()
        stack.forge(decision_of(stack, denied))
        stack.forge(new_decision_id(), new_decision_id(), new_decision_id())
        stack.forge(new_decision_id(), decided_by="writer-that-never-was")
        answers["unchecked"] = ask(stack, OPEN, 4)
        account(stack)
        wait_for(stack, "SELECT 1 FROM notices WHERE event = 'gap' AND rule = 'envoy_lost'")
        answers["buffered"] = ask(stack, SERVED, 10)
        stack.parts["envoy"].kill()
        stack.restart("envoy")
        account(stack)
        stack.decisions.cut()
        answers["orphaned"] = ask(stack, SERVED, 100)
        time.sleep(1.5)  # Envoy tells them
        stack.parts["ext-authz"].kill()
        shutil.rmtree(stack.data_dir / "ext-authz" / "journal")
        (stack.data_dir / "ext-authz" / "writer.json").unlink()
        stack.decisions.mend()
        stack.restart("ext-authz")
        account(stack)
        time.sleep(4)
        account(stack)
        yield Day(account(stack), told(stack.store), answers)
        stack.decisions.close()
        stack.accesses.close()


def test_requests_went_as_they_should(day):
    """All that was sent was answered as the policy says; only the accounts of it were lost."""
    for name, answers in day.answers.items():
        wanted = 403 if name == "denied" else 200
        assert Counter(answer.status for answer in answers) == {wanted: len(answers)}, name
    assert day.lost > 20


def test_each_kind_is_told(day):
    """Lost entries, bypasses, inventions and a lost writer are told apart, with their counts."""
    gaps = dict(day.told.gaps)
    # Told as away first, if the patience with it was not over when its interval was.
    assert gaps.pop("writer_away", 0) + gaps.pop("writer_lost", 0) == 100
    # By Envoy's own counters, of those that went on their way when that was cut.
    assert 0 < gaps.pop("envoy_lost") <= 21
    assert gaps == {**GAPS, "no_access": day.lost, "no_disclosure": 100}
    assert day.told.closed == {}


def test_the_writer_is_told_as_lost_once(day):
    """One notice names the writer whose volume is gone, and how far the log has it."""
    lost = [notice for notice in day.told.notices if notice["event"] == "writer_lost"]
    assert [notice["last_seq"] > 0 for notice in lost] == [True]


def test_a_verifier_finds_the_same(day):
    """The whole count, made again by verify, is the same; and all records are as they were."""
    report = day.found.report
    assert report.verified, report.findings
    assert report.gaps == {**GAPS, "no_access": day.lost, "writer_lost": 100, "no_disclosure": 100}


def test_a_long_request_is_no_gap(day):
    """A request that runs for longer than the grace time is told as open, and then explained."""
    [answer] = day.answers["long"]
    assert len(day.found.decisions[answer.trace]) == len(day.found.accesses[answer.trace]) == 1
    assert day.told.sums["open"] == 1
    assert day.told.sums["explained_late"] >= 1
