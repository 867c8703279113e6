"""Records what Envoy under load tells, and the decisions that belong to it.

    python -m tests.bench.receiver.capture

Starts the demo's stack, with this process in the receiver's place for Envoy, and sends requests of
several people as fast as they are answered. What is kept, beside this file: `messages.xz`, the
access log messages as they came, and `decisions.xz`, the records of ext-authz. The people, patients
and keys are the demo's; no header with a token is ever in an entry.
"""

import asyncio
import itertools
import lzma
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from authz.demo.people import PEOPLE, WARDS, patient_id
from authz.demo.stack import HOST, Stack, free_port, running
from authz.demo.traffic import send
from authz.journal.chain import RECEIVERS_FIELDS
from authz.record import canonical
from authz.store import rows
from authz.store.client import connect
from authz.v1 import stream_pb2 as pb
from tests.bench.check.parts import program

HERE = Path(__file__).parent
MESSAGES, DECISIONS = HERE / "messages.xz", HERE / "decisions.xz"
_SECONDS = 6
_KEPT = 2000  # entries, at most
_WRITERS_FIELDS = ("writer", "writer_seq", "prev", "schema")


class Recorder:
    """An access log service on `port`, in a thread of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.messages: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=self._loop.run_until_complete, args=[self._serve()], daemon=True
        ).start()

    async def _serve(self) -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.stream_unary_rpc_method_handler(self._take)
        service = "envoy.service.accesslog.v3.AccessLogService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"StreamAccessLogs": handler}),)
        )
        server.add_insecure_port(f"{HOST}:{self.port}")
        await server.start()
        await server.wait_for_termination()

    async def _take(self, messages: AsyncIterator[bytes], _: object) -> bytes:
        async for message in messages:
            self.messages.append(message)
        return b""


def main() -> None:
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(Path(directory), timeout_ms=5000)

        def to_recorder(bootstrap: str) -> str:
            told = f"port_value: {stack._receiver.rpartition(':')[2]}"
            assert told in bootstrap
            return bootstrap.replace(told, f"port_value: {recorder.port}")

        stack._bootstrap = to_recorder
        with running(stack, print):
            _load(stack)
            stack.drain()  # Envoy tells the last, and ext-authz sends the last
            size = sum(len(message) for message in recorder.messages)
            print(f"{len(recorder.messages)} messages, {size} bytes")
            client = connect(stack.store)
            [(count,)] = client.execute("SELECT max(index) + 1 FROM audit_log")
            records = list(rows.read(client, "audit_log", "demo/receiver", 0, count))
    messages, kept = _under_load(recorder.messages)
    decisions = [
        canonical({k: v for k, v in r.items() if k not in (*RECEIVERS_FIELDS, *_WRITERS_FIELDS)})
        for r in records
        if r["kind"] == "decision" and str(r["decision_id"]).encode() in kept
    ]
    for data in (*messages, *decisions):
        assert b"earer" not in data, "a token is in what was recorded"
        assert b"eyJ" not in data, "a token is in what was recorded"
    write(MESSAGES, messages)
    write(DECISIONS, decisions)
    print(f"kept {len(messages)} messages and {len(decisions)} decisions")


def _under_load(messages: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """Consecutive messages from the middle of the load, the first with the stream's identifier."""
    parsed = [StreamAccessLogsMessage.FromString(message) for message in messages]
    counts = [len(message.http_logs.log_entry) for message in parsed]
    print("entries by message:", counts)
    identifier = parsed[0].identifier
    first = len(messages) // 2 - 1
    kept: list[StreamAccessLogsMessage] = []
    room = _KEPT
    for message in parsed[first:]:
        if (room := room - len(message.http_logs.log_entry)) < 0:
            break
        kept.append(message)
    kept[0].identifier.CopyFrom(identifier)
    told = [message.SerializeToString() for message in kept]
    return told, b"".join(told)


def _load(stack: Stack) -> None:
    """The demo's plan of every habit, and beside it people who read charts without a pause."""
    started = []
    for name in ("alder", "birch", "cedar", "dogwood"):
        first, last = WARDS.get(name, (1, 200))
        patients = [patient_id(number) for number in range(first, last + 1)]
        kinds = ("Claim?patient={}",) if name == "dogwood" else _READS
        paths = [
            f"{stack.envoy}/fhir/{kind.format(p)}" for p, kind in itertools.product(patients, kinds)
        ]
        uris = stack.data_dir / f"{name}.uris"
        uris.write_text("\n".join(paths))
        started.append(
            subprocess.Popen(
                [program("h2load"), "--h1", "-c", "4", "-D", str(_SECONDS), "-i", uris,
                 "-H", f"authorization: Bearer {stack.keys.token(PEOPLE[name])}",
                 "-H", f"user-agent: {AGENTS[name]}"],
                stdout=subprocess.DEVNULL,
            )
        )  # fmt: skip
    asyncio.run(send(stack.envoy, stack.keys, 400, _SECONDS))
    for process in started:
        process.wait()


_READS = ("Patient/{}", "Observation?patient={}", "Encounter?subject=Patient/{}&_count=10")
_BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
AGENTS = {
    "alder": f"{_BROWSER} Chrome/143.0.0.0 Safari/537.36",
    "birch": f"{_BROWSER} Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
    "cedar": "Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "dogwood": "claims-batch/4.7 (java 21.0.4)",
}


def write(path: Path, items: Sequence[bytes]) -> None:
    """Both files are one `Batch` of bytes, compressed."""
    path.write_bytes(lzma.compress(pb.Batch(records=items).SerializeToString(), preset=9))


def read(path: Path) -> list[bytes]:
    return list(pb.Batch.FromString(lzma.decompress(path.read_bytes())).records)


if __name__ == "__main__":
    main()
