"""What travels between a writer and the receiver, both ways, over a real gRPC stream."""

import asyncio
import contextlib
import time

import grpc
import orjson
import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from logs import SIGNER
from streams import FAR, Receiver, Writer, named, now_us, opening, until

from authz.blocks import Blocks, block_notice, unblock_notice
from authz.errors import UnavailableError, UsageError
from authz.journal.chain import load_identity, policy_notice, split
from authz.journal.segments import Journal
from authz.record import notice
from authz.serve import tell
from authz.v1 import stream_pb2 as pb


async def say(address, directory, records):
    """As a command does."""
    return await tell.tell(address, opening(address), directory, records)


def test_attachments_arrive(tmp_path):
    """Records and what they carry along are in the receiver's journal, side by side."""
    sealed, text = b"0123abcd.\n\n\0" * 1000, b"package a"
    entries = [
        policy_notice(1, named(text), text),
        ({"kind": "decision", "decision_id": "d", "sealed": named(sealed)}, sealed),
        ({"kind": "decision", "decision_id": "e"}, b""),
    ]

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            w.write(*entries)
            assert await w.forwarder.drain(10) == 0
            return receiver.payloads()

    assert [split(payload)[1] for payload in asyncio.run(run())] == [text, sealed, b""]


@pytest.mark.parametrize(
    "entry",
    [
        ({"kind": "decision", "sealed": named(b"x")}, b"y"),
        ({"kind": "decision", "sealed": named(b"x")}, b""),
        ({"kind": "decision"}, b"y"),
        (block_notice("", FAR, "r", "b", 1), b""),
        (block_notice("a", FAR, "r", "b", 1) | {"details": "{}"}, b""),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, entry):
    """An attachment that its record does not name, or a block that says too little, ends the
    stream; nothing of that batch is in the log, which tells that it is missing."""

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            w.write(({"kind": "decision"}, b""), entry)
            await until(lambda: w.forwarder.refusal)
            assert w.identity.writer in w.forwarder.refusal
            await until(lambda: receiver.journal.next)
            return [orjson.loads(payload) for payload in receiver.payloads()]

    assert {(told.get("event"), told.get("rule")) for told in asyncio.run(run())} == {
        ("gap", "writer_sequence")
    }


def test_blocks_reach_every_writer(tmp_path):
    """Whoever tells a block, all writers have it at once, also those that send nothing; a writer
    that connects later is told the whole set."""

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(Receiver(tmp_path))
            told = [Writer(tmp_path / name, receiver.address) for name in "ab"]
            for writer in told:
                await stack.enter_async_context(writer)
                await until(lambda writer=writer: writer.versions)
            teller = await stack.enter_async_context(Writer(tmp_path / "c", receiver.address))
            begun = time.monotonic()
            teller.write((block_notice("mallory", FAR, "r", "b", 1), b""))
            for writer in [*told, teller]:
                await until(lambda writer=writer: writer.blocked("mallory"))
            print(f"three writers after {1000 * (time.monotonic() - begun):.0f} ms")
            teller.write((block_notice("eve", FAR, "r", "b", 1), b""))
            late = await stack.enter_async_context(Writer(tmp_path / "d", receiver.address))
            await until(lambda: late.blocked("mallory") and late.blocked("eve"))
            teller.write((unblock_notice("mallory", "", "b", 1), b""))
            for writer in [*told, late]:
                await until(lambda writer=writer: not writer.blocked("mallory"))
                assert writer.blocked("eve")
                assert writer.versions == sorted(set(writer.versions)), "no set twice, none older"

    asyncio.run(run())


def test_blocks_outlive_the_receiver(tmp_path):
    """A writer goes on blocking without a receiver, also after its own restart; a receiver that
    comes back knows the same blocks, and writers hear of the next one again."""

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            w.write((block_notice("mallory", FAR, "r", "b", 1), b""))
            await until(lambda: w.blocked("mallory"))
        address = receiver.address
        async with Writer(tmp_path / "w", address) as w:
            assert w.blocked("mallory")
            await asyncio.sleep(0.5)
            async with Receiver(tmp_path):
                begun = time.monotonic()
                await until(lambda: w.versions)
                print(f"connected again after {time.monotonic() - begun:.2f} s")
                assert w.blocked("mallory")
                w.write((unblock_notice("mallory", "", "b", 1), b""))
                await until(lambda: not w.blocked("mallory"))

    asyncio.run(run())


def test_a_stream_that_was_cut_still_tells(tmp_path):
    """A block whose writer went away before the acknowledgement is in the log, and in force."""

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            await until(lambda: w.versions)
            for number in range(20):
                async with Writer(tmp_path / f"c{number}", receiver.address) as teller:
                    await until(lambda teller=teller: teller.forwarder.connected)
                    teller.write((block_notice(f"s{number}", FAR, "r", "b", 1), b""))
                    await asyncio.sleep(0.001 * (number % 5))
            await asyncio.sleep(0.5)
            standing = set(receiver.log.blocks.blocks)
            assert receiver.events().count("block") == len(standing)
            assert {f"s{n}" for n in range(20) if w.blocked(f"s{n}")} == standing

    asyncio.run(run())


def test_many_blocks(tmp_path):
    """A set larger than gRPC's own limit for a message arrives."""

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            reason = "r" * 500
            w.write(*[(block_notice(f"s{n}", FAR, reason, "b", 1), b"") for n in range(9000)])
            await until(lambda: w.blocked("s8999"), 60)
            assert w.blocked("s0")
            assert receiver.log.blocks.message(0).ByteSize() > 4 << 20

    asyncio.run(run())


def test_an_older_receiver(tmp_path):
    """A receiver that knows no blocks leaves those on the writer's disk in force."""
    assert pb.FromReceiver(ack=pb.Ack(seq=3)).WhichOneof("message") == "ack"
    blocks = Blocks.load(tmp_path / "blocks.json")
    standing = pb.Blocks(version=1, blocks=[pb.Block(subject="a", until_us=FAR)])
    blocks.replace(standing)
    assert Blocks.load(tmp_path / "blocks.json").find("a", now_us())


def test_tell(tmp_path, monkeypatch):
    """A command's records are in the log, chained and signed, before it ends; the next command of
    the same directory goes on with the chain."""

    async def run():
        async with Receiver(tmp_path) as receiver:
            receiver.log.pin_privacy_key("12345678")
            for event in ("first", "second"):
                record = notice(event, 1, {})
                done = await say(receiver.address, tmp_path / "mine", [record])
                assert done.origin == SIGNER.name
                place = receiver.log.writers[done.writer]
                assert place.seq == done.seq + 1, "and the signed head"
            return receiver.events()

    assert asyncio.run(run()) == ["writer_started", "first", "chain_head", "second", "chain_head"]


def test_tell_without_a_receiver(tmp_path, monkeypatch):
    """Without a receiver, or refused, nothing is written anywhere: it is not in force later."""
    monkeypatch.setattr(tell, "_SECONDS", 0.3)
    mine = tmp_path / "mine"

    async def run():
        with pytest.raises(UnavailableError, match="is it running"):
            await say(f"unix://{tmp_path}/nobody", mine, [notice("x", 1, {})])
        load_identity(mine / "writer.json").bind("another/log")
        async with Receiver(tmp_path) as receiver:
            with pytest.raises(UsageError, match="bound to another/log"):
                await say(receiver.address, mine, [notice("x", 1, {})])
            assert receiver.events() == []

    asyncio.run(run())
    journal = Journal(mine / "journal")
    assert journal.next == 1
    journal.close()


def test_tell_and_no_answer(tmp_path, monkeypatch):
    """A receiver whose disk fails acknowledges nothing, and the command says that it cannot tell;
    what it said goes first when the next one connects."""
    monkeypatch.setattr(tell, "_SECONDS", 0.5)
    mine = tmp_path / "mine"

    async def run():
        async with Receiver(tmp_path) as receiver:

            def fail(payloads):
                from authz.journal.segments import JournalError

                raise JournalError("no disk")

            append, receiver.journal.append = receiver.journal.append, fail
            with pytest.raises(UnavailableError, match="in force or not"):
                await say(receiver.address, mine, [block_notice("a", FAR, "r", "b", 1)])
            assert receiver.log.blocks.blocks == {}
            receiver.journal.append = append
            await say(receiver.address, mine, [unblock_notice("b", "", "b", 1)])
            assert set(receiver.log.blocks.blocks) == {"a"}
            return receiver.events()

    told = ["writer_started", "block", "chain_head", "unblock", "chain_head"]
    assert asyncio.run(run()) == told


def test_two_commands_at_once(tmp_path):
    """One directory serves one command at a time; the other is told so."""
    journal = Journal(tmp_path / "mine" / "journal")
    with pytest.raises(UsageError, match="in use"):
        asyncio.run(say("unix:///nobody", tmp_path / "mine", []))
    journal.close()


def test_a_hole_in_a_writers_sequence_is_told_once(tmp_path):
    """A writer whose records do not follow those in the log is refused, and the log says so."""

    async def run():
        async with Receiver(tmp_path) as receiver:
            hello = pb.Hello(writer="w", public_key=bytes(32), first_seq=7)
            for _ in range(3):
                async with opening(receiver.address)() as channel:
                    call = channel.stream_stream(
                        "/authz.v1.RecordStream/Write",
                        request_serializer=pb.FromWriter.SerializeToString,
                        response_deserializer=pb.FromReceiver.FromString,
                    )()
                    await call.write(pb.FromWriter(hello=hello))
                    assert await call.code() == grpc.StatusCode.DATA_LOSS
            await until(lambda: receiver.journal.next)
            [gap] = [orjson.loads(payload) for payload in receiver.payloads()]
            assert (gap["event"], gap["rule"]) == ("gap", "writer_sequence")
            assert orjson.loads(gap["details"])["source"] == "w"

    asyncio.run(run())


def test_under_way_while_the_clock_is_behind(tmp_path, monkeypatch):
    """A request that Envoy says is running counts as that, though the machine's clock was set back
    and the log's is ahead of it: else it would be told as one without access."""
    message = StreamAccessLogsMessage()
    common = message.http_logs.log_entry.add().common_properties
    common.access_log_type = AccessLogType.DownstreamPeriodic
    common.metadata.filter_metadata["envoy.filters.http.ext_authz"]["decision_id"] = "d"
    ahead = 3_600_000_000_000

    async def run():
        async with Receiver(tmp_path) as receiver:
            real = time.time_ns
            with monkeypatch.context() as patched:
                patched.setattr(time, "time_ns", lambda: real() + ahead)
                await receiver.committer.submit([(notice("n", 1, {}), b"")])
            receiver.intake._accesses(message, "sidecar-0")
            sealed = orjson.loads(split(receiver.payloads()[-1])[0])["sealed_at"]
            assert receiver.intake.under_way["d"] >= sealed

    asyncio.run(run())


async def read_out(call):
    """All that is said, and how it ended: as an error, if with one."""
    while await call.read() is not grpc.aio.EOF:
        pass


def test_a_newer_stream_of_a_writer(tmp_path):
    """It takes the older one's place at once, whose connection may have died without a word; what
    that one has sent is in the log once, and it is told why it ends."""

    async def run():
        async with Receiver(tmp_path) as receiver:
            async with Writer(tmp_path / "w", receiver.address) as w:
                w.write(*[({"kind": "decision", "decision_id": f"{n}"}, b"") for n in range(3)])
                assert await w.forwarder.drain(10) == 0
                hello = w.forwarder._hello()
            async with opening(receiver.address)() as channel:
                old = channel.stream_stream(
                    "/authz.v1.RecordStream/Write",
                    request_serializer=pb.FromWriter.SerializeToString,
                    response_deserializer=pb.FromReceiver.FromString,
                )()
                await old.write(pb.FromWriter(hello=hello))
                assert (await old.read()).welcome.taken_seq >= 3
                async with Writer(tmp_path / "w", receiver.address) as w:
                    await until(lambda: w.forwarder.connected)
                    w.write(({"kind": "decision", "decision_id": "last"}, b""))
                    assert await w.forwarder.drain(10) == 0
                    with pytest.raises(grpc.aio.AioRpcError, match="newer stream") as ended:
                        await asyncio.wait_for(read_out(old), 10)
                    assert ended.value.code() == grpc.StatusCode.ABORTED
                    assert w.forwarder.connected
            return [orjson.loads(split(payload)[0]) for payload in receiver.payloads()]

    told = [one["decision_id"] for one in asyncio.run(run()) if one.get("decision_id")]
    assert told == ["0", "1", "2", "last"]
