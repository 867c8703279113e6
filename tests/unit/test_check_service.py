"""Checks, from request to answer: exactly one answer each, and the last record says what it was.

Real parts but for those that must fail on demand: calls without gRPC, engines that hang or break, a
journal whose disk does.
"""

import copy
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import orjson
import pytest
from check_world import ALLOW, Call, counted, reasons, wait_for, world
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from authz.errors import UnavailableError
from authz.policy.verdict import UNDEFINED, PolicyError
from authz.record import FIELD
from authz.record.privacy import PrivacyKey
from authz.serve import check as check_module
from authz.serve import decided, one_check

__all__ = ["world"]  # the fixture


def test_each_gets_its_own_answer(world):
    """Of Checks decided together, each has the answer and the record of its own request."""
    one = world()
    outcomes = {
        "/fhir/Patient/1": ALLOW,
        "/fhir/Patient/2": {"allowed": False, "http_status": 404},
        "/fhir/Patient/3": True,
        "/fhir/Patient/4": False,
        "/fhir/Patient/5": UNDEFINED,
        "/fhir/Patient/6": PolicyError("x"),
        "/fhir/Patient/7": UnavailableError("x"),
        "/fhir/Patient/8": {"allowed": "yes"},
    }
    one.engine.decide_one = lambda document: outcomes[
        document["attributes"]["request"]["http"]["path"]
    ]
    calls = one.handle(*map(Call, outcomes), Call("/fhir/../admin"), Call("/%zz"))
    assert [call.status for call in calls] == [200, 404, 200, 403, 403, 403, 503, 403, 400, 400]
    for call in calls:
        [record] = one.records(call)
        assert record.get("allowed", False) is (call.status == 200)
        assert record.get("status", 200) == call.status


def test_a_decision_says_its_country(world):
    """That of the address it came from, by the operator's file; nothing where that has none."""
    one = world(country=lambda address: "NO" if address == "198.51.100.7" else "")
    calls = [Call(), Call()]
    request = CheckRequest.FromString(calls[0].request)
    request.attributes.source.address.socket_address.address = "198.51.100.7"
    calls[0].request = request.SerializeToString()
    one.handle(*calls)
    assert [one.records(call)[0].get("country") for call in calls] == ["NO", None]


def test_bytes_that_are_no_request(world):
    """What cannot be parsed, no bytes and too many bytes are denied, and recorded."""
    one = world()
    calls = [Call(), Call(), Call()]
    calls[0].request, calls[1].request, calls[2].request = b"\xff", b"", bytes(1 << 21)
    one.handle(*calls)
    assert [call.status for call in calls] == [400, 400, 413]
    assert reasons(one.every()) == ["bad_request"] * 3


# -- too slow


def test_an_engine_that_hangs(world):
    """A policy that takes too long is answered for before Envoy stops waiting; what it says in the
    end changes neither the answer nor the last record."""
    one = world(timeout_ms=100)
    one.engine.free.clear()
    call = Call()
    thread = one.handling(call)
    wait_for(lambda: call.answers)
    assert call.status == 503
    one.engine.free.set()
    thread.join()
    assert len(call.answers) == 1
    assert reasons(one.records(call)) == ["deadline"]


def test_a_disk_that_hangs(world):
    """A disk that takes too long turns an allow into a denial, whose record comes last, after the
    one that was under way."""
    one = world(timeout_ms=100)
    one.journal.free.clear()
    before = counted("deadline"), counted("allowed")
    calls = [Call(), Call()]
    threads = [one.handling(call) for call in calls]
    wait_for(lambda: all(call.answers for call in calls))
    assert [call.status for call in calls] == [503, 503]
    one.journal.free.set()
    for thread in threads:
        thread.join()
    for call in calls:
        assert len(call.answers) == 1
        assert reasons(one.records(call)) == ["allowed", "deadline"]
    assert (counted("deadline"), counted("allowed")) == (before[0] + 2, before[1])


def test_a_client_that_hardly_waits(world):
    """The client's own deadline counts where it is the earlier one."""
    one = world(timeout_ms=60_000)
    one.engine.free.clear()
    call = Call(seconds=0.1)
    thread = one.handling(call)
    wait_for(lambda: call.answers)
    assert call.status == 503
    one.engine.free.set()
    thread.join()


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_is_set(world, monkeypatch, step):
    """When the time of day is set meanwhile, an answer still comes in time; forward, it may be a
    denial, for the client's deadline seems to be over."""

    class Time:
        monotonic, perf_counter = staticmethod(time.monotonic), staticmethod(time.perf_counter)

        @staticmethod
        def time():
            return time.time() + step

        @staticmethod
        def time_ns():
            return time.time_ns() + step * 10**9

    one = world(timeout_ms=200)
    monkeypatch.setattr(check_module, "time", Time)
    one.engine.free.clear()
    call = Call(seconds=0.2)
    began = time.monotonic()
    thread = one.handling(call)
    wait_for(lambda: call.answers)
    assert call.status == 503
    assert time.monotonic() - began < 20
    one.engine.free.set()
    thread.join()
    assert len(call.answers) == 1


def test_answers_and_deadlines_at_the_same_moment(world):
    """However close the answer and its deadline come, there is one answer, the last record says
    the same, and the metrics count it once."""
    one = world(timeout_ms=60_000)
    random = Random(5)

    def slow(_document):
        time.sleep(random.random() / 500)
        return random.choice((ALLOW, {"allowed": False}))

    one.engine.decide_one = slow
    codes = ("allowed", "denied", "deadline")
    before = Counter({code: counted(code) for code in codes})
    batches = [
        [Call(seconds=0.05 + random.random() / 20) for _ in range(random.randint(1, 8))]
        for _ in range(150)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: one.handle(*batch), batches))
    wait_for(lambda: not one.service._open)
    one.keeper.drain()
    last = {record["decision_id"]: record for record in one.every()}
    answered = Counter()
    for call in (call for batch in batches for call in batch):
        record = last[call.decision_id]
        assert record.get("allowed", False) is (call.status == 200)
        assert record.get("status", 200) == call.status
        answered[record["reason_code"]] += 1
    assert set(answered) == set(codes)
    wait_for(lambda: {code: counted(code) - before[code] for code in codes} == answered)


# -- what fails


def test_a_disk_that_fails(world):
    """What cannot be recorded is not allowed; the denials are recorded once the disk is back, or
    counted."""
    one = world()
    one.journal.failing = True
    calls = one.handle(Call(), Call())
    assert [call.status for call in calls] == [503, 503]
    wait_for(lambda: one.keeper.lost == 2)
    one.journal.failing = False
    [call] = one.handle(Call())
    assert call.status == 200
    assert reasons(one.records(call)) == ["allowed"]


def test_an_answer_waits_for_the_receiver(world):
    """Where answers wait for the receiver, none comes before its acknowledgement; batches that came
    one after the other wait together, and keep no other from being written."""
    one = world(receipts=True, timeout_ms=60_000)
    one.receipts.connected()
    calls = [Call() for _ in range(40)]
    threads = [one.handling(*calls[at : at + 4]) for at in range(0, 40, 4)]
    wait_for(lambda: one.journal.next == 41)
    assert not any(call.answers for call in calls)
    one.receipts.taken(40)
    for thread in threads:
        thread.join()
    assert [call.status for call in calls] == [200] * 40
    assert [reasons(one.records(call)) for call in calls] == [["allowed"]] * 40


def test_a_receiver_that_hangs(world):
    """Without an acknowledgement each Check is denied in time, on record after the allow that
    nobody was told of; those that come later are denied at once, until the receiver goes on."""
    one = world(receipts=True)
    one.receipts.connected()
    [call] = one.handle(Call())
    assert call.status == 503
    assert reasons(one.records(call)) == ["allowed", "deadline"]
    assert one.receipts.unavailable
    [late] = one.handle(Call())
    assert late.status == 503
    assert reasons(one.records(late)) == ["journal_unavailable"], "what it was is not kept as true"
    one.receipts.taken(one.journal.next - 1)
    written = one.journal.next
    thread = one.handling(after := Call())
    wait_for(lambda: one.journal.next > written)
    one.receipts.taken(one.journal.next - 1)
    thread.join()
    assert after.status == 200


def test_a_receiver_that_goes_away(world):
    """When the stream is cut who waits is denied at once, and so is who comes after that."""
    one = world(receipts=True, timeout_ms=60_000)
    [early] = one.handle(Call())
    assert (early.status, reasons(one.records(early))) == (503, ["journal_unavailable"])
    one.receipts.connected()
    written = one.journal.next
    thread = one.handling(call := Call())
    wait_for(lambda: one.journal.next > written)
    one.receipts.cut("no receiver is connected")
    thread.join()
    assert call.status == 503
    assert reasons(one.records(call)) == ["allowed", "journal_unavailable"]
    [late] = one.handle(Call())
    assert (late.status, reasons(one.records(late))) == (503, ["journal_unavailable"])


def test_an_engine_that_breaks(world):
    """A bug in the engine denies all that were asked together, and what was denied before that
    keeps its reason or gets the bug's."""
    one = world()

    def broken(_document):
        raise ZeroDivisionError

    one.engine.decide_one = broken
    calls = one.handle(Call(), Call(), Call("/fhir/../x"))
    assert [call.status for call in calls] == [500, 500, 500]
    one.keeper.drain()
    assert reasons(one.every()) == ["internal_error"] * 3


@pytest.mark.parametrize("where", ["read", "judge", "record", "answer"])
def test_a_bug_in_one_check_is_that_ones_only(world, monkeypatch, where):
    """Whatever step breaks for one Check, it is denied with 500, that is its last record, and those
    it came with are answered as if it were not there."""
    one = world()
    bad = "bad-one"

    def breaking(real):
        def step(*args, **kwargs):
            if bad in repr(args):
                raise RecursionError
            return real(*args, **kwargs)

        return step

    if where == "read":
        monkeypatch.setattr(one.identities, "read", breaking(one.identities.read))
    elif where == "judge":
        one.engine.decide_one = lambda document: {**ALLOW, "body": repr(document)}
        monkeypatch.setattr(one_check, "read_verdict", breaking(one_check.read_verdict))
    elif where == "record":
        monkeypatch.setattr(decided, "clean", breaking(decided.clean))
    else:
        monkeypatch.setattr(check_module, "answer", breaking(check_module.answer))
        one.engine.decide_one = lambda document: {
            **ALLOW,
            "headers": {"x": document["attributes"]["request"]["http"]["headers"]["user-agent"]},
        }
    agents = ["good", bad, "good", "good"]
    calls = one.handle(*(Call(**{"user-agent": agent}) for agent in agents))
    assert [call.status for call in calls] == [200, 500, 200, 200]
    one.keeper.drain()
    last = {record["decision_id"]: record["reason_code"] for record in one.every()}
    assert Counter(last.values()) == {"allowed": 3, "internal_error": 1}


def test_a_call_that_takes_no_answer(world):
    """A call that breaks when it is answered costs the others nothing, and its record says in the
    end that nobody got the answer."""
    one = world()
    calls = one.handle(Call(), Call(broken=True), Call())
    assert [call.status for call in (calls[0], calls[2])] == [200, 200]
    assert reasons(one.records(calls[1])) == ["allowed", "client_gone"]
    assert not one.service._open


def test_the_watch_outlives_what_it_meets(world, monkeypatch):
    """Neither a call that takes no answer nor a bug in a record ends the thread that sees to
    deadlines: those after it are still answered."""
    one = world(timeout_ms=100)
    one.engine.free.clear()
    real = decided.clean

    def broken(values):
        if values["user_agent"] == "bad":
            raise KeyError("x")
        return real(values)

    monkeypatch.setattr(decided, "clean", broken)
    calls = [Call(broken=True), Call(**{"user-agent": "bad"}), Call()]
    threads = [one.handling(call) for call in calls]
    wait_for(lambda: calls[1].answers and calls[2].answers)
    assert [call.status for call in calls[1:]] == [500, 503]
    later = Call()
    threads.append(one.handling(later))
    wait_for(lambda: later.answers)
    assert later.status == 503
    one.engine.free.set()
    for thread in threads:
        thread.join()
    assert one.watching.is_alive()


def test_a_log_that_cannot_be_written(world, monkeypatch):
    """A standard error that nobody reads any more makes no answer late, and none an allow."""

    class Broken:
        def error(self, *_, **__):
            raise BrokenPipeError

    monkeypatch.setattr(check_module, "logger", Broken())
    monkeypatch.setattr(one_check, "logger", Broken())
    one = world()
    one.engine.decide_one = lambda _: UNDEFINED
    calls = one.handle(Call(), Call(), Call(broken=True))
    assert all(call.status in (403, 500) for call in calls[:2])
    one.journal.failing = True
    assert all(call.status >= 500 for call in one.handle(Call(), Call()))


def test_what_is_shed(world):
    """Those too many are denied at once and recorded with what is known of them, bugs or not."""
    one = world()
    calls = [Call("/fhir/Patient/7"), Call("/fhir/../x"), Call(broken=True), Call()]
    one.service.shed(calls)
    assert [call.status for call in calls if call.answers] == [503, 503, 503]
    for call in calls:
        [record] = one.records(call)
        assert (record["reason_code"], record["status"]) == ("overloaded", 503)


# -- what threads share


def test_a_decision_is_shared_and_not_changed(world):
    """One decision document that several requests share (as the cache has them) is the same
    afterwards, and each answer is as from a document of its own."""
    one = world(timeout_ms=60_000)
    decision = {
        "allowed": True,
        "headers": {"x": ["1", "2"]},
        "dynamic_metadata": {"a": {"b": [1, {"c": None}]}, "decision_id": "policy's", "authz": "x"},
        "audit": {"subject": "ash", "roles": ["r"], "patients": ["7"]},
    }
    kept = copy.deepcopy(decision)
    one.engine.decide_one = lambda _: decision
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: one.handle(*(Call() for _ in range(8))), range(50)))
    assert decision == kept
    calls = [call for batch in batches for call in batch]
    ids = set()
    for call in calls:
        fields = call.answers[0].dynamic_metadata.fields
        ids.add(fields["decision_id"].string_value)
        assert fields["a"].struct_value.fields["b"].list_value.values[0].number_value == 1
        assert orjson.loads(fields["authz"].string_value)["subject"] == "ash"
    assert len(ids) == len(calls)


def test_a_client_that_left(world):
    """A client that went away before its answer has a second record that says so; one that did not
    has none."""
    one = world()
    gone, there = one.handle(Call(), Call())
    assert gone.on_gone is not None
    gone.on_gone()
    assert reasons(one.records(gone)) == ["allowed", "client_gone"]
    assert reasons(one.records(there)) == ["allowed"]


def test_a_request_that_names_many_patients(world, monkeypatch):
    """A token is made for as many patients as a record holds, not for all that a path can name."""
    made = []
    token = PrivacyKey.token
    monkeypatch.setattr(
        PrivacyKey, "token", lambda key, patient: made.append(patient) or token(key, patient)
    )
    one = world()
    names = ",".join(str(number) for number in range(20_000))
    [call] = one.handle(Call(f"/fhir/Observation?patient={names}"))
    [record] = one.records(call)
    assert len(record["patients"]) == FIELD["patients"].items
    assert len(made) == FIELD["patients"].items
