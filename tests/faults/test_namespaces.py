"""Services in pods whose links are cut and mended: what is let through, and what the log has of it.

Pods are network namespaces, so this needs root: `make namespaces`.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from live import Answer, Told, told
from programs import until

from authz.demo.people import Request
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import Report, verify_store

from .pods import SERVICES, Pods, pods, workload

pytestmark = [pytest.mark.namespaces, pytest.mark.opa]

REQUESTS = [
    Request("linden", "GET", "/fhir/metadata"),
    Request("alder", "GET", "/fhir/Patient/p-0001"),
    Request("birch", "GET", "/fhir/Patient/p-0001", expect="deny"),
]
BRIEF_SECONDS = 3
LONG_SECONDS = 45  # longer than it takes Envoy to find that a peer is gone: 30 + 5 s
_PATIENCE_SECONDS = 120

Answers = dict[str, list[Answer]]  # by caller


@dataclass
class Found:
    """What became of it all."""

    phases: dict[str, Answers] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)
    """Seconds after a link was mended until requests were answered as they should be."""
    delivered: dict[str, float] = field(default_factory=dict)
    """The same, until every decision was in the log."""
    lost: set[str] = field(default_factory=set)
    report: Report | None = None
    told: Told | None = None
    decisions: dict[str, tuple[str, bool, str, str]] = field(default_factory=dict)
    """By trace id: its decision's id, whether it allows, its reason code and principal."""
    accesses: Counter[str] = field(default_factory=Counter)
    """How many each decision has."""


def expected(request: Request) -> int:
    return 200 if request.expect == "allow" else 403


def every(found: Found) -> list[Answer]:
    return [one for phase in found.phases.values() for some in phase.values() for one in some]


def statuses(answers: Answers) -> Counter[int]:
    return Counter(one.status for some in answers.values() for one in some)


def recovers(house: Pods) -> float:
    """How long it takes from now until every service answers as it should."""
    begin = time.monotonic()
    for caller in SERVICES:
        while not all(one.status == expected(one.request) for one in house.call(caller, REQUESTS)):
            assert time.monotonic() < begin + _PATIENCE_SECONDS
            time.sleep(0.1)
    return time.monotonic() - begin


def cut(house: Pods, found: Found, name: str, host: str, seconds: float) -> None:
    """Under load, so long; then until all is well again."""
    house.net.cut(host)
    found.phases[name] = house.call_for(seconds, REQUESTS)
    house.net.mend(host)
    mended = time.monotonic()
    found.recovered[name] = recovers(house)
    assert until(lambda: not undelivered(house, found), _PATIENCE_SECONDS)
    found.delivered[name] = time.monotonic() - mended
    assert until(lambda: in_touch(house), _PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def found(tmp_path_factory, opa):
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    found = Found()
    with pods(tmp_path_factory.mktemp("pods"), opa) as house:
        recovers(house)
        found.phases["whole"] = house.call_for(3, REQUESTS)
        cut(house, found, "no OPA", "opa", 5)
        cut(house, found, "no service", "lab", 5)
        cut(house, found, "no receiver, briefly", "receiver", BRIEF_SECONDS)
        # TCP sends again what was on its way: at growing intervals, of a few seconds by now.
        brief = [one for some in found.phases["no receiver, briefly"].values() for one in some]
        assert until(lambda: not unlogged(house, brief), _PATIENCE_SECONDS)
        cut(house, found, "no receiver, for long", "receiver", LONG_SECONDS)
        cut(house, found, "no ClickHouse", "cloud", 8)
        found.phases["whole again"] = house.call_for(3, REQUESTS)
        assert until(lambda: not undelivered(house, found), _PATIENCE_SECONDS)
        with house.net.on("cloud"):
            found.told = told(house.store, _PATIENCE_SECONDS)
            read(house, found)
        found.lost = lost(house)
    print_outcome(found)
    return found


def unlogged(house: Pods, answers: list[Answer]) -> set[str]:
    """The trace ids of those that were let through, and have no access in the log."""
    let_through = {one.trace for one in answers if one.status == 200}
    query = "SELECT trace_id FROM accesses WHERE trace_id IN %(traces)s"
    with house.net.on("cloud"), connect(house.store) as client:
        rows = client.execute(query, {"traces": list(let_through)})
    return let_through - {trace for (trace,) in rows}


def in_touch(house: Pods) -> bool:
    """Whether both Envoys' access logs come in."""
    answers = [house.call(caller, REQUESTS[:1])[0] for caller in SERVICES]
    return until(lambda: not unlogged(house, answers), 3)


def lost(house: Pods) -> set[str]:
    """The allowed decisions without an access."""
    query = (
        "SELECT decision_id FROM decisions WHERE allowed"
        " AND decision_id NOT IN (SELECT decision_id FROM accesses)"
    )
    with house.net.on("cloud"), connect(house.store) as client:
        return {decision_id for (decision_id,) in client.execute(query)}


def undelivered(house: Pods, found: Found) -> set[str]:
    """The trace ids of what was answered, and has no decision in the log yet."""
    answered = {one.trace for one in every(found) if one.status in (200, 403)}
    with house.net.on("cloud"), connect(house.store) as client:
        return answered - {trace for (trace,) in client.execute("SELECT trace_id FROM decisions")}


def read(house: Pods, found: Found) -> None:
    with connect(house.store) as client:
        found.report = verify_store(client, load_trust(house.trust))
        query = "SELECT trace_id, decision_id, allowed, reason_code, principal FROM decisions"
        for trace, *values in client.execute(query):
            found.decisions[trace] = tuple(values)
        query = "SELECT decision_id, count() FROM accesses WHERE decision_id != '' GROUP BY 1"
        found.accesses.update(dict(client.execute(query)))


def print_outcome(found: Found) -> None:
    for name, answers in found.phases.items():
        after = ""
        if name in found.recovered:
            after = f"; whole after {found.recovered[name]:.1f} s"
            after += f", every decision stored after {found.delivered[name]:.1f} s"
        print(f"{name}: {dict(statuses(answers))}{after}")
    assert found.told
    print(f"gaps {dict(found.told.gaps)}, closed {dict(found.told.closed)}")


def test_a_whole_network(found):
    """Each is answered by the policy, whoever calls whom, and the decision names the workload that
    called, by its certificate."""
    for phase in ("whole", "whole again"):
        for caller, answers in found.phases[phase].items():
            assert len(answers) > 5
            for one in answers:
                assert one.status == expected(one.request)
                _, allowed, _, principal = found.decisions[one.trace]
                assert (allowed, principal) == (one.status == 200, workload(caller))


def test_without_opa(found):
    """Nothing is let through, and each refusal is on record with its reason."""
    answers = [one for some in found.phases["no OPA"].values() for one in some]
    assert answers
    for one in answers:
        assert one.status == 503
        _, allowed, reason_code, _ = found.decisions[one.trace]
        assert not allowed
        assert reason_code in ("policy_unavailable", "deadline")
    assert found.recovered["no OPA"] < 10


def test_a_pod_that_is_cut_off(found):
    """Who calls it is told so by their own Envoy, which gives up."""
    assert statuses(found.phases["no service"]).keys() <= {503, 504}
    assert found.recovered["no service"] < 10


@pytest.mark.parametrize(
    "phase", ["no receiver, briefly", "no receiver, for long", "no ClickHouse"]
)
def test_without_a_receiver(found, phase):
    """Requests go on, denials too, without a receiver or its database; each decision is in the log
    afterwards."""
    answers = [one for some in found.phases[phase].values() for one in some]
    assert len(answers) > 50
    for one in answers:
        assert one.status == expected(one.request)
        assert found.decisions[one.trace][1] is (one.status == 200)
    assert found.recovered[phase] < 2


def test_what_the_access_log_lost(found):
    """A brief cut of the receiver loses nothing, and none of the database does. In a long one Envoy
    gives the stream up, and what it had sent is gone: the log tells how many allowed requests are
    without an access."""
    for phase, answers in found.phases.items():
        ids = {
            found.decisions[one.trace][0]
            for some in answers.values() for one in some if one.status == 200
        }  # fmt: skip
        if phase == "no receiver, for long":
            assert len(found.lost & ids) > 50
        else:
            assert not found.lost & ids, phase
    assert found.told.gaps - found.told.closed == {"no_access": len(found.lost)}


def test_the_log(found):
    """It is intact, and nothing that was answered 200 lacks its decision."""
    assert found.report.verified
    assert not found.report.findings
    for one in every(found):
        if one.status in (200, 403):
            assert found.decisions[one.trace][1] is (one.status == 200)
    assert set(found.accesses.values()) == {1}
