"""What was recorded from Envoy, told again: each request with ids, times and patients of its own.

Every entry becomes several templates, each for another person at another place. A template's bytes
are cut where values change from request to request; since those are as long as what they replace,
a new entry is a join of pieces, which costs about a microsecond.
"""

import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import orjson
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from authz.record import Record
from authz.record.privacy import PrivacyKey
from tests.bench.receiver import capture

WRITER = "ext-authz-7f9c4d5b8-0"  # whose decisions all of them are
KEY = PrivacyKey.of(bytes(32))
_PATIENTS, _PEOPLE, _UPSTREAMS = 50_000, 800, 6
_VARIANTS = 8
_AGENTS = tuple(capture.AGENTS.values())
_EXT_AUTHZ = "envoy.filters.http.ext_authz"
_JWT = "envoy.filters.http.jwt_authn"

# What stands in a template for a value that is to come; each as long as that.
_DECISION, _REQUEST = "D" * 36, "R" * 36
_TOKEN, _PATIENT = "T" * len(KEY.token("")), "p-####"
_SECONDS, _NANOS = 1_234_567_890, 987_654_321


def _varint(value: int) -> bytes:
    """In five bytes, however small it is."""
    return bytes(
        (
            value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128,
            value >> 21 & 127 | 128, value >> 28,
        )
    )  # fmt: skip


_SLOTS = {
    _DECISION.encode(): 0,
    _REQUEST.encode(): 1,
    _TOKEN.encode(): 2,
    _PATIENT.encode(): 3,
    b"\x08" + _varint(_SECONDS) + b"\x10" + _varint(_NANOS): 4,
}
_CUTS = re.compile(b"(" + b"|".join(map(re.escape, _SLOTS)) + b")")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to come: what its entry and its decision share."""

    template: "Template"
    decision_id: str
    request_id: str
    token: str
    patient: str

    def entry(self, at_us: int) -> Iterator[bytes]:
        """The pieces of its access log entry, as a field of `http_logs`."""
        seconds, micros = divmod(at_us, 1_000_000)
        values = (
            self.decision_id.encode(), self.request_id.encode(), self.token.encode(),
            self.patient.encode(), b"\x08" + _varint(seconds) + b"\x10" + _varint(micros * 1000),
        )  # fmt: skip
        return (
            values[piece] if piece.__class__ is int else piece for piece in self.template.pieces
        )

    def decision(self, at_us: int) -> Record | None:
        """The record of its decision, if ext-authz was asked."""
        told = self.template.decision
        if told is None:
            return None
        record = {
            **told, "decision_id": self.decision_id, "request_id": self.request_id, "time": at_us
        }  # fmt: skip
        if record.get("patients") == [_TOKEN]:
            record["patients"] = [self.token]
        if record.get("resource_id") == _TOKEN:
            record["resource_id"] = self.token
        return record


@dataclass(frozen=True, slots=True)
class Template:
    pieces: tuple[bytes | int, ...]
    decision: Record | None
    duration_us: int


class World:
    """Requests without end, from the templates; the same `seed` gives the same but for ids."""

    def __init__(self, seed: int = 1) -> None:
        self._random = Random(seed)
        decided = {}
        for data in capture.read(capture.DECISIONS):
            record = orjson.loads(data)
            decided[record["decision_id"]] = record
        self.templates = [
            _template(entry, decided, self._random)
            for message in map(StreamAccessLogsMessage.FromString, capture.read(capture.MESSAGES))
            for entry in message.http_logs.log_entry
            for _ in range(_VARIANTS)
        ]
        self._patients = [
            (KEY.token(f"p-{n:05d}"), f"p-{n % 10_000:04d}") for n in range(_PATIENTS)
        ]

    def requests(self, count: int, at_ms: int | None = None) -> list[Request]:
        """`count` requests whose ids are of now, or of `at_ms`."""
        stamp = (at_ms or time.time_ns() // 1_000_000).to_bytes(6).hex()
        head = f"{stamp[:8]}-{stamp[8:]}-7"
        random = os.urandom(26 * count).hex()
        choices, uniform = self._random.choices(self.templates, k=count), self._random.random
        made = []
        for number, template in enumerate(choices):
            r = random[52 * number : 52 * number + 52]
            # Some patients are seen much more often than others.
            token, patient = self._patients[int(_PATIENTS * uniform() ** 3)]
            decision_id = f"{head}{r[:3]}-8{r[3:6]}-{r[6:18]}"
            request_id = f"{r[18:26]}-{r[26:30]}-4{r[30:33]}-9{r[33:36]}-{r[36:48]}"
            made.append(Request(template, decision_id, request_id, token, patient))
        return made


def message(entries: Sequence[tuple[Request, int]], node: str = "") -> bytes:
    """A StreamAccessLogsMessage of requests at their times (microseconds); a stream's first names
    its `node`."""
    logs = b"".join(itertools.chain.from_iterable(r.entry(at_us) for r, at_us in entries))
    head = b""
    if node:
        opening = StreamAccessLogsMessage()
        opening.identifier.log_name = "ingress"
        opening.identifier.node.id, opening.identifier.node.cluster = node, "bench"
        head = opening.SerializeToString()
    return b"%b\x12%b%b" % (head, _varint(len(logs)), logs)


def _template(entry: HTTPAccessLogEntry, decided: dict[str, Record], random: Random) -> Template:
    """`entry` as of another person, on another machine, with a request that took another time."""
    person = Random(random.randrange(_PEOPLE))
    entry = HTTPAccessLogEntry.FromString(entry.SerializeToString())
    common, asked = entry.common_properties, entry.request
    number = person.randrange(10_000)
    address = f"10.{20 + number % 7}.{number % 251}.{person.randrange(1, 250)}"
    agent = asked.user_agent
    if agent and (agent in _AGENTS or "aiohttp" in agent):
        chosen = person.choice(_AGENTS)
        agent = re.sub(
            r"\d+(?=(\.0){3}|\.7)", lambda m: str(int(m[0]) - person.randrange(4)), chosen
        )
    upstream = f"10.9.0.{random.randrange(1, 1 + _UPSTREAMS)}"
    longer = random.lognormvariate(0, 0.5)

    for place in (common.downstream_remote_address, common.downstream_direct_remote_address):
        place.socket_address.address = address
    if common.upstream_remote_address.socket_address.address:
        common.upstream_remote_address.socket_address.address = upstream
    common.start_time.seconds, common.start_time.nanos = _SECONDS, _NANOS
    # The machine that this was recorded on was slower than most.
    took = int(common.duration.ToNanoseconds() * longer / 10)
    common.duration.FromNanoseconds(took)
    if entry.response.response_body_bytes > 100:
        entry.response.response_body_bytes = int(entry.response.response_body_bytes * longer)
    common.stream_id = asked.request_id = _REQUEST
    asked.authority, asked.user_agent = "fhir.lakeside.example", agent
    asked.path = re.sub(r"p-\d{4}", _PATIENT, asked.path)

    record: Record | None = None
    said = common.metadata.filter_metadata
    if _EXT_AUTHZ in said and "decision_id" in said[_EXT_AUTHZ].fields:
        fields = said[_EXT_AUTHZ].fields
        record = decided[fields["decision_id"].string_value]
        told = orjson.loads(fields["authz"].string_value)
        subject = f"{str(told['subject']).partition('.')[0]}.{number:04d}"
        known = {"subject": subject}
        if told.get("patients"):
            known["patients"] = [_TOKEN]
            if told.get("resource_type") == "Patient" and told.get("resource_id"):
                known["resource_id"] = _TOKEN
        fields["decision_id"].string_value = _DECISION
        told |= {"decided_by": WRITER, **known}
        fields["authz"].string_value = orjson.dumps(told).decode()
        record = {**record, **known, "host": asked.authority, "source_ip": address}
        if "user_agent" in record:
            record["user_agent"] = agent
        if _JWT in said:
            claims = said[_JWT].fields["verified_jwt"].struct_value.fields
            claims["sub"].string_value = subject
    data = entry.SerializeToString()
    field = b"\x0a" + _varint(len(data)) + data
    pieces = tuple(_SLOTS.get(piece, piece) for piece in _CUTS.split(field))
    return Template(pieces, record, took // 1000)
