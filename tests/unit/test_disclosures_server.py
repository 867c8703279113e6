"""Answers shown by Envoy to the real server, over gRPC: what is recorded, and what goes on."""

import json
import queue
import threading
from collections import Counter
from random import Random

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from authz.config import Disclosure
from authz.disclosure import Answer
from authz.envoy.processing import METHOD
from authz.journal.segments import JournalError
from authz.record.privacy import PrivacyKey
from authz.serve.core_server import CoreServer
from authz.serve.disclosures import Processor
from authz.serve.metrics import DISCLOSURES

KEY = PrivacyKey.of(bytes(32))
FHIR = "application/fhir+json"
SECONDS = 30  # for what should take none: a hang is a failure, slowness is not
DECIDED = {"subject": "dr.alder", "allowed": True, "enforced": True, "path": "/fhir/Observation"}


class Journal:
    """Takes records, or fails as a full disk does."""

    def __init__(self):
        self.kept = queue.Queue()
        self.full = False
        self.gate = threading.Event()
        self.gate.set()

    def enqueue(self, entries):
        return entries

    def wait(self, entries):
        assert self.gate.wait(SECONDS)
        if self.full:
            raise JournalError("the disk is full")
        for record, _ in entries:
            self.kept.put(record)

    def post(self, entry):
        self.kept.put(entry[0])


class Shown:
    """One answer, as an Envoy shows it."""

    def __init__(self, channel, *, observed=True):
        self._sent = queue.SimpleQueue()
        self._observed = observed
        call = channel.stream_stream(METHOD)
        self.call = call(iter(self._sent.get, None), timeout=SECONDS)

    def begin(self, decision_id="d", *, kind=FHIR, status=200, end=False, details="via_upstream",
              decided=DECIDED):  # fmt: skip
        message = ProcessingRequest(observability_mode=self._observed)
        told = message.response_headers
        told.end_of_stream = end
        for name, value in ((":status", str(status)), ("content-type", kind)):
            told.headers.headers.add(key=name, raw_value=value.encode())
        if decided is not None:
            said = message.metadata_context.filter_metadata["envoy.filters.http.ext_authz"]
            said["decision_id"], said["authz"] = decision_id, json.dumps(decided)
        message.attributes["envoy.filters.http.ext_proc"]["response.code_details"] = details
        return self.send(message)

    def body(self, data, *, end=False):
        message = ProcessingRequest(observability_mode=self._observed)
        message.response_body.body, message.response_body.end_of_stream = data, end
        return self.send(message)

    def send(self, message):
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self._sent.put(data)
        return self

    def done(self):
        """No more comes; what was sent back."""
        self._sent.put(None)
        return [ProcessingResponse.FromString(data) for data in self.call]

    def passed(self):
        """The body that went on to the client, and whether it was all."""
        got, ended = b"", False
        for data in self.call:
            message = ProcessingResponse.FromString(data)
            part = message.response_body.response.body_mutation.streamed_response
            got, ended = got + part.body, ended or part.end_of_stream
            if message.HasField("immediate_response"):
                return message.immediate_response.status.code
        return got, ended


class Running:
    def __init__(self, directory, **config):
        self.journal = Journal()
        self.processor = Processor(Disclosure(**config), self.journal, KEY)
        address = f"unix://{directory}/s.sock"
        self.server = CoreServer(
            "/none", lambda _: None, lambda _: None, {METHOD: self.processor},
            most=lambda: 1, unasked=b"",
        )  # fmt: skip
        self.server.start(address)
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])

    def show(self, **options):
        return Shown(self.channel, **options)

    def record(self):
        return self.journal.kept.get(timeout=SECONDS)

    def stop(self):
        self.channel.close()
        self.server.stop(5)
        self.processor.close()


@pytest.fixture
def start(tmp_path):
    made = []

    def make(**config):
        made.append(Running(tmp_path, **config))
        return made[-1]

    yield make
    for one in made:
        one.stop()
        assert one.journal.kept.empty(), "recorded, and not expected"


def observation(patient):
    return json.dumps(
        {"resourceType": "Observation", "subject": {"reference": f"Patient/{patient}"}}
    ).encode()


def bundle(*patients):
    entries = b",".join(b'{"resource":%s}' % observation(patient) for patient in patients)
    return b'{"resourceType":"Bundle","entry":[%s]}' % entries


def tokens(*patients):
    return [KEY.token(patient) for patient in patients]


def test_observed(start):
    """What an answer held is recorded with the decision's who and why; nothing is sent back."""
    running = start()
    shown = running.show().begin().body(bundle("7", "8")[:30]).body(bundle("7", "8")[30:], end=True)
    record = running.record()
    assert shown.done() == []
    assert record["patients"] == tokens("7", "8")
    assert (record["decision_id"], record["subject"]) == ("d", "dr.alder")
    assert (record["complete"], record["status"]) == (True, 200)
    assert record["bytes_out"] == len(bundle("7", "8"))
    assert json.loads(record["details"])["types"] == {"Observation": 2}


def test_held_until_recorded(start):
    """Nothing of an answer that waits goes on before its record is on disk; then all of it."""
    running = start()
    running.journal.gate.clear()
    shown = running.show(observed=False).begin().body(bundle("7")[:9])
    shown.body(bundle("7")[9:]).body(b"", end=True)
    got = queue.Queue()
    threading.Thread(target=lambda: got.put(shown.passed()), daemon=True).start()
    with pytest.raises(queue.Empty):
        got.get(timeout=0.3)
    running.journal.gate.set()
    assert got.get(timeout=SECONDS) == (bundle("7"), True)
    assert running.record()["patients"] == tokens("7")


def test_held_without_a_body(start):
    """So is an answer of a head alone."""
    running = start()
    [reply] = running.show(observed=False).begin(status=204, end=True).done()
    assert reply.HasField("response_headers")
    assert running.record()["complete"] is True


def test_held_trailers(start):
    """And one that ends with trailers."""
    running = start()
    shown = running.show(observed=False).begin().body(bundle("7"))
    message = ProcessingRequest()
    message.response_trailers.SetInParent()
    kinds = [reply.WhichOneof("response") for reply in shown.send(message).done()]
    assert kinds == ["response_headers", "response_body", "response_trailers"]
    assert running.record()["patients"] == tokens("7")


def test_the_disk_is_full(start):
    """An answer that cannot be recorded is refused, and on record as seen by nobody."""
    running = start()
    running.journal.full = True
    assert running.show(observed=False).begin().body(bundle("7"), end=True).passed() == 503
    record = running.record()
    assert "patients" not in record
    assert (record["reason_code"], record["complete"]) == ("held_back", True)


def test_too_large_to_hold(start):
    """An answer longer than may be held is refused at once, not at its end."""
    running = start(hold_bytes=1024)
    assert running.show(observed=False).begin().body(bundle("7")).body(b" " * 1024).passed() == 503
    assert running.record()["reason_code"] == "held_back"


@pytest.mark.parametrize("observed", [True, False])
def test_a_denial(start, observed):
    """What ext-authz answered itself holds nobody's data and is not recorded, but passes."""
    running = start()
    denied = DECIDED | {"allowed": False}
    shown = running.show(observed=observed)
    shown.begin(status=403, details="ext_authz_denied", decided=denied).body(b"no", end=True)
    if observed:
        assert shown.done() == []
    else:
        assert shown.passed() == (b"no", True)


def test_a_service_that_does_not_answer(start):
    """Envoy's own error in a service's place is an answer with nobody's data."""
    running = start()
    running.show().begin(status=504, kind="text/plain", details="response_timeout").body(
        b"504", end=True
    ).done()
    assert running.record()["complete"] is True


def test_a_route_without_ext_authz(start):
    """What nobody decided on is seen all the same."""
    running = start()
    running.show().begin(decided=None).body(bundle("7"), end=True).done()
    record = running.record()
    assert record["patients"] == tokens("7")
    assert "decision_id" not in record


def test_cut(start):
    """A stream that ends before the answer: those seen so far, and that it is not all."""
    running = start()
    shown = running.show().begin().body(bundle("7", "8")[:-30])
    shown.done()
    record = running.record()
    assert record["patients"] == tokens("7")
    assert (record["reason_code"], record.get("complete")) == ("cut", None)


def test_cut_while_it_waits(start):
    """Nobody has seen any of an answer that was held when its stream ended."""
    running = start()
    running.show(observed=False).begin().body(bundle("7", "8")[:-30]).done()
    record = running.record()
    assert "patients" not in record
    assert record["reason_code"] == "held_back"


@pytest.mark.parametrize("observed", [True, False])
def test_too_many_at_once(start, observed):
    """Answers beyond the bound are counted as unresolved, or refused if they wait."""
    running = start(max_concurrent=1)
    first = running.show().begin()
    first.body(b" ")
    while not running.processor._open:
        pass
    second = running.show(observed=observed).begin("e").body(bundle("7"), end=True)
    if observed:
        second.done()
        assert running.record()["reason_code"] == "overloaded"
    else:
        assert second.passed() == 503
        assert running.record()["reason_code"] == "held_back"
    first.body(bundle("9"), end=True).done()
    assert running.record()["patients"] == tokens("9")


def test_a_bug(start, monkeypatch, capsys):
    """A bug of ours counts as unresolved, refuses what waits, and says nothing of the answer."""

    def feed(self, chunk):
        raise ValueError(f"secret {chunk!r}")

    running = start()
    monkeypatch.setattr(Answer, "feed", feed)
    running.show().begin("e").body(bundle("7"), end=True).done()
    record = running.record()
    assert (record["decision_id"], record["reason_code"]) == ("e", "internal_error")
    assert running.show(observed=False).begin().body(bundle("7"), end=True).passed() == 503
    assert running.record()["reason_code"] == "held_back"
    said = capsys.readouterr()
    assert "a bug in reading an answer" in said.out + said.err
    assert "secret" not in said.out + said.err


def test_not_a_message(start):
    """What cannot be read leaves the answer unresolved."""
    running = start()
    running.show().begin().send(b"\xff\xff").body(bundle("7"), end=True).done()
    assert running.record()["reason_code"] == "malformed"


def test_not_a_message_while_it_waits(start):
    """An answer of which a part could not be read does not go on without that part."""
    running = start()
    assert running.show(observed=False).begin().send(b"\xff\xff").passed() == 503
    assert running.record()["reason_code"] == "held_back"


def test_many_at_once_keep_their_names(start):
    """Answers that come interleaved, in pieces of any size: each has its own patients, in order."""
    running, random = start(), Random(4)
    answers = {f"d{n}": [f"{n}-{k}" for k in range(random.randint(0, 40))] for n in range(60)}
    pieces = []
    for decision_id, patients in answers.items():
        shown = running.show(observed=random.random() < 0.5).begin(decision_id)
        data = bundle(*patients)
        cuts = sorted(random.sample(range(len(data)), min(5, len(data))))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        pieces.append((shown, parts))
    while any(parts for _, parts in pieces):
        shown, parts = random.choice([one for one in pieces if one[1]])
        shown.body(parts.pop(0), end=not parts)
    found = {}
    for _ in answers:
        record = running.record()
        assert record["complete"] is True
        found[record["decision_id"]] = record.get("patients", [])
    assert found == {one: tokens(*patients) for one, patients in answers.items()}
    for shown, _ in pieces:
        shown.done()


def test_very_many_patients(start):
    """More patients than one record takes are in several records of one decision, none twice."""
    running = start()
    patients = [f"p{n}" for n in range(2500)]
    running.show().begin().body(bundle(*patients), end=True).done()
    records = [running.record() for _ in range(3)]
    assert [p for record in records for p in record["patients"]] == tokens(*patients)
    assert [json.loads(record["details"])["part"] for record in records] == [1, 2, 3]


def test_counted_as_recorded(start):
    """The metric counts each answer once, under what its record says."""

    def counts():
        return {
            sample.labels["outcome"]: sample.value
            for metric in DISCLOSURES.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    running, before = start(hold_bytes=1024), Counter(counts())
    running.show().begin().body(bundle("7"), end=True).done()
    running.show().begin().body(bundle("7")[:-30]).done()
    assert running.show(observed=False).begin().body(bundle("7"), end=True).passed()
    for _ in range(3):
        running.record()
    assert running.show(observed=False).begin().body(b" " * 1025).passed() == 503
    running.journal.full = True
    assert running.show(observed=False).begin().body(bundle("7"), end=True).passed() == 503
    for _ in range(2):
        assert running.record()["reason_code"] == "held_back"
    running.processor.close()
    found = Counter(counts()) - before
    assert found == {"complete": 2, "cut": 1, "held_back": 2}
